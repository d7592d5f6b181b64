import json

import pytest
from PIL import Image

from support.tiny import text_backbone
from support.trainers import quiet_trainer
from swirl_lightning import SWIRL
from swirl_lightning.callbacks import PhaseSwitch
from swirl_lightning.data import JSONLTransitions
from swirl_lightning.data.reading import LONGEST_TEXT


def write(path, *records):
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


GOOD = {"before": "a door", "after": "an open door", "action": "open"}


def test_texts_and_images(tmp_path):
    (tmp_path / "frames").mkdir()
    Image.new("RGBA", (2, 2), (1, 2, 3, 255)).save(tmp_path / "frames" / "0.png")
    image = {"before_image": "frames/0.png", "after_image": "frames/0.png", "action": "wait", "id": 7}
    data = JSONLTransitions(warmup=write(tmp_path / "w.jsonl", GOOD, "", {**image, "task": "t"}))
    first, second = data.split("warmup")
    assert (first.before, first.after, first.action) == ("a door", "an open door", "open")
    assert first.id == "w.jsonl:1", "wherever the folder is"
    assert second.before.mode == "RGB"
    assert second.before.getpixel((0, 0)) == (1, 2, 3)
    assert (second.id, second.meta) == ("7", {"task": "t"})
    assert data.skipped == {"warmup": 0}


def test_own_fields_of_any_name_do_not_change_the_evaluation(tmp_path, gemma_path):
    own = {"turns": 3, "choices": ["a", "b"], "has_after": False}
    data = JSONLTransitions(validation=write(tmp_path / "v.jsonl", GOOD | own))
    (row,) = data.split("validation")
    assert (row.meta, row.turns, row.choices) == (own, (), None)
    results = quiet_trainer(tmp_path).validate(SWIRL(text_backbone(gemma_path)), data, verbose=False)[0]
    assert "val/fwm/sampled/exact_match" in results


BROKEN = {
    "{": "not JSON",
    "[1]": "an object is needed, got list",
    '{"after": "b", "action": "c"}': "needs one of before and before_image",
    '{"before": "a", "before_image": "b", "after": "b"}': "needs one of before and before_image",
    '{"before": "a", "after": 3, "action": "c"}': "after must be a text",
    '{"before": "a", "after": "b", "action": " "}': "action must be a text",
    '{"before": " ", "after": "b", "action": "c"}': "before must be a text",
    '{"before": "a", "after": "b"}': "no action, and this split is labelled",
    '{"before": "a", "after_image": "none.png", "action": "c"}': "cannot read after_image",
    '{"before": "a", "after_image": "w.jsonl", "action": "c"}': "cannot read after_image",
}
HALF = "a\ud83d"  # json.dumps escapes it, so the file itself is UTF-8


def test_broken_records_are_skipped_counted_and_reported(tmp_path):
    lost = '{"before_image": "lost.png", "after": "b", "action": "c"}'
    data = JSONLTransitions(warmup=write(tmp_path / "w.jsonl", *BROKEN, GOOD, *[lost] * 3))
    with pytest.warns(UserWarning, match="13 of 14 records cannot be used") as caught:
        assert [row.action for row in data.split("warmup")] == ["open"]
    message = str(next(w.message for w in caught if "cannot be used" in str(w.message)))
    for number, reason in enumerate(BROKEN.values(), start=1):
        assert f"w.jsonl:{number}: {reason}" in message
    assert "and 3 more" in message
    assert data.skipped == {"warmup": 13}


def test_an_action_of_a_state_only_pair_is_ignored_whatever_it_is(tmp_path):
    given = ("open", "", " ", None, 3, ["open"])
    lines = [json.dumps({"before": "a", "after": "b", "action": action}) for action in given]
    data = JSONLTransitions(state_only=write(tmp_path / "p.jsonl", *lines), strict=True)
    assert [row.action for row in data.split("state_only")] == ["open", *[None] * 5]


