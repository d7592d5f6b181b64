"""Single frames of videos: access by time (extra ``[video]``: PyAV), and writing."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from swirl_lightning.files.writing import written_to

_OPENED = {
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi",
    "protocol_whitelist": "file",
}
"""FFmpeg's options: containers alone, no playlist, which names other files and addresses to read."""

_LATEST = 1e7  # seconds, some hundred days; FFmpeg's numbers overflow later


class VideoError(OSError):
    """Error of a video that cannot be read; the message names it.

    Args:
        kind: ``missing video``, ``damaged video``, ``no video stream`` or ``no such frame``.
        detail: problem and place.
    """

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind


def require_av() -> Any:
    """Import the PyAV package.

    Raises:
        ImportError: it is not installed; the message says what to do.
    """
    try:
        import av
    except ImportError as error:
        raise ImportError("videos are read with PyAV: pip install 'swirl-lightning[video]'") from error
    return av


class Video:
    """Open video with its length and single frames by time. A context manager.

    Args:
        path: of the file.

    Raises:
        VideoError: no such file, or no video in it.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._av = path, require_av()
        if not os.path.isfile(path):  # no Path.is_file, which raises on names that cannot be
            raise VideoError("missing video", str(path))
        with self._damage():
            self._container = self._av.open(str(path), options=_OPENED)
        if not self._container.streams.video:
            self._container.close()
            raise VideoError("no video stream", str(path))
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "NONE"  # single frames: threads would decode more than that
        with self._damage():
            self._start = float((self._stream.start_time or 0) * self._stream.time_base)

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *error: object) -> None:
        self._container.close()

    @contextmanager
    def _damage(self) -> Iterator[None]:
        try:
            yield
        except (self._av.FFmpegError, ValueError, EOFError, TypeError, ArithmeticError) as error:
            raise VideoError("damaged video", f"{self.path} ({error})") from None

    @property
    def duration(self) -> float:
        """Length of the video stream in seconds.

        Raises:
            VideoError: the file does not say.
        """
        if self._stream.duration is not None:
            return float(self._stream.duration * self._stream.time_base)
        if self._container.duration is not None:
            return float(self._container.duration) / self._av.time_base
        raise VideoError("damaged video", f"{self.path} does not tell its duration")

    def frame_at(self, seconds: float, last: bool = False, within: float | None = None) -> Image.Image:
        """Return the image of :meth:`frame`."""
        return self.frame(seconds, last, within)[0]

    def frame(self, seconds: float, last: bool = False, within: float | None = None) -> tuple[Image.Image, float]:
        """Return the first frame at or after a time, or the last one at or before it, with its own time in seconds.

        Args:
            seconds: from the start of the video.
            last: the last frame with time <= ``seconds`` instead of the first with time >= ``seconds``.
            within: seconds; the frame must be no further away than that. None allows any.

        Raises:
            VideoError: damaged there, or no such frame.
        """
        if not math.isfinite(seconds) or abs(seconds) > _LATEST:
            raise VideoError("no such frame", f"{self.path} at {seconds} s")
        tolerance = 0.1 / float(self._stream.average_rate or 25)
        found = None
        with self._damage():
            self._container.seek(int((self._start + seconds) / self._stream.time_base), stream=self._stream)
            for frame in self._container.decode(self._stream):
                if frame.pts is None:
                    continue
                time = float(frame.pts * self._stream.time_base) - self._start
                if last and time > seconds + tolerance:
                    break
                found = (frame, time)
                if not last and time >= seconds - tolerance:
                    break
            if found is None or (not last and found[1] < seconds - tolerance):
                raise VideoError("no such frame", f"{self.path} at {seconds:.2f} s")
            if within is not None and abs(found[1] - seconds) > within + tolerance:
                raise VideoError("no such frame", f"{self.path} within {within:.2f} s of {seconds:.2f} s")
            image: Image.Image = found[0].to_image()
            return image.convert("RGB").rotate(found[0].rotation, expand=True), found[1]  # as players show it


def shrunk(image: Image.Image, size: int) -> Image.Image:
    """Shrink an image until its shorter side has ``size`` pixels; 0, and a smaller image, keep it as it is."""
    factor = size / min(image.size)
    if not size or factor >= 1:
        return image
    wide, high = (max(1, round(side * factor)) for side in image.size)
    return image.resize((wide, high), Image.Resampling.LANCZOS)


def save_frame(frame: Image.Image, path: Path, size: int) -> None:
    """Write a frame as a JPEG, :func:`shrunk` to ``size``."""
    with written_to(path):
        shrunk(frame, size).save(path, quality=95)
