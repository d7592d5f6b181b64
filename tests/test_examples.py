"""The worked example of docs/backbones.md, used as a user would: from outside the package, by class path."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

from swirl_lightning import SWIRL
from swirl_lightning.backbones import Backbone
from swirl_lightning.cli import SwirlCLI
from swirl_lightning.data import TransitionDataModule
from swirl_lightning.transition import Transition
from tiny import byte_tokenizer

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"


class Lights(TransitionDataModule):
    """Two by two cells; the action switches one of them on."""

    def load_split(self, split):
        rows = []
        for n in range(4):
            before = Image.new("RGB", (2, 2))
            after = before.copy()
            after.putpixel((n % 2, n // 2), (255, 0, 0))
            rows.append(Transition(before, after, f"light {n}", id=f"{split}-{n}"))
        return rows


@pytest.fixture
def checkpoint(tmp_path):
    tokenizer = byte_tokenizer([*[f"<c{n}>" for n in range(8)], "<state>", "</state>"])
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        eos_token_id=1,
        bos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_backbone_from_outside_trains_both_phases(checkpoint, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.chdir(tmp_path)
    cli = SwirlCLI(
        SWIRL,
        TransitionDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_callback=None,
        auto_configure_optimizers=False,
        run=False,
        trainer_defaults={"max_epochs": -1, "logger": False, "enable_checkpointing": False, "accelerator": "cpu"},
        args=[
            "--model=swirl_lightning.SWIRL",
            "--model.backbone=my_backbone.PaletteLM",
            f"--model.backbone.model_name_or_path={checkpoint}",
            "--model.backbone.side=2",
            "--model.backbone.dtype=float32",
            "--model.grpo.group_size=4",
            "--data=test_examples.Lights",
            "--data.batch_size=4",
            "--phase_switch.warmup_epochs=1",
            "--phase_switch.iterations=1",
            "--trainer.enable_progress_bar=false",
        ],
    )
    cli.trainer.fit(cli.model, cli.datamodule)
    assert cli.trainer.current_epoch == 3
    backbone = cli.model.backbone
    state = Lights().load_split("test")[2].after
    (decoded,) = backbone.decode_states(backbone.encode_states([state], torch.device("cpu")), torch.device("cpu"))
    assert decoded.tobytes() == state.tobytes()


def test_the_docs_table_has_every_method():
    text = (EXAMPLES.parent / "backbones.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    for name, member in vars(Backbone).items():
        if not name.startswith("_"):
            (row,) = [row for row in rows if f"`{name}" in row.split("|")[1]]
            required = getattr(member, "__isabstractmethod__", False)
            assert ("| yes |" in row) == required, name


def test_the_example_stays_short():
    assert len((EXAMPLES / "my_backbone.py").read_text().splitlines()) < 120
