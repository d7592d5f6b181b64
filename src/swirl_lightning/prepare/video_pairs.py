"""State-only pairs from a folder of videos: two frames some seconds apart, neither black nor alike.

    python -m swirl_lightning.prepare.video_pairs VIDEOS OUT --seconds 6

writes ``OUT/pairs.jsonl`` and ``OUT/frames/``, which `JSONLTransitions(state_only=...)` reads. Killed and
started again, it goes on with the videos that are left. Videos are UCF-101's, Kinetics', VidGen-1M's, or yours.
"""

from __future__ import annotations

import hashlib
import json
import mimetypes
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.progress import Progress

from swirl_lightning.console.run import run_command
from swirl_lightning.data.reading import read_settings
from swirl_lightning.data.video import Video, VideoError, require_av, save_frame, shrunk
from swirl_lightning.engine.ranges import check_ranges
from swirl_lightning.files.hashes import digest
from swirl_lightning.files.writing import append_lines, whole_file, written_to
from swirl_lightning.prepare import PAIRS, command_parser

ENDINGS = (".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v")
_LOG = "videos.jsonl"
_BEGINNING = 4096  # bytes of a video that tell it from others of the same name
_COMPARED = 256  # pixels on the shorter side at which frames are compared


@dataclass(frozen=True)
class PairConfig:
    """Choice of pairs; the defaults are the paper's for VidGen-1M, but for what counts as black.

    Attributes:
        seconds: between the two frames.
        per_video: pairs of a video at most, at random times that do not depend on other videos.
        max_ssim: pairs that are more alike are dropped.
        max_black: share of black pixels (grey below 10 of 255; the authors' code takes all channels below 5) from which
            a frame is too dark.
        size: shorter side in pixels to which frames are shrunk; 0 keeps their size.
        seed: of the times.
    """

    seconds: float = 6.0
    per_video: int = 1
    max_ssim: float = 0.95
    max_black: float = 0.1
    size: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        sizes = {"per_video": "whole [1, inf)", "size": "whole [0, inf)", "seed": "whole [0, inf)"}
        check_ranges("video_pairs", vars(self), seconds="(0, inf)", max_ssim="[-1, 1]", max_black="[0, 1]", **sizes)


def make_pairs(videos: str | Path, out: str | Path, config: PairConfig | None = None, workers: int = 1) -> Counter[str]:
    """Make pairs of every video below a folder that is not done yet.

    Args:
        videos: folder, searched with its sub-folders.
        out: folder for pairs; going on in one that was made with other settings is refused.
        config: choice of pairs.
        workers: number of threads.

    Returns:
        Counts over all videos of ``out``: ``videos``, ``pairs``, and what has been left out by reason: videos
        (``damaged video``, ``too short``, ...) and draws of a pair (``too dark``, ``too alike``, ``drawn twice``, ...);
        videos that are no longer there, whose pairs are kept; and files of videos that are not read, by their ending.

    Raises:
        FileNotFoundError: the folder has no videos.
        ValueError: ``out`` was made with other settings, or of other videos of the same names; or there is no pair.
    """
    check_ranges("video_pairs", {"workers": workers}, workers="whole [1, inf)")
    require_av()
    videos, out, config = Path(videos), Path(out), config or PairConfig()
    files = [path for path in videos.rglob("*") if path.suffix]
    names = sorted(p.relative_to(videos).as_posix() for p in files if p.suffix.lower() in ENDINGS)
    if not names:
        raise FileNotFoundError(f"no videos ({', '.join(ENDINGS)}) in {videos}")
    with written_to(out):
        (out / "frames").mkdir(parents=True, exist_ok=True)
    _check_settings(out / "settings.json", config)
    done = {entry["video"]: entry for entry in _entries(out / _LOG)}
    left = [name for name in names if name not in done or _changed(videos / name, done[name], out)]
    # decoding, resizing and writing all leave the interpreter's lock
    with ThreadPoolExecutor(workers) as pool, Progress() as progress:
        task = progress.add_task("video pairs", total=len(names), completed=len(names) - len(left))
        for entry in _finished(pool, videos, out, left, config, workers):
            done[entry["video"]] = entry
            append_lines(out / _LOG, [json.dumps(entry)])
            progress.advance(task)
    _write_pairs(out / PAIRS, [done[name] for name in sorted(done)])
    counts = Counter({"videos": len(done), "pairs": sum(len(e["pairs"]) for e in done.values())})
    for entry in done.values():
        counts.update(entry["left_out"])
    counts.update("no longer there" for name in set(done) - set(names))
    counts.update(f"{ending} is not read" for ending in _unread(files))
    if not counts["pairs"]:
        told = ", ".join(f"{name}: {count}" for name, count in counts.items() if name != "pairs")
        cure = "; what a camera that stands still sees is alike: make them with a higher --max_ssim of video_pairs"
        raise ValueError(f"no pair in {videos} ({told}){cure if counts['too alike'] else ''}")
    return counts


