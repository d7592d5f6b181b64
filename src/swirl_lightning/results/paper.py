"""Results of the paper (arXiv 2602.06130), as rows to be shown beside one's own.

Scores by a judge are GPT-4o's; with another judge, compare rows of your own only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

Row = dict[str, float]


@dataclass(frozen=True)
class SuiteTable:
    """Report of a suite: its columns and the paper's rows.

    Attributes:
        columns: metric key in ``results.json`` -> heading.
        paper: name of a row -> metric key -> value, as printed in the paper. The first word of a name is that of the
            runs beside which it is shown: `SFT`, `IDM→FWM`, `FWM→IDM` or `SWIRL` (iterative).
        factors: metric key -> factor that brings our value to the paper's scale; 1 where not named.
    """

    columns: dict[str, str]
    paper: dict[str, Row] = field(default_factory=dict)
    factors: dict[str, float] = field(default_factory=dict)

    def paper_beside(self, labels: Iterable[str]) -> dict[str, Row]:
        """Return the paper's rows for the given schedules, and for SFT, where all of them start.

        Args:
            labels: of one's own rows, as `swirl_lightning.schedule.Phase.ends` has them.
        """
        schedules = {"SFT", *map(_schedule, labels)}
        return {name: row for name, row in self.paper.items() if _schedule(name) in schedules}


def _schedule(name: str) -> str:
    """Return the schedule of a label: ``SWIRL`` of ``SWIRL iteration 2, shared weights``."""
    return re.split(r"[ ,]", name, maxsplit=1)[0]


_STATE, _ACTION = "fwm/sampled/", "idm/sampled/"
_TURNS = {f"{_STATE}judge/turn {turn}": f"turn {turn}" for turn in range(1, 7)}
_SPLITS = ("ID-high", "ID-low", "ID-medium", "OOD", "OOD-fail")

SUITES: dict[str, SuiteTable] = {
    "AURORA": SuiteTable(
        {
            f"{_STATE}judge": "judge 0-10",
            f"{_ACTION}judge": "IDM judge 0-10",
            f"{_STATE}clip_target": "CLIP target",
            f"{_STATE}clip_source": "CLIP source",
            f"{_STATE}clip_nearer_target": "nearer target %",
            f"{_STATE}disc_edit": "DiscEdit",
            f"{_ACTION}rouge_l": "IDM ROUGE-L",
            f"{_ACTION}exact_match": "IDM exact %",
        },
        {
            "SFT (paper)": {f"{_STATE}judge": 4.36, f"{_ACTION}judge": 6.38},
            "IDM→FWM (paper)": {f"{_STATE}judge": 4.83},
            "FWM→IDM (paper)": {f"{_ACTION}judge": 6.38},
            "SWIRL iterative (paper)": {f"{_STATE}judge": 5.06, f"{_ACTION}judge": 6.58},
            "SWIRL iterative, shared weights (paper)": {f"{_STATE}judge": 5.00, f"{_ACTION}judge": 6.57},
        },
        {f"{_STATE}clip_nearer_target": 100, f"{_ACTION}exact_match": 100},
    ),
    "ByteMorph": SuiteTable(
        {
            f"{_STATE}judge": "judge 0-100",
            f"{_STATE}clip_sim_img": "SIM img",
            f"{_STATE}clip_sim_txt": "SIM txt",
            f"{_STATE}clip_d_txt": "D txt",
            f"{_STATE}clip_d_img": "D img",
        },
        {
            "SFT (paper)": {f"{_STATE}judge": 43.38},
            "IDM→FWM (paper)": {f"{_STATE}judge": 54.57},
            "SWIRL iterative (paper)": {f"{_STATE}judge": 53.77},
            "SWIRL iterative, shared weights (paper)": {f"{_STATE}judge": 55.72},
        },
    ),
    "WorldPrediction": SuiteTable(
        {
            f"{_STATE}judge/mean over turns": "judge 0-10, mean over turns",
            **_TURNS,
            f"{_STATE}clip_target/mean over turns": "CLIP target, mean over turns",
            "choice/idm_accuracy": "choice % (IDM)",
            "choice/fwm_accuracy": "choice % (FWM)",
        },
        {
            "SFT (paper)": {f"{_STATE}judge/mean over turns": 1.63, f"{_STATE}judge/turn 6": 0.97},
            "IDM→FWM (paper)": {f"{_STATE}judge/mean over turns": 1.89},
            "SWIRL iterative (paper)": {f"{_STATE}judge/mean over turns": 1.74},
            "SWIRL iterative, shared weights (paper)": {f"{_STATE}judge/mean over turns": 1.68},
            "SWIRL, best at turn 6 (paper)": {f"{_STATE}judge/turn 6": 1.11},
        },
        {"choice/idm_accuracy": 100, "choice/fwm_accuracy": 100},
    ),
    "ScienceWorld": SuiteTable(
        {
            f"{_STATE}bert_score": "BERTScore",
            f"{_STATE}rouge_l": "ROUGE-L",
            f"{_STATE}exact_match": "exact %",
            f"{_ACTION}exact_match": "IDM exact %",
        },
        {
            "SFT (paper)": {f"{_STATE}bert_score": 96.06, f"{_STATE}rouge_l": 89.73},
            "SWIRL (paper)": {f"{_STATE}bert_score": 96.06, f"{_STATE}rouge_l": 89.92},
        },
        {
            f"{_STATE}bert_score": 100,
            f"{_STATE}rouge_l": 100,
            f"{_STATE}exact_match": 100,
            f"{_ACTION}exact_match": 100,
        },
    ),
    "Mind2Web": SuiteTable(
        {
            f"{_STATE}bert_score": "BERTScore",
            f"{_STATE}rouge_l": "ROUGE-L",
            f"{_ACTION}element_accuracy": "element acc. %",
            f"{_ACTION}operation_f1": "operation F1 %",
            f"{_ACTION}step_success": "step success %",
        },
        {
            "SFT (paper)": {f"{_STATE}bert_score": 92.37, f"{_STATE}rouge_l": 48.97},
            "SWIRL (paper)": {f"{_STATE}bert_score": 92.44, f"{_STATE}rouge_l": 49.10},
        },
        {
            f"{_STATE}bert_score": 100,
            f"{_STATE}rouge_l": 100,
            **{f"{_ACTION}{name}": 100 for name in ("element_accuracy", "operation_f1", "step_success")},
        },
    ),
    "StableToolBench": SuiteTable(
        {
            f"{_STATE}bleu_char": "BLEU, characters",
            **{f"{_STATE}bleu_char/{split}": split for split in _SPLITS},
            f"{_STATE}bleu_word": "BLEU, words",
        },
        {
            "SFT (paper)": dict(
                zip(
                    (f"{_STATE}bleu_char", *(f"{_STATE}bleu_char/{s}" for s in _SPLITS)),
                    (12.85, 16.03, 12.87, 17.51, 14.86, 2.99),
                    strict=True,
                )
            ),
            "SWIRL (paper)": dict(
                zip(
                    (f"{_STATE}bleu_char", *(f"{_STATE}bleu_char/{s}" for s in _SPLITS)),
                    (14.61, 16.47, 16.90, 21.20, 15.57, 2.92),
                    strict=True,
                )
            ),
        },
    ),
}
"""Tables by the ``suite`` of a DataModule, or by the name of its class."""
