"""Small videos whose frames tell their number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

RATE = 10
LEVELS = 20  # a frame's grey is its number times this, up to 12 frames; then it starts again


def write_video(path: Path, frames: int = 12, size: int = 32, pattern: bool = False, black: bool = False) -> Path:
    """Grey frames 0, 20, 40, ... (or random blocks with ``pattern``), 10 a second, lossless enough."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 2_000_000
        stream.gop_size = 4
        for n in range(frames):
            if pattern:
                values = np.random.default_rng(n).integers(60, 256, (4, 4, 3), dtype=np.uint8)
                image = Image.fromarray(values).resize((size, size), Image.Resampling.NEAREST)
            else:
                level = 0 if black else 20 + n % 12 * LEVELS
                image = Image.new("RGB", (size, size), (level, level, level))
            frame = av.VideoFrame.from_image(image)
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def write_sound(path: Path) -> Path:
    """A container without images."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        for n in range(8):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, 1024 * n
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def number(image: Image.Image) -> int:
    """Return the number of the frame that an image is."""
    return round((float(np.asarray(image).mean()) - 20) / LEVELS)
