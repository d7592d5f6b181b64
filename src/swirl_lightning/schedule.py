"""Schedule of the phases by epoch, and of the learning rate within a phase."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from swirl_lightning.engine.ranges import check_ranges
from swirl_lightning.roles import Role


class PhaseName(StrEnum):
    """Kind of a phase; its value is its name in configurations and logs."""

    WARMUP = "warmup"
    """SFT of both models on labelled triples."""
    ONE = "fwm"
    """Phase I: the FWM is the policy, the IDM gives the reward."""
    TWO = "idm"
    """Phase II: the IDM is the policy, the FWM gives the reward."""
    BOOTSTRAP = "bootstrap"
    """Baseline: SFT of the FWM on pairs that the IDM has labelled."""

    @property
    def policy(self) -> Role | None:
        """Role of the model that RL trains in this phase, or None if the phase is supervised."""
        return {PhaseName.ONE: Role.FWM, PhaseName.TWO: Role.IDM}.get(self)

    @property
    def trains(self) -> tuple[Role, ...]:
        """Roles of the models that this phase trains; empty for the warm-up, which trains all that there are."""
        if self == PhaseName.WARMUP:
            return ()
        return (Role.IDM,) if self == PhaseName.TWO else (Role.FWM,)


WARMUP = PhaseName.WARMUP
PHASES = tuple(PhaseName)
ONE_PHASE = {("fwm",): "IDM→FWM", ("idm",): "FWM→IDM"}
"""Names in the paper (sections 4.1 and 4.2) of Phase I alone and of Phase II alone, run once."""


@dataclass(frozen=True)
class Phase:
    """Phase of one epoch.

    Attributes:
        name: kind of the phase.
        iteration: 0-based; 0 during warm-up.
        starts_iteration: True for the first phase of its iteration, which refreshes the references.
        ends: label of the result if warm-up or an iteration ends with this epoch, otherwise None.
    """

    name: PhaseName
    iteration: int = 0
    starts_iteration: bool = False
    ends: str | None = None


@dataclass(frozen=True)
class PhaseSchedule:
    """Schedule from epoch to phase: warm-up epochs, then the phases of an iteration in turn, repeatedly.

    Attributes:
        warmup_epochs: epochs of SFT; 0 starts with RL, on the adapters as they are.
        phases: the phases of one iteration: ``[fwm, idm]`` is the paper's iterative variant,
            with ``iterations: 1``, ``[fwm]`` is its IDM→FWM (Phase I alone) and ``[idm]`` its FWM→IDM.
        iterations: number of iterations; None goes on until ``max_epochs``.
    """

    warmup_epochs: int = 1
    phases: tuple[str, ...] = ("fwm", "idm")
    iterations: int | None = None

    def __post_init__(self) -> None:
        unknown = [p for p in self.phases if p not in PHASES or p == WARMUP]
        if unknown or not self.phases:
            known = [phase.value for phase in PHASES[1:]]
            raise ValueError(f"phases must be a non-empty list of {known}, got {list(self.phases)}")
        check_ranges("phase_switch", vars(self), warmup_epochs="whole [0, inf)", iterations="whole [0, inf) or null")
        if self.epochs == 0:
            raise ValueError("the schedule is empty: set warmup_epochs or iterations above 0")

    @property
    def epochs(self) -> int | None:
        """Number of epochs until the schedule ends, or None if it does not."""
        return None if self.iterations is None else self.warmup_epochs + self.iterations * len(self.phases)

    def at(self, epoch: int) -> Phase:
        """Return the phase of an epoch (0-based); past the end, the phases go on in turn."""
        if epoch < self.warmup_epochs:
            return Phase(WARMUP, ends="SFT" if epoch == self.warmup_epochs - 1 else None)
        iteration, place = divmod(epoch - self.warmup_epochs, len(self.phases))
        last = place == len(self.phases) - 1
        return Phase(PhaseName(self.phases[place]), iteration, place == 0, self._label(iteration) if last else None)

    def names(self, max_epochs: int | None = None, begin: int = 0) -> list[PhaseName]:
        """Return the phases of a run from an epoch on, each once, in the order in which they come first."""
        ends = [epochs for epochs in (self.epochs, max_epochs) if epochs is not None]
        last = min([max(begin, self.warmup_epochs) + len(self.phases), *ends])
        first = max(begin, min(self.warmup_epochs, last) - 1)  # the warm-up's last epoch: they may be many
        return list(dict.fromkeys(self.at(epoch).name for epoch in range(first, last)))

    def _label(self, iteration: int) -> str:
        """Return the label of the models after an iteration in result tables; a single phase has the paper's name."""
        if self.iterations == 1 and self.phases in ONE_PHASE:
            return ONE_PHASE[self.phases]
        method = "Bootstrap" if set(self.phases) == {"bootstrap"} else "SWIRL"
        return f"{method} iteration {iteration + 1}"


