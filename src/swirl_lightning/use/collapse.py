"""The paper's collapse analysis of latent actions (Figure 6): one action a pair, checkpoint by checkpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch

from swirl_lightning.checkpoints.file import check_file
from swirl_lightning.checkpoints.finding import NAMES
from swirl_lightning.checkpoints.state import check_parts, own_state
from swirl_lightning.data.module import Split
from swirl_lightning.data.rows import unopened
from swirl_lightning.engine.ranges import check_ranges
from swirl_lightning.files.paths import check_writable
from swirl_lightning.files.writing import whole_file
from swirl_lightning.metrics.perplexity import perplexity
from swirl_lightning.results import curves
from swirl_lightning.roles import Role
from swirl_lightning.transition import Transition
from swirl_lightning.use.runs import Run
from swirl_lightning.world_model_module import WorldModelModule

TABLE, IMAGE = "collapse.json", "collapse.png"
LABELS = "human labels"
PAPER = {"unique": "above 0.94", "length": "16.8, and 7.2 of human labels", "perplexity_ratio": "about 1.2 to 2.4"}
"""What the paper reports of its own models (Figure 6), for the same columns."""


@dataclass(frozen=True)
class Diversity:
    """Figures of N actions.

    Attributes:
        actions: N.
        unique: number of different ones / N.
        length: mean length, in tokens of the run's tokenizer, without EOS.
        perplexity: under the language model; None without one, and where every action is blank.
        perplexity_ratio: that, relative to the human labels'.
    """

    actions: int
    unique: float
    length: float
    perplexity: float | None = None
    perplexity_ratio: float | None = None


@dataclass(frozen=True)
class CollapseConfig:
    """Settings of :func:`collapse_files`.

    Attributes:
        pairs: split whose pairs the IDM names an action for.
        labels: split whose actions are the human labels.
        language_model: causal language model of the perplexity, a folder or a hub name; None leaves it out.
        batch_size: pairs at a time.
        seed: of the draws; with a pair's id it fixes them.
    """

    pairs: str = "state_only"
    labels: str = "warmup"
    language_model: str | None = None
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        check_ranges("collapse", vars(self), batch_size="whole [1, inf)", seed="whole [0, inf)")


def collapse_files(
    run: Run,
    checkpoints: Sequence[Path],
    folder: str | Path,
    config: CollapseConfig = CollapseConfig(),
    device: str | torch.device = "cpu",
) -> dict[str, Diversity]:
    """Name an action for each pair with the IDM of each checkpoint, and write the figures of all.

    Args:
        run: whose settings and data are used.
        checkpoints: of that run, see :func:`iterations_of`.
        folder: gets ``collapse.json``, and the figures as an image if matplotlib is installed.
        config: what is named and compared.
        device: of the models.

    Returns:
        A row for the human labels and for each checkpoint, by its label.

    Raises:
        ValueError: the run has no IDM, a split has no labels, or a checkpoint is none of ours.
        OSError: the language model cannot be loaded, or the folder is a file or may not be written.
    """
    folder = Path(folder)
    check_writable(folder)
    model, data = run.build(), run.data()
    if Role.IDM not in model.roles:
        raise ValueError(f"latent actions come from the IDM, and {run.config} trains none")
    data.check()
    labels = [row.action for row in unopened(data.split(cast(Split, config.labels))) if row.action]
    if not labels:
        raise ValueError(f"the split {config.labels!r} has no human labels: name another one with --labels")
    pairs = data.split(cast(Split, config.pairs))
    for path in checkpoints:
        check_file(path)
    # first, so that a language model that cannot be used is found before an action is named
    table = {LABELS: diversity(labels, model, config.language_model, device)}
    folder.mkdir(parents=True, exist_ok=True)
    settings = {**asdict(config), "checkpoints": [str(path) for path in checkpoints]}
    for path in checkpoints:
        loaded = Run(path, run.config).load(model, device)
        words = name_actions(loaded, pairs, config.batch_size, config.seed)
        table[loaded.label] = diversity(words, model, config.language_model, device, table[LABELS])
        with whole_file(folder / TABLE) as file:  # after each: naming takes long
            content = {"rows": {name: asdict(row) for name, row in table.items()}, "settings": settings, "paper": PAPER}
            file.write((json.dumps(content, indent=2) + "\n").encode())
    if curves.available():
        curves.draw(_panels(table), folder / IMAGE)
    return table


def iterations_of(folder: Path) -> list[Path]:
    """Find the checkpoints of a run with which the warm-up or an iteration ends, in that order.

    Raises:
        FileNotFoundError: there is none.
    """
    found: dict[str, tuple[int, Path]] = {}
    for path in sorted(folder.rglob(NAMES)):
        saved = check_file(path)
        label = own_state(saved)["label"]
        check_parts(saved, {"global_step": int}, f"checkpoint {path}: ")
        if not label.endswith("unfinished") and not label.startswith("after "):
            found[label] = max((saved["global_step"], path), found.get(label, (-1, path)))
    if not found:
        raise FileNotFoundError(f"no checkpoint in {folder} with which the warm-up or an iteration ends: name one")
    return [path for _, path in sorted(found.values())]


def name_actions(model: WorldModelModule, pairs: Sequence[Transition], batch_size: int, seed: int) -> list[str]:
    """Draw one action for each pair, as Phase I draws its z."""
    words: list[str] = []
    for start in range(0, len(pairs), batch_size):
        rows = [pairs[n] for n in range(start, min(start + batch_size, len(pairs)))]
        x, y = model.encode_pairs(rows)
        keys = [f"collapse|{seed}|{row.id}" for row in rows]
        drawn = model.models.idm.sample(x, y, keys, model.sampling)
        words += [model.backbone.decode_action(content) for content in drawn.contents]
    return words


def diversity(
    words: Sequence[str],
    model: WorldModelModule,
    language_model: str | None,
    device: str | torch.device = "cpu",
    human: Diversity | None = None,
) -> Diversity:
    """Compute the figures of N actions; ``human`` has those of the human labels, or is None for these themselves."""
    lengths = [len(model.backbone.encode_action(text)) for text in words]
    spread = perplexity(language_model, words, device) if language_model else None
    base = spread if human is None else human.perplexity
    ratio = None if spread is None or base is None else spread / base
    return Diversity(len(words), len(set(words)) / len(words), float(np.mean(lengths)), spread, ratio)


def _panels(table: dict[str, Diversity]) -> list[curves.Panel]:
    """Diagrams over the iterations, with the human labels' value as a line."""
    rows = [(name, row) for name, row in table.items() if name != LABELS]
    places = np.arange(len(rows), dtype=float)
    panels = []
    for title, key in (
        ("share of unique actions", "unique"),
        ("mean length, tokens", "length"),
        ("perplexity / human labels'", "perplexity_ratio"),
    ):
        values = [getattr(row, key) for _, row in rows]
        if any(value is not None for value in values):
            level = np.full(len(rows), getattr(table[LABELS], key), dtype=float)
            found = np.array(values, dtype=float)  # a gap where there is none
            lines = {"IDM": [curves.Curve(places, found)], LABELS: [curves.Curve(places, level)]}
            panels.append(curves.Panel(title, lines, "", [name for name, _ in rows]))
    return panels
