"""The worked examples of docs/, used as a user would: from outside the package, by class path."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

from support.swirl import build, equal, snapshot
from support.tiny import byte_tokenizer
from support.trainers import quiet_trainer
from support.world import Digits
from swirl_lightning import SWIRL
from swirl_lightning.backbones import Backbone
from swirl_lightning.callbacks import PhaseSwitch
from swirl_lightning.cli import SwirlCLI
from swirl_lightning.data import TransitionDataModule
from swirl_lightning.transition import Transition

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


def command(*args):
    """Build what ``swirl fit`` builds from these options."""
    return SwirlCLI(
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
            *args,
            "--model.backbone.dtype=float32",
            "--model.grpo.group_size=4",
            "--data.batch_size=4",
            "--phase_switch.warmup_epochs=1",
            "--phase_switch.iterations=1",
            "--trainer.enable_progress_bar=false",
        ],
    )


def test_a_backbone_from_outside_trains_both_phases(checkpoint, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.chdir(tmp_path)
    cli = command(
        "--model.backbone=my_backbone.PaletteLM",
        f"--model.backbone.model_name_or_path={checkpoint}",
        "--model.backbone.side=2",
        "--data=test_examples.Lights",
    )
    cli.trainer.fit(cli.model, cli.datamodule)
    assert cli.trainer.current_epoch == 3
    backbone = cli.model.backbone
    state = Lights().load_split("test")[2].after
    (decoded,) = backbone.decode_states(backbone.encode_states([state], torch.device("cpu")), torch.device("cpu"))
    assert decoded.tobytes() == state.tobytes()


@pytest.fixture
def lamps(tmp_path):
    """Files of my_benchmark.Lamps: two lamps, one of them switched."""
    folder = tmp_path / "lamps"
    folder.mkdir()
    for split in ("warmup", "state_only", "validation", "test"):
        rows = [
            {"before": f"off {end}", "action": "switch lamp 1", "after": f"on {end}"}
            for end in ("on", "off")
            for _ in "ab"
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_benchmark_from_outside_is_trained_on_and_tested(lamps, gemma_path, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.chdir(tmp_path)
    cli = command(
        "--model.backbone=swirl_lightning.backbones.TextLLM",
        f"--model.backbone.model_name_or_path={gemma_path}",
        "--model.backbone.max_state_tokens=16",
        "--data=my_benchmark.Lamps",
        f"--data.data_dir={lamps}",
    )
    cli.trainer.fit(cli.model, cli.datamodule)
    assert cli.trainer.current_epoch == 3
    (found,) = cli.trainer.test(cli.model, cli.datamodule, verbose=False)
    assert {"test/fwm/greedy/lamps", "test/fwm/greedy/exact_match", "test/idm/greedy/exact_match"} <= set(found)
    assert found["test/fwm/greedy/exact_match"] <= found["test/fwm/greedy/lamps"] <= 1


def test_the_benchmarks_metric_and_errors(lamps, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from my_benchmark import LampAccuracy, Lamps

    metric = LampAccuracy("lamps")
    rows = [Transition("off off", "on off", "switch lamp 1")] * 4
    metric.update(["on off", "on on", "on", None], rows)
    assert float(metric.compute()["lamps"]) == (1 + 0.5 + 0 + 0) / 4
    (lamps / "test.jsonl").write_text('{"before": "off", "after": "on"}\n')
    with pytest.raises(ValueError, match=r"test\.jsonl:1: needs an object with before, action and after"):
        Lamps(str(lamps)).load_split("test")
    (lamps / "warmup.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks warmup\.jsonl"):
        Lamps(str(lamps)).setup("fit")


def test_the_table_of_benchmarks_has_every_method():
    text = (EXAMPLES.parent / "own_benchmark.md").read_text()
    rows = {line.split("`")[1].split("(")[0]: "| yes |" in line for line in text.splitlines() if line.startswith("| `")}
    methods = {name: required for name, required in rows.items() if hasattr(TransitionDataModule, name)}
    assert [name for name, required in methods.items() if required] == sorted(TransitionDataModule.__abstractmethods__)
    assert {"check", "state_metrics", "action_metrics", "predict_rows", "prepare_data"} < set(methods)


def test_a_reward_and_a_learner_from_outside_train_both_phases_and_are_resumed(gemma_path, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from my_learner import Reinforce, ShortStates

    seen = {}

    class Counting(ShortStates):  # of what is drawn, in its state
        drawn = torch.zeros(())

        def __call__(self, scored):
            self.drawn = self.drawn + len(scored.samples.contents)
            return super().__call__(scored) - 0.001 * self.drawn

        def state_dict(self):
            return {"drawn": self.drawn}

        def load_state_dict(self, state):
            self.drawn = state["drawn"]

    class Lengths(Callback):  # that of the page
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if (rollouts := outputs["rollouts"]) is not None:
                length = rollouts.completions.mask.sum(1).float().mean()
                pl_module.log("lengths", length, batch_size=len(rollouts.transitions))

        def on_train_end(self, trainer, pl_module):
            seen.update({name: float(value) for name, value in trainer.callback_metrics.items()})

    def fit(folder, resume=None):
        module = build(gemma_path, reward=Counting(), learner=Reinforce())
        saved = ModelCheckpoint(folder, filename="{step}", save_top_k=-1, every_n_train_steps=1)
        quiet_trainer(folder, PhaseSwitch(1, iterations=1), saved, Lengths(), limit_val_batches=0).fit(
            module, Digits(size=24, batch_size=8), ckpt_path=resume
        )
        return module

    module = fit(tmp_path / "a")
    assert set(module.learner.baselines) == {"fwm", "idm"}
    assert {"lengths", "fwm/baseline", "idm/baseline", "fwm/loss"} <= set(seen)
    assert seen["idm/rewards/log_prob"] > seen["idm/reward"]  # which is less what the tokens cost
    again = fit(tmp_path / "b", tmp_path / "a" / "step=5.ckpt")  # within Phase I
    assert again.learner.baselines == module.learner.baselines
    assert again.reward.drawn == module.reward.drawn == 2 * 24 * 4
    assert equal(snapshot(again), snapshot(module))


def test_the_docs_table_has_every_method():
    text = (EXAMPLES.parent / "backbones.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    for name, member in vars(Backbone).items():
        if not name.startswith("_"):
            (row,) = [row for row in rows if f"`{name}" in row.split("|")[1]]
            required = getattr(member, "__isabstractmethod__", False)
            assert ("| yes |" in row) == required, name


@pytest.mark.parametrize(("name", "longest"), [("my_backbone", 120), ("my_benchmark", 90), ("my_learner", 80)])
def test_the_examples_stay_short(name, longest):
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) < longest
