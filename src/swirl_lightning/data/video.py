"""Single frames of videos, by time (extra ``[video]``: PyAV)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image


class VideoError(OSError):
    """A video that cannot be read; the message names it.

    Args:
        kind: ``missing video``, ``damaged video``, ``no video stream`` or ``no such frame``.
        detail: what and where.
    """

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind


def require_av() -> Any:
    """The PyAV package.

    Raises:
        ImportError: it is not installed; the message says what to do.
    """
    try:
        import av
    except ImportError as error:
        raise ImportError("videos are read with PyAV: pip install swirl-lightning[video]") from error
    return av


def frame_at(path: Path, seconds: float, last: bool = False, within: float | None = None) -> Image.Image:
    """The first frame at or after a time, or the last one at or before it.

    Args:
        path: video.
        seconds: from the start of the video.
        last: the last frame with time <= ``seconds`` instead of the first with time >= ``seconds``.
        within: seconds; the frame must be no further away than that. None allows any.

    Raises:
        VideoError: no such file, no video, damaged there, or no such frame.
    """
    av = require_av()
    if not path.is_file():
        raise VideoError("missing video", str(path))
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise VideoError("no video stream", str(path))
            stream = container.streams.video[0]
            stream.thread_type = "NONE"  # one frame: threads would decode more than it
            start = float((stream.start_time or 0) * stream.time_base)
            tolerance = 0.1 / float(stream.average_rate or 25)
            if seconds > 0:
                container.seek(int((start + seconds) / stream.time_base), stream=stream)
            found = None
            for frame in container.decode(stream):
                if frame.pts is None:
                    continue
                time = float(frame.pts * stream.time_base) - start
                if last and time > seconds + tolerance:
                    break
                found = (frame, time)
                if not last and time >= seconds - tolerance:
                    break
            if found is None or (not last and found[1] < seconds - tolerance):
                raise VideoError("no such frame", f"{path} at {seconds:.2f} s")
            if within is not None and abs(found[1] - seconds) > within + tolerance:
                raise VideoError("no such frame", f"{path} within {within:.2f} s of {seconds:.2f} s")
            picture: Image.Image = found[0].to_image()
            return picture.convert("RGB")
    except (av.FFmpegError, ValueError, EOFError) as error:
        raise VideoError("damaged video", f"{path} ({error})") from None


def duration(path: Path) -> float:
    """Length of a video's picture track in seconds.

    Raises:
        VideoError: it is no video, or does not say.
    """
    av = require_av()
    if not path.is_file():
        raise VideoError("missing video", str(path))
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise VideoError("no video stream", str(path))
            stream = container.streams.video[0]
            if stream.duration is not None:
                return float(stream.duration * stream.time_base)
            if container.duration is not None:
                return float(container.duration) / av.time_base
    except (av.FFmpegError, ValueError, EOFError) as error:
        raise VideoError("damaged video", f"{path} ({error})") from None
    raise VideoError("damaged video", f"{path} does not tell its duration")
