"""What runs of the command import late, for processes that are forked from one which has it."""

from __future__ import annotations

import peft  # noqa: F401
import torch.utils.tensorboard  # noqa: F401
import transformers.models.gemma.modeling_gemma  # noqa: F401

from swirl_lightning.engine.quantization import import_bitsandbytes

import_bitsandbytes()
