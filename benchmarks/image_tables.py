"""Rows of benchmarks that hold their images in parquet or Arrow files, as the hub stores them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from swirl_lightning.data.parquet import import_pyarrow, parquet_rows
from swirl_lightning.data.reading import SkippedRecords, row_or_skipped


def rows(
    path: Path, columns: Sequence[str], optional: Sequence[str], skipped: SkippedRecords
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (``file[number]``, row) of a ``.parquet`` file, or of an ``.arrow`` file in the format of ``datasets``.

    Rows that cannot be read go to ``skipped``, and so does a file that cannot be.

    Args:
        path: of the file.
        columns: that it must have.
        optional: that are read, too, where it has them.
        skipped: gets what cannot be read.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: a column is missing.
    """
    pyarrow = import_pyarrow(path)
    try:
        if path.suffix == ".parquet":
            with pyarrow.parquet.ParquetFile(path) as file:
                asked = _there(path, file.schema_arrow.names, columns, optional)
                yield from parquet_rows(file, path.stem, skipped, asked)
            return
        with pyarrow.memory_map(str(path)) as source:
            table = pyarrow.ipc.open_stream(source).read_all()
    except (pyarrow.ArrowException, OSError) as error:
        skipped.add(str(path), f"cannot be read ({error}). Download it again")
        return
    table = table.select(_there(path, table.column_names, columns, optional))
    for number in range(table.num_rows):
        place = f"{path.stem}[{number}]"
        if (row := row_or_skipped(table, number, place, skipped)) is not None:
            yield place, row


def _there(path: Path, names: Sequence[str], columns: Sequence[str], optional: Sequence[str]) -> list[str]:
    """Return the columns that are asked for and there."""
    if lacking := [name for name in columns if name not in names]:
        raise ValueError(f"{path} lacks the columns {', '.join(lacking)}; it has {', '.join(names)}")
    return [name for name in (*columns, *optional) if name in names]


def image_bytes(value: Any) -> bytes | None:
    """Return the content of an image, which the hub stores as ``{bytes, path}``; None if there is none."""
    content = value.get("bytes") if isinstance(value, dict) else value
    return content if isinstance(content, bytes) else None