def test_strict_raises_with_every_line_number_and_the_number_of_each_kind(tmp_path):
    path = write(tmp_path / "w.jsonl", GOOD, "{", '{"before": 3}', '{"before": 4}')
    told = r"3 of 4 records cannot be used \(2 before must be a text that is not empty, 1 not JSON\):"
    with pytest.raises(
        ValueError, match=rf"w\.jsonl: {told}\n.*w\.jsonl:2: not JSON.*\n.*w\.jsonl:3: .*\n.*w\.jsonl:4: "
    ):
        JSONLTransitions(warmup=path, strict=True).split("warmup")


@pytest.mark.parametrize("field", ["before", "after", "action", "id", "task"])
def test_half_of_a_surrogate_pair_breaks_its_record(tmp_path, field):
    data = JSONLTransitions(warmup=write(tmp_path / "w.jsonl", GOOD, GOOD | {field: HALF}))
    with pytest.warns(UserWarning, match=rf"w\.jsonl:2: {field} holds half of a surrogate pair"):
        assert len(data.split("warmup")) == 1


def test_bytes_that_are_no_text_break_one_record_only(tmp_path):
    path = tmp_path / "w.jsonl"
    path.write_bytes(
        json.dumps(GOOD).encode() + b'\n{"before": "\xff", "after": "b", "action": "c"}\n' + json.dumps(GOOD).encode()
    )
    with pytest.warns(UserWarning, match="1 of 3 records cannot be used"):
        assert len(JSONLTransitions(warmup=str(path)).split("warmup")) == 2


def test_an_id_names_one_record(tmp_path):
    named = [GOOD | {"id": name} for name in ("x", None, "y", None, "x", ["x"], {}, True, "", 0)]
    data = JSONLTransitions(warmup=write(tmp_path / "w.jsonl", *named))
    with pytest.warns(UserWarning, match="5 of 10 records cannot be used") as caught:
        rows = data.split("warmup")
    assert [row.id for row in rows] == ["x", "w.jsonl:2", "y", "w.jsonl:4", "0"]
    message = str(next(w.message for w in caught if "cannot be used" in str(w.message)))
    assert "(4 id must be a text that is not empty or a number, 1 its id comes twice)" in message
    assert "w.jsonl:5: its id comes twice ('x')" in message
    assert any("2 records in" in str(w.message) and "have id: null; file and line" in str(w.message) for w in caught)


def test_a_byte_order_mark_costs_no_record(tmp_path):
    path = tmp_path / "w.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode())
    assert len(JSONLTransitions(warmup=str(path), strict=True).split("warmup")) == 1


def test_an_image_lost_later_is_named(tmp_path):
    Image.effect_noise((64, 64), 9).save(tmp_path / "whole.jpg")
    record = {"before": "a", "after_image": "whole.jpg", "action": "go"}
    data = JSONLTransitions(warmup=write(tmp_path / "w.jsonl", record))
    assert data.split("warmup")[0].after.size == (64, 64)
    (tmp_path / "whole.jpg").unlink()
    with pytest.raises(OSError, match=r"cannot read the image .*whole\.jpg"):
        data.split("warmup")[0]


