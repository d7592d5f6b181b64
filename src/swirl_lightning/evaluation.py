"""Validation and test: predictions of states and actions, sampled or greedy, and their metrics."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor
from torchmetrics import MeanMetric, MetricCollection

from swirl_lightning.backbones.base import Backbone
from swirl_lightning.data.token_cache import StateTokens
from swirl_lightning.engine.drawing import GREEDY, SamplingConfig
from swirl_lightning.engine.grammar import TokenIds
from swirl_lightning.engine.ranges import check_ranges
from swirl_lightning.generation_store import GenerationStore
from swirl_lightning.metrics.row_counts import row_counts
from swirl_lightning.roles import ROLES, Role
from swirl_lightning.transition import State, Transition
from swirl_lightning.world_models import WorldModel, WorldModels

MODES = ("sampled", "greedy")
MEANS = (
    "identifiability",
    "likelihood",
    *(f"{role}/log_prob" for role in ROLES),
    *(f"choice/{role}_accuracy" for role in ROLES),
)
"""Names of the means, the same on every rank; one without a transition is left out of the results."""

Listener = Callable[[str, Sequence[Transition], Sequence[State | None], Sequence[str | None]], None]
"""Function of the mode, transitions, predicted states and predicted actions (None where not predicted)."""


@dataclass(frozen=True)
class EvaluationConfig:
    """Settings of validation and test.

    Attributes:
        modes: ``sampled`` (as ``model.sampling`` says, not ``fwm_sampling`` or ``idm_sampling``; seeded) and / or
            ``greedy``.
        best_of: test-time verification: of this many sampled futures the one with the highest
            log Q(z | x, ŷ) is taken (in mode ``sampled``).
        seed: of all samples.
    """

    modes: tuple[str, ...] = MODES
    best_of: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = [mode for mode in self.modes if mode not in MODES]
        if unknown or not self.modes or len(set(self.modes)) < len(self.modes):
            raise ValueError(f"evaluation.modes must be among {list(MODES)}, each once, got {list(self.modes)}")
        check_ranges("model.evaluation", vars(self), best_of="whole [1, 100000]")
        if self.best_of > 1 and "sampled" not in self.modes:
            raise ValueError("evaluation.best_of chooses among samples: add sampled to evaluation.modes")


class Evaluator:
    """Runs both models on transitions and keeps the metrics of one evaluation.

    Where y is not known (``after`` is None), the FWM predicts it, and metrics that need y are left out. Two fields
    of a transition add to that:

    - ``turns``: later steps of a rollout. Step k starts from the model's own state of step k - 1, which takes the
      place of its ``before``.
    - ``choices``: a multiple-choice question. The answer of a model is the candidate of the highest mean
      log-probability: log Q(z | x, y) for ``choice/idm_accuracy``, log P(y | x, z) for ``choice/fwm_accuracy``.

    Args:
        models: both world models.
        backbone: decodes states and actions.
        states: tokens of states.
        config: modes, best of N and seed.
        sampling: temperature and truncation of the mode ``sampled``.
        roles: the models that are used; metrics that need the other one are left out.

    Attributes:
        generations: those to reuse and to add to; None generates everything.
        listeners: called with every batch of predictions.
    """

    generations: GenerationStore | None = None

    def __init__(
        self,
        models: WorldModels,
        backbone: Backbone,
        states: StateTokens,
        config: EvaluationConfig,
        sampling: SamplingConfig,
        roles: Sequence[Role] = ROLES,
    ) -> None:
        self._forward, self._inverse = Role.FWM in roles, Role.IDM in roles
        self._fwm, self._idm, self._backbone = models.fwm, models.idm, backbone
        self._states, self._config = states, config
        self._sampling = {"sampled": sampling, "greedy": GREEDY}
        self._metrics: dict[str, MetricCollection] = {}
        self._means: dict[str, MeanMetric] = {}
        self.listeners: list[Listener] = []

    def start(self, benchmark: Any, device: torch.device) -> None:
        """Begin an evaluation with new metrics from a benchmark's ``state_metrics()`` and ``action_metrics()``."""
        self._metrics = {}
        for mode in self._config.modes:
            if self._forward:
                self._metrics[f"fwm/{mode}"] = benchmark.state_metrics().to(device)
            if self._inverse:
                self._metrics[f"idm/{mode}"] = benchmark.action_metrics().to(device)
        self._means = {name: MeanMetric().to(device) for name in MEANS}

    def _tell(
        self,
        mode: str,
        transitions: Sequence[Transition],
        states: Sequence[State | None],
        words: Sequence[str | None],
    ) -> None:
        for listener in self.listeners:
            listener(mode, transitions, states, words)

    def step(self, transitions: Sequence[Transition], device: torch.device) -> None:
        """Predict and update the metrics. Transitions without a label do not count."""
        rows = [t for t in transitions if t.action]
        if not rows:
            return
        before, y = self._encode_states(rows, device)
        actions = [self._backbone.encode_action(row.action or "") for row in rows]
        known = [n for n, row in enumerate(rows) if row.after is not None]
        seen, x = [rows[n] for n in known], [before[n] for n in known]
        z = [actions[n] for n in known]
        forced = self._teacher_forced(seen, x, y, z) if seen else {}
        for mode in self._config.modes:
            states: list[State] = []
            words: list[str | None] = [None] * len(rows)
            if self._forward:
                futures = self._futures(rows, before, actions, mode)
                states = self._backbone.decode_states(futures, device)
                self._metrics[f"fwm/{mode}"].update(states, rows)
            if self._inverse and seen:
                guesses = self._sample(self._idm, seen, x, y, mode)
                for n, guess in zip(known, guesses, strict=True):
                    words[n] = self._backbone.decode_action(guess)
                self._metrics[f"idm/{mode}"].update([words[n] for n in known], seen)
            if mode == self._config.modes[0] and self._forward and self._inverse:
                # what is predicted right has been scored
                again = {n: forced[Role.IDM][k] for k, n in enumerate(known) if futures[n] == y[k]}
                self._means["identifiability"].update(self._identifiability(rows, before, futures, actions, again))
                if seen:
                    again = {n: forced[Role.FWM][n] for n in range(len(seen)) if guesses[n] == z[n]}
                    self._means["likelihood"].update(self._likelihood(seen, x, guesses, y, again))
            self._tell(mode, rows, states or [None] * len(rows), words)
            if self._forward:
                self._roll_on(rows, futures, states, mode, device)
        self._choose(rows, device)

    def _roll_on(
        self,
        rows: Sequence[Transition],
        futures: list[TokenIds],
        states: Sequence[State],
        mode: str,
        device: torch.device,
    ) -> None:
        """Predict later turns of rollouts, each from the ids of the model's own previous state."""
        live = [(row, x, state) for row, x, state in zip(rows, futures, states, strict=True)]
        turn = 0
        while live := [entry for entry in live if len(entry[0].turns) > turn]:
            steps = [replace(row.turns[turn], before=state) for row, _, state in live]
            actions = [self._backbone.encode_action(step.action or "") for step in steps]
            ids = self._futures(steps, [x for _, x, _ in live], actions, mode)
            predicted = self._backbone.decode_states(ids, device)
            self._metrics[f"fwm/{mode}"].update(predicted, steps)
            self._tell(mode, steps, predicted, [None] * len(steps))
            live = [(row, x, state) for (row, _, _), x, state in zip(live, ids, predicted, strict=True)]
            turn += 1

    def _choose(self, rows: Sequence[Transition], device: torch.device) -> None:
        """Score multiple choice: 1 if the right candidate is the likeliest, otherwise 0."""
        for row in rows:
            choices = row.choices
            if choices is None:
                continue
            x, y = self._states.encode([row.before, choices.after], device)
            actions = [self._backbone.encode_action(words) for words in choices.actions]
            count = len(actions)
            values = {}
            if self._inverse:
                values["idm"] = self._identifiability([row], [x] * count, [y] * count, actions)
            if self._forward:
                values["fwm"] = self._likelihood([row], [x] * count, actions, [y] * count)
            for role, value in values.items():
                right = int(value.argmax()) == choices.answer
                self._means[f"choice/{role}_accuracy"].update(float(right))

    def compute(self) -> dict[str, Tensor]:
        """Compute all metrics over all ranks: ``fwm/<mode>/<metric>``, ``idm/<mode>/<metric>`` and means.

        ``identifiability`` is E[log Q(z | x, ŷ)], ``likelihood`` E[log P(y | x, ẑ)], in nats per token.
        """
        with warnings.catch_warnings():  # which a rank without rows gives, though the others have some
            warnings.filterwarnings("ignore", message=".*was called before the ``update``")
            values = {f"{name}/{key}": v for name, m in self._metrics.items() for key, v in m.compute().items()}
            means = {name: mean.compute() for name, mean in self._means.items()}
        found = values | {name: mean for name, mean in means.items() if not mean.isnan()}  # NaN: no transition
        if not any(math.isnan(float(value)) for value in values.values()):
            return found
        counts = self.row_counts()  # of others NaN tells of a defect
        return {name: v for name, v in found.items() if counts.get(name, 1) or not math.isnan(float(v))}

    def row_counts(self) -> dict[str, int]:
        """Count the transitions behind the benchmark's values of :meth:`compute`, by the same names. Collective."""
        return {f"{name}/{key}": n for name, m in self._metrics.items() for key, n in row_counts(m).items()}

    def predict(self, transitions: Sequence[Transition], device: torch.device) -> list[dict[str, Any]]:
        """Predict one row per transition: its id, its action, the IDM's action and the FWM's next state.

        The FWM follows the record's own action where there is one, else the IDM's. The IDM predicts where y is
        known. Predictions of a model that is not used are left out.

        Raises:
            ValueError: a record lacks a field that the models start from.
        """
        mode = self._config.modes[0]
        for row in transitions:
            self._check_predictable(row)
        before, after = self._encode_states(transitions, device)
        known = [n for n, row in enumerate(transitions) if row.after is not None]
        found: list[dict[str, Any]] = [{"id": t.id, "action": t.action} for t in transitions]
        words: list[str | None] = [None] * len(transitions)
        states: list[State | None] = [None] * len(transitions)
        actions = [self._backbone.encode_action(t.action or "") for t in transitions]
        if self._inverse and known:
            rows, x = [transitions[n] for n in known], [before[n] for n in known]
            guesses = self._sample(self._idm, rows, x, after, mode)
            for n, guess in zip(known, guesses, strict=True):
                found[n]["predicted_action"] = words[n] = self._backbone.decode_action(guess)
                actions[n] = actions[n] if transitions[n].action else guess
        if self._forward:
            futures = self._futures(transitions, before, actions, mode)
            for n, state in enumerate(self._backbone.decode_states(futures, device)):
                found[n]["predicted_state"] = states[n] = state
        self._tell("predict", transitions, states, words)
        return found

    # ---- parts -----------------------------------------------------------------------------------
    def _check_predictable(self, row: Transition) -> None:
        if not row.action and row.after is None:
            raise ValueError(f"record {row.id!r} has neither an action nor a state after: give it one of them")
        if not row.action and not self._inverse:
            raise ValueError(
                f"record {row.id!r} has no action for the FWM to follow: give it one, or ask both models (roles)"
            )
        if row.after is None and not self._forward:
            raise ValueError(
                f"record {row.id!r} has no state after for the IDM to read: give it one, or ask both models (roles)"
            )

    def _encode_states(self, rows: Sequence[Transition], device: torch.device) -> tuple[list[TokenIds], list[TokenIds]]:
        """Encode every x, and every y that is known."""
        ids = self._states.encode([t.before for t in rows] + [t.after for t in rows if t.after is not None], device)
        return ids[: len(rows)], ids[len(rows) :]

    def _sample(
        self,
        model: WorldModel,
        rows: Sequence[Transition],
        before: list[TokenIds],
        condition: list[TokenIds],
        mode: str,
        count: int = 1,
    ) -> list[TokenIds]:
        """Sample ``count`` contents of each row, those of a row side by side; known ones come from the store."""
        store, found = self.generations, cast(list[list[TokenIds] | None], [None] * len(rows))
        names = [""] * len(rows)
        if store is not None:
            prompts = model.prompts(before, condition)
            names = [store.key(model.role, mode, t.id, count, prompt) for t, prompt in zip(rows, prompts, strict=True)]
            found = [store.get(name, count) for name in names]
        if fresh := [n for n, samples in enumerate(found) if samples is None]:
            x, given = [before[n] for n in fresh], [condition[n] for n in fresh]
            keys = [f"eval|{self._config.seed}|{model.role}|{rows[n].id}" for n in fresh]
            contents = model.sample(x, given, keys, self._sampling[mode], group=count).contents
            groups = [contents[start : start + count] for start in range(0, len(contents), count)]
            if store is not None:
                store.put([names[n] for n in fresh], groups)
            for n, group in zip(fresh, groups, strict=True):
                found[n] = group
        return [ids for group in found if group is not None for ids in group]

    def _futures(
        self, rows: Sequence[Transition], before: list[TokenIds], actions: list[TokenIds], mode: str
    ) -> list[TokenIds]:
        count = self._config.best_of if mode == "sampled" else 1
        futures = self._sample(self._fwm, rows, before, actions, mode, count)
        if count == 1:
            return futures
        value = self._identifiability(rows, before, futures, actions)
        best = value.view(-1, count).argmax(1).tolist()
        return [futures[n * count + k] for n, k in enumerate(best)]

    def _identifiability(
        self,
        rows: Sequence[Transition],
        before: list[TokenIds],
        futures: list[TokenIds],
        actions: list[TokenIds],
        again: Mapping[int, Tensor] = {},
    ) -> Tensor:
        """Compute mean log Q(z | x, ŷ) per token, (N,), but for those of ``again``, which are known."""
        return self._scored(self._idm, rows, (actions, before, futures), again)

    def _likelihood(
        self,
        rows: Sequence[Transition],
        before: list[TokenIds],
        actions: list[TokenIds],
        after: list[TokenIds],
        again: Mapping[int, Tensor] = {},
    ) -> Tensor:
        """Compute mean log P(y | x, ẑ) per token, (N,), but for those of ``again``, which are known."""
        return self._scored(self._fwm, rows, (after, before, actions), again)

    def _scored(
        self,
        model: WorldModel,
        rows: Sequence[Transition],
        given: tuple[list[TokenIds], list[TokenIds], list[TokenIds]],
        again: Mapping[int, Tensor],
    ) -> Tensor:
        if not again:
            return _checked(model.log_prob(*given).mean_per_token(), rows, model.role)
        values = dict(again)
        if left := [n for n in range(len(rows)) if n not in again]:
            target, before, condition = ([part[n] for n in left] for part in given)
            scored = model.log_prob(target, before, condition).mean_per_token()
            values |= dict(zip(left, _checked(scored, [rows[n] for n in left], model.role), strict=True))
        return torch.stack([values[n] for n in range(len(rows))])

    def _teacher_forced(
        self,
        rows: Sequence[Transition],
        before: list[TokenIds],
        after: list[TokenIds],
        actions: list[TokenIds],
    ) -> dict[Role, Tensor]:
        """Score the true states and actions; return the means (N,) of each model that is evaluated."""
        found = {}
        if self._forward:
            found[Role.FWM] = self._likelihood(rows, before, actions, after)
        if self._inverse:
            found[Role.IDM] = self._identifiability(rows, before, after, actions)
        for role, values in found.items():
            self._means[f"{role}/log_prob"].update(values)
        return found


def _checked(values: Tensor, rows: Sequence[Transition], role: Role) -> Tensor:
    """Return the log-probabilities, (N,); each of the rows has the same number of them, side by side.

    Raises:
        ValueError: one is not a number: means would leave it out, and the highest of several would be it.
    """
    broken = values.isnan()
    if broken.any():
        row = rows[int(broken.nonzero()[0]) * len(rows) // len(values)]
        raise ValueError(
            f"record {row.id!r}: the {role.upper()}'s log-probability is not a number. Its weights are damaged, or "
            "numbers overflow in this precision: try another checkpoint, or bf16-mixed or 32-true as precision"
        )
    return values
