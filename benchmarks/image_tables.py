"""Rows of benchmarks that hold their images in parquet or Arrow files, as the hub stores them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from swirl_lightning.data.reading import BrokenRecord, SkippedRecords, python_row

PACKAGE = "pip install 'swirl-lightning[parquet]'"


def rows(
    path: Path, columns: Sequence[str], optional: Sequence[str], skipped: SkippedRecords
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (``file[number]``, row) of a ``.parquet`` file, or of an ``.arrow`` file in the format of ``datasets``.

    A row whose text is no UTF-8 goes to ``skipped``, and so does a file that cannot be read.

    Args:
        path: of the file.
        columns: that it must have.
        optional: that are read, too, where it has them.
        skipped: gets what cannot be read.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: a column is missing.
    """
    try:
        import pyarrow
    except ImportError as error:
        raise ImportError(f"{path} is read with pyarrow: {PACKAGE}") from error
    try:
        names, table = _read(path, [*columns, *optional])
    except (pyarrow.ArrowException, OSError) as error:
        skipped.add(str(path), f"cannot be read ({error}). Download it again")
        return
    if lacking := [name for name in columns if name not in names]:
        raise ValueError(f"{path} lacks the columns {', '.join(lacking)}; it has {', '.join(names)}")
    for number in range(table.num_rows):
        place = f"{path.stem}[{number}]"
        try:
            row = python_row(table, number)
        except BrokenRecord as error:
            skipped.add(place, error)
        else:
            yield place, row


def _read(path: Path, names: Sequence[str]) -> tuple[list[str], Any]:
    """The names of all columns, and a table of those that are asked for."""
    import pyarrow
    import pyarrow.parquet as parquet

    if path.suffix == ".parquet":
        there = parquet.read_schema(path).names
        return there, parquet.read_table(path, columns=[name for name in names if name in there])
    with pyarrow.memory_map(str(path)) as source:
        table = pyarrow.ipc.open_stream(source).read_all()
    return table.column_names, table.select([name for name in names if name in table.column_names])


def image_bytes(value: Any) -> bytes | None:
    """Return the content of an image, which the hub stores as ``{bytes, path}``; None if there is none."""
    content = value.get("bytes") if isinstance(value, dict) else value
    return content if isinstance(content, bytes) else None