def test_parquet_with_images_in_it_or_beside_it(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    Image.new("RGBA", (2, 2), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    content = (tmp_path / "clear.png").read_bytes()
    rows = [
        {"before_image": {"bytes": content, "path": None}, "after_image": {"bytes": None, "path": "clear.png"}},
        {"before_image": {"bytes": content[:45], "path": None}, "after_image": {"bytes": None, "path": "none.png"}},
        {"before": "a", "after": "b", "task": "t"},
    ]
    path = tmp_path / "w.parquet"
    parquet.write_table(pa.Table.from_pylist([row | {"action": "go"} for row in rows], schema=_schema(pa)), path)
    data = JSONLTransitions(warmup=str(path))
    with pytest.warns(UserWarning, match=r"w\.parquet\[1\]: cannot read before_image: not readable"):
        first, second = data.split("warmup")
    assert first.before.getpixel((0, 0)) == first.after.getpixel((0, 0)) == (255, 255, 255)  # over white
    assert (second.before, second.after, second.action, second.meta) == ("a", "b", "go", {"task": "t"})
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"w\.parquet is no parquet file, or is damaged"):
        JSONLTransitions(warmup=str(path)).split("warmup")


def test_a_damaged_part_of_a_parquet_file_leaves_the_others_and_is_counted_whole(tmp_path):
    """All behind it was lost, and told as one record."""
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "w.parquet"
    rows = [{"before": f"state {n}", "after": f"next {n}", "action": "go"} for n in range(400)]
    parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=100)
    start = parquet.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + 60] = b"\xff" * 60
    path.write_bytes(content)
    with pytest.warns(
        UserWarning, match=r"100 of 400 records cannot be used .*\n.*w\.parquet\[100\] to \[199\]: cannot be"
    ):
        found = JSONLTransitions(warmup=str(path)).split("warmup")
    assert [row.before for row in found] == [row["before"] for row in rows if not 100 <= int(row["before"][6:]) < 200]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (json.dumps([GOOD, GOOD]).encode(), "is one JSON list: write an object a line"),
        (json.dumps([GOOD, GOOD], indent=1).encode(), "is one JSON list: write an object a line"),
        (json.dumps(GOOD).encode("utf-16"), "is UTF-16: save it as UTF-8"),
        (b"\n", r"w\.jsonl has no record, and is given as warmup"),
    ],
)
def test_a_file_of_another_kind_is_refused_as_a_whole(tmp_path, content, told):
    (tmp_path / "w.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=told):
        JSONLTransitions(warmup=str(tmp_path / "w.jsonl")).split("warmup")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"before": 1}, "before must be a text that is not empty, got 1$"),
        ({"after": None, "after_image": 7}, "after_image must be the name of a file or its bytes, got 7$"),
        ({"after_image": "y.png"}, r"needs one of after and after_image \(it has action, after, after_image\)"),
        ({"after": None, "After": "b"}, r"needs one of after and after_image \(it has After, action\)"),
    ],
)
def test_the_field_and_what_it_holds_are_named(tmp_path, changes, told):
    data = JSONLTransitions(warmup=write(tmp_path / "w.jsonl", GOOD | changes), strict=True)
    with pytest.raises(ValueError, match=told):
        data.split("warmup")


def test_a_test_on_what_was_learned_is_told(tmp_path):
    path = write(tmp_path / "w.jsonl", GOOD)
    with pytest.warns(UserWarning, match=r"the test file .*w\.jsonl is the file of warmup, too"):
        JSONLTransitions(warmup=path, test=path).setup("test")


