import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file

from support.small_disk import room_for
from swirl_lightning.backbones import Liquid
from swirl_lightning.data import StateTokens

CPU = torch.device("cpu")


class Backbone:
    """Encodes a text by its characters and an image by its first pixel; counts its calls."""

    ids_suffice = True

    def __init__(self, name="a"):
        self.name, self.calls, self.chosen_lengths = name, [], {}

    def fingerprint(self):
        return self.name

    def encode_states(self, states, device):
        self.calls.append(list(states))
        return [[ord(c) for c in s] if isinstance(s, str) else list(s.getpixel((0, 0))) for s in states]


def test_only_missing_states_are_encoded_in_one_batch():
    backbone = Backbone()
    cache = StateTokens(backbone)
    assert cache.encode(["a", "b", "a"], CPU) == [[97], [98], [97]]
    assert cache.encode(["c", "b", "d"], CPU) == [[99], [98], [100]]
    assert cache.encode(["a"], CPU) == [[97]]
    assert cache.encode([], CPU) == []
    assert backbone.calls == [["a", "b"], ["c", "d"]]


def test_the_key_is_the_content():
    backbone = Backbone()
    cache = StateTokens(backbone)
    red = Image.new("RGB", (2, 3), (9, 0, 0))
    assert cache.encode([red, red.copy(), red.convert("RGBA")], CPU) == [[9, 0, 0]] * 3
    assert len(cache) == 1
    cache.encode([red.resize((3, 2)), Image.new("RGB", (2, 3)), "", "x"], CPU)
    assert len(cache) == 5


def test_callers_cannot_spoil_the_cache():
    cache = StateTokens(Backbone())
    cache.encode(["a"], CPU)[0].append(1)
    assert cache.encode(["a"], CPU) == [[97]]


def test_the_least_recently_used_goes_first():
    backbone = Backbone()
    cache = StateTokens(backbone, max_entries=2)
    for state in ("a", "b", "a", "c", "a", "b"):
        cache.encode([state], CPU)
    assert backbone.calls == [["a"], ["b"], ["c"], ["b"]]
    assert cache.encode(["p", "q", "r"], CPU) == [[112], [113], [114]]  # more than it can hold
    assert len(cache) == 2


def test_other_lengths_begin_anew(tmp_path):
    """A checkpoint brings its own: states were cut at those before, and kept where a run of these looks for them."""

    class Cut(Backbone):
        def fingerprint(self):
            return str(self.chosen_lengths)

        def encode_states(self, states, device):
            return [ids[: self.chosen_lengths["max_state_tokens"]] for ids in super().encode_states(states, device)]

    backbone = Cut()
    backbone.chosen_lengths = {"max_state_tokens": 3}
    cache = StateTokens(backbone, cache_dir=tmp_path)
    assert cache.encode(["aaaa"], CPU) == [[97] * 3]
    backbone.chosen_lengths = {"max_state_tokens": 2}
    assert cache.encode(["aaaa", "bbb"], CPU) == [[97] * 2, [98] * 2]
    cache.flush()
    for length in (3, 2):
        later = Cut()
        later.chosen_lengths = {"max_state_tokens": length}
        assert StateTokens(later, cache_dir=tmp_path).encode(["aaaa", "bbb"], CPU) == [[97] * length, [98] * length]
        assert later.calls == ([["bbb"]] if length == 3 else [])


def test_another_run_reads_what_was_written(tmp_path):
    first = StateTokens(Backbone(), cache_dir=tmp_path, shard_size=2)
    first.encode(["a"], CPU)
    assert not list(tmp_path.rglob("*.safetensors"))
    first.encode(["bb", ""], CPU)
    first.encode(["d"], CPU)
    first.flush()
    first.flush()
    shards = list(tmp_path.rglob("*.safetensors"))
    assert len(shards) == 2
    (tmp_path / "new").touch()
    assert {path.stat().st_mode for path in shards} == {(tmp_path / "new").stat().st_mode}  # others may read them, too
    assert not list(tmp_path.rglob("*.partial"))

    backbone = Backbone()
    second = StateTokens(backbone, cache_dir=tmp_path)
    assert second.encode(["a", "bb", "", "d", "e"], CPU) == [[97], [98, 98], [], [100], [101]]
    assert backbone.calls == [["e"]]

    other = Backbone("another tokeniser")
    StateTokens(other, cache_dir=tmp_path).encode(["a"], CPU)
    assert other.calls == [["a"]]


