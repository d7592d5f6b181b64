"""Comparison of a checkpoint with the settings here: every difference in one message."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from swirl_lightning.backbones.identity import differing
from swirl_lightning.checkpoints.shared import is_shared
from swirl_lightning.checkpoints.state import own_state
from swirl_lightning.world_model_module import WorldModelModule


def check_fits(checkpoint: dict[str, Any], module: WorldModelModule) -> None:
    """Raise ValueError that says which settings to change, all of them, if adapters were trained with others.

    Before the base is loaded, its weights and layers are not compared: call it again afterwards.

    Args:
        checkpoint: as saved by a run of SWIRL.
        module: with the settings here.
    """
    state = own_state(checkpoint)
    problems = [*_base(state, module), *_parts(state, module), *_adapters(state, checkpoint, module)]
    if problems:
        raise ValueError(f"the checkpoint's adapters were trained with other settings: {'; '.join(problems)}")


def _base(state: dict[str, Any], module: WorldModelModule) -> Iterator[str]:
    saved = state["base"]
    if different := differing(saved, module.base_identity):
        yield (
            f"set model.backbone.model_name_or_path to {saved['name']!r} (revision {saved.get('revision')}), their "
            f"base: {module.backbone.name!r} has other {' and '.join(different)}"
        )


def _parts(state: dict[str, Any], module: WorldModelModule) -> Iterator[str]:
    """Parts beside the language model, such as a VQGAN; also if one is not there."""
    try:
        here = module.backbone.parts()
    except (ValueError, OSError) as error:
        yield str(error)
        return
    saved = state.get("parts", {})
    for name in here.keys() & saved.keys():
        if saved[name] != here[name]:
            yield f"set model.backbone.{name} to that of the training (hash {saved[name]}, and {here[name]} here)"


def _adapters(state: dict[str, Any], checkpoint: dict[str, Any], module: WorldModelModule) -> Iterator[str]:
    if module.shared_weights and not is_shared(checkpoint):  # the other way, both models begin as the shared one
        yield "set model.shared_weights to false"
    for name in ("r", "alpha"):
        here = getattr(module.lora, name)
        there = state.get("lora", {}).get(name, here)
        if type(there) is not int or there != here:  # of a damaged file it may be a tensor
            yield f"set model.lora.{name} to {' '.join(str(there).split())[:60]} ({here} here)"
    if module.model is not None:
        saved, own = _layers(checkpoint["state_dict"]), _layers(module.adapters.state_dict())
        if saved != own:
            yield f"set model.lora.target_modules so that adapters are in {_names(saved)} (in {_names(own)} here)"


def _layers(tensors: Iterable[str]) -> set[str]:
    """Paths of the layers in ``<adapter>.<path>.<lora_A|lora_B>``."""
    return {key.partition(".")[2].rpartition(".")[0] for key in tensors}


def _names(layers: set[str]) -> list[str]:
    return sorted({path.rpartition(".")[2] for path in layers})
