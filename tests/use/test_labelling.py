"""``swirl label``: files in, files out, and nothing computed twice."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image

from support.cli import here
from support.processes import swirl
from support.videos import write_video
from support.world import Digits
from swirl_lightning.benchmarks.minigrid import MiniGrid
from swirl_lightning.data import JSONLTransitions
from swirl_lightning.use import LabelConfig, Run, label_files, labelling

CPU = ("--accelerator", "cpu")


@pytest.fixture
def pairs(tmp_path):
    """A file of texts: two broken records, one without id, one that has an action, others with a field of their own."""
    rows = Digits(size=10).load_split("state_only")
    lines = [
        json.dumps({"id": row.id, "before": row.before, "after": row.after, "clip": n}) for n, row in enumerate(rows)
    ]
    given = json.dumps({"before": "37", "after": "73", "action": "swap"})
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join([*lines, "{", json.dumps({"before": "37"}), given]) + "\n")
    return path


@pytest.fixture
def asked(monkeypatch):
    """The ids of the pairs that are labelled, in batches; the call numbered ``fails_at`` fails."""
    batches, own = [], labelling.label

    def watched(model, rows, **options):
        batches.append([row.id for row in rows])
        if len(batches) == watched.fails_at:
            raise KeyboardInterrupt
        return own(model, rows, **options)

    watched.fails_at, watched.batches = None, batches
    monkeypatch.setattr(labelling, "label", watched)
    return watched


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_records_of_training_data_come_out(digits, pairs, tmp_path, capsys):
    out = tmp_path / "out"
    here("label", digits, pairs, "--to", out, *CPU, "--alternatives", "1", "--batch_size", "4")
    records = read(out / "labelled.jsonl")
    assert [record.get("clip") for record in records] == [*range(10), None]
    assert all(record["action"] and record["log_prob"] <= 0 and record["agreement"] <= 0 for record in records)
    assert records[-1]["id"] == f"{pairs.name}:13"
    assert records[-1]["given_action"] == "swap"
    assert "given_action" not in records[0]
    others = [other for record in records for other in record.get("alternatives", ())]
    assert others
    assert {frozenset(other) for other in others} == {frozenset(("action", "log_prob", "agreement"))}
    rows = JSONLTransitions(warmup=str(out / "labelled.jsonl")).split("warmup")
    assert [row.action for row in rows] == [record["action"] for record in records]
    told = capsys.readouterr().out.splitlines()
    assert told[-5] == f"11 of 11 labels kept, 2 records skipped: {out / 'labelled.jsonl'}"
    assert told[-4].startswith("log_prob: median -")
    assert told[-2].startswith("as the action that was given, of 1 labelled: ")


def test_an_interrupted_call_goes_on_and_thresholds_cost_nothing(digits, pairs, tmp_path, asked):
    out, asked.fails_at = tmp_path / "out", 3
    run = Run.find(digits)
    with pytest.raises(SystemExit):  # as Lightning ends on Ctrl-C
        label_files(run, str(pairs), out, LabelConfig(batch_size=4), accelerator="cpu")
    assert len(read(out / "all-rank0.jsonl")) == 8
    assert not (out / "labelled.jsonl").exists()
    whole = (out / "all-rank0.jsonl").read_bytes()
    (out / "all-rank0.jsonl").write_bytes(whole[:-20])  # as a kill may leave it
    asked.batches.clear()
    summary = label_files(run, str(pairs), out, LabelConfig(batch_size=4), accelerator="cpu")
    assert [len(batch) for batch in asked.batches] == [4]
    values = sorted(record["agreement"] for record in summary.kept)
    assert len(values) == 11

    asked.batches.clear()
    least = values[4]
    some = label_files(run, str(pairs), out, LabelConfig(min_agreement=least), accelerator="cpu")
    assert asked.batches == []
    assert [r["agreement"] for r in some.kept] == [r["agreement"] for r in summary.kept if r["agreement"] >= least]
    assert read(out / "labelled.jsonl") == some.kept != summary.kept
    few = label_files(run, str(pairs), out, LabelConfig(min_agreement=least, min_log_prob=-1e-9), accelerator="cpu")
    assert few.kept == []

    with open(pairs, "a") as file:  # the source has grown, a state in it has changed, and another record's field
        file.write(json.dumps({"id": "new", "before": "11", "after": "12"}) + "\n")
    pairs.write_text(pairs.read_text().replace('"clip": 0', '"clip": 100', 1).replace('"73"', '"74"'))
    kept = label_files(run, str(pairs), out, accelerator="cpu").kept
    assert asked.batches == [[summary.kept[0]["id"], f"{pairs.name}:13", "new"]]
    assert kept[0] == summary.kept[0] | {"clip": 100}


def test_a_checkpoint_that_a_training_replaces_meanwhile_labels_nothing(digits, pairs, tmp_path, monkeypatch):
    """What is written says which weights the labels are of."""
    folder, own = shutil.copytree(digits, tmp_path / "run"), Run.load

    def replaced(run, *args):
        last = folder / "checkpoints" / "last.ckpt"
        torch.save(torch.load(last, weights_only=True) | {"later": 1}, last)
        return own(run, *args)

    monkeypatch.setattr(Run, "load", replaced)
    with pytest.raises(SystemExit, match=r"error: .*last\.ckpt has been written anew since this began"):
        here("label", folder, pairs, "--to", tmp_path / "out", *CPU)
    assert not list((tmp_path / "out").glob("*.jsonl"))


def test_two_processes_label_as_one(digits, pairs, tmp_path):
    options = ("--devices", 2, "--batch_size", 4)
    done = swirl("label", digits, pairs, "--to", tmp_path / "two", *CPU, *options, ranks=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("labels kept") == 1
    here("label", digits, pairs, "--to", tmp_path / "one", *CPU, "--batch_size", "4")
    one, two = (read(tmp_path / name / "labelled.jsonl") for name in ("one", "two"))
    assert len(read(tmp_path / "two" / "all-rank1.jsonl")) in (5, 6)
    assert [(r["id"], r["action"]) for r in one] == [(r["id"], r["action"]) for r in two]
    assert [r["agreement"] for r in one] == pytest.approx([r["agreement"] for r in two], abs=2e-4)


def test_labels_are_the_warm_up_of_a_next_run(minigrid, tmp_path, capsys):
    out, second = tmp_path / "labels", tmp_path / "second"
    here("label", minigrid, "state_only", "--to", out, *CPU, "--batch_size", "8")
    assert len(read(out / "labelled.jsonl")) == 16
    settings = (minigrid / "config.yaml").read_text().splitlines()
    model = "\n".join(settings[settings.index("model:") : next(n for n, s in enumerate(settings) if s == "data:")])
    (tmp_path / "config.yaml").write_text(f"""{model}
