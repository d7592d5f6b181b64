"""Logic of ``swirl play``: a state, predicted next states to go on from, undo, the truth, and named actions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from swirl_lightning.data.simulator import Simulator
from swirl_lightning.engine.ranges import check_ranges
from swirl_lightning.roles import Role
from swirl_lightning.transition import State, Transition
from swirl_lightning.use.labels import Label, label
from swirl_lightning.use.rollout import Step, check, simulate
from swirl_lightning.world_model_module import WorldModelModule

MOST = 16
"""Most next states of a model at a time."""


@dataclass(frozen=True)
class _Moment:
    """Point that undo comes back to: the state, and the actions that led to it from the start."""

    state: State
    actions: tuple[str, ...]


class Game:
    """Play with trained models, one beside the other.

    Args:
        models: by name, in eval mode.
        world: true world that stands beside, None where there is none.

    Attributes:
        start: state of the last :meth:`begin`.
        state: present state, a start or a chosen prediction.
        actions: that led there from the start.
        action: the last one that was predicted for, empty before.
        predicted: by model, its next states with their scores.
        true: state of the true world after :attr:`actions` and :attr:`action`; None where it is not known.
        note: why it is not known, or empty.

    Raises:
        ValueError: there is no model, or one without FWM.
    """

    def __init__(self, models: dict[str, WorldModelModule], world: Simulator | None = None) -> None:
        if not models:
            raise ValueError("no model is given: name at least one run")
        if bare := [name for name, model in models.items() if Role.FWM not in model.roles]:
            raise ValueError(f"next states come from the FWM, and {bare[0]} has none (model.roles)")
        self.models, self.world = models, world
        self.start: State | None = None
        self._past: list[_Moment] = []
        self.action, self.note = "", ""
        self.predicted: dict[str, list[Step]] = {}
        self.true: State | None = None

    @property
    def state(self) -> State | None:
        """Present state; None before :meth:`begin`."""
        return self._past[-1].state if self._past else None

    @property
    def actions(self) -> tuple[str, ...]:
        """Actions that led to the present state."""
        return self._past[-1].actions if self._past else ()

    def begin(self, state: State) -> None:
        """Start from a state.

        Raises:
            ValueError: a backbone does not read it.
        """
        for model in self.models.values():
            model.states.encode([state], model.device)
        self.start, self._past = state, [_Moment(state, ())]
        self._clear()

    def act(self, action: str, count: int = 4, seed: int = 0) -> None:
        """Predict ``count`` next states with every model.

        Raises:
            ValueError: there is no start yet, an action that a backbone cannot write, or a count that is not 1 to 16.
        """
        present = self._present()
        check_ranges("play", {"count": count, "seed": seed}, count=f"whole [1, {MOST}]", seed="whole [0, inf)")
        for model in self.models.values():
            check(model, [action], branches=count, best_of=1, greedy=False)
        predicted = {}
        for name, model in self.models.items():
            rollouts = simulate(model, present, [action], branches=count, seed=seed)
            predicted[name] = [steps[0] for steps in rollouts]
        self.action, self.predicted = action, predicted
        self.true, self.note = self._truth([*self.actions, action])

    def choose(self, name: str, place: int) -> None:
        """Go on from a predicted state, by its model and place (from 0), or from the true one: ``("true", 0)``.

        Raises:
            ValueError: there is none.
        """
        if name == "true" and self.true is not None:
            state = self.true
        elif 0 <= place < len(self.predicted.get(name, [])):
            state = self.predicted[name][place].state
        else:
            raise ValueError(f"no state {place + 1} of {name!r} to go on from: act first")
        self._past.append(_Moment(state, (*self.actions, self.action)))
        self._clear()

    def undo(self) -> None:
        """Take back the last choice, or forget the predictions.

        Raises:
            ValueError: there is nothing to take back.
        """
        if not self.predicted and len(self._past) < 2:
            raise ValueError("nothing to take back")
        if not self.predicted:
            self._past.pop()
        self._clear()

    def explain(self, after: State) -> dict[str, Label]:
        """Name, by each model with an IDM, what happened between the present state and ``after``.

        Raises:
            ValueError: there is no start yet, no IDM, or a state that a backbone does not read.
        """
        pair = Transition(self._present(), after, id="play")
        found = {
            name: label(model, [pair], alternatives=2)[0]
            for name, model in self.models.items()
            if Role.IDM in model.roles
        }
        if not found:
            raise ValueError("actions are named by the IDM, and no run has one (model.roles)")
        return found

    def _present(self) -> State:
        if self.state is None:
            raise ValueError("there is no state yet: choose or upload one first")
        return self.state

    def _clear(self) -> None:
        self.action, self.note, self.predicted, self.true = "", "", {}, None

    def _truth(self, actions: Sequence[str]) -> tuple[State | None, str]:
        if self.world is None or self.start is None:
            return None, ""
        try:
            state = self.world.states(self.start, actions)[-1]
        except ValueError as error:
            return None, str(error)
        return state, "" if state is not None else f"{self.world.name} cannot tell the state any more"
