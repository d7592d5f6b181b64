"""Scores of a study's rows: read, kept in one file, joined, and compared by intervals."""

from __future__ import annotations

import csv
import gzip
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from swirl_lightning.files import whole_file

RESAMPLES = 4000

Found = dict[str, dict[int, dict[str, dict[str, float]]]]
"""``{row: {seed: {id: {metric: score}}}}``."""

Scores = Sequence[NDArray[np.float64]]
"""For each seed, a score of each transition."""


def interval(scores: Scores, share: float = 0.95, seed: int = 0) -> tuple[float, float, float]:
    """Mean over seeds of the means over transitions, and the ends of its percentile interval.

    A bootstrap in two stages: seeds are drawn with replacement, then transitions within each drawn seed. One seed
    is resampled over its transitions alone.
    """
    random = np.random.default_rng(seed)
    drawn = np.empty((RESAMPLES, len(scores)))
    for n, values in enumerate(scores):  # a resampled mean of each seed, for every resample
        counts = random.multinomial(len(values), np.full(len(values), 1 / len(values)), RESAMPLES)
        drawn[:, n] = counts @ values / len(values)
    chosen = random.integers(len(scores), size=(RESAMPLES, len(scores)))
    # a seed drawn twice has two resamples of its own: shuffle each seed's resamples between the draws
    means = np.mean([random.permutation(drawn)[np.arange(RESAMPLES), column] for column in chosen.T], axis=0)
    low, high = np.quantile(means, [(1 - share) / 2, (1 + share) / 2])
    return float(np.mean([values.mean() for values in scores])), float(low), float(high)


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


def join(found: Found, path: Path) -> None:
    """Add the scores of a file that :func:`pack` wrote, as of seeds that were trained elsewhere.

    Raises:
        ValueError: the file is not one of ``pack``, or a row and seed of it are there already.
    """
    try:
        with gzip.open(path, "rt", newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
        added: Found = {}
        for line in lines:
            name, seed, key = line.pop("row"), int(line.pop("seed")), line.pop("id")
            scores = {metric: float(value) for metric, value in line.items() if value}
            if not all(map(math.isfinite, scores.values())):
                raise ValueError(f"a score of {key} is not finite")
            added.setdefault(name, {}).setdefault(seed, {})[key] = scores
    except (OSError, EOFError, UnicodeDecodeError, KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: no file of packed scores ({error}); --pack writes one") from error
    for name, seeds in added.items():
        if both := sorted(seeds.keys() & found.get(name, {}).keys()):
            raise ValueError(f"{path}: row {name!r} of the seeds {both} is there already; leave these out of --seeds")
        found.setdefault(name, {}).update(seeds)


def scores_of(found: Found, name: str, metric: str) -> dict[int, dict[str, float]]:
    """``{seed: {id: score}}`` of a row, of the seeds that it has been tested on, in their order."""
    return {
        seed: {key: row[metric] for key, row in rows.items() if metric in row}
        for seed, rows in sorted(found.get(name, {}).items())
    }


def difference(one: Mapping[int, Mapping[str, float]], other: Mapping[int, Mapping[str, float]]) -> Scores:
    """Paired differences, seed by seed, of the seeds that both rows have.

    Raises:
        ValueError: the rows of a seed were tested on other transitions.
    """
    pairs = []
    for seed in [seed for seed in one if seed in other]:
        if one[seed].keys() != other[seed].keys():
            raise ValueError(f"seed {seed}: the two rows were tested on different transitions")
        pairs.append(np.array([one[seed][key] - other[seed][key] for key in one[seed]]))
    return pairs


def tables(found: Found, metrics: Sequence[str], against: str) -> dict[str, Any]:
    """Means of every row, and what ``against`` is above each of the others: ``{row: {metric: {...}}}``."""
    made: dict[str, Any] = {}
    for name in found:
        made[name] = {}
        for metric in metrics:
            own, best = (scores_of(found, row, metric) for row in (name, against))
            if not own:
                continue
            values = interval([np.array(list(rows.values())) for rows in own.values()])
            paired = difference(best, own) if name != against else []
            made[name][metric] = {
                "seeds": sorted(own),
                "mean": values,
                **({"difference": interval(paired), "paired_seeds": len(paired)} if paired else {}),
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
