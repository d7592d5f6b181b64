"""AURORA-Bench in its official layout, with whole and with broken data, end to end."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from support.image_world import clip_folder, liquid_folder, model, odd_images, save, trainer, write_aurora
from support.text_suites import bert_folder
from swirl_lightning.backbones import Chameleon, Emu3
from swirl_lightning.benchmarks.aurora import Aurora
from swirl_lightning.callbacks import Results
from swirl_lightning.callbacks.predictions import Predictions, _spread
from swirl_lightning.judge import Judge
from swirl_lightning.transition import Transition

REAL = Path(__file__).parents[3] / "shared" / "samples" / "aurora"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return liquid_folder(tmp_path_factory.mktemp("liquid"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return str(clip_folder(tmp_path_factory.mktemp("clip")))


def test_records_of_the_official_layout(tmp_path):
    entries = write_aurora(tmp_path)
    data = Aurora(data_dir=str(tmp_path))
    data.setup("test")
    rows = data.split("test")
    assert [(r.action, r.meta["task"]) for r in rows] == [(e["instruction"], e["task"]) for e in entries]
    assert [r.after is not None for r in rows] == [True] * 4 + [False] * 2
    assert rows[0].before.mode == "RGB"
    assert (rows[0].before.size, rows[0].after.size) == ((16, 16), (16, 20))
    assert len({r.id for r in rows}) == len(rows)
    assert data.counts == {"test": {"records": 6, "used": 6, "skipped": 0}}
    assert list(data.missing_metrics) == ["clip", "bert_score", "judge"]


def test_a_judge_without_a_key_is_missed_by_the_test_alone(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    write_aurora(tmp_path)
    data = Aurora(data_dir=str(tmp_path), judge=Judge("any"))
    data.check()  # by swirl label, simulate, play and collapse, which ask none
    assert data.split("test")
    with pytest.raises(ValueError, match="the judge's key is not set"):
        data.setup("test")


def test_disc_edit_needs_the_latents_of_a_vqgan(tmp_path, monkeypatch):
    data = Aurora(data_dir=str(tmp_path), protocol="disc_edit")
    data.trainer = SimpleNamespace(lightning_module=SimpleNamespace(backbone=Emu3("anything")))
    with pytest.raises(ValueError, match=r"disc_edit needs a model with a VQGAN.+; Emu3 has none"):
        data.check()
    data.trainer.lightning_module.backbone = Chameleon("anything")
    data.check()


def test_tasks_limit_and_training_sets(tmp_path):
    write_aurora(tmp_path)
    data = Aurora(data_dir=str(tmp_path), tasks=["kubric"], limit=1, validation_size=2)
    assert [r.meta["task"] for r in data.split("test")] == ["kubric"]
    data.setup("fit")
    assert (len(data.split("warmup")), len(data.split("validation"))) == (6, 2)
    assert not {r.id for r in data.split("warmup")} & {r.id for r in data.split("validation")}
    assert data.split("warmup")[0].action.startswith("turn ")
    with pytest.raises(ValueError, match="no task whatsup; it has clevr, kubric, magicbrush"):
        Aurora(data_dir=str(tmp_path), tasks=["whatsup"]).setup("test")


def test_odd_formats_are_converted(tmp_path):
    entries = write_aurora(tmp_path)
    for entry, path in zip(entries, odd_images(tmp_path), strict=False):
        entry["input"] = path.name
    (tmp_path / "test.json").write_text(json.dumps(entries))
    data = Aurora(data_dir=str(tmp_path), strict=True)
    data.setup("test")
    rows = [data.split("test")[n].before for n in range(3)]
    assert [row.mode for row in rows] == ["RGB"] * 3
    red, green, _ = rows[0].getpixel((0, 0))
    assert red > 200
    assert green < 60
    assert rows[2].getpixel((0, 0)) == (100, 100, 100)


def break_some(root: Path, entries: list[dict]) -> None:
    whole = (root / entries[0]["input"]).read_bytes()
    (root / entries[0]["input"]).write_bytes(b"")
    (root / entries[1]["output"]).unlink()
    (root / entries[2]["input"]).write_bytes(whole[: len(whole) // 2])
    entries[3]["instruction"] = " "
    entries += [{"task": "magicbrush", "instruction": "x"}, "no record"]
    entries += [{"task": "clevr", "instruction": "y", "input": f"gone/{n}.png"} for n in range(12)]
    (root / "test.json").write_text(json.dumps(entries))


def test_broken_records_are_counted_and_the_first_ten_named(tmp_path):
    break_some(tmp_path, write_aurora(tmp_path))
    data = Aurora(data_dir=str(tmp_path))
    with pytest.warns(UserWarning, match="17 of 20 records cannot be used") as caught:
        data.setup("test")
    message = next(str(w.message) for w in caught if "cannot be used" in str(w.message))
    assert message.count("\n") == 11  # ten names, and how many more
    assert "no instruction" in message
    assert data.counts["test"]["skipped: missing"] == 12
    assert data.counts["test"]["without target"] == 1
    assert data.counts["test"]["skipped: empty"] == 1
    assert data.counts["test"]["skipped: not readable"] == 1
    assert sum(row.after is None for row in data.split("test")) == 3  # two have none by the file
    with pytest.raises(ValueError, match="18 of 20 records"):
        Aurora(data_dir=str(tmp_path), strict=True).setup("test")


@pytest.mark.parametrize("task", [None, 1, [], {}, "", " ", ["emu"]])
def test_a_task_without_a_name_is_none(tmp_path, task):
    entries = write_aurora(tmp_path)
    (tmp_path / "test.json").write_text(json.dumps([*entries, {**entries[0], "task": task}]))
    data = Aurora(data_dir=str(tmp_path))
    with pytest.warns(UserWarning, match=r"test\.json\[\d+\]: task is .*, and no name"):
        data.setup("test")
    assert len(data.split("test")) == len(entries)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"task": ', r"test\.json\[0\]: not JSON"),
        (b"\xff\xfe[]", "a JSON list is needed"),
        (b"{}", "a JSON list"),
    ],
)
def test_a_broken_index_is_named(tmp_path, content, message):
    (tmp_path / "test.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        Aurora(data_dir=str(tmp_path)).setup("test")


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*github\.com/McGill-NLP/AURORA"):
        Aurora(data_dir=str(tmp_path / "none")).setup("test")
    with pytest.raises(FileNotFoundError, match=r"no file .*test\.json"):
        Aurora(data_dir=str(tmp_path)).setup("test")
    with pytest.raises(FileNotFoundError, match=r"no data/<task>/train\.json"):
        Aurora(data_dir=str(tmp_path)).setup("fit")


def generated(path):
    """Number of whole lines."""
    return sum(line.endswith("}") for line in path.read_text().splitlines())


def run(base, data, folder, **kwargs):
    callback = Predictions(contact_sheet_rows=3)
    module = model(base, **kwargs)
    tester = trainer(folder, callback, Results("base"))
    results = tester.test(module, data, verbose=False)[0]
    return results, callback


def test_a_contact_sheet_of_no_rows_keeps_none():
    callback, image = Predictions(contact_sheet_rows=0), Image.new("RGB", (2, 2))
    callback._keep_for_sheet("sampled", Transition(image, image, "turn", id="0"), image, None)
    assert not callback._sheet


def test_end_to_end_and_resumed(tmp_path, base, clip, monkeypatch):
    entries = write_aurora(tmp_path / "data")

    def data():
        return Aurora(data_dir=str(tmp_path / "data"), clip=clip, eval_batch_size=2)

    results, _ = run(base, data(), tmp_path)
    for key in ("clip_target", "clip_source", "clip_source/clevr", "clip_nearer_target", "clip_target/kubric"):
        assert -1 <= results[f"test/fwm/sampled/{key}"] <= 1
    assert "test/fwm/sampled/clip_target/clevr" not in results  # no result to compare with
    assert {"exact_match", "rouge_l", "bleu_word"} <= {k.split("/")[-1] for k in results if "/idm/" in k}
    for key in ("exact_match", "rouge_l", "bleu_word"):  # of the four with a result
        assert {f"test/idm/sampled/{key}/{task}" in results for task in ("magicbrush", "kubric")} == {True}
        assert f"test/idm/sampled/{key}/clevr" not in results
    table = json.loads((tmp_path / "results.json").read_text())
    rows = table["about"]["test"]["base"]["rows"]
    assert rows.keys() == {key for key in table["test"]["base"] if key.startswith(("fwm/sampled", "idm/sampled"))}
    counted = {"fwm/sampled/clip_source": 6, "fwm/sampled/clip_target": 4, "idm/sampled/exact_match": 4}
    assert {key: rows[key] for key in counted} == counted
    assert rows["idm/sampled/rouge_l/kubric"] == sum(e["task"] == "kubric" for e in entries[:4])
    folder = tmp_path / "predictions"
    lines = [json.loads(line) for line in (folder / "sampled-rank0.jsonl").read_text().splitlines()]
    assert [line["action"] for line in lines] == [e["instruction"] for e in entries]
    assert [line["after"] is None for line in lines] == [False] * 4 + [True] * 2
    source = Image.open(tmp_path / "data" / entries[0]["input"]).convert("RGB")
    assert Image.open(folder / lines[0]["before"]).tobytes() == source.tobytes()
    assert [line["predicted_action"] is None for line in lines] == [False] * 4 + [True] * 2
    assert all(Image.open(folder / line["predicted_state"]).size == (16, 16) for line in lines)
    assert Image.open(folder / "contact_sheet.png").height > 3 * 128

    # killed after two batches: the last line is cut short
    path = folder / "generated-rank0.jsonl"
    kept = path.read_text().splitlines(keepends=True)
    path.write_text("".join(kept[:5]) + kept[5][:20])
    again, _ = run(base, data(), tmp_path)
    assert again == results
    assert generated(path) == len(kept)  # none twice
    again, _ = run(base, data(), tmp_path)
    assert (again, generated(path)) == (results, len(kept))

    # other settings: nothing is reused
    run(base, data(), tmp_path, templates=model(base).templates.__class__(fwm="{before}{action}="))
    assert generated(path) == 2 * len(kept)


def test_models_that_cannot_be_loaded_leave_their_metrics_out(tmp_path, base, clip):
    """Before the base is loaded, and told in the results; the rest is scored."""
    write_aurora(tmp_path / "data")
    bert = str(bert_folder(tmp_path / "bert"))
    data = Aurora(data_dir=str(tmp_path / "data"), clip=str(tmp_path / "none"), bert=bert, eval_batch_size=6)
    with pytest.warns(UserWarning, match=r"AURORA: metrics left out:\n  clip: '.*none' cannot be loaded"):
        results, _ = run(base, data, tmp_path)
    assert list(data.missing_metrics) == ["clip", "judge"]
    assert not any("clip" in key for key in results)
    assert "test/idm/sampled/bert_score" in results
    data = Aurora(data_dir=str(tmp_path / "data"), clip=clip, bert="no such model!")
    data.setup("test")
    assert "'no such model!' cannot be loaded" in data.missing_metrics["bert_score"]
    assert "bert_score" not in data.action_metrics()
    assert "clip" in data.state_metrics()


def test_broken_data_is_named_counted_and_the_rest_is_scored(tmp_path, base, clip):
    root = tmp_path / "data"
    entries = write_aurora(root)
    for entry, path in zip(entries, odd_images(root / "odd"), strict=False):
        entry["input"] = str(path.relative_to(root))
    (root / entries[3]["output"]).write_bytes(b"")
    (root / entries[4]["input"]).unlink()
    entries += [
        {"task": "clevr", "instruction": " ", "input": entries[5]["input"]},
        {"task": "clevr", "instruction": "n\u00e9", "input": entries[5]["input"]},
        {"task": "clevr", "instruction": "lost", "input": entries[5]["input"]},
    ]
    text = json.dumps(entries, ensure_ascii=False).encode().replace("\u00e9".encode(), b"\xe9")
    (root / "test.json").write_bytes(text[: text.index(b"lost")])
    data = Aurora(data_dir=str(root), clip=clip)
    with pytest.warns(UserWarning, match="5 of 9 records cannot be used") as caught:
        results, _ = run(base, data, tmp_path)
    message = next(str(w.message) for w in caught if "cannot be used" in str(w.message))
    for reason in (
        "test.json[3] (after ",
        ": empty (zero bytes)",
        "test.json[4] (before ",
        ": missing",
        "test.json[6]: no instruction",
        "test.json[7]: not JSON ('utf-8' codec can't encode",
        "test.json[8]: not JSON, nothing is read from here on",
    ):
        assert reason in message
    assert (data.counts["test"]["used"], data.counts["test"]["skipped"]) == (4, 5)
    assert -1 <= results["test/fwm/sampled/clip_target/kubric"] <= 1
    module = model(base)
    with pytest.raises(ValueError, match="5 of 9 records cannot be used"):
        trainer(tmp_path).test(module, Aurora(data_dir=str(root), strict=True), verbose=False)
    assert module.model is None


def test_disc_edit(tmp_path, base):
    root = tmp_path / "data"
    save(root / "data/whatsup/images/a.png", 1)
    save(root / "data/clevr/images/b.png", 2)
    folder = root / "disc_edit_data"
    (folder / "whatsup").mkdir(parents=True)
    (folder / "clevr").mkdir()
    item = {"image": "data/whatsup/images/a.png", "pos": "put it there", "neg": "put it away"}
    (folder / "whatsup/itm_test.json").write_text(json.dumps([item, item | {"pos": 3, "neg": ""}]))
    edit = {"input": "data/clevr/images/b.png", "prompt": "make it red"}
    (folder / "clevr/valid.json").write_text(json.dumps([edit | {"pos": "stay"}, edit]))
    data = Aurora(data_dir=str(root), protocol="disc_edit", disc_samples=3, eval_batch_size=4)
    with pytest.warns(UserWarning, match="no image or no text"):
        data.setup("test")
    assert data.counts["test"] == {"records": 3, "used": 2, "skipped": 1, "skipped: no image or no text": 1}
    assert list(data.missing_metrics) == [f"disc_edit/{task}" for task in ("something", "ag", "kubric")]
    rows = data.split("test")
    assert [r.action for r in rows] == ["put it there"] * 3 + ["put it away"] * 3 + ["stay"] * 3 + ["make it red"] * 3
    results, _ = run(base, data, tmp_path)
    score, error = (results[f"test/fwm/sampled/disc_edit{s}"] for s in ("", "_standard_error"))
    assert 6 * score == pytest.approx(round(6 * score))
    assert error == pytest.approx((score * (1 - score) / 6) ** 0.5)
    assert score == pytest.approx(
        (results["test/fwm/sampled/disc_edit/whatsup"] + results["test/fwm/sampled/disc_edit/clevr"]) / 2
    )
    facts = json.loads((tmp_path / "results.json").read_text())["about"]["test"]["base"]["rows"]
    assert facts == {f"fwm/sampled/disc_edit{task}": 1 + (not task) for task in ("", "/whatsup", "/clevr")}


def test_a_missing_image_counts_once_and_the_tasks_that_go_are_named(tmp_path):
    save(tmp_path / "a.png", 1)
    for task, names in (("whatsup", "aab"), ("ag", "b")):
        items = [{"image": f"{name}.png", "pos": f"put it {n}", "neg": "put it away"} for n, name in enumerate(names)]
        (tmp_path / "data" / task).mkdir(parents=True)
        (tmp_path / "data" / task / "valid.json").write_text(json.dumps(items))
    data = Aurora(data_dir=str(tmp_path), protocol="disc_edit")
    with pytest.warns(UserWarning, match=r"metrics left out:\n  disc_edit/something: no usable record"):
        data.setup("test")
    assert data.counts["test"] == {"records": 4, "used": 2, "skipped": 2, "skipped: missing": 2}
    assert list(data.missing_metrics) == [f"disc_edit/{task}" for task in ("something", "ag", "kubric", "clevr")]
    assert len(data.split("test")) == 2 * 2 * 4


def test_the_contact_sheet_takes_all_tasks_in_turn():
    tasks = [[f"a{n}" for n in range(9)], ["b0"], [f"c{n}" for n in range(9)]]
    assert _spread(tasks, 6) == ["a0", "a1", "a2", "b0", "c0", "c1"]
    assert _spread([["a0", "a1"]], 6) == ["a0", "a1"]


def test_disc_edit_takes_the_chosen_tasks_that_have_such_files(tmp_path):
    save(tmp_path / "a.png", 1)
    item = {"image": "a.png", "pos": "put it there", "neg": "put it away"}
    for task in ("whatsup", "clevr"):
        (tmp_path / "data" / task).mkdir(parents=True)
        (tmp_path / "data" / task / "valid.json").write_text(json.dumps([item]))
    options = {"data_dir": str(tmp_path), "protocol": "disc_edit", "clip": str(tmp_path / "none")}
    data = Aurora(tasks=["magicbrush", "whatsup", "something"], **options)
    with pytest.warns(UserWarning, match="disc_edit/magicbrush: no usable record"):
        data.setup("test")
    assert list(data.missing_metrics) == ["disc_edit/magicbrush", "disc_edit/something"]  # it needs no CLIP
    assert {r.meta["task"] for r in data.split("test")} == {"whatsup"}
    with pytest.raises(FileNotFoundError, match=r"DiscEdit needs .* for one of magicbrush; AURORA has whatsup, "):
        Aurora(tasks=["magicbrush"], **options).setup("test")


@pytest.mark.skipif(not REAL.is_dir(), reason="no AURORA samples beside the repository")
def test_real_samples(tmp_path, base, clip):
    data = Aurora(data_dir=str(REAL), clip=clip, strict=True, eval_batch_size=10)
    data.setup("test")
    rows, entries = data.split("test"), json.loads((REAL / "test.json").read_text())
    assert [(r.action, r.meta["task"]) for r in rows] == [(e["instruction"], e["task"]) for e in entries]
    records = data.checked("test")
    assert [str(r.before.relative_to(REAL)) for r in records] == [e["input"] for e in entries]
    assert [r.after and str(r.after.relative_to(REAL)) for r in records] == [e.get("output") for e in entries]
    results, _ = run(base, data, tmp_path)
    assert data.counts["test"] == {"records": 20, "used": 20, "skipped": 0}
    assert {k for k in results if "clip_source/" in k} == {
        f"test/fwm/sampled/clip_source/{t}" for t in ("magicbrush", "kubric", "whatsup", "clevr")
    }


def test_the_state_only_split_is_read_before_the_model_loads(tmp_path):
    """Phase I may begin days later: errors must show at the start."""
    write_aurora(tmp_path)
    data = Aurora(data_dir=str(tmp_path), validation_size=2, batch_size=1)
    data.trainer = trainer(tmp_path, limit_val_batches=1)
    data.setup("fit")
    assert list(data.counts) == ["warmup", "state_only", "validation"]


def test_a_clip_is_trained_on_or_held_out(tmp_path):
    """Pairs of one video show one room and one person."""
    (tmp_path / "data" / "ag").mkdir(parents=True)
    entries = []
    for clip in "ABCDEF":
        for n in range(5):
            names = [f"data/ag/images/{clip}.mp4_{n}_{side}.png" for side in ("left", "right")]
            for name in names:
                save(tmp_path / name, n)
            entries.append({"input": names[0], "output": names[1], "instruction": f"{clip} {n}"})
    (tmp_path / "data" / "ag" / "train.json").write_text(json.dumps([*entries, {"input": "x"}]))
    data = Aurora(data_dir=str(tmp_path), validation_size=3)
    with pytest.warns(UserWarning, match="1 of (6|26) records cannot be used"):
        held_out, trained = (data.checked(split) for split in ("validation", "warmup"))
    clips = [{record.action[0] for record in rows} for rows in (held_out, trained)]
    assert len(held_out) == 5, "a whole one"
    assert len(trained) == 25
    assert clips[0] | clips[1] == set("ABCDEF")
    assert not clips[0] & clips[1]
    assert sum(data.counts[split]["skipped"] for split in ("validation", "warmup")) == 1
