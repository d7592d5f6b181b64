"""Gymnasium environments whose next states are predicted by a trained FWM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from swirl_lightning.engine.drawing import GREEDY
from swirl_lightning.engine.grammar import TokenIds
from swirl_lightning.engine.ranges import check_ranges
from swirl_lightning.transition import State
from swirl_lightning.use.rollout import check
from swirl_lightning.world_model_module import WorldModelModule

try:
    import gymnasium
    from gymnasium import spaces
    from gymnasium.utils.seeding import np_random
    from gymnasium.vector import AutoresetMode, VectorEnv
    from gymnasium.vector.utils import batch_space
except ImportError as error:
    raise ImportError("WorldModelEnv needs Gymnasium: pip install 'swirl-lightning[gym]'") from error

Reward = Callable[[State, str, State], float]
"""Reward of a step, from the state before, the action in words and the predicted state."""


class Words(spaces.Space[str]):
    """Space of all texts.

    Args:
        examples: what is sampled.
        seed: as in Gymnasium.
    """

    def __init__(self, examples: Sequence[str], seed: int | np.random.Generator | None = None) -> None:
        super().__init__((), np.str_, seed)
        self.examples = tuple(examples)

    def sample(self, mask: None = None, probability: None = None) -> str:
        """Return one of the examples."""
        return self.examples[int(self.np_random.integers(len(self.examples)))]

    def contains(self, x: Any) -> bool:
        """Tell whether this is a text."""
        return isinstance(x, str)

    @property
    def is_np_flattenable(self) -> bool:
        """False: a text is no array."""
        return False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Words)

    def __hash__(self) -> int:
        return hash(Words)


class WorldModelVectorEnv(VectorEnv[Any, Any, NDArray[Any]]):
    """Several rollouts of an FWM, which takes the step of all in one batched call.

    An observation is the state as the model has it, decoded from its tokens; so is a start. Images are uint8 arrays
    (H, W, 3), texts are words. The next state is predicted from these tokens. Where an episode has ended, the next
    step starts another one and ignores its action (Gymnasium's ``NEXT_STEP``).

    Args:
        model: a trained module, for example of :meth:`swirl_lightning.SWIRL.load_from_checkpoint`.
        starts: states of which a reset draws one.
        actions: in words; the action space is an index into them.
        reward: a number for each step.
        terminated: tells whether an episode ends in a state; None never ends one.
        num_envs: number of rollouts.
        max_steps: steps after which an episode is truncated; None sets no limit.
        greedy: take the likeliest token at each place instead of the run's ``sampling``.

    Raises:
        ImportError: Gymnasium is not installed.
        ValueError: the run has no FWM; there is no start or no action, or an action that the backbone cannot write; a
            number below 1.

    Example::

        envs = WorldModelVectorEnv(model, starts, ["turn left", "move forward"], reward, num_envs=16, max_steps=20)
        observations, infos = envs.reset(seed=0)  # (16, 48, 48, 3)
        observations, rewards, ends, cuts, infos = envs.step(envs.action_space.sample())
    """

    def __init__(
        self,
        model: WorldModelModule,
        starts: Sequence[State],
        actions: Sequence[str],
        reward: Reward,
        terminated: Callable[[State], bool] | None = None,
        *,
        num_envs: int = 1,
        max_steps: int | None = None,
        greedy: bool = False,
    ) -> None:
        check(model, actions, branches=1, best_of=1, greedy=greedy)
        given = {"num_envs": num_envs, "max_steps": max_steps}
        check_ranges("WorldModelEnv", given, num_envs="whole [1, inf)", max_steps="whole [1, inf) or null")
        if not len(starts):
            raise ValueError("no start is given: name at least one state")
        self.model, self.starts, self.actions = model, starts, list(actions)
        self.reward, self.terminated = reward, terminated
        self.num_envs, self.max_steps = num_envs, max_steps
        self.sampling = GREEDY if greedy else model.sampling
        (first,) = self._decode(self._encode([starts[0]]))
        self.render_mode = "ansi" if isinstance(first, str) else "rgb_array"
        self.metadata = {
            "render_modes": [self.render_mode],
            "render_fps": 4,
            "autoreset_mode": AutoresetMode.NEXT_STEP,
        }
        self.single_observation_space: spaces.Space[Any] = (
            Words([first]) if isinstance(first, str) else spaces.Box(0, 255, np.asarray(first).shape, np.uint8)
        )
        self.single_action_space = spaces.Discrete(len(self.actions))
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.states: list[State] = []
        self._x: list[TokenIds] = []
        self._randoms = [np_random()[0] for _ in range(num_envs)]
        self._steps = np.zeros(num_envs, dtype=np.int64)
        self._over = np.zeros(num_envs, dtype=bool)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start all episodes.

        Args:
            seed: of the first one, the others count on from it; or one for each.
            options: ``{"states": [...]}`` starts from these, one for each, instead of drawn ones.

        Raises:
            ValueError: there are not ``num_envs`` seeds or states, or the backbone does not read a state.
        """
        _check_options(options, "states")
        if seed is not None:
            seeds = [seed + n for n in range(self.num_envs)] if isinstance(seed, int) else list(seed)
            self._one_each("seeds", seeds)
            self._randoms = [
                own if given is None else np_random(given)[0] for given, own in zip(seeds, self._randoms, strict=True)
            ]
        states = (options or {}).get("states")
        states = [self._draw(n) for n in range(self.num_envs)] if states is None else list(states)
        self._one_each("states", states)
        self._x = self._encode(states)
        self.states = self._decode(self._x)
        self._steps[:], self._over[:] = 0, False
        return self._observations(), {}

    def step(
        self, actions: Sequence[int | str]
    ) -> tuple[Any, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Take an action in each rollout.

        Args:
            actions: an index into :attr:`actions`, or words, for each.

        Returns:
            Observations, rewards (N,), terminations (N,), truncations (N,), and an empty dictionary.

        Raises:
            RuntimeError: nothing has been reset.
            ValueError: an index or words that are no action, or not one for each rollout.
        """
        if not self._x:
            raise RuntimeError("call reset() before step()")
        self._one_each("actions", actions)
        words = [self._words(action) for action in actions]
        live, over = np.flatnonzero(~self._over).tolist(), np.flatnonzero(self._over).tolist()
        before = self.states
        if len(live):
            keys = [f"env|{self._randoms[n].integers(2**62)}" for n in live]
            z = [self.model.backbone.encode_action(words[n]) for n in live]
            y = self.model.models.fwm.sample([self._x[n] for n in live], z, keys, self.sampling).contents
            for n, state in zip(live, y, strict=True):
                self._x[n] = state
        if len(over):
            for n, state in zip(over, self._encode([self._draw(n) for n in over]), strict=True):
                self._x[n] = state
        self.states = self._decode(self._x)
        self._steps = np.where(self._over, 0, self._steps + 1)
        rewards, ends = np.zeros(self.num_envs), np.zeros(self.num_envs, dtype=bool)
        for n in live:
            rewards[n] = self.reward(before[n], words[n], self.states[n])
            ends[n] = self.terminated is not None and self.terminated(self.states[n])
        if not np.isfinite(rewards).all():
            raise ValueError(f"the reward of a step is no finite number, but {rewards[~np.isfinite(rewards)][0]}")
        cuts = np.zeros(self.num_envs, dtype=bool) if self.max_steps is None else self._steps >= self.max_steps
        self._over = ends | cuts
        return self._observations(), rewards, ends, cuts, {}

    def render(self) -> tuple[Any, ...]:
        """Return the states, as arrays (H, W, 3) or words."""
        return tuple(_shown(state) for state in self.states)

    def _words(self, action: int | str) -> str:
        if isinstance(action, str):
            if action not in self.actions:
                self.model.backbone.check_action(action)
            return action
        if not 0 <= int(action) < len(self.actions):
            raise ValueError(f"action {action} is none of the {len(self.actions)} actions, from 0 on")
        return self.actions[int(action)]

    def _one_each(self, what: str, given: Sequence[Any]) -> None:
        if len(given) != self.num_envs:
            raise ValueError(f"{len(given)} {what} for {self.num_envs} environments: give one for each")

    def _draw(self, n: int) -> State:
        return self.starts[int(self._randoms[n].integers(len(self.starts)))]

    def _encode(self, states: Sequence[State]) -> list[TokenIds]:
        return self.model.states.encode(states, self.model.device)

    def _decode(self, x: Sequence[TokenIds]) -> list[State]:
        return self.model.backbone.decode_states(x, self.model.device)

    def _observations(self) -> Any:
        if isinstance(self.states[0], Image.Image):
            return np.stack([np.asarray(state) for state in self.states])
        return tuple(self.states)


class WorldModelEnv(gymnasium.Env[Any, Any]):
    """One rollout of an FWM as a Gymnasium environment. Arguments and errors as :class:`WorldModelVectorEnv`.

    Args:
        model: a trained module.
        starts: states of which a reset draws one.
        actions: in words; the action space is an index into them.
        reward: a number for each step.
        terminated: tells whether an episode ends in a state; None never ends one.
        max_steps: steps after which an episode is truncated; None sets no limit.
        greedy: take the likeliest token at each place instead of the run's ``sampling``.

    Example::

        env = WorldModelEnv(model, starts, ["turn left", "move forward"], lambda x, z, y: float(done(y)), done)
        observation, info = env.reset(options={"state": Image.open("frame.png")})
        observation, reward, end, cut, info = env.step("move forward")
    """

    def __init__(
        self,
        model: WorldModelModule,
        starts: Sequence[State],
        actions: Sequence[str],
        reward: Reward,
        terminated: Callable[[State], bool] | None = None,
        *,
        max_steps: int | None = None,
        greedy: bool = False,
    ) -> None:
        self.envs = WorldModelVectorEnv(model, starts, actions, reward, terminated, max_steps=max_steps, greedy=greedy)
        self.observation_space = self.envs.single_observation_space
        self.action_space = self.envs.single_action_space
        self.render_mode = self.envs.render_mode
        self.metadata = {name: value for name, value in self.envs.metadata.items() if name != "autoreset_mode"}

    @property
    def state(self) -> State:
        """The present state, an image or a text.

        Raises:
            RuntimeError: nothing has been reset.
        """
        if not self.envs.states:
            raise RuntimeError("call reset() before you ask for the state")
        return self.envs.states[0]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode; ``options={"state": state}`` starts it there."""
        _check_options(options, "state")
        super().reset(seed=seed)
        state = (options or {}).get("state")
        observations, _ = self.envs.reset(seed=seed, options=None if state is None else {"states": [state]})
        return observations[0], {}

    def step(self, action: int | str) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take an action: an index into ``actions``, or words."""
        self.envs._over[:] = False  # the caller resets
        observations, rewards, ends, cuts, _ = self.envs.step([action])
        return observations[0], float(rewards[0]), bool(ends[0]), bool(cuts[0]), {}

    def render(self) -> Any:
        """Return the state, as an array (H, W, 3) or words."""
        return _shown(self.state)


def _check_options(options: dict[str, Any] | None, known: str) -> None:
    if unknown := [name for name in options or {} if name != known]:
        raise ValueError(f"reset has no option {unknown[0]!r}; it has {known!r}")


def _shown(state: State) -> Any:
    return state if isinstance(state, str) else np.asarray(state)
