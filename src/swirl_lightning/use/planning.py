"""Planning: actions that lead to a goal, found in a world model and carried out in the true world."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from swirl_lightning.data.simulator import Simulator
from swirl_lightning.data.token_cache import state_key
from swirl_lightning.engine.drawing import GREEDY
from swirl_lightning.engine.ranges import check_ranges
from swirl_lightning.roles import Role
from swirl_lightning.transition import State
from swirl_lightning.world_model_module import WorldModelModule


class Goal(Protocol):
    """Goal of a plan: the actions to choose among, and the distance to it."""

    def actions(self, state: State) -> Sequence[str]:
        """Return the actions to choose among, in words; none where a plan ends."""

    def distance(self, state: State) -> float:
        """Tell how far it is to the goal: 0 where it is reached."""


Search = Literal["shooting", "beam"]

Node = Hashable
"""State as a model of the world has it."""


class Dynamics(ABC):
    """Model of the world for planning; each different pair of a node and an action is asked once.

    Attributes:
        asked: number of pairs that were asked.
    """

    def __init__(self) -> None:
        self._next: dict[tuple[Node, str], Node] = {}
        self._shown: dict[Node, State] = {}

    @property
    def asked(self) -> int:
        """Number of different pairs that were predicted."""
        return len(self._next)

    def next(self, pairs: Sequence[tuple[Node, str]]) -> list[Node]:
        """Return the node after each action, all new ones from one call."""
        new = list(dict.fromkeys(pair for pair in pairs if pair not in self._next))
        if new:
            self._next.update(zip(new, self._predict(new), strict=True))
        return [self._next[pair] for pair in pairs]

    def show(self, nodes: Sequence[Node]) -> list[State]:
        """Return the states of nodes."""
        new = list(dict.fromkeys(node for node in nodes if node not in self._shown))
        if new:
            self._shown.update(zip(new, self._decode(new), strict=True))
        return [self._shown[node] for node in nodes]

    @abstractmethod
    def read(self, states: Sequence[State]) -> list[Node]:
        """Return the nodes of states."""

    @abstractmethod
    def _predict(self, pairs: Sequence[tuple[Node, str]]) -> list[Node]: ...

    @abstractmethod
    def _decode(self, nodes: Sequence[Node]) -> list[State]: ...


class FWMDynamics(Dynamics):
    """The FWM's likeliest next states, token by token; a node is the tokens of a state.

    Args:
        model: a trained module.
        batch_size: most pairs in a forward pass.

    Raises:
        ValueError: the run has no FWM.
    """

    def __init__(self, model: WorldModelModule, batch_size: int = 256) -> None:
        super().__init__()
        if Role.FWM not in model.roles:
            raise ValueError("next states come from the FWM, and this run has none (model.roles)")
        self.model, self.batch_size = model, batch_size

    def read(self, states: Sequence[State]) -> list[Node]:
        """Encode states."""
        return [tuple(ids) for ids in self.model.states.encode(states, self.model.device)]

    def _predict(self, pairs: Sequence[tuple[Node, str]]) -> list[Node]:
        found: list[Node] = []
        for start in range(0, len(pairs), self.batch_size):
            x, words = zip(*pairs[start : start + self.batch_size], strict=True)
            z = [self.model.backbone.encode_action(action) for action in words]
            y = self.model.models.fwm.sample([list(ids) for ids in x], z, [""] * len(z), GREEDY)
            found += [tuple(ids) for ids in y.contents]
        return found

    def _decode(self, nodes: Sequence[Node]) -> list[State]:
        return self.model.backbone.decode_states([list(ids) for ids in nodes], self.model.device)  # type: ignore[call-overload]


class TrueDynamics(Dynamics):
    """The true world as a model of itself: the upper bound of planning. Where it cannot go on, nothing changes.

    Args:
        world: the simulator.
    """

    def __init__(self, world: Simulator) -> None:
        super().__init__()
        self.world = world

    def read(self, states: Sequence[State]) -> list[Node]:
        """Name states by their content."""
        nodes = [state_key(state) for state in states]
        self._shown.update(zip(nodes, states, strict=True))
        return list(nodes)

    def _predict(self, pairs: Sequence[tuple[Node, str]]) -> list[Node]:
        states = [self.world.states(self._shown[node], [action])[0] for node, action in pairs]
        return [
            node if state is None else self.read([state])[0] for (node, _), state in zip(pairs, states, strict=True)
        ]

    def _decode(self, nodes: Sequence[Node]) -> list[State]:
        raise AssertionError("every node has been read")


@dataclass(frozen=True)
class PlanConfig:
    """Settings of :func:`plan`.

    Attributes:
        method: ``beam`` expands every action of the nodes that are nearest to the goal, no node twice; ``shooting``
            draws each action of a sequence at random. With ``width`` and ``depth`` 1, that is the random policy.
        width: nodes that are kept at each depth, or sequences.
        depth: most actions of a plan.
        seed: of what is drawn.
    """

    method: Search = "beam"
    width: int = 16
    depth: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        check_ranges("plan", vars(self), width="whole [1, inf)", depth="whole [1, inf)", seed="whole [0, inf)")
        if self.method not in ("beam", "shooting"):
            raise ValueError(f"plan.method must be 'beam' or 'shooting', got {self.method!r}")


@dataclass(frozen=True)
class Plan:
    """Actions, and the state that the dynamics predict after each.

    Attributes:
        actions: in words; none where the goal gives none, or is reached.
        states: one for each action.
        distance: of the last state to the goal.
    """

    actions: list[str]
    states: list[State]
    distance: float


@dataclass(frozen=True)
class _Path:
    """A way from the start: its problem's number, its nodes and actions, and the distance at its end."""

    problem: int
    nodes: tuple[Node, ...]
    actions: tuple[str, ...]
    distance: float


