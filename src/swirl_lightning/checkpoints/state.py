"""Entries of a checkpoint beyond Lightning's own: settings of the adapters, and the state of a training."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor

from swirl_lightning.engine.ranges import LONGEST, SHORTEST
from swirl_lightning.ranks import over_ranks, place


def chosen_lengths(state: dict[str, Any]) -> dict[str, int]:
    """Return the lengths that a run chose from its data: numbers, which alone are taken from a checkpoint.

    Raises:
        ValueError: one is no number of tokens.
    """
    found = state.get("lengths", {})
    for name, value in found.items():
        if type(value) is not int or not SHORTEST <= value <= LONGEST:
            raise ValueError(f"the checkpoint's length {name} is no number of tokens but {value!r}")
    return dict(found)


def written_at(state: dict[str, Any]) -> float | None:
    """Return when a checkpoint was written, in seconds since the epoch; None if it does not say so, as older ones."""
    time = state.get("written")
    return time if isinstance(time, float) and math.isfinite(time) else None


def check_ranks(state: dict[str, Any], world_size: int) -> None:
    """Raise ValueError if rollouts or summed gradients were in use on another number of ranks: each has its own."""
    for what, parts in (("rollouts", state["updates"]), ("summed gradients", state.get("window", []))):
        if any(parts) and len(parts) != world_size:
            raise ValueError(
                f"the checkpoint was written while {what} of {len(parts)} devices were in use; resume on as many "
                f"instead of {world_size}, or from the end of an epoch"
            )


def own_state(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The ``swirl`` entry of a checkpoint; ValueError if it is none of ours, or lacks a part."""
    if not isinstance(checkpoint, dict) or "swirl" not in checkpoint:
        raise ValueError("this checkpoint was not written by SWIRL: it has no 'swirl' entry")
    state: dict[str, Any] = checkpoint["swirl"]
    check_parts(state, {"base": dict, "label": str}, "swirl.")
    check_parts(state, {name: dict for name in ("lora", "parts", "lengths", "templates") if name in state}, "swirl.")
    hashes = ("name", "architecture", "weights", *(state["base"].keys() & {"files", "vocabulary"}))
    check_parts(state["base"], dict.fromkeys(hashes, str), "swirl.base.")
    return state


def check_parts(found: Any, parts: Mapping[str, type], where: str = "") -> None:
    """Raise ValueError if an entry of a checkpoint is missing or of another type than it is written with."""
    for name, kind in parts.items():
        there = isinstance(found, dict) and isinstance(name, str) and name in found
        if not there or not isinstance(found[name], kind):
            raise ValueError(f"{where}{name} is missing or no {kind.__name__}: another program or version wrote it")


_LONGEST = 500  # characters of an error's reason

UNLIKE = (AttributeError, IndexError, KeyError, OverflowError, TypeError, RuntimeError)
"""Errors of code that reads an entry which is not as it was written."""


@contextmanager
def as_written(what: str) -> Iterator[None]:
    """Say of `UNLIKE` that a part of a checkpoint cannot be used.

    Args:
        what: the part.

    Raises:
        ValueError: one of them came in the block.
    """
    try:
        yield
    except UNLIKE as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise cannot_restore(f"{what} in the checkpoint", error, str(error).strip()) from error


def cannot_restore(what: str, error: Exception, reason: str) -> ValueError:
    """Make the one line that is told of an error of `UNLIKE`; torch's own may list every backend it has."""
    reason = " ".join(reason.split())
    reason = reason if len(reason) <= _LONGEST else f"{reason[:_LONGEST]}…"
    return ValueError(
        f"{what} cannot be restored ({type(error).__name__}: {reason}): it is damaged, or another program or version "
        "wrote it"
    )


def check_optimizer(
    state: dict[str, Any], optimizer: torch.optim.Optimizer, build: Callable[[Any], torch.optim.Optimizer]
) -> None:
    """Raise ValueError if a training is to go on with an optimiser that cannot use the other's moments.

    What is kept of each weight is compared with what a step here keeps of a weight of its shape.

    Args:
        state: of :func:`own_state`.
        optimizer: the one here, restored.
        build: makes another one like it, from parameter groups.
    """
    saved, here = state.get("optimizer"), type(optimizer).__name__
    if saved not in (None, here):
        raise ValueError(
            f"the checkpoint's optimiser is {saved}, and it is {here} here: set model.optimizer to the former"
        )
    fresh: dict[tuple[int, ...], dict[str, Any]] = {}
    for parameter, kept in optimizer.state.items():
        if not kept:
            continue
        if (shape := tuple(parameter.shape)) not in fresh:
            fresh[shape] = kept_after_a_step(parameter, build)
        unlike = next((name for name, value in fresh[shape].items() if not _like(kept.get(name), value)), None)
        if unlike is not None:
            reason = f"{unlike} is not like that of a step here"
        elif not (step := float(kept.get("step", 1))) >= 1:
            reason = f"step {step} is below 1"
        else:
            continue
        raise cannot_restore("the optimiser's state in the checkpoint", ValueError(), reason)


def kept_after_a_step(parameter: Tensor, build: Callable[[Any], torch.optim.Optimizer]) -> dict[str, Any]:
    """Return what an optimiser keeps of a weight like ``parameter`` after its first step."""
    blank = torch.nn.Parameter(torch.zeros_like(parameter))
    optimizer = build([{"params": [blank]}])
    blank.grad = torch.zeros_like(parameter)
    optimizer.step()
    return dict(optimizer.state[blank])


def _like(value: Any, fresh: Any) -> bool:
    """Tell whether a value is of a kind with another one; a number may also be a scalar tensor."""
    if isinstance(fresh, Tensor) and isinstance(value, Tensor):
        same = value.shape == fresh.shape and value.layout == fresh.layout
        return same and value.is_floating_point() == fresh.is_floating_point()
    return type(value) is type(fresh) or (isinstance(fresh, (int, float)) and isinstance(value, (int, float)))


def take_no_options(checkpoint: dict[str, Any], build: Callable[[int], torch.optim.Optimizer]) -> None:
    """Put the options of an optimiser made here over those that a checkpoint has kept of another one, in place.

    torch restores options with the moments: weight decay, betas or the sign of the gradients would be the checkpoint's,
    whatever the configuration says. What an optimiser keeps in its groups beside its options stays, and so does the
    learning rate, which the phase's curve sets.

    Args:
        checkpoint: its ``optimizer_states`` are changed.
        build: makes an optimiser of a number of parameter groups.
    """
    for saved in checkpoint.get("optimizer_states", []):
        fresh = build(len(saved["param_groups"]))
        options = signature(type(fresh).__init__).parameters.keys() - {"lr", "params"}
        for group, own in zip(saved["param_groups"], fresh.param_groups, strict=True):
            group |= {name: own[name] for name in options & group.keys() & own.keys()}


def rng_states() -> list[dict[str, Any]]:
    """Return the random states of every rank: python, numpy, torch and CUDA. Collective."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    own: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": [kind, np.asarray(keys).tolist(), int(position), int(has_gauss), float(gauss)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    return over_ranks(own)


def restore_rng(states: list[dict[str, Any]]) -> None:
    """Restore :func:`rng_states`; with another number of ranks, those of the first one."""
    rank, _ = place()
    own = states[rank] if rank < len(states) else states[0]
    version, internal, gauss = own["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = own["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(own["torch"].cpu())
    if own["cuda"] and len(own["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([state.cpu() for state in own["cuda"]])
