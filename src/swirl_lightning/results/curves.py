"""Curves of runs as an image: scores over the rows of results tables, and training scalars over steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from swirl_lightning.files.writing import whole_file

PLOTS = "pip install 'swirl-lightning[plots]'"


@dataclass(frozen=True)
class Curve:
    """Values (n,) at positions (n,), which rise."""

    positions: NDArray[np.float64]
    values: NDArray[np.float64]

    def smoothed(self, window: int) -> Curve:
        """Return running means over ``window`` values: the positions are the last of each window."""
        window = max(1, min(window, len(self.values)))
        sums = np.cumsum(np.concatenate([[0.0], self.values]))
        return Curve(self.positions[window - 1 :], (sums[window:] - sums[:-window]) / window)


@dataclass(frozen=True)
class Panel:
    """One diagram.

    Attributes:
        title: of the diagram.
        lines: name of a line -> its curves, one for each seed.
        across: label of the horizontal axis.
        names: of the positions 0, 1, ... on it; None for numbers.
    """

    title: str
    lines: Mapping[str, Sequence[Curve]]
    across: str = "optimiser step"
    names: Sequence[str] | None = None


@dataclass(frozen=True)
class Intervals:
    """Diagram of means with their intervals.

    Attributes:
        title: of the diagram.
        rows: name -> mean, lower and upper end.
    """

    title: str
    rows: Mapping[str, tuple[float, float, float]]


def available() -> bool:
    """Tell whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def scalars(folder: Path, tags: Sequence[str]) -> dict[str, Curve]:
    """Read training scalars over optimiser steps from the TensorBoard files in a run's folder, as far as they exist."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if strange := [path for path in folder.glob("*tfevents*") if not path.is_file()]:  # a pipe has no end
        raise OSError(f"{strange[0]} is no file that TensorBoard has written: move it away")
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    found = {}
    for tag in set(tags) & set(events.Tags()["scalars"]):
        points = {event.step: event.value for event in events.Scalars(tag)}  # a resumed run's value is the later one
        steps = sorted(points)
        found[tag] = Curve(np.array(steps, dtype=float), np.array([points[step] for step in steps]))
    return found


def draw(panels: Sequence[Panel | Intervals], out: Path) -> None:
    """Draw the panels side by side, three in a row, as a PNG image.

    The line of a panel is the mean over its seeds, at the positions that they all have; its band goes from the lowest
    to the highest seed.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: there is nothing to draw.
    """
    if not panels:
        raise ValueError("there are no curves to draw")
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(f"curves need matplotlib: {PLOTS}") from None
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    with rc_context({"text.parse_math": False}):  # names come from files: a "$" in one is no formula
        figure = Figure(figsize=(5 * columns, 3.6 * rows), layout="constrained")
        FigureCanvasAgg(figure)
        for number, panel in enumerate(panels):
            axes = figure.add_subplot(rows, columns, number + 1)
            _intervals(axes, panel) if isinstance(panel, Intervals) else _lines(axes, panel)
            axes.set_title(panel.title, fontsize=10)
            axes.grid(alpha=0.3)
        with whole_file(out) as file:
            figure.savefig(file, dpi=120, format="png")


def _intervals(axes: Any, panel: Intervals) -> None:
    means, low, high = (np.array(ends) for ends in zip(*panel.rows.values(), strict=True))
    places = np.arange(len(means))
    axes.errorbar(means, places, xerr=[means - low, high - means], fmt="o", capsize=3)
    axes.set_yticks(places, list(panel.rows), fontsize=8)
    axes.invert_yaxis()


def _lines(axes: Any, panel: Panel) -> None:
    for name, curves in panel.lines.items():
        _line(axes, name, curves)
    axes.set_xlabel(panel.across)
    if panel.names is not None:
        axes.set_xticks(range(len(panel.names)), panel.names, rotation=20, ha="right", fontsize=8)
    if len(panel.lines) > 1:  # below the diagram: within it, many names cover lines
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)


def _line(axes: Any, name: str, curves: Sequence[Curve]) -> None:
    shared = curves[0].positions
    for curve in curves[1:]:
        shared = np.intersect1d(shared, curve.positions)
    values = np.stack([curve.values[np.isin(curve.positions, shared)] for curve in curves])
    (drawn,) = axes.plot(shared, values.mean(0), label=name, marker="o" if len(shared) < 20 else None, markersize=4)
    if len(curves) > 1:
        axes.fill_between(shared, values.min(0), values.max(0), color=drawn.get_color(), alpha=0.2, linewidth=0)
