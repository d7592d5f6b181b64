"""ByteMorph-Bench as a parquet file, end to end."""

from __future__ import annotations

import pytest

from support.image_world import block_image, clip_folder, liquid_folder, model, odd_images, trainer
from support.suites.bytemorph import png, write
from swirl_lightning.benchmarks.bytemorph import ByteMorph

parquet = pytest.importorskip("pyarrow.parquet")


def test_records(tmp_path):
    data = ByteMorph(data_dir=write(tmp_path))
    data.setup("test")
    rows = data.split("test")
    assert [r.action for r in rows] == [f"move {n}" for n in range(4)]
    assert rows[1].meta["edit_type"] == "object_motion"
    assert rows[1].after.tobytes() == block_image(51).tobytes()
    assert len({r.id for r in rows}) == 4
    some = ByteMorph(data_dir=str(tmp_path), edit_types=["object_motion"], rewritten=True).split("test")
    assert [r.action for r in some] == ["please move 1", "please move 2"]


def test_broken_rows_and_files(tmp_path):
    whole = png(1)["bytes"]
    changes = {0: {"src_img": {"bytes": whole[:60], "path": ""}}, 1: {"tgt_img": None}, 2: {"edit_prompt": ""}}
    data = ByteMorph(data_dir=write(tmp_path, changes))
    with pytest.warns(UserWarning, match="3 of 4 records cannot be used"):
        data.setup("test")
    assert [r.action for r in data.split("test")] == ["move 3"]
    nameless = ByteMorph(data_dir=write(tmp_path / "nameless", {0: {"image_id": None}}))
    with pytest.warns(UserWarning, match="no image_id"):
        nameless.setup("test")
    with pytest.raises(ValueError, match="3 of 4"):
        ByteMorph(data_dir=str(tmp_path), strict=True).setup("test")
    path = tmp_path / "data" / "test-00000.parquet"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"cannot be read.*Download it again"):
        ByteMorph(data_dir=str(tmp_path)).setup("test")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no \*\.parquet"):
        ByteMorph(data_dir=str(tmp_path)).setup("test")
    with pytest.raises(ValueError, match="unknown edit types zoom"):
        ByteMorph(data_dir=str(tmp_path), edit_types=["zoom"])


def test_broken_data_is_named_counted_and_the_rest_is_scored(tmp_path):
    """The first three rows are of unusual formats, and good."""
    odd = [{"bytes": path.read_bytes(), "path": path.name} for path in odd_images(tmp_path)]
    changes = {n: {"src_img": content} for n, content in enumerate(odd)} | {3: {"src_img": {"bytes": b"", "path": ""}}}
    folder = write(tmp_path / "data", changes)
    write(tmp_path / "data", {0: {"edit_prompt": " "}, 1: {"tgt_img": {"bytes": b"GIF8", "path": ""}}}, "b.parquet")
    path = tmp_path / "data" / "data" / "b.parquet"
    path.write_bytes(path.read_bytes().replace(b"a cat there 2", b"a cat th\xe9re 2"))
    (tmp_path / "data" / "c.parquet").write_bytes(path.read_bytes()[:-40])
    data = ByteMorph(data_dir=folder, clip=str(clip_folder(tmp_path / "clip")))
    base = liquid_folder(tmp_path / "base")
    with pytest.warns(UserWarning, match="5 of 9 records cannot be used") as caught:
        results = trainer(tmp_path).test(model(base), data, verbose=False)[0]
    message = next(str(w.message) for w in caught if "cannot be used" in str(w.message))
    for reason in (
        "test-00000[3] interaction/003 (before): empty (zero bytes)",
        "b[0] camera_zoom/000: no edit prompt",
        "b[1] object_motion/001 (after): not readable",
        "b[2]: not UTF-8",
        "c.parquet: cannot be read",
    ):
        assert reason in message
    assert (data.counts["test"]["used"], data.counts["test"]["skipped"]) == (4, 5)
    assert -1 <= results["test/fwm/sampled/clip_sim_img/object_motion"] <= 1
    module = model(base)
    with pytest.raises(ValueError, match="5 of 9 records cannot be used"):
        trainer(tmp_path).test(module, ByteMorph(data_dir=folder, strict=True), verbose=False)
    assert module.model is None


def test_a_damaged_part_of_a_file_leaves_the_others(tmp_path):
    """The file was lost as a whole."""
    folder = write(tmp_path)
    path = tmp_path / "data" / "test-00000.parquet"
    table = parquet.read_table(path)
    parquet.write_table(table, path, row_group_size=2, compression="none")
    with parquet.ParquetFile(path) as file:
        start = file.metadata.row_group(0).column(0).dictionary_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + 40] = b"\xff" * 40
    path.write_bytes(content)
    data = ByteMorph(data_dir=folder)
    with pytest.warns(
        UserWarning, match=r"2 of 4 records cannot be used(.|\n)*test-00000\[0\] to \[1\]: cannot be read"
    ):
        data.setup("test")
    assert [row.action for row in data.split("test")] == ["move 2", "move 3"]


def test_it_has_no_training_data(tmp_path):
    data = ByteMorph(data_dir=write(tmp_path))
    with pytest.raises(ValueError, match="test split only"):
        data.split("warmup")


def test_end_to_end(tmp_path):
    clip = str(clip_folder(tmp_path / "clip"))
    data = ByteMorph(data_dir=write(tmp_path / "data", {3: {"tgt_img_caption": ""}}), clip=clip, eval_batch_size=2)
    results = trainer(tmp_path).test(model(liquid_folder(tmp_path / "base")), data, verbose=False)[0]
    names = {k.removeprefix("test/fwm/sampled/") for k in results if "/fwm/sampled/clip" in k}
    for score in ("clip_sim_img", "clip_sim_txt", "clip_d_txt", "clip_d_img"):
        assert {score, f"{score}/camera_zoom", f"{score}/object_motion"} <= names
    assert "clip_d_img/interaction" in names
    assert "clip_d_txt/interaction" not in names  # it has no caption of the target


def test_a_fit_is_refused_before_the_model_loads(tmp_path):
    with pytest.raises(ValueError, match="ByteMorph has a test split only: fit on another benchmark"):
        ByteMorph(data_dir=write(tmp_path)).setup("fit")
