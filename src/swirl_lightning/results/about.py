"""Facts behind a row of results: data, settings, versions, seeds."""

from __future__ import annotations

import dataclasses
import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

_PACKAGES = ("swirl-lightning", "torch", "lightning", "transformers", "peft", "bitsandbytes", "torchmetrics")
_NOT_OPTIONS = frozenset(
    (
        *("allow_zero_length_dataloader_with_multiple_devices", "prepare_data_per_node", "trainer"),  # Lightning's own
        *("counts", "missing_metrics", "skipped"),  # known when records have been read
    )
)


def about(trainer: Trainer, pl_module: Any) -> dict[str, Any]:
    """Collect the facts for ``results.json``: JSON values alone, and no secrets, since configs hold none."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    backbone = getattr(pl_module, "backbone", None)
    judge = getattr(data, "judge", None)
    return {
        "suite": getattr(data, "suite", "") or type(data).__name__,
        "counts": getattr(data, "counts", {}),
        "missing": dict(getattr(data, "missing_metrics", {})),
        "settings": {
            "data": _plain(data),
            "evaluation": _fields(getattr(pl_module, "evaluation", None)),
            "sampling": _fields(getattr(pl_module, "sampling", None)),
            "judge": None if judge is None else judge.settings(data.judge_templates),
            "base": [getattr(backbone, "name", None), getattr(backbone, "revision", None)],
            "quantization": getattr(backbone, "quantization", None),
            "precision": str(trainer.precision),
            "devices": trainer.world_size,
        },
        "seed": {
            "data": getattr(data, "seed", None),
            "model": getattr(pl_module, "seed", None),
            "evaluation": getattr(getattr(pl_module, "evaluation", None), "seed", None),
        },
        "versions": {"python": platform.python_version(), **_versions()},
    }


def _plain(data: Any) -> dict[str, Any]:
    """Return the options of a DataModule that are plain values; those that are mappings as one JSON text each."""
    found: dict[str, Any] = {}
    for name, value in vars(data).items():
        if name.startswith("_") or name in _NOT_OPTIONS:
            continue
        if value is None or isinstance(value, (str, int, float, bool)):
            found[name] = value
        elif isinstance(value, Path):
            found[name] = str(value)
        elif isinstance(value, (list, tuple)) and all(isinstance(v, (str, int, float)) for v in value):
            found[name] = list(value)
        elif isinstance(value, dict):  # whole: a key that is not given there says something, too
            found[name] = json.dumps(value, sort_keys=True, default=str)
    return found


def _fields(config: Any) -> Any:
    return dataclasses.asdict(config) if dataclasses.is_dataclass(config) else None  # type: ignore[arg-type]


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
