"""Scores of a study's rows: read, kept in one file, joined, and compared by intervals."""

from __future__ import annotations

import csv
import gzip
import io
import math
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from swirl_lightning.files.writing import whole_file

Found = dict[str, dict[int, dict[str, dict[str, float]]]]
"""``{row: {seed: {id: {metric: score}}}}``."""

Scores = Sequence[NDArray[np.float64]]
"""For each seed, a score of each transition."""

SHARE = 0.95
"""Probability of an interval to hold the mean that it is of."""


def interval(scores: Scores, shared: bool = False) -> tuple[float, float, float]:
    """Mean over seeds of the means over transitions, and the ends of its 95 % interval.

    Student's t over the seeds' means, whose spread is that of seeds and of transitions; of one seed, over its
    transitions. A bootstrap over so few seeds as experiments have is too narrow: with three its 95 % are some 80 %.

    Args:
        scores: of S seeds.
        shared: True: all seeds have the same transitions, in the same order. Then these are one draw, whose spread does
            not show in the seeds' means, and that of the means over seeds is added.
    """
    means = np.array([values.mean() for values in scores])
    spreads = [means] if len(scores) > 1 else []
    if shared or not spreads:
        spreads.append(np.mean(scores, axis=0))
    half, mean = math.hypot(*map(half_width, spreads)), float(means.mean())
    return mean, mean - half, mean + half


def half_width(values: NDArray[np.float64]) -> float:
    """Half of the 95 % interval of a mean of independent values, by Student's t; 0 of a single value."""
    count = len(values)
    return student(count - 1) * float(values.std(ddof=1)) / math.sqrt(count) if count > 1 else 0.0


@cache
def student(freedom: int) -> float:
    """What the absolute value of Student's t with so many degrees of freedom stays below with probability 95 %."""
    # t = sqrt(freedom) * tan(angle), and the angle has a density in proportion to cos(angle) ** (freedom - 1)
    angles = np.linspace(0, math.pi / 2, 200_001)
    below = np.cumsum(np.cos((angles[1:] + angles[:-1]) / 2) ** (freedom - 1))
    return math.sqrt(freedom) * math.tan(np.interp(SHARE, below / below[-1], angles[1:]))


def pack(found: Found, metrics: Sequence[str], path: Path) -> None:
    """Write scores to a gzipped CSV file, a line for each row, seed and transition.

    The same scores give the same bytes.
    """
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(["row", "seed", "id", *metrics])
    for name, seeds in found.items():
        for seed, rows in sorted(seeds.items()):
            out.writerows([name, seed, key, *(row.get(metric, "") for metric in metrics)] for key, row in rows.items())
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        file.write(gzip.compress(text.getvalue().encode(), mtime=0))


def unpack(path: Path) -> Found:
    """Read the scores of a file that :func:`pack` wrote.

    Raises:
        ValueError: it is no such file.
    """
    try:
        with gzip.open(path, "rt", newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
        found: Found = {}
        for line in lines:
            name, seed, key = line.pop("row"), int(line.pop("seed")), line.pop("id")
            scores = {metric: float(value) for metric, value in line.items() if value}
            if not all(map(math.isfinite, scores.values())):
                raise ValueError(f"a score of {key} is not finite")
            found.setdefault(name, {}).setdefault(seed, {})[key] = scores
    except (OSError, EOFError, zlib.error, KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: no file of packed scores ({error}); --pack writes one") from error
    return found


def join(found: Found, added: Found, source: object) -> None:
    """Add scores of seeds that were trained elsewhere; ``source`` says of which, in an error.

    Raises:
        ValueError: a row and seed of them are there already.
    """
    for name, seeds in added.items():
        if both := sorted(seeds.keys() & found.get(name, {}).keys()):
            raise ValueError(f"{source}: row {name!r} of the seeds {both} is there already; leave these out of --seeds")
        found.setdefault(name, {}).update(seeds)


def scores_of(found: Found, name: str, metric: str) -> dict[int, dict[str, float]]:
    """``{seed: {id: score}}`` of a row, of the seeds that have scores, in their order and that of the ids."""
    scores = {
        seed: {key: row[metric] for key, row in sorted(rows.items()) if metric in row}
        for seed, rows in sorted(found.get(name, {}).items())
    }
    return {seed: rows for seed, rows in scores.items() if rows}


def arrays(scores: Mapping[int, Mapping[str, float]], shared: bool = False) -> Scores:
    """Scores of each seed without their ids; ``shared``: those of transitions that all seeds have a score of."""
    if not shared:
        return [np.array(list(rows.values())) for rows in scores.values()]
    both = sorted(set.intersection(*map(set, scores.values()))) if scores else []
    return [np.array([rows[key] for key in both]) for rows in scores.values()] if both else []


def difference(found: Found, one: str, other: str, metric: str) -> dict[int, dict[str, float]]:
    """Differences of two rows: ``{seed: {id: difference}}``, of those that both have a score of.

    Raises:
        ValueError: the rows of a seed were tested on other transitions.
    """
    first, second = (scores_of(found, name, metric) for name in (one, other))
    pairs = {}
    for seed in [seed for seed in first if seed in second]:
        if found[one][seed].keys() != found[other][seed].keys():
            raise ValueError(f"seed {seed}: the rows {one!r} and {other!r} were tested on different transitions")
        if both := [key for key in first[seed] if key in second[seed]]:
            pairs[seed] = {key: first[seed][key] - second[seed][key] for key in both}
    return pairs


def tables(found: Found, metrics: Sequence[str], against: str, shared: bool = False) -> dict[str, Any]:
    """Means of every row, and what ``against`` is above each of the others: ``{row: {metric: {...}}}``.

    ``shared`` is that of :func:`interval`.

    Raises:
        ValueError: ``shared``, and the seeds of a row were tested on different transitions, or two rows of a seed were.
    """
    made: dict[str, Any] = {}
    for name in found:
        made[name] = {}
        if shared and len({frozenset(rows) for rows in found[name].values()}) > 1:
            raise ValueError(f"the study says shared_test, and the seeds of row {name!r} have different transitions")
        for metric in metrics:
            own = scores_of(found, name, metric)
            if not (of_seeds := arrays(own, shared)):
                continue
            values = interval(of_seeds, shared)
            paired = arrays(difference(found, against, name, metric) if name != against else {}, shared)
            made[name][metric] = {
                "seeds": sorted(own),
                "mean": values,
                **({"difference": interval(paired, shared), "paired_seeds": len(paired)} if paired else {}),
            }
    return made


def shown(made: Mapping[str, Any], metrics: Sequence[str], against: str) -> Table:
    """The tables for the eye, in per cent."""
    view = Table("", "seeds", *(f"{metric}\n{against} less it" for metric in metrics))
    for name, row in made.items():
        if not row:
            continue
        cells = []
        for metric in metrics:
            value = row.get(metric)
            text = "–" if value is None else _cell(value["mean"], sign="")
            cells.append(
                text + (f"\n{_cell(value['difference'], sign='+')}" if value and "difference" in value else "")
            )
        view.add_row(name, str(len(next(iter(row.values()))["seeds"])), *cells)
    return view


def _cell(values: Sequence[float], sign: str) -> str:
    mean, low, high = (100 * value for value in values)
    return f"{mean:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"
