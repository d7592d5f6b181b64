"""Errors of transformers over files of a model, told so that they name it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

_LONGEST_REASON = 300  # characters of a library's message


@contextmanager
def readable(name: str | Path) -> Iterator[None]:
    """Have what a damaged or crafted file of a model raises in transformers name the model, as one ValueError.

    Errors of the system, of missing packages and of full memory stay, and so do ValueErrors that name it.

    Raises:
        ValueError: the model cannot be loaded.
    """
    try:
        yield
    except (OSError, ImportError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        if isinstance(error, ValueError) and str(name) in reason:
            raise
        if 'attn_implementation="eager"' in reason:  # transformers' own cure, after many words
            raise ValueError(
                f"{str(name)!r} knows no such attention: set attn_implementation of model.backbone to eager"
            ) from error
        raise ValueError(
            f"{str(name)!r} cannot be loaded ({type(error).__name__}: {reason[:_LONGEST_REASON]}): a file of it, "
            "such as config.json or tokenizer.json, is damaged, or needs another version of transformers"
        ) from error


def refuse_incomplete(name: str, found: dict[str, Any]) -> None:
    """Raise ValueError if a model's files lack weights, which transformers then draws at random.

    Args:
        name: of the model.
        found: what ``from_pretrained`` returns for ``output_loading_info``.
    """
    if lacking := sorted(found["missing_keys"]):
        first = ", ".join(lacking[:3]) + ", ..." * (len(lacking) > 3)
        raise ValueError(
            f"the files of {name!r} lack {len(lacking)} weights ({first}), which would be random: "
            "the download is incomplete, or the model is of another class"
        )


def refuse_strange_shards(name: str) -> None:
    """Raise ValueError if the index of a model's weights names others than files of its folder.

    Transformers reads whatever stands there, as a pipe that nobody writes or a device that has no end.

    Args:
        name: of the model; one of the hub has what was downloaded from there alone.
    """
    for whole, index in ((SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME), (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)):
        if Path(name, whole).is_file():
            return
        if (path := Path(name, index)).is_file():
            with readable(name):
                shards = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
                strange = [shard for shard in shards if not _is_file_within(name, shard)]
            if strange:
                raise ValueError(f"{path} names {strange[0]!r}, which is no file of that folder: load the model again")
            return


def _is_file_within(folder: str, name: str) -> bool:
    path = Path(name)
    return not path.is_absolute() and ".." not in path.parts and Path(folder, path).is_file()


def refuse_not_finite(name: str, model: nn.Module) -> None:
    """Raise ValueError if a weight of a model is no finite number: what it predicts would be noise.

    Args:
        name: of the model.
        model: as loaded; weights that are quantised tell nothing.
    """
    for weight, value in model.named_parameters():
        packed = hasattr(value, "quant_state") or not value.is_floating_point()
        if not packed and not value.isfinite().all():
            raise ValueError(f"the weight {weight} of {name!r} holds other values than finite numbers: load it again")


def check_image_processor(name: str, scale: Callable[[list[Image.Image]], torch.Tensor], side: int) -> None:
    """Raise ValueError if an image processor makes one colour, or no numbers, of every image.

    Args:
        name: of the model that it belongs to.
        scale: makes numbers of images.
        side: of an image in pixels.
    """
    black, white = (scale([Image.new("RGB", (side, side), colour)]) for colour in ("black", "white"))
    if not (black.isfinite().all() and white.isfinite().all()) or torch.equal(black, white):
        raise ValueError(
            f"the image processor of {name!r} makes one colour, or no numbers, of every image: image_mean, image_std "
            "or rescale_factor in preprocessor_config.json is damaged"
        )
