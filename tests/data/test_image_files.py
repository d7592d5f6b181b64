"""Image files that look whole, that lead elsewhere, or that no program should open."""

from __future__ import annotations

import io
import json
import struct
import threading
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from support.image_world import block_image, write_aurora
from swirl_lightning.benchmarks.aurora import Aurora
from swirl_lightning.data import JSONLTransitions
from swirl_lightning.data.images import FORMATS, image_problem, image_problems, open_rgb
from swirl_lightning.data.lazy import LazyRecord, usable
from swirl_lightning.data.reading import SkippedRecords


def noise(kind: str) -> bytes:
    """A whole image."""
    content = io.BytesIO()
    mode = "RGB" if kind != "GIF" else "L"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).convert(mode).save(
        content, kind
    )
    return content.getvalue()


def short_png() -> bytes:
    """Every chunk is whole and has its checksum; there are too few pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 32, 32, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(97) * 20)[:-8]
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


CUT = {kind: noise(kind)[: len(noise(kind)) * 2 // 3] for kind in FORMATS} | {"PNG of too few pixels": short_png()}


@pytest.fixture(params=CUT, ids=[name.lower().replace(" ", "-") for name in CUT])
def cut(request) -> bytes:
    return CUT[request.param]


@pytest.mark.parametrize("kind", FORMATS)
def test_every_documented_format_is_read(kind):
    assert image_problem(noise(kind)) is None
    assert open_rgb(noise(kind)).size == (32, 32)


def test_an_image_cut_off_is_found_before_the_training(tmp_path, cut):
    (tmp_path / "cut").write_bytes(cut)
    (tmp_path / "whole").write_bytes(noise("PNG"))
    lines = [{"before": "a", "after_image": name, "action": "go", "id": name} for name in ("cut", "whole")]
    (tmp_path / "w.jsonl").write_text("\n".join(map(json.dumps, lines)))
    data = JSONLTransitions(warmup=str(tmp_path / "w.jsonl"))
    with pytest.warns(UserWarning, match=r"w\.jsonl:1: cannot read after_image .*cut: not readable"):
        rows = data.split("warmup")
    assert ([row.id for row in rows], data.skipped) == (["whole"], {"warmup": 1})


def test_an_image_cut_off_is_found_in_the_training_set_of_a_suite(tmp_path, cut):
    write_aurora(tmp_path)
    (tmp_path / "data/kubric/train/0a.png").write_bytes(cut)
    data = Aurora(data_dir=str(tmp_path), validation_size=1)
    with pytest.warns(UserWarning, match=r"0a\.png\): not readable"):
        data.setup("fit")
    every = [*data.split("warmup"), *data.split("validation")]
    assert (len(every), sum(count["skipped"] for count in data.counts.values())) == (7, 1)


def test_no_other_program_is_started(tmp_path, monkeypatch):
    """Pillow hands EPS, a programming language, to Ghostscript, whatever the file is called."""
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    path = tmp_path / "x.png"
    block_image(0).save(path, "EPS")
    with Image.open(path) as image, pytest.raises(OSError, match=r"."):
        image.load()
    (tmp_path / "started").unlink()  # so far, what Pillow does
    assert image_problem(path).startswith("not readable (cannot identify image file")
    with pytest.raises(OSError, match=r"cannot read the image .*x\.png"):
        open_rgb(path)
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("side", [11, 15])
def test_more_pixels_than_pillows_limit_are_refused(monkeypatch, side):
    """Pillow itself only warns, up to twice its limit."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        block_image(0, (side, side)).save(content, "PNG")
        assert "pixels" in image_problem(content.getvalue())
        with pytest.raises(OSError, match="pixels"):
            open_rgb(content.getvalue())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert image_problem(content.getvalue()) is None


def tiled_tiff(side: int, tile: int) -> bytes:
    """A square image in one compressed tile that may be far larger than it."""
    data = zlib.compress(bytes(tile * tile))
    numbers = {256: side, 257: side, 258: 8, 259: 8, 262: 1, 277: 1, 322: tile, 323: tile, 324: 8, 325: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in numbers.items())
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(numbers)) + entries + bytes(4)


def test_a_tile_of_more_pixels_than_the_limit_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64)
    assert image_problem(tiled_tiff(16, 64)) is None
    assert "80 x 80 pixels are more than 4096" in image_problem(tiled_tiff(16, 80))


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_draws_over_itself_without_end_is_refused(progressive):
    content = io.BytesIO()
    block_image(0, (32, 32)).save(content, "JPEG", progressive=progressive)
    whole = content.getvalue()
    last = whole.rindex(b"\xff\xda")  # of the last scan, which ends at the end of the image
    assert image_problem(whole) is None
    assert "draws over itself" in image_problem(whole[:-2] + whole[last:-2] * 600 + whole[-2:])


