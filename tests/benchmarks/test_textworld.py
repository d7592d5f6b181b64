"""TextWorld as a DataModule, and by the command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from support.suites.textworld import needs_engine
from support.text_suites import bert_folder
from support.trainers import quiet_trainer
from swirl_lightning.__main__ import main
from swirl_lightning.benchmarks.textworld import TextWorld
from swirl_lightning.benchmarks.textworld.dataset import SPLITS, load
from swirl_lightning.callbacks import PhaseSwitch
from swirl_lightning.results.table import read as read_results
from swirl_lightning.transition import Transition

ROOT = Path(__file__).parents[2]


def small(folder: Path, **options: Any) -> TextWorld:
    sizes = {f"{split}_size": 6 for split in SPLITS}
    return TextWorld(str(folder), **{**sizes, "objects": 6, "quest_length": 3, "steps": 8, **options})


@needs_engine
def test_data_module(tmp_path):
    data = small(tmp_path, state_only_size=9, max_gap=2, batch_size=4)
    data.trainer = quiet_trainer(tmp_path, PhaseSwitch(1, iterations=1))
    data.prepare_data()
    made = sorted(path.name.split("-")[0] for path in tmp_path.glob("*.jsonl"))
    assert made == ["state_only", "validation", "warmup"]
    data.setup("fit")
    assert [len(data.split(name)) for name in ("warmup", "state_only", "validation", "test")] == [6, 9, 6, 6]
    assert all(pair.action is None for pair in data.pairs(0))
    row = data.split("warmup")[0]
    assert row.meta["kind"] == str(row.action).split()[0]
    assert row.id.startswith("warmup-0000")
    with pytest.raises(ValueError, match="the split 'validation' is empty"):
        small(tmp_path, validation_size=0).split("validation")


@needs_engine
def test_each_split_has_its_shares(tmp_path):
    data = small(tmp_path, action_shares={"take": 1}, labelled_action_shares={"take": 0.5, "drop": 0.5})
    found = {split: [row.meta["kind"] for row in data.load_split(split)] for split in ("warmup", "test")}
    assert {split: sorted(kinds) for split, kinds in found.items()} == {
        "warmup": ["drop"] * 3 + ["take"] * 3,
        "test": ["take"] * 6,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rooms": 0}, r"rooms must lie in \[1, 1000\], got 0"),
        ({"on_path": 1.5}, r"on_path must lie in \[0, 1\], got 1\.5"),
        ({"moves": -0.1}, r"moves must lie in \[0, 1\]"),
        ({"test_size": -1}, r"test_size must lie in \[0, 10000000\], got -1"),
        ({"max_gap": 0}, r"max_gap must lie in \[1, inf\), got 0"),
        ({"labelled_action_shares": {"fly": 1.0}}, r"shares of TextWorld actions are numbers .* got {'fly': 1\.0}"),
        ({"world_seed": 8589}, r"world_seed must lie in \[0, 8588\], got 8589"),
    ],
)
def test_bad_options_are_named_before_anything_is_made(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        small(tmp_path / "new", **options).prepare_data()
    with pytest.raises(ValueError, match=message):
        small(tmp_path / "new", **options).setup("fit")
    assert not (tmp_path / "new").exists()


def test_similarity_of_texts_where_it_is_asked_for(tmp_path):
    data = TextWorld(embedding=str(bert_folder(tmp_path / "bert")), per_kind=True)
    data.check()
    metrics = data.state_metrics()
    before, after = (f"You are in the attic. The shirt is {place}. You carry nothing." for place in ("here", "there"))
    row = Transition(before, after, "take shirt", meta={"kind": "take"})
    metrics.update([after], [row])
    found = {name: float(value) for name, value in metrics.compute().items()}
    assert found["embedding_similarity"] == found["embedding_similarity/take"] == pytest.approx(1, abs=1e-5)
    assert "embedding_similarity" not in TextWorld().state_metrics()
    with pytest.raises(ImportError, match=r"data.embedding .*none': .*cannot be loaded"):
        TextWorld(embedding=str(tmp_path / "none")).check()


@needs_engine
def test_fit_and_test_by_the_command(gemma_path, tmp_path, monkeypatch):
    """The shipped config with a tiny base and a few games."""
    settings = yaml.safe_load((ROOT / "configs" / "textworld_smollm2.yaml").read_text())
    model, data = settings["model"]["init_args"], settings["data"]["init_args"]
    model["backbone"]["init_args"] |= {"model_name_or_path": str(gemma_path), "max_state_tokens": 40}
    model["grpo"]["group_size"] = 2
    data |= {"objects": 6, "quest_length": 3, "steps": 8, "batch_size": 4, "per_kind": True}
    data |= {"warmup_size": 8, "state_only_size": 8, "validation_size": 4, "test_size": 6, "pairs_per_iteration": 4}
    settings["phase_switch"]["warmup_epochs"] = 1
    for phase in ("fwm", "idm"):
        model["optim"][phase]["warmup"] = 0  # there is one step
    settings["trainer"]["enable_progress_bar"] = False
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.chdir(tmp_path)
    main(["fit", "-c", "config.yaml"])
    run = Path("runs/textworld_smollm2")
    assert {"SFT", "SWIRL iteration 1"} <= set(read_results(run / "results.json")["validation"])
    assert not list(Path("data/textworld").glob("test-*"))
    main(["test", "-c", "config.yaml", "--ckpt_path", str(run / "checkpoints" / "last.ckpt")])
    assert len(list(Path("data/textworld").glob("*.jsonl"))) == 4
    found = read_results(run / "results.json")
    values = found["test"]["SWIRL iteration 1"]
    for mode in ("sampled", "greedy"):
        for name in ("effect_accuracy", "preservation", "hallucination", "exact_match", "rouge_l"):
            assert 0 <= values[f"fwm/{mode}/{name}"] <= 1
        assert any(key.startswith(f"fwm/{mode}/effect_accuracy/") for key in values)
        assert f"idm/{mode}/exact_match" in values
    assert found["about"]["test"]["SWIRL iteration 1"]["suite"] == "TextWorld"


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"null", b'{"sha256": ["x"]}'])
def test_a_damaged_file_beside_a_split_is_told(tmp_path, content):
    path = tmp_path / "test-0.jsonl"
    path.write_text("")
    path.with_suffix(".json").write_bytes(content)
    with pytest.raises(ValueError, match=r"test-0\.json is damaged: .*|was changed after it was made"):
        load(path)
