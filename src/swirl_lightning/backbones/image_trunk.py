"""Language model whose ids above the vocabulary stand for the features of images."""

from __future__ import annotations

import hashlib
import io
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from swirl_lightning.backbones.images import square
from swirl_lightning.engine.grammar import TokenIds
from swirl_lightning.engine.packing import Packing
from swirl_lightning.engine.trunk import TrunkOutput

FEATURES_KEPT = 64
"""Number of images whose features are kept; the others go through the vision tower again."""
_SLOT_BYTES = 6  # times an image's ids this stays below 2**63


class ImageStore:
    """Images seen last, by slot; image s has the ids start + s * grid² ... start + (s + 1) * grid² - 1.

    A slot is a hash of the image, so the same image has the same ids in every process.

    Args:
        start: size of the vocabulary.
        grid: features of an image's side.
        resolution: side in pixels at which images are kept, losslessly compressed.
        kept: number of images; the one whose last use is longest ago goes first.
    """

    def __init__(self, start: int, grid: int, resolution: int, kept: int) -> None:
        self.start, self.grid, self.resolution, self.kept = start, grid, resolution, kept
        self._files: OrderedDict[int, bytes] = OrderedDict()

    def __len__(self) -> int:
        return len(self._files)

    @property
    def size(self) -> int:
        """Number of ids of an image."""
        return self.grid**2

    def add(self, image: Image.Image) -> TokenIds:
        """Keep an image and return its ids; equal images have equal ids."""
        image = square(image, self.resolution)
        slot = int.from_bytes(hashlib.blake2b(image.tobytes(), digest_size=_SLOT_BYTES).digest())
        if slot not in self._files:
            file = io.BytesIO()
            image.save(file, "PNG", compress_level=1)
            self._files[slot] = file.getvalue()
        self._files.move_to_end(slot)
        while len(self._files) > self.kept:
            self._files.popitem(last=False)
        first = self.start + slot * self.size
        return list(range(first, first + self.size))

    def image(self, token: int) -> Image.Image:
        """Return the image that an id belongs to.

        Raises:
            ValueError: this process has not encoded it, or too long ago.
        """
        slot = (token - self.start) // self.size
        if slot not in self._files:
            raise ValueError(
                f"id {token} stands for none of the last {self.kept} images of this process: resume from a "
                "checkpoint at the end of an epoch, or raise images_kept above the images of an optimiser step"
            )
        self._files.move_to_end(slot)
        return Image.open(io.BytesIO(self._files[slot])).convert("RGB")


class ImageTrunk(nn.Module):
    """Trunk from ids to ``last_hidden_state`` that looks up images and, if need be, places them by row and column.

    With ``by_grid`` (Qwen's multimodal RoPE) an image's positions are its rows and columns, and the text
    after it goes on behind the longer side. So positions differ from the number of tokens, by ``rope_deltas`` of
    :class:`swirl_lightning.engine.trunk.TrunkOutput`.

    Args:
        model: the whole model; it is not registered as a part of this module.
        store: the images.
        features: (model, B images, device) -> (B, grid², H).
        by_grid: positions are (3, B, S).
    """

    _model: Any

    def __init__(
        self,
        model: Any,
        store: ImageStore,
        features: Callable[[Any, list[Image.Image], torch.device], Tensor],
        by_grid: bool,
    ) -> None:
        super().__init__()
        self.__dict__["_model"] = model  # past nn.Module's registration: it is trained and moved elsewhere
        self._store, self._compute, self._by_grid = store, features, by_grid
        self._kept: OrderedDict[int, Tensor] = OrderedDict()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        past_key_values: Any = None,
        packing: Packing | None = None,
        **kwargs: Any,
    ) -> TrunkOutput:
        """Compute hidden states (B, S, H) from ids, mask and positions, (B, S) each; ``packing`` if the ids are packed.

        What follows a cache that holds something is text, and its positions are those of the model: the number of
        tokens before it, plus ``rope_deltas``.
        """
        # text alone is generated: looking for images would wait for the device at every token
        generated = past_key_values is not None and past_key_values.get_seq_length() > 0
        embedded = self._model.get_input_embeddings()(input_ids) if generated else self._embed(input_ids)
        deltas = None
        if self._by_grid and generated:
            position_ids = position_ids.expand(3, -1, -1)
        elif self._by_grid:
            position_ids, deltas = self._grid_positions(input_ids, position_ids, packing)
        hidden: Tensor = self._model.get_decoder()(
            inputs_embeds=embedded,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **kwargs | ({} if packing is None else {"packing": packing}),
        ).last_hidden_state
        return TrunkOutput(hidden, deltas)

    def _embed(self, ids: Tensor) -> Tensor:
        """Embed ids: (B, S) -> (B, S, H)."""
        is_image = ids >= self._store.start
        embedded = self._model.get_input_embeddings()(ids.masked_fill(is_image, 0))
        if not is_image.any():
            return embedded
        places = ids[is_image] - self._store.start  # (T,)
        slots, which = torch.unique(places // self._store.size, return_inverse=True)
        found = self._lookup(slots.tolist(), ids.device)  # (slots, grid², H)
        values = found[which, places % self._store.size].to(embedded.dtype)
        return embedded.masked_scatter(is_image[..., None], values)

    @torch.no_grad()
    def _lookup(self, slots: list[int], device: torch.device) -> Tensor:
        missing = [slot for slot in slots if slot not in self._kept]
        if missing:
            images = [self._store.image(self._store.start + slot * self._store.size) for slot in missing]
            self._kept.update(zip(missing, self._compute(self._model, images, device), strict=True))
        found = torch.stack([self._kept[slot].to(device) for slot in slots])
        for slot in slots:
            self._kept.move_to_end(slot)
        while len(self._kept) > FEATURES_KEPT:
            self._kept.popitem(last=False)
        return found

    def _grid_positions(self, ids: Tensor, flat: Tensor, packing: Packing | None) -> tuple[Tensor, Tensor]:
        """Turn positions by tokens (B, S) into those by time, row and column (3, B, S) and ``rope_deltas`` (B, 1)."""
        grid, size = self._store.grid, self._store.size
        is_image = ids >= self._store.start
        place = (ids - self._store.start).remainder(size) * is_image
        ends = (is_image & (place == size - 1)).long()
        finished = ends.cumsum(1) if packing is None else packing.running_sum(ends)
        delta = finished * (grid - size)  # a finished image takes fewer positions than tokens
        start = flat - place + delta - ends * (grid - size)  # the image's first position; a text token's own
        return torch.stack([start, start + place // grid, start + place % grid]), delta[:, -1:]