def test_a_text_that_fills_the_memory_costs_its_row_alone(tmp_path):
    """It compresses to nothing: a file of some kilobytes holds it."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    long = "a" * (LONGEST_TEXT + 1)
    table = pa.table({"before": ["x", long], "after": ["y", "y"], "action": ["go", "go"]})
    parquet.write_table(table, tmp_path / "w.parquet", compression="zstd")
    assert (tmp_path / "w.parquet").stat().st_size < 10_000
    with pytest.warns(UserWarning, match=r"w\.parquet\[1\]: a text is longer than 10,000,000 characters \(before\)"):
        (row,) = JSONLTransitions(warmup=str(tmp_path / "w.parquet")).load_split("warmup")
    assert row.before == "x"


def test_bytes_that_are_no_text_break_one_row_of_a_parquet_file_only(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    before = pa.array([b"a", b"\xff", b"c"], pa.binary()).view(pa.string())
    table = pa.table({"before": before, "after": ["x", "y", "z"], "action": ["go"] * 3})
    parquet.write_table(table, tmp_path / "w.parquet")
    with pytest.warns(UserWarning, match=r"w\.parquet\[1\]: not UTF-8"):
        rows = JSONLTransitions(warmup=str(tmp_path / "w.parquet")).split("warmup")
    assert [row.before for row in rows] == ["a", "c"]


def test_a_time_that_python_has_not_breaks_one_row_of_a_parquet_file_only(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    when = pa.array([10**15, 5], pa.timestamp("s"))
    parquet.write_table(pa.table({"before": ["a", "b"], "after": ["x", "y"], "when": when}), tmp_path / "s.parquet")
    with pytest.warns(UserWarning, match=r"s\.parquet\[0\]: holds what Python cannot"):
        rows = JSONLTransitions(state_only=str(tmp_path / "s.parquet")).split("state_only")
    assert [row.before for row in rows] == ["b"]


def _schema(pa):
    image, text = pa.struct([("bytes", pa.binary()), ("path", pa.string())]), pa.string()
    names = {"before_image": image, "after_image": image, "before": text, "after": text}
    return pa.schema([*names.items(), ("action", text), ("task", text)])


def test_state_only_needs_no_action_and_shows_none(tmp_path):
    path = write(tmp_path / "s.jsonl", {"before": "a", "after": "b"}, GOOD)
    data = JSONLTransitions(state_only=path)
    assert [row.action for row in data.pairs(0)] == [None, None]


@pytest.mark.parametrize("split", ["warmup", "state_only", "validation", "test"])
def test_what_is_trained_on_or_scored_needs_the_state_after(tmp_path, split):
    data = JSONLTransitions(**{split: write(tmp_path / "w.jsonl", GOOD, {"before": "a", "action": "b", "id": "bare"})})
    with pytest.warns(UserWarning, match=r"w\.jsonl:2: needs one of after and after_image"):
        assert [row.action for row in data.split(split)] == ["open"]


def test_prediction_needs_one_of_action_and_state_after(tmp_path, gemma_path):
    half = [{"before": "a", "action": "b", "after": None}, {"before": "a", "after": "c"}]
    data = JSONLTransitions(test=write(tmp_path / "t.jsonl", GOOD, *half))
    found = [(row.action, row.after) for row in data.predict_rows()]
    assert found == [("open", "an open door"), ("b", None), (None, "c")]
    with pytest.raises(ModelLoads):
        start(data, tmp_path, gemma_path, command="predict")
    with pytest.warns(UserWarning, match="2 of 3 records cannot be used"):  # to score a record takes both
        assert len(data.split("test")) == 1
    bare = {"before": "a", "id": "lonely"}
    data = JSONLTransitions(test=write(tmp_path / "t.jsonl", GOOD, bare, {"before": "b"}))
    with pytest.raises(ValueError, match=r"e\.jsonl has no record, and is given as test"):
        start(JSONLTransitions(test=write(tmp_path / "e.jsonl")), tmp_path, gemma_path, command="predict")
    told = r"2 of 3 records in .*t\.jsonl have neither an action nor a state after.*:\n  lonely\n  .*t\.jsonl:3"
    with pytest.raises(ValueError, match=told):
        start(data, tmp_path, gemma_path, command="predict")


def test_missing_files_and_splits(tmp_path):
    data = JSONLTransitions(warmup=str(tmp_path / "none.jsonl"))
    with pytest.raises(FileNotFoundError, match=r"warmup: .*none\.jsonl"):
        data.setup("fit")
    with pytest.raises(ValueError, match="no file is given for the split 'test'"):
        data.test_dataloader()
    empty = JSONLTransitions(test=write(tmp_path / "t.jsonl"))
    with pytest.raises(ValueError, match=r"t\.jsonl has no record, and is given as test"):
        empty.test_dataloader()


def test_a_file_that_the_command_does_not_read_may_be_elsewhere(tmp_path, gemma_path):
    """Such as the training's, where a run is tested on another machine."""
    paths = {name: str(tmp_path / f"{name}.jsonl") for name in ("warmup", "state_only", "validation", "test")}
    write(tmp_path / "test.jsonl", GOOD)
    for command in ("test", "predict"):
        with pytest.raises(ModelLoads):
            start(JSONLTransitions(**paths, batch_size=1), tmp_path, gemma_path, command=command)
    with pytest.raises(FileNotFoundError, match=r"no such file: warmup: .*; state_only: .*; validation: .*n\.jsonl$"):
        start(JSONLTransitions(**paths, batch_size=1), tmp_path, gemma_path)
    write(tmp_path / "warmup.jsonl", GOOD)
    with pytest.raises(ModelLoads):
        start(
            JSONLTransitions(**paths, batch_size=1),
            tmp_path,
            gemma_path,
            phases={"iterations": 0},
            limit_val_batches=0,
        )
    with pytest.raises(FileNotFoundError, match="no such file: state_only"):
        JSONLTransitions(**paths).split("state_only")


