"""Images of transitions and of predicted states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from PIL import Image, ImageDraw, ImageFont

from swirl_lightning.callbacks.media import Media
from swirl_lightning.callbacks.rollout_writer import RolloutWriter
from swirl_lightning.files.markdown import table, table_cell
from swirl_lightning.roles import Role
from swirl_lightning.training.rollouts import Rollouts
from swirl_lightning.transition import State

_GAP, _FONT_SIZE, _INK, _PAPER = 8, 18, (20, 20, 20), (255, 255, 255)
_AUTO_SMALL = 128
CELL = 256
"""Width of the largest cell of a grid, in pixels."""
_TALLEST = 8  # times as wide; a taller image is squashed, for a strip of one pixel's width would fill the memory


class TransitionImages(RolloutWriter):
    """Writes transitions to the run's loggers: x, y, and the best and the worst predicted ŷ of the group.

    Each row is one transition with the action and the rewards under it. In Phase II, which predicts
    actions, a row is x and y over its best and its worst action. Transitions between texts become a table.
    Loggers: see :class:`swirl_lightning.callbacks.media.Media`.

    Args:
        every_n_steps: optimiser steps between two grids; each phase starts with one.
        max_rows: transitions in a grid.

    Raises:
        ValueError: a number is not positive.

    Example::

        >>> from swirl_lightning.callbacks import TransitionImages
        >>> callback = TransitionImages(every_n_steps=20, max_rows=2)
    """

    def write(self, to: Media, rollouts: Rollouts, step: int, pl_module: LightningModule) -> None:
        """Write a grid."""
        rows, tag = _rows(rollouts, pl_module, self.max_rows), f"{rollouts.role}/transitions"
        if all(isinstance(state, str) for row in rows for state in row.states):
            to.text(tag, _text_table(rows), step)
        else:
            grid = image_grid([(row.states, row.captions) for row in rows], rows[0].titles)
            to.image(tag, grid, step)


class _Row:
    """Row of states, with a title over and a caption under each."""

    def __init__(self, titles: list[str], states: list[State], captions: list[str]) -> None:
        self.titles, self.states, self.captions = titles, states, captions


def _rows(rollouts: Rollouts, pl_module: LightningModule, max_rows: int) -> list[_Row]:
    size = rollouts.group_size
    shown = rollouts.transitions[:max_rows]
    rewards = rollouts.rewards.detach().float().cpu().view(-1, size)[: len(shown)]  # (rows, G)
    best, worst = rewards.argmax(1).tolist(), rewards.argmin(1).tolist()
    if rollouts.role == Role.IDM:
        return [
            _Row(
                ["before", "after"],
                [pair.before, pair.observed],
                [
                    f"{name}: {rollouts.actions[n * size + k]} ({rewards[n, k]:.2f})"
                    for name, k in (("best", best[n]), ("worst", worst[n]))
                ],
            )
            for n, pair in enumerate(shown)
        ]
    ends = [(n * size + best[n], n * size + worst[n]) for n in range(len(shown))]
    with torch.no_grad():
        predicted: Sequence[State] = pl_module.backbone.decode_states(  # type: ignore[union-attr,operator]
            [rollouts.contents[k] for pair in ends for k in pair], pl_module.device
        )
    return [
        _Row(
            ["before", "after", "predicted, best", "predicted, worst"],
            [pair.before, pair.observed, predicted[2 * n], predicted[2 * n + 1]],
            [rollouts.actions[n], "", *(f"reward {rewards[n, k]:.2f}" for k in (best[n], worst[n]))],
        )
        for n, pair in enumerate(shown)
    ]


def _text_table(rows: list[_Row]) -> str:
    lines = []
    for row in rows:
        cells = zip(row.states, row.captions, strict=True)
        lines.append([table_cell(s) + (f" ({table_cell(c)})" if c else "") for s, c in cells])
    return table(rows[0].titles, lines)


def image_grid(rows: Sequence[tuple[Sequence[State], Sequence[str]]], titles: Sequence[str]) -> Image.Image:
    """Draw rows of (states, captions) as one image, with a title over each column; all states have the same width.

    Small frames are enlarged by a whole factor, without smoothing, to about 128 pixels; wider ones are shrunk to 256.

    Args:
        rows: for each row its states, and a caption for each; a caption may continue under empty ones.
        titles: one for each column.
    """
    wide = max(_width(state) for states, _ in rows for state in states)
    tiles = [[_tile(state, wide) for state in states] for states, _ in rows]
    font = ImageFont.load_default(_FONT_SIZE)
    line_height = _FONT_SIZE + 4
    texts = [_wrap_captions(captions, wide, font) for _, captions in rows]
    heights = [
        max(tile.height for tile in line) + line_height * max(len(t) for t in text) + 2 * _GAP
        for line, text in zip(tiles, texts, strict=True)
    ]
    columns = len(titles)
    size = (columns * (wide + _GAP) + _GAP, line_height + _GAP + sum(heights))
    grid = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(grid)
    for column, title in enumerate(titles):
        draw.text((_GAP + column * (wide + _GAP), _GAP // 2), title, fill=_INK, font=font)
    top = line_height + _GAP
    for line, text, height in zip(tiles, texts, heights, strict=True):
        under = top + max(tile.height for tile in line) + _GAP // 2
        for column, (tile, lines) in enumerate(zip(line, text, strict=True)):
            left = _GAP + column * (wide + _GAP)
            grid.paste(tile, (left, top))
            for number, words in enumerate(lines):
                draw.text((left, under + number * line_height), words, fill=_INK, font=font)
        top += height
    return grid


def _width(state: State) -> int:
    """Width of a state in a grid: enlarged by a whole factor, or shrunk to a bound."""
    if isinstance(state, str):  # a mixed row; rare
        return _AUTO_SMALL
    return min(CELL, state.width * max(1, round(_AUTO_SMALL / state.width)))


def _tile(state: State, width: int) -> Image.Image:
    if isinstance(state, str):
        return Image.new("RGB", (_AUTO_SMALL, _AUTO_SMALL), (230, 230, 230))
    image = state.convert("RGB")
    height = min(max(1, round(image.height * width / image.width)), _TALLEST * max(width, CELL))
    whole = width % image.width == 0
    return image.resize((width, height), Image.Resampling.NEAREST if whole else Image.Resampling.LANCZOS)


def _wrap_captions(captions: Sequence[str], wide: int, font: Any) -> list[list[str]]:
    """Wrap captions; each may use the width of the columns after it that have none."""
    wrapped = []
    for column, caption in enumerate(captions):
        free = 1
        while column + free < len(captions) and not captions[column + free]:
            free += 1
        wrapped.append(_wrap(caption, free * (wide + _GAP) - _GAP, font))
    return wrapped


def _wrap(text: str, width: int, font: Any, most: int = 4) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines if len(lines) <= most else [*lines[: most - 1], lines[most - 1] + " …"]
