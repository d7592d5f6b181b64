"""Exported folders, written and read: adapters in PEFT format, settings, a model card."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from swirl_lightning.adapters import adapted_modules
from swirl_lightning.backbones.base import Backbone
from swirl_lightning.checkpoints.restore import load_into
from swirl_lightning.exports.card import adapter_card
from swirl_lightning.exports.settings import FILE, build, is_public, read, settings_of
from swirl_lightning.world_model_module import WorldModelModule

Module = TypeVar("Module", bound=WorldModelModule)

_NEEDED = [FILE, "*/adapter_model.safetensors"]


def write_export(module: WorldModelModule, folder: Path, data: str, results: Mapping[str, Mapping[str, float]]) -> None:
    """Write both adapters of a module: see :meth:`swirl_lightning.SWIRL.export`."""
    settings = settings_of(module)
    module.adapters.export(folder)
    for name in module.adapters.trainable:
        path = folder / name / "adapter_config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config |= {"base_model_name_or_path": settings["base"]["name"], "revision": settings["base"]["revision"]}
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (folder / FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    base = module.adapters.model.get_base_model()
    card = adapter_card(settings, module.backbone, base, module.adapters.trainable, data, results)
    (folder / "README.md").write_text(card, encoding="utf-8")
    readable(folder)


def load_export(
    cls: type[Module],
    name_or_path: str | Path,
    base: str | None,
    backbone: Backbone | None,
    revision: str | None,
    device: str | torch.device,
    on_load: Callable[[Module, dict[str, Any]], None],
    arguments: Mapping[str, Any],
) -> Module:
    """Load an exported folder: see :meth:`swirl_lightning.SWIRL.from_pretrained`."""
    folder = Path(name_or_path)
    if not folder.is_dir():
        if not is_public(str(name_or_path)):
            raise FileNotFoundError(
                f"no such folder: {folder}; give one that swirl export or a training has written, or a name on the hub"
            )
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(str(name_or_path), revision=revision, allow_patterns=_NEEDED))
    settings = read(folder)
    module = build(cls, settings, base, backbone, adapted_modules(folder), arguments)
    module.configure_model()
    own = {name: settings.get(name, {}) for name in ("base", "label", "lora", "parts", "lengths")}
    state = module.adapters.exported_state(folder, device)
    return load_into(module, {"swirl": own, "state_dict": state}, on_load)


def readable(folder: Path) -> None:
    """Give files the permissions of new ones: safetensors writes them for their owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~mask)