trainer:
  {{default_root_dir: {second}, accelerator: cpu, limit_val_batches: 0, enable_progress_bar: false,
    callbacks: [{{class_path: support.cli.NoMemoryReport}}]}}
phase_switch: {{warmup_epochs: 1, iterations: 0}}
data:
  class_path: swirl_lightning.data.JSONLTransitions
  init_args: {{warmup: {out / "labelled.jsonl"}, batch_size: 8}}
""")
    here("fit", "-c", tmp_path / "config.yaml")
    assert (second / "checkpoints" / "last.ckpt").is_file()
    rows = JSONLTransitions(warmup=str(out / "labelled.jsonl")).split("warmup")
    own = {row.id: row for row in MiniGrid(state_only_size=16).load_split("state_only")}
    for row, record in zip(rows, read(out / "labelled.jsonl"), strict=True):
        assert row.before.tobytes() == own[row.id].before.tobytes()
        assert row.after.tobytes() == own[row.id].after.tobytes()
        assert record["given_action"] == own[row.id].action
        assert record["family"] == own[row.id].meta["family"]


def test_images_of_parquet_become_files(minigrid, tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    rows = MiniGrid(test_size=3).load_split("test")
    for n, row in enumerate(rows):
        row.before.save(tmp_path / f"{n}.png")
        row.after.save(tmp_path / f"{n}-after.png")
    (tmp_path / "pairs").mkdir()
    table = {
        "before_image": [(tmp_path / f"{n}.png").read_bytes() for n in range(3)],
        "after_image": [f"{n}-after.png" for n in range(2)] + ["lost.png"],
    }
    columns = {"before_image": pa.array(table["before_image"]), "after_image": pa.array(table["after_image"])}
    parquet.write_table(pa.table(columns), tmp_path / "pairs.parquet")
    here("label", minigrid, tmp_path / "pairs.parquet", "--to", tmp_path / "deep" / "out", *CPU)
    found = JSONLTransitions(warmup=str(tmp_path / "deep" / "out" / "labelled.jsonl")).split("warmup")
    assert [row.before.tobytes() for row in found] == [row.before.tobytes() for row in rows[:2]]
    assert [row.after.tobytes() for row in found] == [row.after.tobytes() for row in rows[:2]]
    records = read(tmp_path / "deep" / "out" / "labelled.jsonl")
    assert [record["after_image"] for record in records] == ["../../0-after.png", "../../1-after.png"]

    other = pa.array(table["before_image"][::-1])  # the same ids, other images
    parquet.write_table(pa.table(columns | {"before_image": other}), tmp_path / "pairs" / "pairs.parquet")
    for n in range(2):
        (tmp_path / "pairs" / f"{n}-after.png").write_bytes((tmp_path / f"{n}-after.png").read_bytes())
    here("label", minigrid, tmp_path / "pairs" / "pairs.parquet", "--to", tmp_path / "deep" / "out", *CPU)
    assert len(set((tmp_path / "deep" / "out" / "images").iterdir())) == 4


def test_a_folder_of_frames_and_one_of_videos(minigrid, tmp_path, capsys):
    frames = tmp_path / "frames"
    rows = MiniGrid(test_size=3).load_split("test")
    for clip in ("a", "b"):
        (frames / clip).mkdir(parents=True)
        for n, row in enumerate(rows):
            row.before.save(frames / clip / f"frame{9 + n}.png")
    (frames / "b" / "frame10.png").write_bytes(b"no image")
    here("label", minigrid, frames, "--to", tmp_path / "out", *CPU)
    assert [record["id"] for record in read(tmp_path / "out" / "labelled.jsonl")] == [
        "a/frame9.png+1",
        "a/frame10.png+1",
    ]
    assert "2 of 2 labels kept, 2 records skipped" in capsys.readouterr().out

    pytest.importorskip("av")
    write_video(tmp_path / "videos" / "one.mp4", frames=12, pattern=True)
    here("label", minigrid, tmp_path / "videos", "--to", tmp_path / "filmed", "--seconds", "0.5", *CPU)
    (record,) = read(tmp_path / "filmed" / "labelled.jsonl")
    assert record["video"] == "one.mp4"
    assert Image.open(tmp_path / "filmed" / record["before_image"]).size == (32, 32)


def test_a_pair_that_the_backbone_does_not_read_is_skipped_and_counted(digits, tmp_path, capsys, recwarn):
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    good = [json.dumps({"before": f"{n}{n}", "after": "12"}) for n in range(3)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join([good[0], json.dumps({"before_image": "x.png", "after": "12", "id": "odd"}), *good[1:]]))
    for _ in "ab":  # and is not tried again
        here("label", digits, path, "--to", tmp_path / "out", *CPU)
        assert "3 of 3 labels kept, 1 records skipped" in capsys.readouterr().out
    assert any("odd: TextLLM reads textual states, got Image" in str(one.message) for one in recwarn)

    lone = json.dumps({"before_image": "x.png", "after": "12", "id": "lone"})
    path.write_text(f"{path.read_text()}\n{lone}")  # nothing but this is left to label
    here("label", digits, path, "--to", tmp_path / "out", *CPU)
    assert "3 of 3 labels kept, 2 records skipped" in capsys.readouterr().out

    path.write_text("\n".join([lone, *good]))  # the whole first batch, as may be that of one of several devices
    here("label", digits, path, "--to", tmp_path / "single", *CPU, "--batch_size", 1)
    assert "3 of 3 labels kept, 1 records skipped" in capsys.readouterr().out

    many = "\n".join(lone.replace("lone", str(n)) for n in range(33))
    for text, told in (
        (lone, r"1 of 1 records cannot be used .*\n  lone: TextLLM reads textual states, got Image"),
        (many, "none of the first 32 pairs can be labelled: TextLLM reads textual states, got Image"),
    ):
        path.write_text(text)
        with pytest.raises(SystemExit, match=told):
            here("label", digits, path, "--to", tmp_path / f"none {len(text)}", *CPU)


def test_a_split_whose_states_have_changed_is_labelled_anew(digits, tmp_path, asked, monkeypatch):
    """Ids stay the same where a suite's files are written anew."""
    run, out, own = Run.find(digits), tmp_path / "out", Digits.load_split
    rows = label_files(run, "test", out, accelerator="cpu").kept
    asked.batches.clear()
    label_files(run, "test", out, accelerator="cpu")
    assert asked.batches == []
    other = "12" if rows[1]["after"] != "12" else "21"

    def changed(data, split):
        found = list(own(data, split))
        return [found[0], replace(found[1], after=other), *found[2:]] if split == "test" else found

    monkeypatch.setattr(Digits, "load_split", changed)
    found = label_files(run, "test", out, accelerator="cpu").kept
    assert asked.batches == [[rows[1]["id"]]]
    assert [row["after"] for row in found] == [rows[0]["after"], other, *(row["after"] for row in rows[2:])]