def test_of_large_images_one_is_decoded_at_a_time(monkeypatch):
    """A palette of one bit gives 89 million pixels in 10 KB, and eight threads would hold 16 bytes of each."""
    at_work, most, met = [], [], threading.Event()

    def slow(image):
        at_work.append(id(image))  # comparing images would load them, in another thread
        most.append(len(at_work))
        if len(at_work) > 1:
            met.set()
        met.wait(10)  # until two are at work
        time.sleep(0.02)
        at_work.remove(id(image))
        return image.convert("RGB")

    monkeypatch.setattr("swirl_lightning.data.images.to_rgb", slow)
    contents = []
    for index in range(6):
        content = io.BytesIO()
        block_image(index, (32, 32)).save(content, "PNG")
        contents.append(content.getvalue())
    assert set(image_problems(contents).values()) == {None}
    assert max(most) > 1
    most.clear()
    monkeypatch.setattr("swirl_lightning.data.images._LARGE", 32 * 32 - 1)
    assert set(image_problems(contents).values()) == {None}
    assert most == [1] * 6


ODD = {"long": "x" * 5000, "NUL": "a\0b", "a folder": ".", "a device": "/dev/zero"}


@pytest.mark.parametrize("name", ODD.values(), ids=ODD)
def test_a_name_that_cannot_be_costs_its_record(tmp_path, name):
    (tmp_path / "0.png").write_bytes(noise("PNG"))
    lines = [{"before_image": image, "after": "b", "action": "go"} for image in (name, "0.png")]
    (tmp_path / "w.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.warns(UserWarning, match=r"1 of 2 records cannot be used \(1 missing\)") as caught:
        assert len(JSONLTransitions(warmup=str(tmp_path / "w.jsonl")).split("warmup")) == 1
    assert all(len(str(warning.message)) < 1000 for warning in caught)


@pytest.mark.parametrize("name", [*ODD.values(), "../secret.png", "data/../../secret.png", "/{}/secret.png"])
@pytest.mark.parametrize("field", ["input", "output"])
def test_no_image_outside_a_suites_folder_is_opened(tmp_path, name, field):
    """With a judge it would be sent away."""
    (tmp_path / "secret.png").write_bytes(noise("PNG"))
    entries = write_aurora(tmp_path / "aurora")
    entries[0][field] = name.format(str(tmp_path).lstrip("/"))
    (tmp_path / "aurora" / "test.json").write_text(json.dumps(entries))
    data = Aurora(data_dir=str(tmp_path / "aurora"))
    with pytest.warns(
        UserWarning, match=r"1 of 6 records cannot be used|of 1 records the image of their result is missing"
    ):
        data.setup("test")
    assert sum(row.after is not None for row in data.split("test")) == 3  # of 4


def test_nor_one_of_disc_edit(tmp_path):
    (tmp_path / "secret.png").write_bytes(noise("PNG"))
    folder = tmp_path / "aurora" / "data" / "whatsup"
    folder.mkdir(parents=True)
    (tmp_path / "aurora" / "0.png").write_bytes(noise("PNG"))
    entries = [{"input": name, "pos": "up", "neg": "down"} for name in ("0.png", "../secret.png")]
    (folder / "itm_test.json").write_text(json.dumps(entries))
    data = Aurora(data_dir=str(tmp_path / "aurora"), protocol="disc_edit", disc_samples=1)
    with pytest.warns(UserWarning, match=r"an image outside AURORA's folder \(\.\./secret\.png\)"):
        assert len(data.split("test")) == 2


def test_a_link_within_the_folder_is_the_users_own(tmp_path):
    write_aurora(tmp_path / "aurora")
    images: Path = tmp_path / "aurora" / "data" / "kubric" / "images"
    images.rename(tmp_path / "elsewhere")
    images.symlink_to(tmp_path / "elsewhere")
    assert len(Aurora(data_dir=str(tmp_path / "aurora")).split("test")) == 6


def test_an_id_is_used_once():
    skipped, image = SkippedRecords("frames"), noise("PNG")
    rows = [LazyRecord(image, None, "go", name) for name in ("a", "b", "a")]
    assert [row.id for row in usable(rows, skipped)] == ["a", "b"]
    assert skipped.messages == ["a: its id comes twice"]
