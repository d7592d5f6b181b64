"""Frames by time."""

import struct

import numpy as np
import pytest

from support.videos import number, write_sound, write_video
from swirl_lightning.data.video import Video, VideoError

pytest.importorskip("av")

FRAMES = [
    (0, False, 0),
    (0.3, False, 3),
    (0.25, False, 3),
    (0, True, 0),
    (0.5, True, 5),
    (0.58, True, 5),
    (9, True, 11),
]


def test_frames_by_time_in_any_order(tmp_path):
    """The video stays open; a frame depends on its time alone."""
    with Video(write_video(tmp_path / "v.mp4")) as video:
        assert video.duration == pytest.approx(1.2)
        for seconds, last, frame in [*FRAMES, *reversed(FRAMES)]:
            assert number(video.frame_at(seconds, last=last)) == frame


def test_errors_name_the_video(tmp_path):
    path = write_video(tmp_path / "v.mp4")
    with Video(path) as video:
        with pytest.raises(VideoError, match=r"no such frame: .*v\.mp4 at 5\.00 s"):
            video.frame_at(5)
        with pytest.raises(VideoError, match=r"within 2\.00 s of 9\.00 s"):
            video.frame_at(9, last=True, within=2)
    with pytest.raises(VideoError, match=r"missing video: .*none\.mp4"):
        Video(tmp_path / "none.mp4")
    with pytest.raises(VideoError, match=r"no video stream: .*sound\.mp4"):
        Video(write_sound(tmp_path / "sound.mp4"))
    path.write_bytes(b"not a video" * 100)
    with pytest.raises(VideoError, match=r"damaged video: .*v\.mp4"):
        Video(path)


PLAYLISTS = {
    "one.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.2,\nother.mp4\n#EXT-X-ENDLIST\n",
    "one.mp4": "ffconcat version 1.0\nfile other.mp4\n",
}


@pytest.mark.parametrize(("name", "content"), PLAYLISTS.items(), ids=PLAYLISTS)
def test_no_playlist_leads_to_other_files_or_addresses(tmp_path, name, content):
    write_video(tmp_path / "other.mp4")
    (tmp_path / name).write_text(content)
    with pytest.raises(VideoError, match="damaged video"):
        Video(tmp_path / name)


@pytest.mark.parametrize("ending", ["mp4", "mov", "m4v", "avi", "mkv"])
def test_containers(tmp_path, ending):
    with Video(write_video(tmp_path / f"v.{ending}")) as video:
        assert number(video.frame_at(0.3)) == 3


@pytest.mark.parametrize("seconds", [float("inf"), float("-inf"), float("nan"), 1e300, -1e300])
def test_times_that_cannot_be(tmp_path, seconds):
    with Video(write_video(tmp_path / "v.mp4")) as video, pytest.raises(VideoError, match="no such frame"):
        video.frame_at(seconds)


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000])
def test_names_that_cannot_be(tmp_path, name):
    with pytest.raises(VideoError, match="missing video"):
        Video(tmp_path / name)


@pytest.mark.parametrize("matrix", [(0, 1, -1, 0), (0, -1, 1, 0), (-1, 0, 0, -1)])
def test_a_frame_is_turned_as_players_show_it(tmp_path, matrix):
    """Phones write upright pictures as lying ones with a matrix: pixel (x, y) is shown at (a x + c y, b x + d y)."""
    path = write_video(tmp_path / "a.mp4", pattern=True)
    with Video(path) as video:
        lying = np.asarray(video.frame_at(0.3))
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 4
    place += 4 + (32 if content[place] else 20) + 16
    a, b, c, d = matrix
    fixed = [value * 65536 & 0xFFFFFFFF for value in matrix]
    content[place : place + 36] = struct.pack(">9I", *fixed[:2], 0, *fixed[2:], 0, 0, 0, 0x40000000)
    path.write_bytes(content)
    with Video(path) as video:
        shown = np.asarray(video.frame_at(0.3))
    y, x = np.indices(lying.shape[:2])
    across, down = a * x + c * y, b * x + d * y
    wanted = np.empty_like(lying)  # it is square
    wanted[down - down.min(), across - across.min()] = lying[y, x]
    assert np.array_equal(shown, wanted)
    assert not np.array_equal(shown, lying)