class ModelLoads(Exception):
    """The data are fine."""


class Model(SWIRL):
    def configure_model(self):
        raise ModelLoads


def start(data, folder, base, *, phases=None, command="fit", **options):
    switch = PhaseSwitch(**({"warmup_epochs": 1, "iterations": 1} | (phases or {})))
    trainer = quiet_trainer(folder, switch, max_epochs=options.pop("max_epochs", -1), **options)
    getattr(trainer, command)(Model(text_backbone(base)), datamodule=data)


WRONG = {"source": "a door", "target": "an open door", "action": "open"}


@pytest.mark.parametrize(
    ("split", "command"),
    [
        *((split, "fit") for split in ("warmup", "state_only", "validation")),
        *(("validation", "validate"), ("test", "test"), ("test", "predict")),
    ],
)
def test_a_split_that_cannot_be_used_is_told_before_the_model_loads(tmp_path, gemma_path, split, command):
    paths = {name: write(tmp_path / f"{name}.jsonl", GOOD) for name in ("warmup", "state_only", "validation", "test")}
    with pytest.raises(ModelLoads):
        start(JSONLTransitions(**paths, batch_size=1), tmp_path, gemma_path, command=command)
    (tmp_path / f"{split}.jsonl").write_text(json.dumps(WRONG))
    with pytest.raises(ValueError, match=rf"none of .*{split}\.jsonl .* {split}:\n.*:1: needs one of before and"):
        start(JSONLTransitions(**paths, batch_size=1), tmp_path, gemma_path, command=command)
    del paths[split]
    with pytest.raises(ValueError, match=f"no file is given for the split '{split}'; set it in data"):
        start(JSONLTransitions(**paths, batch_size=1), tmp_path, gemma_path, command=command)


@pytest.mark.parametrize(
    ("unused", "phases", "options"),
    [
        ("warmup", {"warmup_epochs": 0}, {}),
        ("state_only", {"iterations": 0}, {}),
        ("state_only", {"warmup_epochs": 2, "iterations": None}, {"max_epochs": 2}),
        ("validation", {}, {"limit_val_batches": 0}),
        ("test", {}, {}),
    ],
)
def test_a_split_that_is_not_needed_need_not_be_there(tmp_path, gemma_path, unused, phases, options):
    paths = {name: write(tmp_path / f"{name}.jsonl", GOOD) for name in ("warmup", "state_only", "validation", "test")}
    del paths[unused]
    with pytest.raises(ModelLoads):
        start(JSONLTransitions(**paths, batch_size=1), tmp_path, gemma_path, phases=phases, **options)


def test_without_a_schedule_the_labelled_split_is_read(tmp_path):
    data = JSONLTransitions(warmup=write(tmp_path / "w.jsonl", WRONG))
    with pytest.raises(ValueError, match=r"w\.jsonl:1: needs one of before"):
        data.setup("fit")


def test_too_few_pairs_for_a_batch_are_told_before_the_model_loads(tmp_path, gemma_path):
    """During the warm-up of days nobody would know that Phase I cannot begin."""
    paths = {name: write(tmp_path / f"{name}.jsonl", GOOD, GOOD) for name in ("warmup", "validation")}
    paths["state_only"] = write(tmp_path / "s.jsonl", GOOD)
    with pytest.raises(ValueError, match=r"no training batch: 1 transitions do not fill .* of 2 \(batch_size\)"):
        start(JSONLTransitions(**paths, batch_size=2), tmp_path, gemma_path)
    with pytest.raises(ModelLoads):
        start(JSONLTransitions(**paths, batch_size=2), tmp_path, gemma_path, phases={"iterations": 0})
