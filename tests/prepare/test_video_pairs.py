"""State-only pairs from videos."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from support.videos import write_video
from swirl_lightning.data import JSONLTransitions
from swirl_lightning.prepare import video_pairs
from swirl_lightning.prepare.video_pairs import PairConfig, main, make_pairs, rejection, ssim

pytest.importorskip("av")


def by_hand(one, two, window=7):
    values = []
    for r in range(one.shape[0] - window + 1):
        for c in range(one.shape[1] - window + 1):
            a, b = (x[r : r + window, c : c + window].ravel() for x in (one, two))
            cov = np.cov(a, b)
            c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
            top = (2 * a.mean() * b.mean() + c1) * (2 * cov[0, 1] + c2)
            values.append(top / ((a.mean() ** 2 + b.mean() ** 2 + c1) * (cov[0, 0] + cov[1, 1] + c2)))
    return np.mean(values)


def test_ssim_by_hand():
    rng = np.random.default_rng(0)
    one, two = rng.uniform(0, 255, (2, 12, 15))
    assert ssim(one, two) == pytest.approx(by_hand(one, two), abs=1e-9)
    mixed = 0.9 * one + 0.1 * two
    assert ssim(one, mixed) == pytest.approx(by_hand(one, mixed), abs=1e-9)
    assert ssim(one, one) == pytest.approx(1)
    assert ssim(one[:5], one[:5]) == 1


def test_filters():
    config = PairConfig()
    rng = np.random.default_rng(0)
    one, two = (Image.fromarray(rng.integers(60, 256, (20, 20, 3), dtype=np.uint8)) for _ in range(2))
    assert rejection(one, two, config) == ""
    assert rejection(one, one, config) == "too alike"
    dark = two.copy()
    dark.paste((0, 0, 0), (0, 0, 20, 2))  # exactly a tenth
    assert rejection(one, dark, config) == "too dark"


@pytest.fixture
def videos(tmp_path):
    folder = tmp_path / "videos"
    for n in range(3):
        write_video(folder / "sub" / f"good{n}.mp4", pattern=True, frames=20)
    write_video(folder / "same.mp4")  # plain grey frames differ in brightness only
    write_video(folder / "black.avi", black=True)
    write_video(folder / "short.mp4", frames=2, pattern=True)
    (folder / "damaged.mp4").write_bytes(b"x" * 500)
    (folder / "notes.txt").write_text("no video")
    return folder


SETTINGS = PairConfig(seconds=0.5, per_video=2)


def test_pairs_of_a_folder(videos, tmp_path):
    counts = make_pairs(videos, tmp_path / "out", SETTINGS, workers=3)
    assert counts["videos"] == 7
    assert counts["damaged video"] == 1
    assert counts["too dark"] == 2  # draws
    assert counts["too short"] == 1
    assert counts["pairs"] >= 6
    data = JSONLTransitions(state_only=str(tmp_path / "out" / "pairs.jsonl"))
    pairs = data.split("state_only")
    assert len(pairs) == counts["pairs"]
    assert pairs[0].action is None
    assert pairs[0].before.size == (32, 32)
    assert len({pair.id for pair in pairs}) == len(pairs)
    assert data.skipped == {"state_only": 0}


def test_a_name_that_is_no_text_gives_records_that_are(tmp_path):
    """Latin-1 names are common in old archives."""
    good = write_video(tmp_path / "videos" / "é.mp4", pattern=True, frames=20)
    try:
        os.rename(good, os.path.join(os.fsencode(good.parent), b"\xe9.mp4"))
    except OSError:
        pytest.skip("this file system has names of text alone")
    for _ in range(2):  # the second time, from the log
        counts = make_pairs(good.parent, tmp_path / "out", SETTINGS)
        assert counts["pairs"] == 2
    pairs = JSONLTransitions(state_only=str(tmp_path / "out" / "pairs.jsonl"), strict=True).split("state_only")
    assert [pair.id.split("@")[0] for pair in pairs] == [r"\xe9.mp4"] * 2


def test_killed_and_started_again(videos, tmp_path, monkeypatch):
    make_pairs(videos, tmp_path / "whole", SETTINGS)
    whole = (tmp_path / "whole" / "pairs.jsonl").read_text()
    out = tmp_path / "out"
    make_pairs(videos, out, SETTINGS)
    log = (out / "videos.jsonl").read_text().splitlines(keepends=True)
    (out / "videos.jsonl").write_text("".join(log[:3]) + log[3][:10])
    (out / "pairs.jsonl").unlink()
    done = []
    finished = video_pairs._finished

    def spy(pool, videos, out, names, *rest):
        done.extend(names)
        return finished(pool, videos, out, names, *rest)

    monkeypatch.setattr(video_pairs, "_finished", spy)
    make_pairs(videos, out, SETTINGS)
    assert len(done) == 4
    assert (out / "pairs.jsonl").read_text() == whole
    done.clear()
    lost = next((out / "frames").iterdir())
    lost.unlink()
    make_pairs(videos, out, SETTINGS)
    assert (len(done), lost.is_file()) == (1, True)
    with pytest.raises(ValueError, match=r"seconds was 0.5 and is 1.0"):
        make_pairs(videos, out, PairConfig(seconds=1.0, per_video=2))


def test_command_line(videos, tmp_path, capsys):
    main([str(videos), str(tmp_path / "out"), "--seconds", "0.5", "--size", "16"])
    assert "pairs: " in capsys.readouterr().out
    line = json.loads((tmp_path / "out" / "pairs.jsonl").read_text().splitlines()[0])
    assert Image.open(tmp_path / "out" / line["before_image"]).size == (16, 16)
    with pytest.raises(FileNotFoundError, match="no videos"):
        make_pairs(tmp_path / "out", tmp_path / "none")
    with pytest.raises(ValueError, match="per_video"):
        PairConfig(per_video=0)


def test_frames_are_as_far_apart_as_asked_and_one_missing_time_costs_itself(tmp_path):
    """A recording that stood still from 0.9 s to 7.5 s."""
    import av

    path = tmp_path / "videos" / "still.mp4"
    path.parent.mkdir()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for n in [*range(10), *range(75, 300)]:
            values = np.random.default_rng(n).integers(60, 256, (4, 4, 3), dtype=np.uint8)
            frame = av.VideoFrame.from_image(Image.fromarray(values).resize((32, 32), Image.Resampling.NEAREST))
            frame.pts = n
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    (tmp_path / "frames").mkdir()
    entry = video_pairs.pairs_of(path.parent, path.name, tmp_path, PairConfig(seconds=2, per_video=40))
    times = [pair["time"] for pair in entry["pairs"]]
    assert len(times) > 20
    assert not [time for time in times if 1.1 < time < 6.4]  # nothing is shown there


def test_each_draw_that_gives_no_pair_is_counted(tmp_path):
    """Of a video that gives pairs, too: the others went without a word, and near frames came twice under one id."""
    write_video(tmp_path / "videos" / "a.mp4", pattern=True, frames=20)  # 2 s: before frames are one of sixteen
    (tmp_path / "videos" / "b.mpg").write_bytes(b"x")
    (tmp_path / "videos" / "notes.txt").write_text("no video")
    config = PairConfig(seconds=0.5, per_video=40)
    counts = make_pairs(tmp_path / "videos", tmp_path / "out", config)
    assert 5 < counts["pairs"] <= 16
    assert counts == {"videos": 1, "pairs": counts["pairs"], "drawn twice": 40 - counts["pairs"], ".mpg is not read": 1}
    pairs = JSONLTransitions(state_only=str(tmp_path / "out" / "pairs.jsonl"), strict=True).split("state_only")
    assert len(pairs) == counts["pairs"]


def test_videos_that_are_removed_are_told_and_their_pairs_kept(tmp_path):
    """As where a corpus is fetched in parts."""
    for name in "ab":
        write_video(tmp_path / "videos" / f"{name}.mp4", pattern=True, frames=20)
    assert make_pairs(tmp_path / "videos", tmp_path / "out", SETTINGS)["pairs"] == 4
    (tmp_path / "videos" / "a.mp4").unlink()
    counts = make_pairs(tmp_path / "videos", tmp_path / "out", SETTINGS)
    assert counts == {"videos": 2, "pairs": 4, "no longer there": 1}


def test_the_log_of_an_earlier_version_keeps_its_pairs(tmp_path):
    """It had one reason for a video, and no counts."""
    write_video(tmp_path / "videos" / "a.mp4", pattern=True, frames=20)
    write_video(tmp_path / "videos" / "b.mp4", pattern=True, frames=20)
    write_video(tmp_path / "videos" / "short.mp4", frames=3)
    make_pairs(tmp_path / "videos", tmp_path / "out", SETTINGS)
    log = tmp_path / "out" / "videos.jsonl"
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    earlier = [{"reason": next(iter(entry.pop("left_out")), ""), **entry} for entry in entries]
    log.write_text("".join(json.dumps(entry) + "\n" for entry in earlier))
    (tmp_path / "videos" / "a.mp4").unlink()
    counts = make_pairs(tmp_path / "videos", tmp_path / "out", SETTINGS)
    assert counts == {"videos": 3, "pairs": 4, "too short": 1, "no longer there": 1}


@pytest.mark.parametrize(("black", "told"), [(True, r"too dark: 9\)$"), (False, r"too alike: 9\).* higher --max_ssim")])
def test_no_pair_at_all_is_an_error_with_its_reasons(tmp_path, black, told):
    """Each draw with its own, though several begin with the same frame."""
    write_video(tmp_path / "videos" / "still.mp4", black=black)
    with pytest.raises(ValueError, match=r"no pair in .*\(videos: 1, " + told):
        make_pairs(tmp_path / "videos", tmp_path / "out", replace(SETTINGS, per_video=9, max_ssim=-1))


def test_videos_of_another_source_are_not_taken_for_those_that_are_done(tmp_path):
    one = write_video(tmp_path / "A" / "1.mp4", pattern=True, frames=20)
    make_pairs(tmp_path / "A", tmp_path / "out", PairConfig(seconds=1))
    write_video(tmp_path / "B" / "1.mp4", pattern=True, frames=30)
    with pytest.raises(ValueError, match=r"has pairs of another video named 1\.mp4: take another folder"):
        make_pairs(tmp_path / "B", tmp_path / "out", PairConfig(seconds=1))
    late = tmp_path / "A" / "2.mp4"
    late.write_bytes(one.read_bytes()[:500])  # still on its way
    assert make_pairs(tmp_path / "A", tmp_path / "out", PairConfig(seconds=1))["damaged video"] == 1
    late.write_bytes(one.read_bytes())
    assert make_pairs(tmp_path / "A", tmp_path / "out", PairConfig(seconds=1))["pairs"] == 2
    late.write_bytes(one.read_bytes() + b"\0" * 1000)  # it was cut, and gave a pair
    assert make_pairs(tmp_path / "A", tmp_path / "out", PairConfig(seconds=1))["pairs"] == 2
