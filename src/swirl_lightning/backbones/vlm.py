"""VLMs that read images and text and write text (Qwen2-VL, Qwen2.5-VL, SmolVLM)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModelForImageTextToText, PreTrainedModel

from swirl_lightning.backbones.errors import check_image_processor, readable
from swirl_lightning.backbones.image_trunk import ImageStore, ImageTrunk
from swirl_lightning.backbones.loading import load_base, load_config, misfit
from swirl_lightning.backbones.text import TextLLM
from swirl_lightning.engine.grammar import Grammar, TokenIds
from swirl_lightning.engine.ranges import check_ranges
from swirl_lightning.transition import State

QWEN = ("qwen2_vl", "qwen2_5_vl")
SMOL = ("smolvlm",)


@dataclass(frozen=True)
class TextGrammar(Grammar):
    """Grammar of text alone, which refuses the ids of an image."""

    def complete(self, content: TokenIds) -> TokenIds:
        """Return the completion of ``content``, as :class:`Grammar` does; ValueError for the ids of an image."""
        if content and max(content) > self.allowed[-1]:
            raise ValueError(
                "this model generates text, and an image was given as the state to predict: describe it in words "
                "(a transition's `after` as text), or train the IDM alone (model.init_args.roles: [idm])"
            )
        return super().complete(content)


class VLM(TextLLM):
    """An image-text-to-text model as a world model that reads images and writes text.

    ``before`` may be an image or a text; ``after`` is text wherever the FWM predicts or judges it. The IDM
    reads pairs of images, too: train it alone on them (``roles: [idm]`` of ``SWIRL``). Each position of an
    image has an id of its own above the vocabulary, a hash of that image. So prompts remain plain ids, and
    prompts share a prefix exactly if its images are equal. The trunk replaces those ids by the vision tower's
    features. Adapters go into the language model alone.

    Args:
        model_name_or_path: folder or hub name.
        resolution: side in pixels to which every image is padded and resized; None takes SmolVLM's own
            size, and 448 for Qwen.
        images_kept: number of images kept in memory, losslessly compressed; at least those of an optimiser step.
        **kwargs: as :class:`TextLLM`.

    Raises:
        ValueError: the checkpoint is of another family, or the resolution does not suit it.
    """

    lora_targets = r".*(language_model|text_model)\.layers\.\d+\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj"
    keep_unquantized = ("lm_head", "model.visual", "model.vision_model", "model.connector")
    reads = (str, Image.Image)
    ids_suffice = False
    capturable = False

    def __init__(
        self, model_name_or_path: str, resolution: int | None = None, images_kept: int = 1024, **kwargs: Any
    ) -> None:
        super().__init__(model_name_or_path, **kwargs)
        given = {"resolution": resolution, "images_kept": images_kept}
        check_ranges("model.backbone", given, resolution="whole [1, inf) or null", images_kept="whole [1, inf)")
        self._resolution, self.images_kept = resolution, images_kept

    # ---- the model -------------------------------------------------------------------------------
    def load_model(self) -> PreTrainedModel:
        """Load the base, its vision tower unquantised."""
        _ = self.grid, self._marks  # parts that do not fit are named before a long load
        check_image_processor(self.name, lambda images: self._batch(images)[0], self.resolution)
        return load_base(self, AutoModelForImageTextToText)

    def trunk(self, model: nn.Module) -> nn.Module:
        """Return the language model behind a look-up of images."""
        return ImageTrunk(model, self.store, self._features, by_grid=self.config.model_type in QWEN)

    @cached_property
    def config(self) -> Any:
        """The checkpoint's config."""
        return load_config(self, (*QWEN, *SMOL))

    # ---- images --------------------------------------------------------------------------------
    @cached_property
    def _processor(self) -> Any:
        with readable(self.name):
            return AutoImageProcessor.from_pretrained(
                self.path, revision=self.revision, backend="pil", trust_remote_code=self.trust_remote_code
            )

    @cached_property
    def resolution(self) -> int:
        """Side of an image in pixels."""
        own = self.config.vision_config.image_size if self.config.model_type in SMOL else 448
        if self.config.model_type in SMOL and self._resolution not in (None, own):
            raise ValueError(f"resolution of {self.name!r} is {own}, got {self._resolution}; leave it out")
        return int(self._resolution or own)

    @cached_property
    def grid(self) -> int:
        """Number of features along a side of an image."""
        vision = self.config.vision_config
        qwen = self.config.model_type in QWEN
        unit = vision.patch_size * (vision.spatial_merge_size if qwen else self.config.scale_factor)
        if self.resolution < unit or self.resolution % unit:
            raise ValueError(f"resolution must be a multiple of {unit}, the side of a feature, got {self.resolution}")
        return self.resolution // unit

    @cached_property
    def store(self) -> ImageStore:
        """Images seen last."""
        start = int(self.config.get_text_config().vocab_size)
        return ImageStore(start, self.grid, self.resolution, self.images_kept)

    def _batch(self, images: list[Image.Image]) -> list[Tensor]:
        """Prepare B images: what the vision tower is called with."""
        with readable(self.name):
            if self.config.model_type in SMOL:
                rows = [[image] for image in images]
                return [self._processor(rows, do_image_splitting=False, return_tensors="pt")["pixel_values"]]
            batch = self._processor(images, do_resize=False, return_tensors="pt")
            return [batch["pixel_values"], batch["image_grid_thw"]]

    def _features(self, model: Any, images: list[Image.Image], device: torch.device) -> Tensor:
        """Compute the vision tower's features of B images, (B, grid * grid, H)."""
        given = [part.to(device) for part in self._batch(images)]
        with readable(self.name):
            features = torch.stack(list(model.get_image_features(*given).pooler_output))
        if features.shape[1] != self.grid**2:
            misfit(self, f"an image has {features.shape[1]} features, {self.grid**2} were expected; check resolution")
        return features

    # ---- tokens ----------------------------------------------------------------------------------
    def encode_states(self, states: Sequence[State], device: torch.device) -> list[TokenIds]:
        """Encode each text, and each image as ids above the vocabulary that stand for its positions."""
        return [
            self.store.add(state)
            if isinstance(state, Image.Image)
            else super(VLM, self).encode_states([state], device)[0]
            for state in states
        ]

    def decode_states(self, contents: Sequence[TokenIds], device: torch.device) -> list[State]:
        """Decode ids to texts, or return the images that were encoded."""
        return [
            self.store.image(ids[0]) if ids and ids[0] >= self.store.start else self.decode_text(ids)
            for ids in contents
        ]

    @cached_property
    def _marks(self) -> tuple[TokenIds, TokenIds]:
        """Ids before and after an image."""
        if self.config.model_type in QWEN:
            return [int(self.config.vision_start_token_id)], [int(self.config.vision_end_token_id)]
        vocabulary = self.tokenizer.get_vocab()
        names = ("<fake_token_around_image>", "<global-img>")
        lacking = [name for name in names if name not in vocabulary]
        if lacking:
            misfit(self, f"its tokenizer lacks {', '.join(lacking)}; use the tokenizer files of that family")
        around, whole = (vocabulary[name] for name in names)
        return [around, whole], [around]

    def wrap_state(self, content: TokenIds) -> TokenIds:
        """Put the marks around an image; a text stays as it is."""
        if not content or content[0] < self.store.start:
            return content
        return [*self._marks[0], *content, *self._marks[1]]

    @cached_property
    def state_grammar(self) -> Grammar:
        """Grammar of all text, up to ``max_state_tokens`` with the EOS."""
        return TextGrammar(self._text_ids, self.max_state_tokens, self._eos)

    def fingerprint(self) -> str:
        """Name the tokenizer and the size of an image."""
        return f"{super().fingerprint()}:{self.resolution}"
