"""Markdown in which foreign texts have no effect: no cell, link, image or HTML of their own."""

from __future__ import annotations

import re

_LONGEST = 300


def escaped(text: object) -> str:
    """Write a text in one line of a Markdown file."""
    return re.sub(r"([\\`|\[<])", r"\\\1", " ".join(str(text).split()))


def table_cell(text: object) -> str:
    """Write a text as one cell of a logger's table, cut where it is long."""
    line = " ".join(str(text).split())
    line = line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"
    # as entities: TensorBoard's Markdown knows no backslash before some of these
    return "".join(f"&#{ord(c)};" if c in "&\\`*_|<>[]#~" else c for c in line)


def table(head: list[str], rows: list[list[str]]) -> str:
    """Lay out a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
