"""Cache of the token ids of states."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from swirl_lightning.backbones.base import Backbone
from swirl_lightning.engine.grammar import TokenIds
from swirl_lightning.files.paths import check_writable
from swirl_lightning.files.writing import whole_file
from swirl_lightning.transition import State

_KEY_BYTES = 16
_PARTS = [(np.dtype(np.int32), 1), (np.dtype(np.int64), 1), (np.dtype(np.uint8), 2)]  # ids, lengths, keys


class StateTokens:
    """Cache of ``backbone.encode_states``, keyed by the content of a state.

    Backbones whose ids only name a state encode it every time.

    Memory holds the most recently used states. With ``cache_dir``, new ones are also written to small
    files, in a folder of their own per ``backbone.fingerprint()``; several processes may share it.

    Args:
        backbone: encodes the states that are missing.
        max_entries: number of states kept in memory.
        cache_dir: folder that outlives the run; None keeps nothing on disk.
        shard_size: number of new states per file. Call :meth:`flush` at the end of a run to write the rest.

    Raises:
        ValueError: a size is below one.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        max_entries: int = 100_000,
        cache_dir: str | os.PathLike[str] | None = None,
        shard_size: int = 256,
    ) -> None:
        for name, value in (("max_entries", max_entries), ("shard_size", shard_size)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self._backbone = backbone
        self._max_entries = max_entries
        self._cache_dir = None if cache_dir is None else Path(cache_dir)
        if self._cache_dir is not None:
            check_writable(self._cache_dir, "model.token_cache")
        self._shard_size = shard_size
        self._folder: Path | None = None  # known when the backbone is first used
        self._memory: OrderedDict[bytes, NDArray[np.int32]] = OrderedDict()  # lists would take ten times as much
        self._stored: set[bytes] = set()
        self._new: dict[bytes, NDArray[np.int32]] = {}
        self._lengths = dict(backbone.chosen_lengths)

    def __len__(self) -> int:
        return len(self._memory)

    def encode(self, states: Sequence[State], device: torch.device) -> list[TokenIds]:
        """Return the content ids of each state; states that are not cached are encoded together, each once.

        Raises:
            ValueError: one is neither a text nor an image, or none that the backbone reads.
        """
        for state in states:
            if not isinstance(state, str | Image.Image):
                raise ValueError(f"a state is a text or an image (PIL), got {type(state).__name__}")
        if not self._backbone.ids_suffice:
            return self._backbone.encode_states(states, device)
        if self._lengths != self._backbone.chosen_lengths:
            self._forget()
        if self._cache_dir is not None and self._folder is None:
            self._folder = self._cache_dir / _digest(self._backbone.fingerprint().encode()).hex()
            self._load(self._folder)
        keys = [state_key(state) for state in states]
        found = {key: self._memory[key] for key in keys if key in self._memory}
        missing: dict[bytes, State] = {}
        for key, state in zip(keys, states, strict=True):
            if key not in found:
                missing.setdefault(key, state)
        if missing:
            with exactly(device):
                encoded = self._backbone.encode_states(list(missing.values()), device)
            found.update(zip(missing, (np.array(ids, np.int32) for ids in encoded), strict=True))
            if self._folder is not None:
                self._new.update((key, found[key]) for key in missing if key not in self._stored)
        for key in keys:
            self._memory[key] = found[key]
            self._memory.move_to_end(key)
        while len(self._memory) > self._max_entries:
            self._memory.popitem(last=False)
        if len(self._new) >= self._shard_size:
            self.flush()
        return [found[key].tolist() for key in keys]

    def _forget(self) -> None:
        """Begin anew, as a checkpoint has brought other lengths, at which states are cut."""
        self.flush()
        self._memory.clear()
        self._stored.clear()
        self._folder, self._lengths = None, dict(self._backbone.chosen_lengths)

    def flush(self) -> None:
        """Write the states encoded since the last file; without a ``cache_dir`` do nothing.

        Where they cannot be written, as on a full disk, it warns, and no more are kept: they can be encoded again.
        """
        if self._folder is None or not self._new:
            return
        tensors: dict[str, NDArray[Any]] = {
            "keys": np.frombuffer(b"".join(self._new), np.uint8).reshape(-1, _KEY_BYTES).copy(),
            "lengths": np.array([len(ids) for ids in self._new.values()], np.int64),
            "ids": np.concatenate(list(self._new.values())),
        }
        try:
            # a new name: processes and runs only ever add
            with whole_file(self._folder / f"{uuid.uuid4().hex}.safetensors") as file:
                file.write(save(tensors))
        except OSError as error:
            rank_zero_warn(f"tokens of states are not kept from now on: {error}")
            self._cache_dir = self._folder = None
        self._stored.update(self._new)
        self._new = {}

    def _load(self, folder: Path) -> None:
        """Read files, the newest last, so that the oldest states are dropped first."""
        for path in sorted(folder.glob("*.safetensors"), key=lambda p: (p.stat().st_mtime, p.name)):
            try:
                shard = load_file(path)
                ids, lengths, rows = (shard[name] for name in ("ids", "lengths", "keys"))
                if [(part.dtype, part.ndim) for part in (ids, lengths, rows)] != _PARTS:
                    raise ValueError("its parts are of other types")
                if rows.shape != (len(lengths), _KEY_BYTES):
                    raise ValueError("its parts are not of one number of states")
                keys = [row.tobytes() for row in rows]
                if sum(lengths) != len(ids) or min(lengths, default=0) < 0:
                    raise ValueError("its parts do not agree")
                entries = dict(zip(keys, np.split(ids, np.cumsum(lengths)[:-1]), strict=True))
            except (OSError, ValueError, KeyError, SafetensorError) as error:
                rank_zero_warn(f"ignoring the damaged token cache file {path}: {error}")
                continue
            self._memory.update(entries)
            self._stored.update(entries)
        while len(self._memory) > self._max_entries:
            self._memory.popitem(last=False)


def state_key(state: State) -> bytes:
    """Hash a state's content to 16 bytes: its words, or its size and RGB pixels."""
    if isinstance(state, str):
        return _digest(b"text", state.encode())
    return _digest(b"image", repr(state.size).encode(), state.convert("RGB").tobytes())


@contextmanager
def exactly(device: torch.device) -> Iterator[None]:
    """Compute codes of images without autocast, TF32 and bfloat16 for float32: nearest codes are sensitive to rounding.

    What is kept must depend neither on the Trainer's precision nor on the device. The switches are the process's.
    """
    cudnn, mkldnn = cast(Any, torch.backends.cudnn), cast(Any, torch.backends.mkldnn)
    backends: list[Any] = [cudnn.conv, mkldnn.conv, mkldnn.matmul, torch.backends.cuda.matmul]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def _digest(*parts: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=_KEY_BYTES)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()