def test_a_folder_of_other_labels_or_of_something_else_is_left_alone(digits, pairs, tmp_path):
    run, out = Run.find(digits), tmp_path / "out"
    label_files(run, str(pairs), out, accelerator="cpu")
    before = (out / "labelled.jsonl").read_bytes()
    with pytest.raises(ValueError, match="was made with another alternatives, another seed: take another folder"):
        label_files(run, str(pairs), out, LabelConfig(alternatives=2, seed=1), accelerator="cpu")
    older = min((digits / "checkpoints").glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    with pytest.raises(ValueError, match="was made with another checkpoint"):
        label_files(Run.find(older), str(pairs), out, accelerator="cpu")
    assert (out / "labelled.jsonl").read_bytes() == before
    with pytest.raises(FileExistsError, match="holds something else"):
        label_files(run, str(pairs), digits, accelerator="cpu")
    cut = tmp_path / "cut"  # as a call leaves it that is killed while it writes its settings
    cut.mkdir()
    (cut / ".settings.json.partial").touch()
    assert label_files(run, str(pairs), cut, accelerator="cpu").kept


def test_roles_that_cannot_label_are_refused_before_anything_is_read(digits, pairs, tmp_path):
    settings = (digits / "config.yaml").read_text()
    for role, config, told in (
        ("fwm", LabelConfig(), "labels come from the IDM, and .* trains none"),
        ("idm", LabelConfig(min_agreement=-1.0), "min_agreement asks the FWM, and .* filter by min_log_prob"),
    ):
        alone = settings.replace("    roles:\n    - fwm\n    - idm\n", f"    roles:\n    - {role}\n")
        assert alone != settings
        (tmp_path / "config.yaml").write_text(alone)
        with pytest.raises(ValueError, match=told):
            label_files(Run.find(digits, tmp_path / "config.yaml"), str(pairs), tmp_path / "out", config)
    assert not (tmp_path / "out").exists()
