"""Files of torch that would keep their reader for ever."""

from __future__ import annotations

import collections
import copy
import pickle
import zipfile

import pytest
import torch

from swirl_lightning.checkpoints.file import check_file
from swirl_lightning.files.safe_torch import check, load_torch


def doubled(levels: int, kind=list):
    """A value of a few hundred bytes that stands for 2^levels: each level holds the one below twice."""
    value = kind((1,))
    for _ in range(levels):
        value = kind((value, value))
    return value


def own(value):
    """A list that holds itself."""
    value.append(value)
    return value


SHARED = (0.9, 0.999)


@pytest.mark.parametrize(
    "value",
    [
        {"a": torch.ones(3), "b": [SHARED] * 50, "c": collections.OrderedDict(x=torch.ones(2).half())},
        {"groups": [{"betas": SHARED, "params": [n]} for n in range(2000)]},
        doubled(6),
        [[[]]] * 30_000,
        list(range(200_000)),
        (torch.Size([2]), True, None, 2**80, 1.5, "words", torch.float16, {1, 2}, b"bytes", torch.device("cpu")),
        {"a": torch.nn.Parameter(torch.ones(2)), "b": torch.ones(2, 2).to_sparse(), "c": torch.tensor(1 + 2j)},
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_writes_is_read(tmp_path, value, zipped):
    path = tmp_path / "a.pt"
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    assert str(load_torch(path, "cpu")) == str(value)


class Mapping:
    """A dictionary of one entry, as a pickle: here nothing hashes its key."""

    def __init__(self, key):
        self.key = key

    def __reduce__(self):
        return collections.OrderedDict, (), None, None, iter([(self.key, 1)])


@pytest.mark.parametrize("value", [doubled(60), {"a": {"b": doubled(60)}}, Mapping(doubled(60, tuple)), own([1])])
@pytest.mark.parametrize("zipped", [True, False])
def test_values_that_never_end_are_refused(tmp_path, value, zipped):
    """To print, copy or hash one would not end."""
    path = tmp_path / "a.pt"
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    assert path.stat().st_size < 20_000
    with pytest.raises(ValueError, match=r"would not end|other keys"):
        load_torch(path, "cpu")


@pytest.mark.parametrize(
    "content", [b"", b"\x80\x02e.", b"\x80\x02h\x01.", b"\x80\x02]a.", b"no pickle", b"\x80\x02Na."]
)
def test_a_broken_pickle_is_told(tmp_path, content):
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", content)
    with pytest.raises(ValueError):  # noqa: PT011 - in the words of pickletools, or ours
        check(path)


def test_pickles_of_other_protocols_are_followed(tmp_path):
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path = tmp_path / f"{protocol}.pt"
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("a/data.pkl", pickle.dumps({"a": [SHARED, {"b": 2.0}]}, protocol))
        check(path)
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("a/data.pkl", pickle.dumps(doubled(60), protocol))
        with pytest.raises(ValueError, match="would not end"):
            check(path)


def compressed(path):
    """As no file of torch's is: some kilobytes may then hold what takes hours to read."""
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in parts.items():
            file.writestr(name, content)


def overlapping(path):
    """Each of a thousand parts is the largest one."""
    with zipfile.ZipFile(path, "a") as file:
        largest = max(file.infolist(), key=lambda part: part.file_size)
        for n in range(1000):
            again = copy.copy(largest)
            again.filename = f"{largest.filename}{n}"
            file.filelist.append(again)
        file._didModify = True


@pytest.mark.parametrize(
    ("spoil", "told"), [(compressed, "parts are compressed"), (overlapping, "parts are larger than the file")]
)
def test_an_archive_that_is_read_for_ever_is_refused(tmp_path, spoil, told):
    path = tmp_path / "a.ckpt"
    torch.save({"a": torch.ones(1000)}, path)
    spoil(path)
    with pytest.raises(ValueError, match=told):
        load_torch(path, "cpu")
    with pytest.raises(ValueError, match=f"a.ckpt cannot be read .*{told}"):
        check_file(path)


def archive(path, content, name="a/data.pkl"):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(name, content)


HASHED = b"\x80\x02}q\x00)q\x01" + b"".join(b"h%c\x86q%c" % (n, n + 1) for n in range(1, 50)) + b"K\x01s"
"""The beginning of a pickle of a dictionary whose one key takes 2^50 steps to hash."""
COLLIDING = b"".join(b"\x8a\x0a" + (n * (2**61 - 1)).to_bytes(10, "little") + b"N" for n in range(1, 100))
"""Keys of one hash, and a value for each."""


@pytest.mark.parametrize(
    "content",
    [
        HASHED + b".",
        HASHED + b"}.",  # it stays below what is returned
        b"\x80\x02}(" + COLLIDING + b"u.",
        b"\x80\x02c__builtin__\nset\n](" + COLLIDING.replace(b"N", b"") + b"e\x85R.",
        b"\x80\x02ccollections\nOrderedDict\n](" + HASHED[2:] + b"K\x02\x86e\x85R.",
        b"\x80\x02N" + b"".join(b"p%d\n" % (n * (2**61 - 1)) for n in range(1, 100)) + b".",
    ],
)
def test_what_takes_for_ever_to_hash_is_refused(tmp_path, content):
    path = tmp_path / "a.pt"
    for name in ("a/data.pkl", "a/DATA.PKL"):  # torch finds both
        archive(path, content, name)
        with pytest.raises(ValueError, match=r"other keys|pickle is broken|it calls 'collections\.OrderedDict'"):
            load_torch(path, "cpu")


ENCODE = b"c_codecs\nencode\n"


@pytest.mark.parametrize(
    "content",
    [
        ENCODE * 60 + b"X\x01\x00\x00\x00a" + b"X\x03\x00\x00\x00hex\x86R" * 60 + b".",  # doubles at each call
        ENCODE + b"X\x01\x00\x00\x00aX\x08\x00\x00\x00punycode\x86R.",  # quadratic
        b"c__builtin__\nbytearray\nJ\x00\x00\x00\x7f\x85R.",
        b"ccollections\nCounter\n}\x85R.",
        b"c__builtin__\nset\nNR.",  # no tuple of arguments
        b"c__builtin__\nset\nK\x01\x85R.",
        b"c_codecs\nencode\nNR.",
        b"cos\nsystem\nX\x02\x00\x00\x00ls\x85R.",
    ],
)
def test_calls_that_no_file_of_tensors_has_are_refused(tmp_path, content):
    archive(tmp_path / "a.pt", b"\x80\x02" + content)
    with pytest.raises(ValueError, match="it calls"):
        load_torch(tmp_path / "a.pt", "cpu")


def test_the_format_is_told_as_torch_tells_it(tmp_path):
    """A pickle with an archive behind it is a pickle."""
    path, behind = tmp_path / "a.pt", tmp_path / "b.pt"
    torch.save({"a": 1}, path, _use_new_zipfile_serialization=False)
    archive(behind, b"N.")
    content = path.read_bytes()
    own = content.rindex(b"\x80\x02}q")  # a dictionary
    path.write_bytes(content[:own] + HASHED + b"." + behind.read_bytes())
    with pytest.raises(ValueError, match="other keys"):
        load_torch(path, "cpu")


def test_an_archive_has_one_directory(tmp_path):
    """Where there are two, Python and torch read different ones."""
    path = tmp_path / "a.pt"
    torch.save({"a": torch.ones(3)}, path)
    content = path.read_bytes()
    for at in (
        content.index(b"PK\x01\x02"),
        content.rindex(b"PK\x06\x06"),
        content.rindex(b"PK\x05\x06"),
        len(content),
    ):
        path.write_bytes(content[:at] + bytes(50) + content[at:])
        with pytest.raises(ValueError, match="its directory is not at its end"):
            check(path)
