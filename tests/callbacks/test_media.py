"""Images and texts in every logger that takes them, from runs of the real loggers."""

from __future__ import annotations

from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL import Image

from support.runs import Data, Model, events, texts
from support.swirl import build
from support.trainers import quiet_trainer
from support.world import Digits
from swirl_lightning.callbacks import (
    ActionTable,
    HeldOutStates,
    HyperparameterText,
    MetricGlossary,
    PhaseSwitch,
    TransitionImages,
)
from swirl_lightning.callbacks.media import Media

ROOT = Path(__file__).parents[2]


def test_a_plain_folder_gets_what_tensorboard_gets(tmp_path):
    loggers = [
        TensorBoardLogger(tmp_path, name="", version="run", default_hp_metric=False),
        CSVLogger(tmp_path, name="", version="csv"),
    ]
    options = {"max_epochs": 3, "num_sanity_val_steps": 0, "reload_dataloaders_every_n_epochs": 1}
    quiet_trainer(tmp_path, TransitionImages(), ActionTable(), logger=loggers, **options).fit(Model(), Data())
    found, folder = events(tmp_path), tmp_path / "csv" / "media"
    for phase in ("fwm", "idm"):
        (image,), (text,) = (folder / phase / "transitions").iterdir(), (folder / phase / "actions").iterdir()
        (event,) = found.Images(f"{phase}/transitions")
        assert Image.open(image).size == (event.width, event.height)
        assert (image.name, text.name) == (f"{event.step:06}.png", f"{event.step:06}.md")
        assert text.read_text() == texts(found, f"{phase}/actions")[event.step] + "\n"


def test_mlflow_gets_artifacts(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    logger = MLFlowLogger(tracking_uri=f"file:{tmp_path / 'mlruns'}", experiment_name="t")
    show(Media([logger]))
    (image,), (text,) = tmp_path.rglob("artifacts/media/fwm/x/000003.png"), tmp_path.rglob("artifacts/media/fwm/y/*.md")
    assert Image.open(image).size == (4, 5)
    assert text.read_text() == "| a |"


def test_wandb_gets_images_and_tables(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    for name in ("WANDB_MODE", "WANDB_SILENT"):
        monkeypatch.setenv(name, {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}[name])
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    show(Media([logger]))
    logger.experiment.finish()
    (image,) = tmp_path.rglob("files/media/images/fwm/x*.png")
    assert Image.open(image).size == (4, 5)
    (table,) = tmp_path.rglob("files/media/table/fwm/y*.json")
    assert "| a |" in table.read_text()


def show(to):
    to.image("fwm/x", Image.new("RGB", (4, 5)), 3)
    to.text("fwm/y", "| a |", 3)


def test_held_out_states_hyperparameters_and_the_glossary(tmp_path, gemma_path):
    """One run: a row for each validation, the HParams view with its scores, and the page that explains them."""
    module = build(gemma_path, quantization=None)
    logger = TensorBoardLogger(tmp_path, name="", version="run", default_hp_metric=False)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("model: {init_args: {grpo: {beta: 0.5}}}\nseed_everything: 1\n")
    callbacks = [HeldOutStates(count=2), HyperparameterText(), MetricGlossary(), PhaseSwitch(2, iterations=0)]
    quiet_trainer(tmp_path, *callbacks, logger=logger, max_epochs=-1).fit(module, Digits(size=8, batch_size=8))
    found = events(tmp_path)
    first, second = texts(found, "val/held_out").values()
    head, _, *rows = second.splitlines()
    assert [row.split(" | ")[0] for row in rows[:2]] == ["| before", "| after"]
    assert [row.split(", step ")[1][0] for row in rows[2:]] == ["1", "2"]
    assert (len(first.splitlines()), len(rows), head.count("|")) == (5, 4, 4)
    data = Digits(size=8).load_split("validation")
    assert rows[1] == f"| after | {data[0].after} | {data[1].after} |"
    (page,) = texts(found, "metrics").values()
    assert page == (ROOT / "docs" / "metrics.md").read_text()
    content = b"".join(path.read_bytes() for path in (tmp_path / "run").glob("events*"))
    assert b"model.grpo.beta" in content
    assert b"hparams/val/fwm/greedy/exact_match" in content


def test_the_page_in_the_package_is_the_page_in_the_docs():
    packaged = ROOT / "src" / "swirl_lightning" / "assets" / "metrics.md"
    assert packaged.read_text() == (ROOT / "docs" / "metrics.md").read_text()


@pytest.mark.parametrize("options", [{"count": 0}, {"count": -1}])
def test_bad_numbers(options):
    with pytest.raises(ValueError, match="must lie in"):
        HeldOutStates(**options)
