"""Running a text suite end to end with the tiny Gemma."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel

from support.tiny import byte_tokenizer, text_backbone
from support.trainers import quiet_trainer
from swirl_lightning import SWIRL, SamplingConfig
from swirl_lightning.callbacks import PhaseSwitch, Results
from swirl_lightning.evaluation import EvaluationConfig

SAMPLES = Path(__file__).parents[2] / "../shared/samples"


def tiny_model(gemma: Path, **kwargs: Any) -> SWIRL:
    return SWIRL(
        text_backbone(gemma, max_state_tokens=40, max_action_tokens=10, quantization=None),
        sampling=SamplingConfig(temperature=0.7, top_p=0.96),
        evaluation=EvaluationConfig(modes=("sampled",)),
        **kwargs,
    )


def tiny_trainer(folder: Path, **kwargs: Any) -> Trainer:
    return quiet_trainer(folder, PhaseSwitch(warmup_epochs=1, iterations=1), Results(), **kwargs)


def evaluated(data: Any, gemma: Path, folder: Path) -> dict[str, float]:
    """Run ``swirl test`` and return its results."""
    (results,) = tiny_trainer(folder).test(tiny_model(gemma), datamodule=data, verbose=False)
    return {key.removeprefix("test/"): float(value) for key, value in results.items()}


def bert_folder(folder: Path) -> Path:
    """A BERT with random weights, as on the hub."""
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 2), ("<eos>", 1)]
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    BertModel(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=64,
            initializer_range=0.5,
        )
    ).save_pretrained(folder)
    return folder
