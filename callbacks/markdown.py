"""Tables in Markdown, as loggers show them."""

from __future__ import annotations


def table_cell(text: object, longest: int = 300) -> str:
    """Write a text as one cell of a Markdown table."""
    line = " ".join(str(text).split())
    line = line if len(line) <= longest else line[: longest - 1] + "…"
    # as entities: TensorBoard's Markdown knows no backslash before some of these
    return "".join(f"&#{ord(c)};" if c in "&\\`*_|<>[]#~" else c for c in line)


def table(head: list[str], rows: list[list[str]]) -> str:
    """Lay out a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
