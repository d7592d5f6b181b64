"""Files and folders that take the place of others whole."""

from __future__ import annotations

import os

import pytest

from support.small_disk import room_for
from swirl_lightning.files.writing import whole_file, whole_folder


def test_a_full_disk_is_told_with_the_path_of_any_file(tmp_path):
    (tmp_path / "results.json").write_text("{}")
    with (
        room_for(10),
        pytest.raises(OSError, match=r"too large: '.*results\.json'$"),
        whole_file(tmp_path / "results.json") as file,
    ):
        file.write(b"x" * 100_000)
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]
    assert (tmp_path / "results.json").read_text() == "{}"


def test_an_unfinished_file_or_folder_is_no_obstacle(tmp_path):
    (tmp_path / ".results.json.partial").write_text("{")
    with whole_file(tmp_path / "results.json") as file:
        file.write(b"{}")
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]
    (tmp_path / ".results.json.partial").symlink_to(tmp_path / "elsewhere")  # in a run that came from somebody else
    with whole_file(tmp_path / "results.json") as file:
        file.write(b"{}")
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]
    folder = tmp_path / "adapters" / "last"
    for left in (".last.partial", ".last.old"):
        (folder.parent / left).mkdir(parents=True)
    for content in ("1", "2"):
        with pytest.raises(KeyError), whole_folder(folder) as new:
            raise KeyError
        with whole_folder(folder) as new:
            (new / "weights").write_text(content)
        assert [p.name for p in folder.parent.iterdir()] == ["last"]
    assert (folder / "weights").read_text() == "2"
    folder.rename(folder.with_name(".last.old"))  # killed between two renames
    with pytest.raises(KeyError), whole_folder(folder):
        raise KeyError
    assert (folder / "weights").read_text() == "2"


@pytest.mark.parametrize("kind", ["file", "pipe", "link to a folder", "link to nothing"])
@pytest.mark.parametrize("name", ["last", ".last.partial", ".last.old"])
def test_whatever_lies_in_a_folders_way_is_replaced(tmp_path, kind, name):
    place, elsewhere = tmp_path / "adapters" / name, tmp_path / "elsewhere"
    place.parent.mkdir()
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "file":
        place.write_text("")
    else:
        place.symlink_to(elsewhere)
    if kind == "link to a folder":
        elsewhere.mkdir()
        (elsewhere / "kept").write_text("")
    for content in ("1", "2"):
        with whole_folder(tmp_path / "adapters" / "last") as new:
            (new / "weights").write_text(content)
        assert [p.name for p in place.parent.iterdir()] == ["last"]
        assert (tmp_path / "adapters" / "last" / "weights").read_text() == content
    if kind == "link to a folder":
        assert [p.name for p in elsewhere.iterdir()] == ["kept"]


def test_writers_at_the_same_time_leave_one_whole_file(tmp_path):
    path = tmp_path / "answer.json"
    with whole_file(path, alone=False) as slow:
        slow.write(b"slow")
        with whole_file(path, alone=False) as fast:
            fast.write(b"fast")
        assert path.read_bytes() == b"fast"
    assert path.read_bytes() == b"slow"
    assert list(tmp_path.iterdir()) == [path]
