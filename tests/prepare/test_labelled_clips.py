"""Labelled transitions from clips that a table names."""

from __future__ import annotations

import json

import pytest

from support.videos import number, write_video
from swirl_lightning.data import JSONLTransitions
from swirl_lightning.prepare.labelled_clips import main, write

pytest.importorskip("av")


@pytest.fixture
def folder(tmp_path):
    """Videos of twelve frames, a tenth of a second each, whose grey tells their number."""
    for name in ("clips/a b.mp4", "clips/ü.mp4", "long.mp4"):
        write_video(tmp_path / name)
    return tmp_path


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def read(path, split="warmup"):
    return JSONLTransitions(**{split: str(path)}, strict=True).split(split)


def test_a_clip_is_its_first_and_its_last_frame(folder):
    (folder / "labels.csv").write_text(
        "video,action,start,end,who\n"
        "clips/a b.mp4,open the drawer,,,me\n"
        'clips/ü.mp4,"take the cup, the red one",,,me\n'
        "long.mp4,push,0.2,0.6,you\n"
        "long.mp4,pull,0.7,,you\n"
    )
    counts = write(folder / "labels.csv", folder / "out")
    assert counts == {"records": 4, "used": 4, "skipped": 0}
    rows = read(folder / "out" / "warmup.jsonl")
    assert [row.action for row in rows] == ["open the drawer", "take the cup, the red one", "push", "pull"]
    assert [(number(row.before), number(row.after)) for row in rows] == [(0, 11), (0, 11), (2, 6), (7, 11)]
    assert rows[2].meta == {"video": "long.mp4", "start": 0.2, "end": 0.6}
    assert not (folder / "out" / "validation.jsonl").exists()


@pytest.mark.parametrize("separator", [";", "\t"])
def test_tables_of_other_programs(folder, separator):
    """With a mark before the first name, commas for decimals and Windows' line ends."""
    rows = [["action", " video", "start", "end"], ["push, hard", "long.mp4", "0,2", "0,6"]]
    text = "\ufeff" + "".join(separator.join(row) + "\r\n" for row in rows)
    (folder / "labels.csv").write_bytes(text.encode())
    write(folder / "labels.csv", folder / "out")
    (row,) = read(folder / "out" / "warmup.jsonl")
    assert (row.action, number(row.before), number(row.after)) == ("push, hard", 2, 6)


def test_all_clips_of_a_video_are_on_one_side(folder):
    parts = [("long.mp4", 0.1 * n, 0.1 * n + 0.3) for n in range(6)]
    parts += [("clips/a b.mp4", 0, 0.5), ("clips/ü.mp4", 0, 0.5)]
    table = "".join(f"{video},act {n},{start:.1f},{end:.1f}\n" for n, (video, start, end) in enumerate(parts))
    (folder / "labels.csv").write_text("video,action,start,end\n" + table)
    out = folder / "out"
    for count in (1, 2):
        write(folder / "labels.csv", out, validation=count)
        trained, held_out = (
            {line["video"] for line in lines(out / f"{name}.jsonl")} for name in ("warmup", "validation")
        )
        assert len(trained | held_out) == 3
        assert not trained & held_out
        assert len(lines(out / "validation.jsonl")) >= count
    assert {row.id for row in read(out / "validation.jsonl", "validation")} <= {f"labels.csv:{n}" for n in range(2, 10)}
    with pytest.raises(ValueError, match="of 8 usable clips, validation=8 would leave none to train on"):
        write(folder / "labels.csv", out, validation=8)
    with pytest.raises(ValueError, match=r"validation\.jsonl is of an earlier call: hold some out again"):
        write(folder / "labels.csv", out)