@dataclass(frozen=True)
class OptimConfig:
    """Learning rate of one phase.

    Attributes:
        lr: peak learning rate.
        warmup: optimiser steps of linear warm-up; below 1, a share of the phase's steps.
        schedule: ``cosine`` (to 0 at the end of the phase) or ``constant``.
    """

    lr: float = 1e-5
    warmup: float = 0.05
    schedule: str = "cosine"

    def __post_init__(self) -> None:
        if self.schedule not in ("cosine", "constant"):
            raise ValueError(f"model.optim: schedule must be cosine or constant, got {self.schedule!r}")
        check_ranges("model.optim", vars(self), lr="(0, inf)", warmup="[0, inf)")

    def check(self, name: str, total: int) -> None:
        """Refuse a warm-up that is longer than its phase of ``total`` optimiser steps; ``name`` is the config's.

        Raises:
            ValueError: the learning rate would never reach ``lr``.
        """
        if self.warmup > max(1, total):
            raise ValueError(
                f"model.optim.{name}: warmup has {self.warmup:g} steps and the phase {total}, so that the learning "
                f"rate would never reach {self.lr:g}: lower warmup (below 1 it is a share of the phase's steps), or "
                "let the phase have more steps"
            )

    def factor(self, step: int, total: int) -> float:
        """Compute the share of ``lr`` at the 0-based optimiser step of a phase of ``total`` steps."""
        warmup = self.warmup * total if self.warmup < 1 else self.warmup
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if self.schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1.0, total - warmup))))


@dataclass(frozen=True)
class PhaseOptimConfig:
    """Learning rates by phase.

    Attributes:
        warmup: both adapters during SFT: one curve over all warm-up epochs.
        fwm: Phase I.
        idm: Phase II.
        bootstrap: the phase of that name; None for ``fwm``.
    """

    warmup: OptimConfig = field(default_factory=lambda: OptimConfig(lr=2e-5))
    fwm: OptimConfig = field(default_factory=OptimConfig)
    idm: OptimConfig = field(default_factory=OptimConfig)
    bootstrap: OptimConfig | None = None

    def of(self, phase: PhaseName) -> OptimConfig:
        """Return the config of a phase."""
        found: OptimConfig = getattr(self, self.name_of(phase))
        return found

    def name_of(self, phase: PhaseName) -> str:
        """Return the name of the field that a phase uses."""
        return "fwm" if phase == PhaseName.BOOTSTRAP and self.bootstrap is None else phase


class PhaseLR(LRScheduler):
    """Scheduler with a learning-rate curve that begins anew with each phase; SFT has one curve over all of its epochs.

    Args:
        optimizer: its parameter groups all follow the same curve.
        configs: learning rates by phase.
    """

    def __init__(self, optimizer: Optimizer, configs: PhaseOptimConfig) -> None:
        self.configs = configs
        self.phase = WARMUP
        self.phase_step = 0
        self.phase_total = 1
        super().__init__(optimizer)

    def begin(self, phase: PhaseName, total_steps: int) -> None:
        """Start the curve of a phase of ``total_steps`` optimiser steps."""
        self.phase, self.phase_step, self.phase_total = phase, 0, max(1, total_steps)
        self._apply()

    def resize(self, total_steps: int) -> None:
        """Continue the curve of a phase that has another number of steps, ``total_steps``."""
        self.phase_total = max(1, total_steps)
        self._apply()

    def get_lr(self) -> list[float]:  # type: ignore[override]
        """Return the current learning rate of each parameter group."""
        config = self.configs.of(self.phase)
        return [config.lr * config.factor(self.phase_step, self.phase_total)] * len(self.optimizer.param_groups)

    def step(self, epoch: int | None = None) -> None:
        """Advance by one optimiser step."""
        self._step_count += 1
        self.phase_step += 1
        self._apply()

    def state_dict(self) -> dict[str, Any]:
        """Return primitives alone, so that checkpoints load with weights_only."""
        return {"phase": str(self.phase), "phase_step": self.phase_step, "phase_total": self.phase_total}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state of :meth:`state_dict`.

        Raises:
            ValueError: its phase is none, or its steps are no numbers of steps, as in a damaged checkpoint.
        """
        phase, self.phase_step, self.phase_total = (state_dict[key] for key in self.state_dict())
        steps = self.phase_step, self.phase_total
        if phase not in PHASES or not all(type(count) is int and count >= 0 for count in steps):
            raise ValueError(f"the checkpoint's place in the learning rate's curve is damaged: {str(state_dict)[:200]}")
        self.phase = PhaseName(phase)
        self._apply()

    def _initial_step(self) -> None:
        """Set the first learning rate: torch would take a step here, and a phase would begin at its second one."""
        self._step_count = 1
        self._apply()

    def _apply(self) -> None:
        for group, lr in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = lr
        self._last_lr = list(self.get_lr())