def test_a_full_disk_ends_the_keeping_alone(tmp_path):
    """What a run has trained is not lost for a cache."""
    cache = StateTokens(Backbone(), cache_dir=tmp_path, shard_size=1)
    with room_for(10), pytest.warns(UserWarning, match=r"tokens of states are not kept from now on: .*too large"):
        assert cache.encode(["a"], CPU) == [[97]]
    assert cache.encode(["a", "b"], CPU) == [[97], [98]]
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_evicted_states_are_not_written_twice(tmp_path):
    cache = StateTokens(Backbone(), max_entries=1, cache_dir=tmp_path, shard_size=1)
    for state in "abab":
        cache.encode([state], CPU)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2


def test_a_damaged_file_is_ignored(tmp_path):
    for state in "ab":
        StateTokens(Backbone(), cache_dir=tmp_path, shard_size=1).encode([state], CPU)
    shards = sorted(tmp_path.rglob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
    shards[0].write_bytes(shards[0].read_bytes()[:-1])
    (shards[0].parent / "zero.safetensors").touch()
    backbone = Backbone()
    with pytest.warns(UserWarning, match="damaged token cache file"):
        assert StateTokens(backbone, cache_dir=tmp_path).encode(["a", "b"], CPU) == [[97], [98]]
    assert backbone.calls == [["a"]]


@pytest.mark.parametrize(
    "change",
    [
        {"ids": np.zeros((1, 1), np.int32)},
        {"ids": np.zeros(1, np.float32)},
        {"lengths": np.array(1, np.int64)},
        {"lengths": np.ones(1, np.float32)},
        {"lengths": np.array([3, -2], np.int64), "keys": np.zeros((2, 16), np.uint8)},
        {"keys": np.zeros(16, np.uint8)},
        {"keys": np.array(0, np.uint8)},
    ],
    ids=lambda change: "-".join(f"{name}-{part.dtype}-{part.shape}" for name, part in change.items()),
)
def test_a_file_of_other_parts_is_ignored(tmp_path, change):
    StateTokens(Backbone(), cache_dir=tmp_path, shard_size=1).encode(["a"], CPU)
    (shard,) = tmp_path.rglob("*.safetensors")
    save_file(load_file(shard) | change, shard)
    with pytest.warns(UserWarning, match="damaged token cache file"):
        assert StateTokens(Backbone(), cache_dir=tmp_path).encode(["a"], CPU) == [[97]]


def test_a_folder_that_cannot_be_is_told_before_anything_is_encoded(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file is no folder: name one with model.token_cache"):
        StateTokens(Backbone(), cache_dir=tmp_path / "file" / "cache")


@pytest.mark.parametrize("name", ["max_entries", "shard_size"])
def test_bad_sizes(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        StateTokens(Backbone(), **{name: 0})


def test_codes_do_not_depend_on_the_trainers_precision():
    """bf16-mixed runs training steps under autocast; a code that rounding changed would stay in the shared cache."""
    noise = np.random.default_rng(0).integers(0, 256, (4, 48, 48, 3), dtype=np.uint8)
    images = [Image.fromarray(pixels) for pixels in noise]
    backbone = Liquid("builtin/tiny-liquid", dtype="float32")
    plain = backbone.encode_states(images, CPU)
    with torch.autocast("cpu", torch.bfloat16):
        assert StateTokens(backbone).encode(images, CPU) == plain
        assert backbone.encode_states(images, CPU) != plain  # what autocast would do


@pytest.mark.parametrize("products", ["highest", "high", "medium"])
def test_codes_are_computed_without_tf32_whose_switches_stay_as_they_were(products):
    """GPUs since Ampere convolve in TF32 by default; about one code in a thousand is another then."""
    image, backbone = Image.new("RGB", (48, 48)), Liquid("builtin/tiny-liquid", dtype="float32")
    switches = [torch.backends.cudnn.conv, torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]
    seen, encode = [], backbone.encode_states

    def encoded(states, device):
        seen.append([switch.fp32_precision for switch in switches])
        return encode(states, device)

    backbone.encode_states = encoded
    torch.set_float32_matmul_precision(products)
    try:
        before = [switch.fp32_precision for switch in switches]
        StateTokens(backbone).encode([image], CPU)
        assert [switch.fp32_precision for switch in switches] == before
        assert torch.get_float32_matmul_precision() == products
        assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == (True, products != "highest")
    finally:
        torch.set_float32_matmul_precision("highest")
    assert seen == [["ieee"] * 3]
