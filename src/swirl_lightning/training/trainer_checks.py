"""Checks that refuse Trainer settings under which SWIRL cannot be trained, before a model is loaded."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
    ModelPruning,
    OnExceptionCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from swirl_lightning.backbones.base import Backbone
from swirl_lightning.engine.ranges import check_ranges
from swirl_lightning.ranks import over_ranks
from swirl_lightning.roles import Role
from swirl_lightning.schedule import PhaseName, PhaseSchedule

_OF_ONE_PHASE = (BatchSizeFinder, LearningRateFinder, ModelPruning, StochasticWeightAveraging, WeightAveraging)


def check_fit(module: Any) -> None:
    """Refuse settings of a SWIRL module that cannot be trained, before its base is loaded.

    Raises:
        ValueError: the first of them.
    """
    check_schedule(module.scheduled, module.schedule.iterations, module.roles)
    check_optimizer(module.optimizer_factory, 1 if module.shared_weights else 2, module.trainer)
    check_callbacks(module.trainer)
    check_labels_once(module.bootstrap_labels, module.schedule, module.shared_weights)
    check_state_noise(module.idm_state_noise, module.backbone)
    module.reward.check(module.backbone)


def check_schedule(scheduled: bool, iterations: int | None, roles: Sequence[Role]) -> None:
    """Refuse a fit without phases, and reinforcement learning with one model.

    Raises:
        ValueError: it is one of them.
    """
    if not scheduled:
        raise ValueError("SWIRL trains in phases: add swirl_lightning.callbacks.PhaseSwitch to the callbacks")
    if len(set(roles)) == 1 and iterations != 0:
        raise ValueError(
            f"roles {[role.value for role in roles]} has one model, and RL needs both: set iterations of "
            "PhaseSwitch to 0"
        )


def check_trainer(trainer: Trainer) -> None:
    """Refuse numbers that Lightning takes, and fails on when the base is loaded; and strategies, as `check_strategy`.

    Raises:
        ValueError: one lies outside its range, SWIRL cannot be trained with the strategy, or a foreign checkpoint would
            be taken.
    """
    interval = getattr(trainer, "val_check_interval", None)  # Lightning sets none for a time
    sanity = min(trainer.num_sanity_val_steps, 2**31)  # infinite where all batches are asked for
    limits = {"min_epochs": trainer.min_epochs, "min_steps": trainer.min_steps, "num_sanity_val_steps": sanity}
    check_ranges(
        "trainer",
        vars(trainer) | limits,
        accumulate_grad_batches="[1, inf)",
        gradient_clip_val="[0, inf) or null",  # below 0, gradients would be turned round
        check_val_every_n_epoch="[1, inf) or null",
        log_every_n_steps="[0, inf)",
        min_epochs="[0, inf) or null",
        min_steps="[0, inf) or null",
        num_sanity_val_steps="[0, inf)",
        **({"val_check_interval": "(0, inf)"} if isinstance(interval, int | float) else {}),
    )
    check_strategy(trainer.strategy)
    _check_requeued(Path(trainer.default_root_dir))


def _check_requeued(folder: Path) -> None:
    """Raise ValueError if Lightning would go on from a checkpoint that it writes under SLURM, and SWIRL does not."""
    for path in folder.glob("hpc_ckpt_*") if SLURMEnvironment.detect() else ():
        raise ValueError(
            f"{path}: under SLURM, Lightning would go on from this file, which no run of SWIRL writes: remove it; a "
            "run that is requeued goes on with --ckpt_path last"
        )


def dummy_optimizer(build: Callable[[Any], torch.optim.Optimizer], groups: int) -> torch.optim.Optimizer:
    """Build an optimiser on weights of its own, for its options.

    Args:
        build: makes it from parameter groups.
        groups: number of them.

    Raises:
        ValueError: it does not take its options.
    """
    try:
        return build([{"params": [torch.nn.Parameter(torch.zeros(2, 2))]} for _ in range(groups)])
    except ValueError as error:
        raise ValueError(f"model.optimizer: {error}") from error


def check_optimizer(build: Callable[[Any], torch.optim.Optimizer], groups: int, trainer: Trainer) -> None:
    """Refuse an optimiser whose options it does not take itself, are not finite, or do not go with the Trainer's.

    A learning rate of its own is told to have no effect.

    Args:
        build: makes it from parameter groups.
        groups: number of them.
        trainer: clips the gradients.

    Raises:
        ValueError: it is one of them.
    """
    optimizer = dummy_optimizer(build, groups)
    for name, value in optimizer.param_groups[0].items():
        numbers = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            raise ValueError(f"model.optimizer.{name} must be finite, got {value}")
    rate, usual = optimizer.param_groups[0].get("lr"), signature(type(optimizer)).parameters.get("lr")
    if usual is not None and usual.default is not usual.empty and rate != usual.default:
        rank_zero_warn(f"model.optimizer: lr {rate} has no effect: learning rates are those of model.optim, by phase")
    scales = str(trainer.precision) == "16-mixed" and getattr(optimizer, "_step_supports_amp_scaling", False)
    if scales and trainer.gradient_clip_val:
        raise ValueError(
            "trainer.gradient_clip_val would clip gradients that a fused optimiser unscales only afterwards: use "
            "trainer.precision bf16-mixed or 32-true, or set fused of model.optimizer to false"
        )


def check_parameters(optimizers: Sequence[torch.optim.Optimizer], module: Any) -> None:
    """Refuse parameters of a subclass beside the adapters, which alone checkpoints hold and ranks agree on.

    Args:
        optimizers: of the training.
        module: has the adapters.

    Raises:
        ValueError: an optimiser has others.
    """
    known = {id(p) for name in module.adapters.names for p in module.adapters.parameters(name)}
    held = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    beside = {id(p) for p in held if p.requires_grad} - known
    if beside:
        names = [name for name, p in module.named_parameters() if id(p) in beside]
        raise ValueError(
            f"the optimiser has {len(beside)} parameters beside the adapters{': ' if names else ''}"
            f"{', '.join(names[:5])}. Of a module's parameters checkpoints hold the adapters alone, and DDP reduces no "
            "others. Train others in a learner or a reward that has a state_dict (docs/own_learner.md)"
        )


def check_seeds(parts: Mapping[str, Any]) -> None:
    """Refuse ranks with seeds of their own: shares of the data would overlap, and rollouts differ. Collective.

    Args:
        parts: option -> what has its ``seed``, or has none.

    Raises:
        ValueError: the ranks' differ.
    """
    for name, part in parts.items():
        seeds = over_ranks(getattr(part, "seed", None))
        if any(seed != seeds[0] for seed in seeds):
            raise ValueError(
                f"{name}.seed differs between the processes ({seeds}), and they would not be one training on shares of "
                "the same data: call seed_everything with the same number in all of them"
            )


def check_strategy(strategy: Strategy) -> None:
    """Refuse strategies that shard parameters, wrap the module in their own way, or send it to other processes.

    Raises:
        ValueError: it is neither on a single device nor DDP with a process per rank from the start, or its graph is
            static.
    """
    if not isinstance(strategy, (SingleDeviceStrategy, DDPStrategy)):
        raise ValueError(
            f"trainer.strategy {type(strategy).__name__} would train the adapters of each rank apart or shard a 4-bit "
            "base: use auto (one device) or ddp (several)"
        )
    if isinstance(strategy, DDPStrategy) and strategy._ddp_kwargs.get("static_graph"):
        raise ValueError(
            "trainer.strategy: a static graph does not go with accumulated gradients: leave static_graph out"
        )
    if getattr(strategy, "_start_method", "popen") != "popen":
        raise ValueError(
            "trainer.strategy would send the model to processes that it starts (ddp_spawn, ddp_fork, ddp_notebook) and "
            "take weights back into one that has not loaded the base: use ddp"
        )


def check_callbacks(trainer: Trainer) -> None:
    """Refuse callbacks that change what a checkpoint holds, or write one when an error comes.

    An error comes within a batch, a step or a validation. Resumed, such a run would silently go on without the rest of
    the accumulation window and the epoch's validation; and weights that an optimiser has made NaN would take the place
    of the last good checkpoint. Weight averaging saves its own copy of a model as the module's state, and the adapters
    are not in it; finders and averages of learning rates know nothing of phases.

    Raises:
        ValueError: there is one.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, _OF_ONE_PHASE):
            if getattr(callback, "_early_exit", False):  # a Tuner's own, which it would leave there
                trainer.callbacks.remove(callback)  # type: ignore[attr-defined]
            raise ValueError(
                f"trainer.callbacks: {type(callback).__name__} cannot train adapters in phases, each with its own "
                "optimiser settings: remove it (rates are set by model.optim, memory by max_tokens_per_forward)"
            )
        if isinstance(callback, GradientAccumulationScheduler):
            raise ValueError(
                "trainer.callbacks: GradientAccumulationScheduler would change a step's batches behind the data, which "
                "give them together: remove it, and set data.pairs_per_step"
            )
    for callback in trainer.checkpoint_callbacks:
        saves = isinstance(callback, ModelCheckpoint) and callback.save_on_exception
        if saves or isinstance(callback, OnExceptionCheckpoint):
            trainer.callbacks.remove(callback)  # type: ignore[attr-defined]  # or it would save on this very error
            kind = f"{type(callback).__name__}{'.save_on_exception' if saves else ''}"
            raise ValueError(
                f"trainer.callbacks: {kind} would save a run in the middle of a batch, from where it cannot go on: use "
                "every_n_train_steps or train_time_interval of ModelCheckpoint (SIGTERM saves at a batch's end)"
            )


