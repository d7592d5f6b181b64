"""The three scores of GEdit-Bench, which are VIEScore's (arXiv 2312.14867)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from PIL import Image

from swirl_lightning.judge import Judge
from swirl_lightning.judge.metric import JudgeScore
from swirl_lightning.transition import State, Transition

TASK_TYPES = (
    "background_change",
    "color_alter",
    "material_alter",
    "motion_change",
    "ps_human",
    "style_change",
    "subject-add",
    "subject-remove",
    "subject-replace",
    "text_change",
    "tone_transfer",
)


class GEditScore(JudgeScore):
    """Two questions about each edited image: does it follow the instruction, and is it a good image?

    - ``judge/semantics``: G_SC. The judge sees source and edited image, and the instruction.
    - ``judge/quality``: G_PQ. It sees the edited image alone.
    - ``judge/overall``: G_O, the mean of sqrt(semantics x quality) of each row.

    As in the official evaluation, the edited image is first brought to the source's size. An answer without a score
    is in neither of its means (there it is replaced by a random number). ``judge_unparsable`` and ``judge_failed``
    count questions, ``judge_asked`` rows.

    Args:
        judge: client that asks.
        categories: see `CategoryMeans`.
        by: see `CategoryMeans`.
        kwargs: as for `CategoryMeans`.
    """

    def __init__(self, judge: Judge, categories: Sequence[str] = (), by: str = "groups", **kwargs: Any) -> None:
        names = ("judge/semantics", "judge/quality", "judge/overall")
        super().__init__(judge, ("gedit", "quality"), categories, by, names=names, **kwargs)

    def update(self, predicted: Sequence[State | None], transitions: Sequence[Transition]) -> None:
        """Ask about one edited image per transition."""
        super().update([_as_large(image, row) for image, row in zip(predicted, transitions, strict=True)], transitions)

    def values(self, scores: Sequence[float | None]) -> list[float | None]:
        """Add the geometric mean of both scores."""
        semantics, quality = scores
        known = semantics is not None and quality is not None
        return [semantics, quality, math.sqrt(semantics * quality) if known else None]  # type: ignore[operator]


def _as_large(image: State | None, row: Transition) -> State | None:
    if not isinstance(image, Image.Image) or not isinstance(row.before, Image.Image):
        return None
    return image if image.size == row.before.size else image.resize(row.before.size)
