"""Pairs to label: from a file, a folder of videos or frames, or a split of the run's own data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast, get_args

from PIL import Image

from swirl_lightning.callbacks.predictions import file_name
from swirl_lightning.console.run import nearest
from swirl_lightning.data.lazy import LazyRecord, LazyTransitions
from swirl_lightning.data.module import Split
from swirl_lightning.data.records import JSONLTransitions
from swirl_lightning.files.hashes import content_key
from swirl_lightning.files.paths import relative_to
from swirl_lightning.prepare import PAIRS, frame_pairs, video_pairs
from swirl_lightning.transition import Transition
from swirl_lightning.use.runs import Run

SPLITS: tuple[str, ...] = get_args(Split)


class Pairs(Sequence[Transition]):
    """Pairs of one source, read by :meth:`prepare` and :meth:`read`.

    Args:
        source: JSON lines, parquet, folder of videos (else of frames), or the name of a split.
        run: whose data the split is of.
        folder: where pairs and images are written that the source does not have as files.
        seconds: between the two frames of a video.
        step: frames between the two of a folder of frames.

    Attributes:
        skipped: number of records that could not be read.

    Raises:
        FileNotFoundError: there is no such source, or nothing in it.
    """

    def __init__(self, source: str, run: Run, folder: Path, seconds: float = 6.0, step: int = 1) -> None:
        self.source, self.run, self.folder, self.seconds, self.step = source, run, folder, seconds, step
        self.skipped = 0
        self._rows: Sequence[Transition] = ()
        self.kind = self._kind()

    def _kind(self) -> str:
        path = Path(self.source)
        if path.is_file():
            return "file"
        if path.is_dir():
            suffixes = {file.suffix.lower() for file in path.rglob("*")}
            for kind, endings in (("videos", video_pairs.ENDINGS), ("frames", frame_pairs.ENDINGS)):
                if suffixes & set(endings):
                    return kind
            raise FileNotFoundError(f"neither videos nor frames in {path}; or name a .jsonl or .parquet file in it")
        if self.source in SPLITS:
            return "split"
        raise FileNotFoundError(
            f"no such file or folder: {self.source}{nearest(self.source, SPLITS)}; give JSON lines, parquet, a folder "
            f"of videos or frames, or a split of the run's own data ({', '.join(SPLITS)})"
        )

    def prepare(self) -> None:
        """Make pairs of a folder, in one process alone.

        Raises:
            ValueError: there is none in it; the message says why.
        """
        out = self.folder / "pairs"
        if self.kind == "videos":
            video_pairs.make_pairs(self.source, out, video_pairs.PairConfig(seconds=self.seconds))
        elif self.kind == "frames":
            frame_pairs.make_pairs(self.source, out, self.step)

    def read(self) -> None:
        """Read the pairs; images are checked and not opened yet.

        Raises:
            ValueError: none of them can be used.
        """
        if self.kind == "split":
            data = self.run.data()
            data.check()
            self._rows = data.split(cast(Split, self.source))
            return
        path = Path(self.source) if self.kind == "file" else self.folder / "pairs" / PAIRS
        data = JSONLTransitions(state_only=str(path))
        self._rows = data.split("state_only")
        self.skipped = data.skipped["state_only"]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Transition:  # type: ignore[override]
        return self._rows[index]

    def key(self, index: int) -> str:
        """Name a pair's content: another key has what has changed, states, fields, or an image file's size or time."""
        record = self._record(index)
        content = record.id, _content(record.before), _content(record.after), record.action, record.meta
        return content_key(json.dumps(content, default=str).encode())

    def as_record(self, index: int, pair: Transition) -> dict[str, Any]:
        """Write a pair's states as a record of training data; images that are no files become some.

        Args:
            index: of the pair.
            pair: the pair itself, open.
        """
        record = self._record(index)
        fields: dict[str, Any] = {"id": pair.id}
        for name in ("before", "after"):
            source, state = getattr(record, name), getattr(pair, name)
            if isinstance(state, str):
                fields[name] = state
            elif isinstance(source, Path):
                fields[f"{name}_image"] = relative_to(self.folder, source)
            else:
                # with its content, as pairs of another source may have the same ids
                fields[f"{name}_image"] = image = f"images/{file_name(pair.id)}-{self.key(index)[:8]}-{name}.png"
                (self.folder / "images").mkdir(parents=True, exist_ok=True)
                state.save(self.folder / image)
        return fields

    def _record(self, index: int) -> LazyRecord | Transition:
        """A pair whose images are not open, where the source has such."""
        return self._rows.records[index] if isinstance(self._rows, LazyTransitions) else self._rows[index]


def _content(source: Any) -> Any:
    if isinstance(source, Path):
        stat = source.stat()
        return [str(source), stat.st_size, stat.st_mtime_ns]
    if isinstance(source, Image.Image):
        return [source.mode, source.size, content_key(source.tobytes())]
    return content_key(source) if isinstance(source, bytes) else source