def test_a_call_that_is_stopped_leaves_the_clips_of_the_one_before_as_they_were(folder):
    table, out = folder / "labels.csv", folder / "out"
    table.write_text("video,action,start,end\nlong.mp4,push,0.2,0.6\nlong.mp4,pull,0.7,1.1\n")
    write(table, out)
    table.write_text("video,action,start,end\nlong.mp4,pull,0.7,1.1\nlong.mp4,push,0.2,0.6\ngone.mp4,push,,\n")
    with pytest.raises(ValueError, match="1 of 3 records cannot be used"):
        write(table, out, strict=True)
    rows = read(out / "warmup.jsonl")
    assert [(row.action, number(row.before), number(row.after)) for row in rows] == [("push", 2, 6), ("pull", 7, 11)]


def test_two_spellings_of_a_video_are_one(folder):
    (folder / "labels.csv").write_text(
        "video,action,start,end\nlong.mp4,a,0,0.3\n.//long.mp4,b,0.4,0.8\nclips/../long.mp4,c,0.5,1\nclips/ü.mp4,d,,\n"
    )
    write(folder / "labels.csv", folder / "out", validation=1)
    sides = [{line["video"] for line in lines(folder / "out" / f"{name}.jsonl")} for name in ("warmup", "validation")]
    assert sorted(map(sorted, sides)) == [["clips/ü.mp4"], ["long.mp4"]]


def test_a_video_that_was_cut_short_is_left_out(folder):
    whole = write_video(folder / "whole.mkv", frames=40, pattern=True).read_bytes()
    (folder / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    (folder / "labels.csv").write_text("video,action,start,end\ncut.mkv,push,,\ncut.mkv,push,0,0.5\nwhole.mkv,push,,\n")
    with pytest.warns(UserWarning, match=r"labels\.csv:2: no such frame"):
        counts = write(folder / "labels.csv", folder / "out")
    assert counts == {"records": 3, "used": 2, "skipped": 1, "skipped: no such frame": 1}


def test_clips_that_cannot_be_used_are_counted(folder, capsys, recwarn):
    (folder / "damaged.mp4").write_bytes(b"x" * 500)
    (folder / "labels.csv").write_text(
        "video,action,start,end\n"
        "long.mp4,push,0.2,0.6\n"
        "long.mp4,,0.2,0.6\n"
        ",push,0.2,0.6\n"
        "gone.mp4,push,,\n"
        "damaged.mp4,push,,\n"
        "long.mp4,push,early,0.6\n"
        "long.mp4,push,-1,0.6\n"
        "long.mp4,push,0.6,0.6\n"
        "long.mp4,push,0.6,0.2\n"
        "long.mp4,push,0.2,99\n"
        "long.mp4,push,0.2,0.6,more\n"
        "long.mp4\n"
    )
    main([str(folder / "labels.csv"), str(folder / "out")])
    told = capsys.readouterr().out.splitlines()[-1]
    assert told.startswith("records: 12, used: 1, skipped: 11, ")
    for kind in ("damaged video: 1", "missing video: 1", "no action: 2", "no video: 1", "no such frame: 1"):
        assert f"skipped: {kind}" in told
    assert f"{folder / 'labels.csv'}:7: start is no number of seconds, got 'early'" in str(
        recwarn.pop(UserWarning).message
    )
    with pytest.raises(ValueError, match="11 of 12 records cannot be used"):
        write(folder / "labels.csv", folder / "strict", strict=True)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "has no column 'video' in its first line"),
        (b"clip,action\na.mp4,push\n", r"has no column 'video' in its first line, which has \['clip', 'action'\]"),
        (b"video,action\n", "names no clip"),
        ("video,action\na.mp4,dr\u00fccken\n".encode("latin-1"), "is not UTF-8"),
        (b"video,action\na.mp4,push\0\n", "none of|missing video|no line of a table"),
    ],
)
def test_a_table_that_is_none_is_told_at_once(tmp_path, content, told):
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(ValueError, match=rf"labels\.csv.*{told}"):
        write(tmp_path / "labels.csv", tmp_path / "out")
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "none.csv", tmp_path / "out")