def check_precision(precision: str, backbone: Backbone) -> None:
    """Refuse a Trainer that casts all floating-point tensors to half precision, or that casts packed 4-bit weights.

    Raises:
        ValueError: it would.
    """
    if precision in ("bf16-true", "16-true"):
        raise ValueError(
            f"trainer.precision {precision} would cast the adapters, whose small updates half precision rounds away: "
            f"leave precision at 32-true; the base computes in backbone.dtype ({backbone.dtype}) all the same"
        )
    dtype = torch.float64 if precision == "64-true" else backbone.dtype
    if backbone.quantization is not None and dtype != backbone.dtype:
        raise ValueError(
            f"trainer.precision {precision} would cast the packed 4-bit weights. The base computes in "
            f"backbone.dtype ({backbone.dtype}) whatever the Trainer says: leave precision at 32-true"
        )


def check_state_noise(share: float, backbone: Backbone) -> None:
    """Refuse noise in the tokens of a backbone whose tokens do not hold the state.

    Raises:
        ValueError: it is asked for.
    """
    if share and not backbone.ids_suffice:
        raise ValueError(
            f"model.idm_state_noise replaces tokens of states, and those of {type(backbone).__name__} only hold an "
            "image's place: set it to 0"
        )


def check_labels_once(labels: str, schedule: PhaseSchedule, shared_weights: bool) -> None:
    """Refuse a schedule in which the IDM changes while the phase ``bootstrap`` takes its ``labels`` as given once.

    Raises:
        ValueError: it does.
    """
    moves = schedule.iterations != 1 or len(schedule.phases) > 1 if shared_weights else Role.IDM in schedule.phases
    if labels == "once" and PhaseName.BOOTSTRAP in schedule.phases and moves:
        raise ValueError(
            "model.bootstrap_labels once needs an IDM that stands still: phases without idm, and with shared_weights "
            "one phase once; or set it to online"
        )