def plan(
    dynamics: Dynamics,
    states: Sequence[State],
    goals: Sequence[Goal],
    config: PlanConfig = PlanConfig(),
    random: np.random.Generator | None = None,
) -> list[Plan]:
    """Plan for several goals at once; a depth of all searches is one call of the dynamics.

    A plan ends at the node that is nearest to the goal; of equal ones, at the first.

    Args:
        dynamics: in which plans are made.
        states: where they start.
        goals: one for each state.
        config: the search.
        random: source of what is drawn; None makes it from ``config.seed``.

    Example::

        (found,) = plan(FWMDynamics(model), [frame], [MiniGridGoal("fetch", "red key")])
        found.actions  # ["move forward", "turn left", "pick up the red key"]
    """
    random = np.random.default_rng(config.seed) if random is None else random
    roots = [_Path(n, (node,), (), math.inf) for n, node in enumerate(dynamics.read(states))]
    best: list[_Path | None] = [None] * len(roots)
    open_ = {n for n, (goal, state) in enumerate(zip(goals, states, strict=True)) if goal.distance(state) > 0}
    seen = {(path.problem, path.nodes[0]) for path in roots}
    paths = [path for path in roots if path.problem in open_]
    if config.method == "shooting":
        paths = [path for path in paths for _ in range(config.width)]
    for depth in range(config.depth):
        ways = []
        present = [path.nodes[-1] for path in paths]
        # the first choice is made in the true state, as it is carried out there
        shown = [states[path.problem] for path in paths] if depth == 0 else dynamics.show(present)
        for path, state in zip(paths, shown, strict=True):
            actions = list(goals[path.problem].actions(state))
            if config.method == "shooting" and actions:
                actions = [actions[int(random.integers(len(actions)))]]
            ways += [(path, action) for action in actions]
        after = dynamics.next([(path.nodes[-1], action) for path, action in ways])
        paths = []
        for (path, action), node, state in zip(ways, after, dynamics.show(after), strict=True):
            if config.method == "beam" and (path.problem, node) in seen:
                continue
            seen.add((path.problem, node))
            distance = goals[path.problem].distance(state)
            paths.append(_Path(path.problem, (*path.nodes, node), (*path.actions, action), distance))
        for path in paths:
            known = best[path.problem]
            if known is None or path.distance < known.distance:
                best[path.problem] = path
        open_ -= {path.problem for path in paths if path.distance == 0}
        paths = [path for path in paths if path.problem in open_ and path.distance < math.inf]
        if config.method == "beam":
            paths = _nearest(paths, config.width)
        if not paths:
            break
    return [
        Plan([], [], 0.0 if goal.distance(state) == 0 else math.inf)
        if path is None
        else Plan(list(path.actions), dynamics.show(path.nodes[1:]), path.distance)
        for path, goal, state in zip(best, goals, states, strict=True)
    ]


def _nearest(paths: Sequence[_Path], width: int) -> list[_Path]:
    """Keep the ``width`` nearest paths of each problem."""
    kept: dict[int, int] = {}
    found = []
    for path in sorted(paths, key=lambda path: path.distance):
        kept[path.problem] = kept.get(path.problem, 0) + 1
        if kept[path.problem] <= width:
            found.append(path)
    return found


@dataclass
class Episode:
    """Outcome of a goal in the true world.

    Attributes:
        actions: that were taken.
        states: true states, the start first.
        reached: whether the last one is the goal.
        plans: number of plans that were made.
    """

    actions: list[str]
    states: list[State]
    reached: bool = False
    plans: int = 0


def pursue(
    dynamics: Dynamics,
    world: Simulator,
    states: Sequence[State],
    goals: Sequence[Goal],
    config: PlanConfig = PlanConfig(),
    max_steps: int = 20,
) -> list[Episode]:
    """Plan, act in the true world, and plan anew where it is not as predicted or the plan has ended.

    Args:
        dynamics: in which plans are made.
        world: in which they are carried out.
        states: true states to start from.
        goals: one for each state.
        config: the search.
        max_steps: actions after which a goal is given up.
    """
    check_ranges("pursue", {"max_steps": max_steps}, max_steps="whole [1, inf)")
    random = np.random.default_rng(config.seed)
    episodes = [Episode([], [s], goal.distance(s) == 0) for s, goal in zip(states, goals, strict=True)]
    left: list[list[tuple[str, State]]] = [[] for _ in episodes]  # of each plan
    live = {n for n, episode in enumerate(episodes) if not episode.reached}
    for _ in range(max_steps):
        idle = sorted(n for n in live if not left[n])
        found = plan(dynamics, [episodes[n].states[-1] for n in idle], [goals[n] for n in idle], config, random)
        for n, own in zip(idle, found, strict=True):
            left[n] = list(zip(own.actions, own.states, strict=True))
            episodes[n].plans += 1
        for n in sorted(live):
            episode = episodes[n]
            action, predicted = left[n].pop(0) if left[n] else ("", "")
            state = world.states(episode.states[0], [*episode.actions, action])[-1] if action else None
            if state is None:  # no plan, or the world ends here
                live.discard(n)
                continue
            episode.actions.append(action)
            episode.states.append(state)
            episode.reached = goals[n].distance(state) == 0
            if episode.reached:
                live.discard(n)
            elif not world.same(predicted, state):
                left[n] = []
    return episodes
