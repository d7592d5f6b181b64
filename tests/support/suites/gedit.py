"""A small GEdit-Bench in the files of the hub: Arrow streams, as ``datasets`` writes them."""

from __future__ import annotations

import io

import pyarrow as pa

from support.image_world import block_image


def png(seed, size=(16, 16)):
    buffer = io.BytesIO()
    block_image(seed, size).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def row(number, kind, language="en", **changes):
    return {
        "task_type": kind,
        "key": f"k{number}",
        "instruction": f"edit {number}" if language == "en" else f"修改 {number}",
        "instruction_language": language,
        "input_image": png(number, (24, 12)),
        "input_image_raw": png(number, (48, 24)),
        "Intersection_exist": number % 2 == 0,
        **changes,
    }


def write(folder, rows, name="data-00000-of-00001.arrow"):
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    return str(folder)
