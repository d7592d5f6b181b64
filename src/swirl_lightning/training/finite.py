"""Check that stops a run at the first reward, loss or gradient that is NaN or infinite, before an optimiser step.

Weights are checked behind it: the optimiser itself makes them NaN where its ``eps`` is 0 or its moments are broken.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn.utils import get_total_norm

from swirl_lightning.ranks import everywhere, over_ranks
from swirl_lightning.transition import Transition

_SHOWN = 5
_WITHOUT = "This step was not taken; the adapters and checkpoints are"
_WITH = "The optimiser made it so of finite gradients; checkpoints and exports are"


class FiniteCheck:
    """Check of rewards, losses and gradients. Collective: a value found on one rank stops all ranks.

    Each is checked once at each optimiser step: rewards before they become advantages, losses and gradients before the
    step.

    Args:
        module: names phase and step.
    """

    def __init__(self, module: LightningModule) -> None:
        self._module = module
        self._losses: list[tuple[Tensor, list[Transition]]] = []  # since the last optimiser step
        self._used: list[Transition] = []  # of the last optimiser step

    def check_rewards(self, rewards: Tensor, transitions: Sequence[Transition]) -> None:
        """Check (B * G,) rewards of the B transitions of a step, before they become advantages. Collective.

        Raises:
            FloatingPointError: on every rank; it names the transitions.
        """
        finite = rewards.isfinite()
        if everywhere(finite.all()):
            return
        groups = zip(rewards.view(len(transitions), -1).tolist(), finite.view(len(transitions), -1), strict=True)
        found = [
            f"{row.id!r} ({values[int((~good).nonzero()[0])]})"
            for row, (values, good) in zip(transitions, groups, strict=True)
            if not good.all()
        ]
        self._stop("the reward", "transitions", found, "look at model.reward and at these records")

    def keep(self, loss: Tensor, transitions: Sequence[Transition]) -> None:
        """Keep the loss of a micro-batch for :meth:`check_step`."""
        self._losses.append((loss.detach().isfinite(), list(transitions)))

    def clear(self) -> None:
        """Forget the micro-batches of a step that was not taken."""
        self._losses = []

    def check_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Check the losses kept and the gradients, before the optimiser uses them. Collective.

        Raises:
            FloatingPointError: on every rank; it names the records, or parameters if all losses are finite.
        """
        losses, self._losses = self._losses, []
        self._used = [row for _, rows in losses for row in rows]
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        checks = [finite for finite, _ in losses]
        # fp16 has a scaler, which skips a step whose gradients overflow: that is how it finds its scale
        scaled = getattr(self._module.trainer.precision_plugin, "scaler", None) is not None
        if gradients and not scaled:
            checks.append(get_total_norm(gradients, norm_type=float("inf")).isfinite())
        if everywhere(torch.stack(checks).all()):
            return
        broken = [repr(row.id) for finite, rows in losses if not finite for row in rows]
        cure = "look at these records, lower the learning rate or set trainer.gradient_clip_val"
        if any(over_ranks(bool(broken))):
            self._stop("the loss", "records", broken, cure)
        names = {id(p): name for name, p in self._module.named_parameters()}
        at = [
            names[id(p)]
            for group in optimizer.param_groups
            for p in group["params"]
            if p.grad is not None and not p.grad.isfinite().all()
        ]
        self._stop(f"the gradient of {_list(at)}", "records", [repr(row.id) for row in self._used], cure)

    def check_weights(self, optimizer: torch.optim.Optimizer) -> None:
        """Check what the optimiser has made of its parameters, before a checkpoint or an export holds it. Collective.

        Raises:
            FloatingPointError: on every rank; it names the records of the step.
        """
        moved = [p.detach() for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not moved or everywhere(get_total_norm(moved, norm_type=float("inf")).isfinite()):
            return
        cure = "look at model.optimizer (eps, for example) and at the learning rate"
        self._stop("the adapter", "records", [repr(row.id) for row in self._used], cure, taken=True)

    def _stop(self, what: str, kind: str, found: list[str], cure: str, taken: bool = False) -> NoReturn:
        found = [name for own in over_ranks(found) for name in own]
        phase: Any = self._module.phase
        raise FloatingPointError(
            f"{what} is not finite in phase {phase.name.value!r}, epoch {self._module.current_epoch}, optimiser step "
            f"{self._module.global_step + 1}, {kind} {_list(found)}. {_WITH if taken else _WITHOUT} those of the steps "
            f"before: {cure}, and resume with --ckpt_path last"
        )


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