def pairs_of(videos: Path, name: str, out: Path, config: PairConfig) -> dict[str, Any]:
    """Write the frames of a video's pairs; returns ``{video, pairs: [...], left_out: {reason: count}}``."""
    left_out: Counter[str] = Counter()
    entry: dict[str, Any] = {"video": name, "bytes": _size(videos / name), "pairs": [], "left_out": left_out}
    drawn: set[float] = set()
    shown = os.fsencode(name).decode(errors="backslashreplace")  # names of files need not be text, and records must be
    key = hashlib.blake2b(os.fsencode(name), digest_size=8).digest()
    rng = np.random.default_rng([config.seed, int.from_bytes(key, "big")])
    try:
        with Video(videos / name) as video:
            latest = video.duration - config.seconds
            if latest < 0:
                left_out["too short"] += 1
                return entry
            for n, time in enumerate(sorted(rng.uniform(0, latest, config.per_video))):
                try:
                    before, earlier = video.frame(time, within=1.0)
                    after, later = video.frame(time + config.seconds, last=True, within=1.0)
                except VideoError as error:
                    left_out[error.kind] += 1
                    continue
                near = later - earlier < config.seconds / 2  # a picture that stood still, for example
                again = earlier in drawn  # many draws of a short video begin with the same frame
                reason = "no such frame" if near else "drawn twice" if again else rejection(before, after, config)
                if reason:
                    left_out[reason] += 1
                else:
                    drawn.add(earlier)
                    stem = f"frames/{key.hex()}-{n}"
                    files = {}
                    for side, frame in (("before", before), ("after", after)):
                        files[f"{side}_image"] = f"{stem}-{side}.jpg"
                        save_frame(frame, out / files[f"{side}_image"], config.size)
                    pair = {"id": f"{shown}@{earlier:.3f}", "video": shown, "time": round(earlier, 3)}
                    entry["pairs"].append(files | pair)
            if entry["pairs"]:
                entry["begins"] = _beginning(videos / name)
    except VideoError as error:
        left_out[error.kind] += 1
    return entry


def _unread(files: Sequence[Path]) -> Iterator[str]:
    """Yield the endings of files that are videos in a container which is not read."""
    for path in files:
        kind, _ = mimetypes.guess_type(path.name)
        if kind is not None and kind.startswith("video/") and (ending := path.suffix.lower()) not in ENDINGS:
            yield ending


def rejection(before: Image.Image, after: Image.Image, config: PairConfig) -> str:
    """Return the reason why a pair is dropped, or an empty text."""
    one, two = _grey(before), _grey(after)
    if max((one < 10).mean(), (two < 10).mean()) >= config.max_black:
        return "too dark"
    if one.shape != two.shape or ssim(one, two) >= config.max_ssim:
        return "too alike"
    return ""


def ssim(one: NDArray[np.float64], two: NDArray[np.float64], window: int = 7) -> float:
    """Compute the mean structural similarity of two grey images in [0, 255], both (H, W).

    Wang et al. 2004 with a uniform window and sample covariances: scikit-image's default.
    """
    if min(one.shape) < window:
        return float(np.array_equal(one, two))
    n = window * window
    mean_1, mean_2 = _means(one, window), _means(two, window)
    unbiased = n / (n - 1)
    var_1 = unbiased * (_means(one * one, window) - mean_1 * mean_1)
    var_2 = unbiased * (_means(two * two, window) - mean_2 * mean_2)
    covariance = unbiased * (_means(one * two, window) - mean_1 * mean_2)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    value = (2 * mean_1 * mean_2 + c1) * (2 * covariance + c2)
    return float((value / ((mean_1**2 + mean_2**2 + c1) * (var_1 + var_2 + c2))).mean())


