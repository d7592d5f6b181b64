"""Emu3: next-token prediction over text and the codes of its own image tokenizer."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    AutoImageProcessor,
    Emu3ForConditionalGeneration,
    Emu3VQVAE,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from swirl_lightning.backbones.errors import check_image_processor, readable
from swirl_lightning.backbones.image_tokens import ImageTokens
from swirl_lightning.backbones.images import square
from swirl_lightning.backbones.loading import load_base, load_config, load_tokenizer, misfit
from swirl_lightning.engine.grammar import Grammar, TokenIds
from swirl_lightning.engine.ranges import check_ranges

BOI, IMAGE, EOL, EOF, EOI = "<|image start|>", "<|image token|>", "<|extra_200|>", "<|extra_201|>", "<|image end|>"
_CODE = re.compile(r"<\|visual token (\d{6})\|>")


class Emu3(ImageTokens):
    """Emu3 in transformers' format (``Emu3ForConditionalGeneration``), for example Emu3-Chat-hf.

    A state of H x W codes is ``<|image start|>H*W<|image token|>``, then each row's codes and an
    end-of-row token, then ``<|extra_201|><|image end|>``. The opening belongs to the prompt, end-of-row and
    closing tokens are forced in a completion. Images enter as ids: ``pixel_values`` are never used.

    Args:
        model_name_or_path: folder or hub name.
        resolution: side of a state in pixels; images are padded to a square and resized.
        **kwargs: as :class:`ImageTokens`.

    Raises:
        ValueError: the checkpoint is of another family or its parts do not fit; the message names the cure.
    """

    lora_targets = r".*text_model\.layers\.\d+\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj"
    keep_unquantized = ("lm_head", "model.vqmodel")

    def __init__(self, model_name_or_path: str, resolution: int = 512, **kwargs: Any) -> None:
        super().__init__(model_name_or_path, **kwargs)
        self.resolution = resolution
        check_ranges("model.backbone", vars(self), resolution="whole [1, inf)")
        self._codec: Emu3VQVAE | None = None

    # ---- the model -------------------------------------------------------------------------------
    def load_model(self) -> PreTrainedModel:
        """Load the base without its image tokenizer, which is kept apart, in float32 and in eval mode."""
        # parts that do not fit are named before a long load
        _ = self.code_ids, self.state_grammar, self.tokenizer, self._scale
        check_image_processor(self.name, self._pixels, self.resolution)
        model = load_base(self, Emu3ForConditionalGeneration)
        model.model.vqmodel = nn.Identity()  # in train mode its batch norms would read the batch
        return model

    def trunk(self, model: nn.Module) -> nn.Module:
        """Return the language model inside."""
        return model.model.text_model  # type: ignore[union-attr, return-value]

    @cached_property
    def config(self) -> Any:
        """The checkpoint's config."""
        return load_config(self, ("emu3",))

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer; it must know Emu3's image marks."""
        tokenizer = load_tokenizer(self, (BOI, IMAGE, EOL, EOF, EOI), bos=True)
        moved = [m for m in (EOL, EOI) if tokenizer.convert_tokens_to_ids(m) != self.vocabulary_map.get(m)]
        if moved:
            misfit(self, f"tokenizer and vocabulary_map of config.json disagree about {', '.join(moved)}")
        return tokenizer

    # ---- codes -----------------------------------------------------------------------------------
    def code_of(self, token: str) -> int | None:
        """Read the code in a token's name: ``<|visual token 000123|>`` is 123."""
        match = _CODE.fullmatch(token)
        return int(match[1]) if match else None

    @property
    def codebook_size(self) -> int:
        """Number of codes, from the VQ's config."""
        return int(self.config.vq_config.codebook_size)

    @cached_property
    def grid(self) -> int:
        """Number of codes along the side of a state."""
        if not (channels := self.config.vq_config.channel_multiplier):
            misfit(self, "channel_multiplier of the vq_config in its config.json is empty")
        factor = 2 ** (len(channels) - 1)
        if self.resolution < factor or self.resolution % factor:
            raise ValueError(f"resolution must be a multiple of {factor}, the side of a code, got {self.resolution}")
        return self.resolution // factor

    def encode_images(self, images: list[Image.Image], device: torch.device) -> Tensor:
        """Encode B images as (B, grid * grid) codes."""
        pixels = self._pixels([square(image, self.resolution) for image in images])
        sizes = torch.tensor([[self.resolution, self.resolution]] * len(images))
        codes = self._codec_on(device).encode(pixels.to(device), sizes).image_tokens  # B times (grid, grid)
        return torch.stack(list(codes)).flatten(1)

    def decode_images(self, codes: Tensor) -> list[Image.Image]:
        """Decode (B, grid * grid) codes to B images."""
        pixels = self._codec_on(codes.device).decode(codes.unflatten(1, (self.grid, self.grid))).float().cpu()
        mean, std = self._scale
        arrays = ((pixels * std + mean).clamp(0, 1) * 255).round().to(torch.uint8)
        return [Image.fromarray(array) for array in arrays.permute(0, 2, 3, 1).numpy()]

    @cached_property
    def _processor(self) -> Any:
        with readable(self.name):
            return AutoImageProcessor.from_pretrained(
                self.path, revision=self.revision, trust_remote_code=self.trust_remote_code
            )

    def _pixels(self, images: list[Image.Image]) -> Tensor:
        """Scale B images of this backbone's resolution, (B, 3, H, W)."""
        with readable(self.name):
            pixels: Tensor = self._processor.preprocess(images, do_resize=False, return_tensors="pt")["pixel_values"]
            return pixels.view(len(images), 3, self.resolution, self.resolution)

    @cached_property
    def _scale(self) -> list[Tensor]:
        """Mean and standard deviation (3, 1, 1) of what pixels were scaled by."""
        with readable(self.name):
            found = [getattr(self._processor, name) for name in ("image_mean", "image_std")]
            return [torch.tensor(part, device="cpu").view(3, 1, 1) for part in found]

    def _codec_on(self, device: torch.device) -> Emu3VQVAE:
        """Return the VQ model alone, read from the same checkpoint, in float32 and eval mode."""
        if self._codec is None:
            self._codec = self._load_codec()
        return self._codec.to(device).eval()  # type: ignore[arg-type]

    def _load_codec(self) -> Emu3VQVAE:
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # all weights of the language model are "unexpected" here
        try:
            loaded: Any = Emu3VQVAE.from_pretrained(
                self.path,
                revision=self.revision or "main",
                config=self.config.vq_config,
                key_mapping={r"^(model\.)?vqmodel\.": ""},
                dtype=torch.float32,
                output_loading_info=True,
            )
        except RuntimeError as error:  # shapes
            misfit(self, f"its VQ weights do not fit vq_config in its config.json: {str(error)[:300]}")
        finally:
            logging.set_verbosity(verbosity)
        codec: Emu3VQVAE = loaded[0]
        missing = sorted(loaded[1]["missing_keys"])
        if missing:
            misfit(
                self,
                f"it lacks {len(missing)} weights of its image tokenizer ({', '.join(missing[:3])}, ...); use "
                "a checkpoint in transformers' format (*-hf), which holds language model and VQ together",
            )
        codec.requires_grad_(False)
        return codec

    # ---- grammar ---------------------------------------------------------------------------------
    def state_opening(self) -> TokenIds:
        """Return the ids of ``<|image start|>H*W<|image token|>``."""
        marks = self._marks
        return [marks[BOI], *self.encode_text(f"{self.grid}*{self.grid}"), marks[IMAGE]]

    def wrap_state(self, content: TokenIds) -> TokenIds:
        """Lay out a whole image: opening, rows with their ends, closing."""
        return [*self.state_opening(), *self.state_grammar.complete(content)]

    @cached_property
    def state_grammar(self) -> Grammar:
        """Grammar of rows of codes; end-of-row, end-of-frame and end-of-image tokens are forced."""
        side, marks = self.grid, self._marks
        rows = [((side + 1) * row + side, marks[EOL]) for row in range(side)]
        length = side * (side + 1)
        closing = [(length, marks[EOF]), (length + 1, marks[EOI])]
        return Grammar(tuple(sorted(self.code_ids.tolist())), length + 2, forced=(*rows, *closing))

    @cached_property
    def _marks(self) -> dict[str, int]:
        vocabulary = self.tokenizer.get_vocab()
        return {mark: vocabulary[mark] for mark in (BOI, IMAGE, EOL, EOF, EOI)}

    def fingerprint(self) -> str:
        """Name the checkpoint that holds the image tokenizer, and the size of a state."""
        return f"{super().fingerprint()}:{self.resolution}"
