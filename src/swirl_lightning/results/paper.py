"""Results of the paper (arXiv 2602.06130), as rows to be shown beside one's own.

Scores by a judge are GPT-4o's, those of GEdit-Bench GPT-4.1's; with another judge or another template, compare rows of
your own only. The paper does not say what its column CLIP compares; it is shown beside our similarity to the image
after. Its actions on AURORA were drawn greedily, ours are sampled; its BLEU there is of the whole corpus, and stands
in the table of its own alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swirl_lightning.files.safe_yaml import load

Row = dict[str, float]

_TABLES: dict[str, dict[str, Any]] = load(
    (Path(__file__).parents[1] / "assets" / "paper_tables.yaml").read_text(encoding="utf-8")
)
_SHARES = (
    "bert_score",
    "bert_score_rescaled",
    "rouge_l",
    "rouge_l_stemmed",
    "exact_match",
    "clip_nearer_target",
    "element_accuracy",
    "operation_f1",
    "step_success",
    "idm_accuracy",
    "fwm_accuracy",
)
"""Metrics that the paper, or its field, prints in percent."""

_GPT_4O, _GPT_4_1 = r"gpt-4o(-[\d-]+)?", r"gpt-4\.1(-[\d-]+)?"
_JUDGES = {"GEdit": _GPT_4_1}  # which the authors' code asks where it says gpt4o


@dataclass(frozen=True)
class SuiteTable:
    """Report of a suite: its columns and the paper's rows.

    Attributes:
        columns: metric key in ``results.json`` -> heading.
        paper: name of a row -> metric key -> value, as printed in the paper. The first word of a name is that of the
            runs beside which it is shown: `base`, `SFT`, `Bootstrap`, `IDM→FWM`, `FWM→IDM` or `SWIRL` (iterative).
        factors: metric key -> factor that brings our value to the paper's scale; 1 where not named.
        parts: further tables of the paper about the suite, by name.
        judge: pattern of the name of the paper's judge.
        tasks: those that the paper's rows are over; None where it has all.
    """

    columns: dict[str, str]
    paper: dict[str, Row] = field(default_factory=dict)
    factors: dict[str, float] = field(default_factory=dict)
    parts: dict[str, SuiteTable] = field(default_factory=dict)
    judge: str = _GPT_4O
    tasks: frozenset[str] | None = None

    def paper_beside(self, labels: Iterable[str]) -> dict[str, Row]:
        """Return the paper's rows for the given schedules, and for SFT, where all of them start.

        Args:
            labels: of one's own rows, as `swirl_lightning.schedule.Phase.ends` has them, with ``, best of N`` where
                that is so: the paper's rows of that kind are shown beside no others.
        """
        labels = list(labels)
        schedules, searched = {"SFT", *map(_schedule, labels)}, any(_BEST_OF in label for label in labels)
        return {
            name: row
            for name, row in self.paper.items()
            if _schedule(name) in schedules and (searched or _BEST_OF not in name)
        }


_BEST_OF = "best of"


def _schedule(name: str) -> str:
    """Return the schedule of a label: ``SWIRL`` of ``SWIRL iteration 2, shared weights``."""
    return re.split(r"[ ,]", name, maxsplit=1)[0]


def _suite(name: str, columns: dict[str, str]) -> SuiteTable:
    """Make the table of a suite with the paper's rows, and its parts."""
    main: dict[str, Row] = {}
    parts: dict[str, SuiteTable] = {}
    for title, table in _TABLES.items():
        suite, _, part = title.partition(": ")
        if suite != name:
            continue
        keys, rows = table["columns"], {f"{row} (paper)": values for row, values in table["rows"].items()}
        printed = {row: dict(zip(keys, values, strict=True)) for row, values in rows.items()}
        for row, values in printed.items() if table["main"] else ():
            main.setdefault(row, {}).update({key: value for key, value in values.items() if key in columns})
        if part:
            headings = {key: key.removeprefix("fwm/sampled/").replace("idm/sampled/", "IDM ") for key in keys}
            parts[part] = SuiteTable(headings, printed, _factors(headings))
    return SuiteTable(columns, main, _factors(columns), parts, _JUDGES.get(name, _GPT_4O), _TASKS.get(name))


def _factors(columns: Iterable[str]) -> dict[str, float]:
    return {key: 100 for key in columns if key.rsplit("/", 1)[-1] in _SHARES}


_TASKS = {
    "AURORA": frozenset(("magicbrush", "ag", "something", "whatsup", "kubric")),
    "WorldPrediction": frozenset(("PP",)),
}
_STATE, _ACTION = "fwm/sampled/", "idm/sampled/"
_TURNS = {f"{_STATE}judge/turn {turn}": f"turn {turn}" for turn in range(1, 7)}
_SPLITS = ("ID-high", "ID-low", "ID-medium", "OOD", "OOD-fail")
_COLUMNS: dict[str, dict[str, str]] = {
    "AURORA": {
        f"{_STATE}judge": "judge 0-10",
        f"{_ACTION}judge": "IDM judge 0-10",
        f"{_STATE}clip_target": "CLIP target",
        f"{_STATE}clip_source": "CLIP source",
        f"{_STATE}clip_nearer_target": "nearer target %",
        f"{_STATE}disc_edit": "DiscEdit",
        f"{_ACTION}bert_score_rescaled": "IDM BERTScore, rescaled",
        f"{_ACTION}rouge_l_stemmed": "IDM ROUGE-L, stems",
        f"{_ACTION}bleu_word": "IDM BLEU, words",
        f"{_ACTION}exact_match": "IDM exact %",
    },
    "ByteMorph": {
        f"{_STATE}judge": "judge 0-100",
        f"{_STATE}clip_sim_img": "SIM img",
        f"{_STATE}clip_sim_txt": "SIM txt",
        f"{_STATE}clip_d_txt": "D txt",
        f"{_STATE}clip_d_img": "D img",
    },
    "WorldPrediction": {
        f"{_STATE}judge/mean over turns": "judge 0-10, mean over turns",
        **_TURNS,
        f"{_STATE}clip_target/mean over turns": "CLIP target, mean over turns",
        "choice/idm_accuracy": "choice % (IDM)",
        "choice/fwm_accuracy": "choice % (FWM)",
    },
    "GEdit": {
        f"{_STATE}judge/{score}/mean over types": f"{name} 0-10"
        for score, name in (("semantics", "G_SC"), ("quality", "G_PQ"), ("overall", "G_O"))
    },
    "ScienceWorld": {
        f"{_STATE}bert_score": "BERTScore",
        f"{_STATE}rouge_l": "ROUGE-L",
        f"{_STATE}exact_match": "exact %",
        f"{_ACTION}exact_match": "IDM exact %",
    },
    "Mind2Web": {
        f"{_STATE}bert_score": "BERTScore",
        f"{_STATE}rouge_l": "ROUGE-L",
        f"{_ACTION}element_accuracy": "element acc. %",
        f"{_ACTION}operation_f1": "operation F1 %",
        f"{_ACTION}step_success": "step success %",
    },
    "StableToolBench": {
        f"{_STATE}bleu_char": "BLEU, characters",
        **{f"{_STATE}bleu_char/{split}": split for split in _SPLITS},
        f"{_STATE}bleu_word": "BLEU, words",
    },
}
SUITES = {name: _suite(name, columns) for name, columns in _COLUMNS.items()}
"""Tables by the ``suite`` of a DataModule, or by the name of its class."""
