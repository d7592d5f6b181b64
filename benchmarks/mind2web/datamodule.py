"""Mind2Web: recorded tasks on real web pages (Deng et al. 2023, OSU-NLP; OpenRAIL)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from rich.progress import track
from torchmetrics import MetricCollection

from swirl_lightning.benchmarks.mind2web.html_pruning import Size, prune
from swirl_lightning.benchmarks.mind2web.metrics import ElementAccuracy, OperationF1, StepSuccess
from swirl_lightning.benchmarks.text_suite import Part, TextSuite
from swirl_lightning.data.reading import BrokenRecord, SkippedRecords, first, records, text_field
from swirl_lightning.engine.ranges import check_ranges
from swirl_lightning.metrics.exact_match import ExactMatch
from swirl_lightning.transition import Transition

TEST_SPLITS = ("test_task", "test_website", "test_domain")


class Mind2Web(TextSuite):
    """Steps between pages: x and y are the cleaned HTML before and after an action, within one task.

    ``data_dir`` is the official layout: ``train/train_*.json`` and ``test_task``, ``test_website``,
    ``test_domain`` with files ``test_*.json``, beside each other or in ``data/``; each file a list of tasks
    ``{annotation_id, website, domain, action_reprs, actions: [{cleaned_html, ...}]}``. The last action of a
    task leads to no recorded page and is left out. Pages are cut around what differs between them, see
    `prune`. Validation tasks come from the training tasks, since the suite has none.

    The paper's length is 4,096 tokens for x and y together with the action: leave room for the template.

    Args:
        data_dir: as above.
        test_splits: of `TEST_SPLITS`, which to test on.
        domains: keep tasks of these domains; None for all.
        websites: keep tasks on these websites; None for all.
        page_budget: size of each page, in characters or tokens.
        tokenizer: hub name or folder of the tokenizer that counts the budget; None counts characters.
        kwargs: as for `TextSuite`.
    """

    suite = "Mind2Web"
    source = "get Mind2Web from https://huggingface.co/datasets/osunlp/Mind2Web (the test splits are in test.zip)"
    validation_is_official = False

    def __init__(
        self,
        data_dir: str,
        *,
        test_splits: Sequence[str] = TEST_SPLITS,
        domains: Sequence[str] | None = None,
        websites: Sequence[str] | None = None,
        page_budget: int = 6000,
        tokenizer: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(data_dir, **kwargs)
        unknown = sorted(set(test_splits) - set(TEST_SPLITS))
        if unknown or not test_splits:
            raise ValueError(f"unknown Mind2Web test splits {unknown}; choose one or more of {list(TEST_SPLITS)}")
        check_ranges("data", {"page_budget": page_budget}, page_budget="whole [1, inf)")
        self.test_splits = [split for split in TEST_SPLITS if split in test_splits]
        self.domains, self.websites = domains, websites
        self.page_budget, self.tokenizer = page_budget, tokenizer

    # ---- files -----------------------------------------------------------------------------------
    def files(self, part: Part) -> Sequence[Path]:
        """Return all files of a part; where a folder has none, the first of the names that it should have."""
        return [path for folder in self._folders(part) for path in self._in(folder)]

    def _folders(self, part: Part) -> list[str]:
        return list(self.test_splits) if part == "test" else ["train"]

    def _in(self, folder: str) -> list[Path]:
        root = self.data_dir / "data" if (self.data_dir / "data" / folder).is_dir() else self.data_dir
        found = sorted((root / folder).glob("*.json"), key=lambda path: (len(path.name), path.name))
        return found or [root / folder / f"{folder}_0.json"]

    # ---- records ---------------------------------------------------------------------------------
    def read(self, part: Part) -> list[Transition]:
        """Read all steps of a part, their pages cut."""
        size = self._size()
        skipped = SkippedRecords(f"Mind2Web's {part} files")
        rows: dict[str, Transition] = {}
        websites: set[str] = set()
        domains: set[str] = set()
        paths = [(folder, path) for folder in self._folders(part) for path in self._in(folder)]
        for folder, path in track(paths, description=f"Mind2Web {part}", transient=True, disable=len(paths) < 3):
            for place, task in records(path, skipped):
                websites.add(str(task.get("website")))
                domains.add(str(task.get("domain")))
                if self._wanted(task):
                    for row in self._steps(task, place, folder, size, skipped):
                        if row.id in rows:
                            skipped.add(place, f"the step {row.id} comes twice")
                        else:
                            rows[row.id] = row
        self._count(part, skipped, len(rows))
        for name, wanted, there in (("domains", self.domains, domains), ("websites", self.websites, websites)):
            if unknown := sorted(set(wanted or ()) - there):
                told = f"unknown Mind2Web {name} {unknown}; the {part} files have:{first(sorted(there))}"
                if part == "train" or len(unknown) == len(set(wanted or ())):
                    raise ValueError(told)
                rank_zero_warn(told)  # of the names that are there, each may be in one of the parts alone
        return list(rows.values())

    def stratum(self, row: Transition) -> str:
        """Return the website: each is halved on its own."""
        return str(row.meta["website"])

    def _wanted(self, task: Mapping[str, Any]) -> bool:
        return all(
            chosen is None or task.get(name) in chosen
            for name, chosen in (("domain", self.domains), ("website", self.websites))
        )

    def _steps(
        self, task: Mapping[str, Any], place: str, folder: str, size: Size, skipped: SkippedRecords
    ) -> Iterator[Transition]:
        """Read the steps of a task; the transitions of a broken step are left out."""
        try:
            name = text_field(task, "annotation_id")
            words, steps = task.get("action_reprs"), task.get("actions")
            if not isinstance(words, list) or not isinstance(steps, list) or len(words) != len(steps):
                raise BrokenRecord("action_reprs and actions must be lists of the same length")
        except BrokenRecord as error:
            skipped.add(place, error)
            return
        meta = {key: str(task.get(key)) for key in ("website", "domain", "subdomain", "confirmed_task")}
        for number, (step, following) in enumerate(pairwise(steps)):
            try:
                action = text_field({"action": words[number]}, "action")
                before, after = prune(_page(step), _page(following), self.page_budget, size)
                if not before or not after:
                    raise BrokenRecord(f"page_budget {self.page_budget} has no room for the page's first element")
            except (BrokenRecord, ValueError) as error:
                skipped.add(f"{place}, step {number}", error)
                continue
            episode = f"{folder}/{name}"
            labels = {**meta, "episode": episode, "split": folder}
            yield Transition(before, after, action, id=f"{episode}/{number}", meta=labels)

    def _size(self) -> Size:
        if self.tokenizer is None:
            return len
        from transformers import AutoTokenizer

        encode = AutoTokenizer.from_pretrained(self.tokenizer, trust_remote_code=False).encode
        return lambda text: len(encode(text, add_special_tokens=False))

    # ---- metrics ---------------------------------------------------------------------------------
    def groups(self) -> dict[str, Any]:
        """Return arguments for means by task, and the test split that each belongs to."""
        rows = [row for part in self._parts.values() for row in part]
        return {"group_by": "episode", "categories": {row.meta["episode"]: row.meta["split"] for row in rows}}

    def action_metrics(self) -> MetricCollection:
        """Make element accuracy, operation F1 and step success, macro averages over tasks, and exact match."""
        groups = self.groups()
        return MetricCollection(
            {
                "exact_match": ExactMatch("action"),
                "element_accuracy": ElementAccuracy(**groups),
                "operation_f1": OperationF1(**groups),
                "step_success": StepSuccess(**groups),
            },
            compute_groups=False,
        )


def _page(step: Any) -> str:
    if not isinstance(step, Mapping):
        raise BrokenRecord(f"an action must be an object, got {type(step).__name__}")
    return text_field(step, "cleaned_html")
