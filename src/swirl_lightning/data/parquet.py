"""Rows of parquet files, read in parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from swirl_lightning.data.reading import SkippedRecords, row_or_skipped

_ROWS = 64  # at a time


def import_pyarrow(path: Path) -> Any:
    """Import pyarrow with its ``parquet``.

    Raises:
        ImportError: it is not installed; the message names the file that needs it.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(f"{path} is read with pyarrow: pip install 'swirl-lightning[parquet]'") from error
    return pyarrow


def parquet_rows(
    file: Any, name: str, skipped: SkippedRecords, columns: Sequence[str] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (``name[number]``, row) of an open file; a damaged group of rows leaves the others.

    Args:
        file: a ``ParquetFile``.
        name: of the file, in the places.
        skipped: gets what cannot be read.
        columns: that are read; None for all.
    """
    import pyarrow

    end = 0
    for group in range(file.num_row_groups):
        number, end = end, end + file.metadata.row_group(group).num_rows
        try:
            for batch in file.iter_batches(batch_size=_ROWS, row_groups=[group], columns=columns):
                for row in range(batch.num_rows):
                    place, number = f"{name}[{number}]", number + 1
                    if (fields := row_or_skipped(batch, row, place, skipped)) is not None:
                        yield place, fields
        except (pyarrow.ArrowException, OSError) as error:
            if number < end:
                skipped.add(f"{name}[{number}] to [{end - 1}]", f"cannot be read ({error})", end - number)