def _means(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Compute the mean of every whole window, (H - window + 1, W - window + 1)."""
    sums = np.pad(values, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    whole = sums[window:, window:] - sums[:-window, window:] - sums[window:, :-window] + sums[:-window, :-window]
    return whole / (window * window)


def _grey(image: Image.Image) -> NDArray[np.float64]:
    return np.asarray(shrunk(image, _COMPARED).convert("L"), dtype=np.float64)


def _finished(
    pool: ThreadPoolExecutor, videos: Path, out: Path, names: Sequence[str], config: PairConfig, workers: int
) -> Iterator[dict[str, Any]]:
    """Yield entries as they are ready, while a bounded number of videos is in work."""
    waiting = iter(names)
    running: set[Future[dict[str, Any]]] = set()
    while True:
        for name in waiting:
            running.add(pool.submit(pairs_of, videos, name, out, config))
            if len(running) >= 4 * workers:
                break
        if not running:
            return
        future = next(as_completed(running))
        running.remove(future)
        yield future.result()


def _entries(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a log; one that is cut short or damaged is left out, and its video done again."""
    entries: list[dict[str, Any]] = []
    if not path.is_file():
        return entries
    text = path.read_text(encoding="utf-8", errors="replace")
    for line in text.split("\n"):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict) and isinstance(reason := entry.pop("reason", None), str):
            entry["left_out"] = {reason: 1} if reason else {}  # as earlier versions wrote it, without a count
        if _is_entry(entry):
            entries.append(entry)
    return entries


def _size(video: Path) -> int | None:
    # no Path.is_file, which raises on names that cannot be
    return os.path.getsize(video) if os.path.isfile(video) else None


def _beginning(video: Path) -> str:
    with open(video, "rb") as file:
        return digest(file.read(_BEGINNING))


def _changed(video: Path, entry: dict[str, Any], out: Path) -> bool:
    """Tell whether a video has another size than when its pairs were made, or a frame of them is gone.

    Raises:
        ValueError: the pairs are of another video of that name.
    """
    if entry.get("bytes") in (None, _size(video)):
        frames = [out / str(pair.get(f"{side}_image")) for pair in entry["pairs"] for side in ("before", "after")]
        return not all(map(os.path.isfile, frames))
    if entry["pairs"] and entry.get("begins") != _beginning(video):
        raise ValueError(f"{out} has pairs of another video named {entry['video']}: take another folder for {video}")
    return True


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("video"), str):
        return False
    left_out, pairs = entry.get("left_out"), entry.get("pairs")
    if not isinstance(left_out, dict) or not all(type(count) is int for count in left_out.values()):
        return False
    return isinstance(pairs, list) and all(isinstance(pair, dict) and "id" in pair for pair in pairs)


def _check_settings(path: Path, config: PairConfig) -> None:
    now = asdict(config)
    if path.is_file() and (then := read_settings(path)) != now:
        changed = ", ".join(f"{k} was {then.get(k)} and is {v}" for k, v in now.items() if then.get(k) != v)
        raise ValueError(f"{path.parent} was made with other settings ({changed}); take another folder")
    with whole_file(path) as file:
        file.write(json.dumps(now).encode())


def _write_pairs(path: Path, entries: list[dict[str, Any]]) -> None:
    with whole_file(path) as file:
        for entry in entries:
            file.writelines((json.dumps(pair) + "\n").encode() for pair in entry["pairs"])


_HELP = {
    "seconds": "between the two frames",
    "per_video": "pairs of a video at most",
    "max_ssim": "pairs more alike than this are left out; 1 keeps all but equal ones",
    "max_black": "share of black pixels from which a frame is too dark",
    "size": "shorter side in pixels to which frames are shrunk, 0 for none",
    "seed": "of the times",
}


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of the command."""
    parser = command_parser(
        "video_pairs",
        "VIDEOS OUT",
        "State-only pairs from a folder of videos.",
        "VIDEOS data/video_pairs --seconds 6",
    )
    parser.add_argument("videos", help="folder of videos")
    parser.add_argument("out", help="folder for pairs.jsonl and frames")
    for name, value in asdict(PairConfig()).items():
        parser.add_argument(f"--{name}", type=type(value), default=value, help=f"{_HELP[name]}; default: {value}")
    parser.add_argument("--workers", type=int, default=1, help="threads that decode; default: 1")
    options = vars(parser.parse_args(args))
    videos, out, workers = (options.pop(name) for name in ("videos", "out", "workers"))
    counts = make_pairs(videos, out, PairConfig(**options), workers)
    print(", ".join(f"{name}: {count}" for name, count in counts.items()))


if __name__ == "__main__":
    run_command(main)
