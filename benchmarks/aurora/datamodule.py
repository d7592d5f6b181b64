"""AURORA-Bench (arXiv 2407.03471): 8 editing tasks; McGill-NLP/AURORA on GitHub, MIT."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from torchmetrics import MetricCollection

from swirl_lightning.benchmarks.aurora.disc_edit import DiscEdit
from swirl_lightning.benchmarks.aurora_records import OUTSIDE, clip_of, edits, first_text, train_files, words_of
from swirl_lightning.benchmarks.image_suite import ImageSuite
from swirl_lightning.data.lazy import LazyRecord, LazyTransitions
from swirl_lightning.data.module import Split
from swirl_lightning.data.reading import SkippedRecords, records, stays_inside
from swirl_lightning.data.token_cache import exactly
from swirl_lightning.engine.ranges import check_ranges
from swirl_lightning.metrics.bert_score import BASELINES, BERTScore
from swirl_lightning.metrics.text import RougeL
from swirl_lightning.transition import Transition

TASKS = ("magicbrush", "ag", "something", "kubric", "whatsup", "clevr", "emu", "epic")
DISC_TASKS = ("whatsup", "something", "ag", "kubric", "clevr")


class Aurora(ImageSuite):
    """AURORA-Bench: images, edits in words.

    Layout of ``data_dir``, as in the repository: ``test.json`` and ``data/<task>/train.json`` with image
    paths relative to ``data_dir``; for DiscEdit ``data/<task>/`` or ``disc_edit_data/<task>/`` with
    ``itm_test.json`` or ``valid.json``.

    The labelled split is the training set; without one, `swirl fit` cannot warm up on this suite. The
    last ``validation_size`` records of it are for validation and not trained on, with all others of the same video or
    photograph. Test records without an image of the result (tasks such as ``clevr``, or a file that is missing) are
    predicted and judged, and have no score that needs a target.

    Args:
        data_dir: see above.
        tasks: of the test split; null for all that ``test.json`` has. ``disc_edit`` takes those with a file of
            its own, and names the others as missing.
        validation_size: training records kept for validation, or a few more.
        protocol: ``edit`` predicts the result of every instruction. ``disc_edit`` is the discriminative
            score: ``disc_samples`` futures for each of two texts (use it with
            ``evaluation.modes: [sampled]``).
        disc_samples: for each text.
        kwargs: as for `ImageSuite` (strict, clip, judge, limit) and `TransitionDataModule`.

    Raises:
        ValueError: an unknown protocol.
    """

    suite = "AURORA"
    source = (
        "Get AURORA-Bench from https://github.com/McGill-NLP/AURORA (test.json and data/) and set data_dir to "
        "its folder."
    )
    judge_template = "aurora"
    keeps_without_target = True

    def __init__(
        self,
        *,
        data_dir: str,
        tasks: Sequence[str] | None = None,
        validation_size: int = 64,
        protocol: Literal["edit", "disc_edit"] = "edit",
        disc_samples: int = 4,
        **kwargs: Any,
    ) -> None:
        super().__init__(data_dir=data_dir, **kwargs)
        if protocol not in ("edit", "disc_edit"):
            raise ValueError(f"protocol must be 'edit' or 'disc_edit', got {protocol!r}")
        check_ranges("data", locals(), validation_size="whole [1, inf)", disc_samples="whole [1, inf)")
        self.tasks = None if tasks is None else list(tasks)
        self.validation_size, self.protocol, self.disc_samples = validation_size, protocol, disc_samples
        self._labelled: list[LazyRecord] | None = None

    @property
    def categories(self) -> tuple[str, ...]:
        """Names of the tasks."""
        return TASKS if self.tasks is None else tuple(self.tasks)

    def check(self) -> None:
        """Check also that DiscEdit can compare images by the latents of the model's VQGAN.

        Raises:
            ValueError: the model has none.
        """
        super().check()
        backbone = getattr(getattr(self.trainer, "lightning_module", None), "backbone", None)
        if self.protocol == "disc_edit" and backbone is not None and not hasattr(backbone, "latents"):
            raise ValueError(
                f"data.protocol disc_edit needs a model with a VQGAN, as Liquid and Chameleon have it; "
                f"{type(backbone).__name__} has none"
            )

    def read_records(self, split: Split, skipped: SkippedRecords) -> list[LazyRecord]:
        """Read the records of ``test.json`` or of the training sets."""
        if split == "test":
            return self._disc_records(skipped) if self.protocol == "disc_edit" else self._test_records(skipped)
        if self._labelled is None:  # read once, and its broken records are counted once
            self._labelled = self._train_records(skipped)
        rows, clips = self._labelled, dict[str, list[LazyRecord]]()
        for row in reversed(rows):
            clips.setdefault(clip_of(row), []).append(row)
        held_out: set[str] = set()
        for own in clips.values():
            if len(held_out) < min(self.validation_size, len(rows) // 2):
                held_out |= {row.id for row in own}
        return [row for row in rows if (row.id in held_out) == (split == "validation")]

    # ---- test ------------------------------------------------------------------------------------
    def _test_records(self, skipped: SkippedRecords) -> list[LazyRecord]:
        path = self.data_dir / "test.json"
        entries = []
        for place, entry in self._entries(path, skipped):
            if isinstance(entry.get("task"), str) and entry["task"].strip():
                entries.append((place, entry))
            else:
                skipped.add(f"test.json{place}", f"task is {entry.get('task')!r}, and no name")
        there = sorted({entry["task"] for _, entry in entries})
        unknown = sorted(set(self.tasks or ()) - set(there))
        if unknown and entries:
            raise ValueError(f"{path} has no task {', '.join(unknown)}; it has {', '.join(there)}")
        found: list[LazyRecord] = []
        for place, entry in entries:
            if self.tasks is None or entry["task"] in self.tasks:
                found += self._edits(entry, f"test.json{place}", skipped, entry["task"], target=False)
        return found

    def _disc_records(self, skipped: SkippedRecords) -> list[LazyRecord]:
        found: list[LazyRecord] = []
        chosen = self.tasks or DISC_TASKS
        paths = {task: path for task in chosen if (path := self._disc_file(task)) is not None}
        if not paths:
            raise FileNotFoundError(
                f"AURORA: DiscEdit needs data/<task>/ or disc_edit_data/<task>/ with itm_test.json or valid.json in "
                f"{self.data_dir} for one of {', '.join(chosen)}; AURORA has {', '.join(DISC_TASKS)}. {self.source}"
            )
        for task, path in paths.items():
            for place, entry in self._entries(path, skipped):
                name = f"disc-{task}{place}"
                image = entry.get("input") or entry.get("image")
                texts = [first_text(entry.get(k)) or words_of(entry) for k in ("pos", "neg")]
                if task not in ("whatsup", "svo") and not first_text(entry.get("pos")):
                    continue  # as in the authors' loader: an ordinary validation record
                if not isinstance(image, str) or not all(texts):
                    skipped.add(name, "no image or no text")
                    continue
                if not stays_inside(image):
                    skipped.add(name, f"{OUTSIDE} ({image})")
                    continue
                found.append(LazyRecord(self.data_dir / image, None, None, name, {"task": task, "texts": texts}))
        if not found and not len(skipped):
            raise FileNotFoundError(f"AURORA: no DiscEdit records in {self.data_dir}. {self.source}")
        return found

    def load_split(self, split: Split) -> Sequence[Transition]:
        """Return the usable records; for DiscEdit the samples of both texts of each."""
        if split != "test" or self.protocol != "disc_edit":
            return super().load_split(split)
        return LazyTransitions(
            [row for item, record in enumerate(self.checked(split)) for row in self._samples(item, record)]
        )

    def _samples(self, item: int, record: LazyRecord) -> Iterator[LazyRecord]:
        for side, words in zip(("pos", "neg"), record.meta["texts"], strict=True):
            for sample in range(self.disc_samples):
                meta = {"task": record.meta["task"], "disc": {"item": item, "side": side, "sample": sample}}
                yield replace(record, action=words, id=f"{record.id}-{side}-{sample}", meta=meta)

    def _disc_file(self, task: str) -> Path | None:
        places = [
            self.data_dir / folder / task / name
            for folder in ("disc_edit_data", "data")
            for name in ("itm_test.json", "valid.json")
        ]
        return next((path for path in places if path.is_file()), None)

    # ---- training --------------------------------------------------------------------------------
    def _train_records(self, skipped: SkippedRecords) -> list[LazyRecord]:
        found: list[LazyRecord] = []
        for task, path in train_files(self.data_dir).items():
            for place, entry in self._entries(path, skipped):
                found += self._edits(entry, f"{task}/train.json{place}", skipped, task, target=True)
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0)).tolist()
        return [found[n] for n in order]  # so that validation has every task, the same for every seed

    # ---- parts -----------------------------------------------------------------------------------
    def _entries(self, path: Path, skipped: SkippedRecords) -> list[tuple[str, dict[str, Any]]]:
        """Yield (``[n]``, record) of an index file, up to the place where it cannot be read."""
        return [(place.removeprefix(str(path)), entry) for place, entry in records(self.require(path), skipped)]

    def _edits(
        self, entry: Mapping[str, Any], place: str, skipped: SkippedRecords, task: str, target: bool
    ) -> list[LazyRecord]:
        meta = {"task": task, **{k: entry[k] for k in ("caption", "type", "img_id") if k in entry}}
        return edits(entry, self.data_dir, place, meta, skipped, target)

    # ---- metrics ---------------------------------------------------------------------------------
    def _look_for_missing(self) -> dict[str, str]:
        """Find the missing metrics; DiscEdit needs neither CLIP nor a judge, and may lack tasks."""
        if self.protocol != "disc_edit" or self._stage == "fit":
            return super()._look_for_missing()
        there = {record.meta["task"] for record in self.checked("test")} if self._stage == "test" else set(DISC_TASKS)
        cure = "no usable record of it in itm_test.json or valid.json"
        return {f"disc_edit/{task}": cure for task in self.tasks or DISC_TASKS if task not in there}

    def state_metrics(self) -> MetricCollection:
        """Make DiscEdit, or CLIP scores and judge."""
        if self.protocol == "edit" or self._stage == "fit":
            return super().state_metrics()
        tasks = [record.meta["task"] for record in self.checked("test")]
        return MetricCollection({"disc_edit": DiscEdit(self._latents, tasks, self.disc_samples)})

    def action_metrics(self) -> MetricCollection:
        """Make the metrics of actions, also as the paper's authors compute them; none for DiscEdit, which has no y."""
        if self.protocol == "disc_edit":
            return MetricCollection({})
        metrics: MetricCollection = super().action_metrics()
        if "bleu_word" in metrics:  # nltk is there
            metrics.add_metrics({"rouge_l_stemmed": RougeL("rouge_l_stemmed", stem=True, field="action")})
        if "bert_score" in metrics and Path(str(self.bert)).name in BASELINES:
            scaled = BERTScore(str(self.bert), "bert_score_rescaled", rescale=True, field="action")
            metrics.add_metrics({"bert_score_rescaled": scaled})
        return metrics

    def _latents(self, images: Sequence[Image.Image]) -> Tensor:
        module: Any = self.trainer.lightning_module  # type: ignore[union-attr]
        with exactly(module.device):
            return module.backbone.latents(images, module.device)
