import io

import pytest
from PIL import Image

from support.runs import Data, Model, fit, frame, texts, trainer
from swirl_lightning.callbacks import TransitionImages
from swirl_lightning.callbacks.transition_images import image_grid


def open_image(event):
    return Image.open(io.BytesIO(event.encoded_image_string)).convert("RGB")


def test_a_grid_at_the_start_of_each_phase_and_every_n_steps(tmp_path):
    found = fit(tmp_path, [TransitionImages(every_n_steps=3, max_rows=2)], data=Data(rows=20))
    assert found.Tags()["images"] == ["fwm/transitions", "idm/transitions"]
    assert [event.step for event in found.Images("fwm/transitions")] == [6, 9]
    wide = open_image(found.Images("fwm/transitions")[0]).size
    assert wide[0] == 4 * (128 + 8) + 8
    assert open_image(found.Images("idm/transitions")[0]).size[0] == 2 * (128 + 8) + 8


def test_frames_are_enlarged_without_smoothing():
    grid = image_grid([([frame(0), frame(1)], ["a", "b"])], ["before", "after"])
    colours = grid.crop((8, 30, 8 + 128, 30 + 128)).getcolors()
    assert sorted(count for count, _ in colours) == [1024, 128 * 128 - 1024]


def test_large_frames_are_shrunk():
    large = [([Image.new("RGB", (1024, 512))], ["a"])]
    assert image_grid(large, ["x"]).width == 256 + 16


def test_all_columns_have_one_size_and_captions_are_read_in_a_narrow_card():
    states = [Image.new("RGB", (side, side), (200, 0, 0)) for side in (96, 128, 300)]
    grid = image_grid([(states, ["", "", ""])], ["x", "y", "z"])
    red = [grid.getpixel((8 + n * (256 + 8) + 250, 8 + 22 + 250))[:2] for n in range(3)]
    assert (grid.width, red) == (3 * (256 + 8) + 8, [(200, 0)] * 3)
    four = image_grid([([frame(0)] * 4, ["EHL", "", "", ""])], ["", "", "", ""])
    ink = four.crop((0, 8 + 22 + 128, four.width, four.height)).convert("L").point(lambda v: 255 * (v < 128)).getbbox()
    assert (ink[3] - ink[1]) * 340 / four.width >= 7  # height of a capital in a card of 340 pixels


@pytest.mark.parametrize("size", [(1, 200_000), (200_000, 1)])
def test_a_strip_fills_no_memory(size):
    grid = image_grid([([Image.new("RGB", size)], ["a"])], ["x"])
    assert grid.width * grid.height < 10**6


def test_captions_wrap_under_their_columns():
    words = "pick up the yellow key that lies behind the grey door"
    rows = [([frame(0)] * 2, [words, ""])]
    assert image_grid(rows, ["x", "y"]).height > image_grid([([frame(0)] * 2, ["a", ""])], ["x", "y"]).height
    beside = [([frame(0)] * 2, [words, "r"])]
    assert image_grid(beside, ["x", "y"]).height > image_grid(rows, ["x", "y"]).height


def test_texts_become_a_table(tmp_path):
    found = fit(tmp_path, [TransitionImages(max_rows=2)], model=Model(text=True))
    assert not found.Tags()["images"]
    (table,) = texts(found, "fwm/transitions").values()
    head, _, *rows = table.splitlines()
    assert head == "| before | after | predicted, best | predicted, worst |"
    assert len(rows) == 2
    assert "(turn left)" in rows[0]
    assert "state &#60;2&#62; (reward -1.73)" in rows[0]
    assert all(row.count("|") == 5 for row in rows)


def test_nothing_without_tensorboard(tmp_path):
    trainer(tmp_path, [TransitionImages()], logger=False).fit(Model(), Data())
    assert not list(tmp_path.rglob("events*"))


@pytest.mark.parametrize("options", [{"every_n_steps": 0}, {"max_rows": 0}])
def test_bad_numbers(options):
    with pytest.raises(ValueError, match=r"must lie in \[1, "):
        TransitionImages(**options)
