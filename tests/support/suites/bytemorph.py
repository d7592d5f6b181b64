"""A small ByteMorph-Bench as a parquet file."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as parquet

from support.image_world import block_image


def png(seed):
    buffer = io.BytesIO()
    block_image(seed).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": f"{seed}.png"}


def write(folder, changes=None, name="test-00000.parquet"):
    kinds = ["camera_zoom", "object_motion", "object_motion", "interaction"]
    rows = [
        {
            "edit_type": kind,
            "image_id": f"{n:03d}",
            "src_img": png(n),
            "tgt_img": png(n + 50),
            "edit_prompt": f"move {n}",
            "edit_prompt_rewrite_instruction": f"please move {n}",
            "src_img_caption": "a cat here",
            "tgt_img_caption": f"a cat there {n}",
        }
        for n, kind in enumerate(kinds)
    ]
    for n, change in (changes or {}).items():
        rows[n] |= change
    (folder / "data").mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(rows), folder / "data" / name, compression="none")
    return str(folder)
