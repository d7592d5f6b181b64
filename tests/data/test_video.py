"""Frames by time."""

import pytest
from videos import number, write_video

from swirl_lightning.data.video import VideoError, duration, frame_at

pytest.importorskip("av")


@pytest.mark.parametrize(
    ("seconds", "last", "frame"),
    [(0, False, 0), (0.3, False, 3), (0.25, False, 3), (0, True, 0), (0.5, True, 5), (0.58, True, 5), (9, True, 11)],
)
def test_frames_by_time(tmp_path, seconds, last, frame):
    assert number(frame_at(write_video(tmp_path / "v.mp4"), seconds, last=last)) == frame


def test_errors_name_the_video(tmp_path):
    path = write_video(tmp_path / "v.mp4")
    with pytest.raises(VideoError, match=r"no such frame: .*v\.mp4 at 5\.00 s"):
        frame_at(path, 5)
    with pytest.raises(VideoError, match=r"within 2\.00 s of 9\.00 s"):
        frame_at(path, 9, last=True, within=2)
    with pytest.raises(VideoError, match=r"missing video: .*none\.mp4"):
        frame_at(tmp_path / "none.mp4", 0)
    path.write_bytes(b"not a video" * 100)
    for read in (lambda: frame_at(path, 0), lambda: duration(path)):
        with pytest.raises(VideoError, match=r"damaged video: .*v\.mp4"):
            read()


def test_duration(tmp_path):
    assert duration(write_video(tmp_path / "v.mp4")) == pytest.approx(1.2)
