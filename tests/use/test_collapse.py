"""``swirl collapse``: Figure 6 of a small run, against figures computed from the same draws."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from support.cli import config, here
from support.tiny import gemma_folder
from support.world import Digits
from swirl_lightning import SWIRL
from swirl_lightning.metrics.perplexity import perplexity
from swirl_lightning.results.curves import draw
from swirl_lightning.use.collapse import LABELS, CollapseConfig, collapse_files, diversity, iterations_of, name_actions
from swirl_lightning.use.collapse import _panels as panels
from swirl_lightning.use.runs import Run


def test_figures_of_each_iteration_beside_the_labels(gemma_path, tmp_path, capsys):
    changes = {
        "trainer/limit_val_batches": 0,
        "trainer/callbacks": [],  # a checkpoint an epoch
        "phase_switch": {"warmup_epochs": 2, "phases": ["fwm", "idm"], "iterations": 2},
        "data/init_args": {"size": 12, "batch_size": 6},
        "model/init_args/optim": {"warmup": {"lr": 1e-2}, "idm": {"lr": 1e-2}},
    }
    here("fit", "-c", config(tmp_path, gemma_path, **changes))
    run, language = tmp_path / "runs" / "r", gemma_folder(tmp_path / "language", seed=3)
    here("collapse", run, "state_only", "--language_model", language, "--batch_size", "5", "--seed", "2")
    found = json.loads((run / "collapse.json").read_text())
    rows = found["rows"]
    assert list(rows) == ["human labels", "SFT", "SWIRL iteration 1", "SWIRL iteration 2"]
    assert found["settings"]["pairs"] == "state_only"

    data = Digits(size=12)
    labels = [row.action for row in data.load_split("warmup")]
    assert rows["human labels"]["unique"] == len(set(labels)) / 12
    assert rows["human labels"]["length"] == np.mean([len(label) for label in labels])  # a token a byte
    assert rows["human labels"]["perplexity_ratio"] == 1
    level = perplexity(str(language), labels)
    pairs = data.load_split("state_only")
    seen = set()
    for name, path in zip(list(rows)[1:], iterations_of(run), strict=True):
        model = SWIRL.load_from_checkpoint(path)
        assert model.label == name
        words = name_actions(model, pairs, batch_size=12, seed=2)
        seen.add(tuple(words))
        assert len(words) == rows[name]["actions"] == 12  # one a pair, over the whole split
        assert rows[name]["unique"] == len(set(words)) / 12
        tokens = [len(model.backbone.encode_action(text)) for text in words]
        assert rows[name]["length"] == pytest.approx(np.mean(tokens))
        assert rows[name]["perplexity"] == pytest.approx(perplexity(str(language), words), rel=1e-4)
        assert rows[name]["perplexity_ratio"] == pytest.approx(rows[name]["perplexity"] / level)
    assert len(seen) > 1  # Phase II has moved the IDM
    told = capsys.readouterr().out
    assert f"SWIRL iteration 2: 12 actions, unique {rows['SWIRL iteration 2']['unique']:.3f}" in told
    with Image.open(run / "collapse.png") as image:
        assert np.array(image.convert("L")).std() > 5

    last = run / "checkpoints" / "last.ckpt"
    here("collapse", last, "test", "--labels", "validation", "--to", tmp_path / "one")
    rows = json.loads((tmp_path / "one" / "collapse.json").read_text())["rows"]
    assert list(rows) == ["human labels", "SWIRL iteration 2"]
    assert rows["SWIRL iteration 2"]["perplexity"] is None


def test_what_it_refuses(digits, tmp_path, capsys):
    with pytest.raises(SystemExit):
        here("collapse", digits, "frames")
    assert "invalid choice: 'frames'" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match="with which the warm-up or an iteration ends"):
        iterations_of(tmp_path)
    assert [path.name for path in iterations_of(digits)] == [Run.find(digits).checkpoint.name]


def test_a_language_model_that_cannot_be_loaded_is_told_before_an_action_is_named(digits, tmp_path, monkeypatch):
    monkeypatch.setattr("swirl_lightning.use.collapse.name_actions", lambda *_: pytest.fail("actions were named"))
    config = CollapseConfig(language_model=str(tmp_path / "missing"))
    with pytest.raises((OSError, ValueError), match="missing"):
        collapse_files(Run.find(digits), iterations_of(digits), tmp_path / "out", config)


def test_an_idm_that_says_nothing_has_no_perplexity_and_a_row_all_the_same(digits, tmp_path):
    model, language = Run.find(digits).build(), str(gemma_folder(tmp_path / "language"))
    human = diversity(["inc", "dec"], model, language)
    table = {LABELS: human, "SFT": diversity(["inc"], model, language, human=human)}
    table["SWIRL iteration 1"] = blank = diversity(["", "", " "], model, language, human=human)
    assert (blank.actions, blank.unique, blank.perplexity, blank.perplexity_ratio) == (3, 2 / 3, None, None)
    assert table["SFT"].perplexity_ratio == table["SFT"].perplexity / human.perplexity
    assert diversity(["inc"], model, language, human=blank).perplexity_ratio is None
    found = panels(table)
    assert [panel.title for panel in found][2:] == ["perplexity / human labels'"]
    draw(found, tmp_path / "collapse.png")
