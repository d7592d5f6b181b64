"""AURORA-Bench (arXiv 2407.03471): 8 editing tasks; McGill-NLP/AURORA on GitHub, MIT."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from torchmetrics import MetricCollection

from swirl_lightning.benchmarks.visual import VisualSuite
from swirl_lightning.data.module import Split
from swirl_lightning.data.pictures import Findings, PictureRecord
from swirl_lightning.metrics.disc_edit import DiscEdit

TASKS = ("magicbrush", "ag", "something", "kubric", "whatsup", "clevr", "emu", "epic")
TRAIN_TASKS = ("magicbrush", "ag", "something", "kubric")
DISC_TASKS = ("whatsup", "something", "ag", "kubric", "clevr")


class Aurora(VisualSuite):
    """AURORA-Bench: pictures, edits in words.

    Layout of ``data_dir``, as in the repository: ``test.json`` and ``data/<task>/train.json`` with picture
    paths relative to ``data_dir``; for DiscEdit ``data/<task>/`` or ``disc_edit_data/<task>/`` with
    ``itm_test.json`` or ``valid.json``.

    The labelled split is the training set; without one, `swirl fit` cannot warm up on this suite. The
    last ``validation_size`` records of it are for validation and not trained on. Records of tasks without
    a picture of the result (``clevr``, ...) are predicted and judged, and have no score that needs a target.

    Args:
        data_dir: see above.
        tasks: of the test split; null for all that ``test.json`` has.
        train_tasks: training sets to read; null for those of the paper that are there.
        validation_size: training records kept for validation.
        protocol: ``edit`` predicts the result of every instruction. ``disc_edit`` is the discriminative
            score: ``disc_samples`` futures for each of two texts (use it with
            ``evaluation.modes: [sampled]``).
        disc_samples: for each text.
        kwargs: as for `VisualSuite` (strict, clip, judge, limit) and `TransitionDataModule`.

    Raises:
        ValueError: an unknown protocol.
    """

    suite = "AURORA"
    source = (
        "Get AURORA-Bench from https://github.com/McGill-NLP/AURORA (test.json and data/) and set data_dir to "
        "its folder."
    )
    judge_template = "aurora"

    def __init__(
        self,
        *,
        data_dir: str,
        tasks: Sequence[str] | None = None,
        train_tasks: Sequence[str] | None = None,
        validation_size: int = 64,
        protocol: Literal["edit", "disc_edit"] = "edit",
        disc_samples: int = 4,
        **kwargs: Any,
    ) -> None:
        super().__init__(data_dir=data_dir, **kwargs)
        if protocol not in ("edit", "disc_edit"):
            raise ValueError(f"protocol must be 'edit' or 'disc_edit', got {protocol!r}")
        if validation_size < 1 or disc_samples < 1:
            raise ValueError("validation_size and disc_samples must be at least 1")
        self.tasks = None if tasks is None else list(tasks)
        self.train_tasks = None if train_tasks is None else list(train_tasks)
        self.validation_size, self.protocol, self.disc_samples = validation_size, protocol, disc_samples

    @property
    def categories(self) -> tuple[str, ...]:
        """The tasks."""
        return TASKS if self.tasks is None else tuple(self.tasks)

    def read_records(self, split: Split, findings: Findings) -> list[PictureRecord]:
        """Records of ``test.json`` or of the training sets."""
        if split == "test":
            return self._disc_records(findings) if self.protocol == "disc_edit" else self._test_records(findings)
        records = self._train_records(findings)
        size = min(self.validation_size, len(records) // 2)
        return records[len(records) - size :] if split == "validation" else records[: len(records) - size]

    # ---- test ------------------------------------------------------------------------------------
    def _test_records(self, findings: Findings) -> list[PictureRecord]:
        path = self.data_dir / "test.json"
        entries = self._entries(path)
        found = sorted({str(e.get("task")) for e in entries if isinstance(e, dict)})
        unknown = sorted(set(self.tasks or ()) - set(found))
        if unknown:
            raise ValueError(f"{path} has no task {', '.join(unknown)}; it has {', '.join(found)}")
        records = []
        for n, entry in enumerate(entries):
            if self.tasks is not None and isinstance(entry, dict) and entry.get("task") not in self.tasks:
                continue
            record = self._record(entry, f"test.json[{n}]", findings, str(_get(entry, "task")), target=False)
            if record is not None:
                records.append(record)
        return records

    def _disc_records(self, findings: Findings) -> list[PictureRecord]:
        records = []
        item = 0
        for task in self.tasks or [t for t in DISC_TASKS if self._disc_file(t) is not None]:
            path = self._disc_file(task)
            if path is None:
                raise FileNotFoundError(
                    f"AURORA: DiscEdit needs data/{task}/ or disc_edit_data/{task}/ with itm_test.json or "
                    f"valid.json in {self.data_dir}. {self.source}"
                )
            for n, entry in enumerate(self._entries(path)):
                name = f"disc-{task}-{n}"
                picture = _get(entry, "input") or _get(entry, "image")
                texts = [_text(_get(entry, k)) or _words(entry) for k in ("pos", "neg")]
                if task not in ("whatsup", "svo") and not _text(_get(entry, "pos")):
                    continue  # as in the authors' loader: an ordinary validation record
                if not isinstance(picture, str) or not all(texts):
                    findings.total += 1
                    findings.add(name, "no picture or no text")
                    continue
                for side, words in zip(("pos", "neg"), texts, strict=True):
                    for sample in range(self.disc_samples):
                        meta = {"task": task, "disc": {"item": item, "side": side, "sample": sample}}
                        records.append(
                            PictureRecord(self.data_dir / picture, None, words, f"{name}-{side}-{sample}", meta)
                        )
                item += 1
        if not records:
            raise FileNotFoundError(f"AURORA: no DiscEdit records in {self.data_dir}. {self.source}")
        return records

    def _disc_file(self, task: str) -> Path | None:
        places = [
            self.data_dir / folder / task / name
            for folder in ("disc_edit_data", "data")
            for name in ("itm_test.json", "valid.json")
        ]
        return next((path for path in places if path.is_file()), None)

    # ---- training --------------------------------------------------------------------------------
    def _train_records(self, findings: Findings) -> list[PictureRecord]:
        paths = {task: self.data_dir / "data" / task / "train.json" for task in self.train_tasks or TRAIN_TASKS}
        if self.train_tasks is None:
            paths = {task: path for task, path in paths.items() if path.is_file()}
            if not paths:
                raise FileNotFoundError(
                    f"AURORA: no data/<task>/train.json in {self.data_dir} for {', '.join(TRAIN_TASKS)}. "
                    f"{self.source} The training pictures are on Hugging Face: McGill-NLP/AURORA."
                )
        records = []
        for task, path in paths.items():
            for n, entry in enumerate(self._entries(path)):
                record = self._record(entry, f"{task}/train.json[{n}]", findings, task, target=True)
                if record is not None:
                    records.append(record)
        order = torch.randperm(len(records), generator=torch.Generator().manual_seed(0)).tolist()
        return [records[n] for n in order]  # so that validation has every task, the same for every seed

    # ---- parts -----------------------------------------------------------------------------------
    def _entries(self, path: Path) -> list[Any]:
        entries = self.read_json(path)
        if not isinstance(entries, list):
            raise ValueError(f"AURORA: {path} must hold a list of records, got {type(entries).__name__}")
        return entries

    def _record(self, entry: Any, place: str, findings: Findings, task: str, target: bool) -> PictureRecord | None:
        """A record of an index file, or None with the reason in ``findings``."""
        before, after, words = _get(entry, "input"), _get(entry, "output"), _words(entry)
        problem = None
        if not isinstance(entry, dict):
            problem = "not an object"
        elif not words:
            problem = "no instruction"
        elif not isinstance(before, str) or not (after is None or isinstance(after, str)):
            problem = "no input picture"
        elif target and after is None:
            problem = "no output picture"
        if problem is not None:
            findings.total += 1
            findings.add(place, problem)
            return None
        meta = {"task": task, **{k: entry[k] for k in ("caption", "type") if k in entry}}
        after_path = None if after is None else self.data_dir / after
        return PictureRecord(self.data_dir / before, after_path, words, place, meta)

    # ---- metrics ---------------------------------------------------------------------------------
    @property
    def missing_metrics(self) -> dict[str, str]:
        """As in `VisualSuite`; DiscEdit needs neither CLIP nor a judge."""
        return {} if self.protocol == "disc_edit" else super().missing_metrics

    def state_metrics(self) -> MetricCollection:
        """DiscEdit, or CLIP scores and judge."""
        if self.protocol == "edit" or self._stage == "fit":
            return super().state_metrics()
        items = 1 + max(record.meta["disc"]["item"] for record in self.checked("test"))
        return MetricCollection({"disc_edit": DiscEdit(self._latents, items, self.disc_samples)})

    def action_metrics(self) -> MetricCollection:
        """Of DiscEdit none: nothing is known of the result."""
        return MetricCollection({}) if self.protocol == "disc_edit" else super().action_metrics()

    def _latents(self, pictures: Sequence[Image.Image]) -> Tensor:
        module: Any = self.trainer.lightning_module if self.trainer else None
        backbone = getattr(module, "backbone", None)
        if backbone is None or not hasattr(backbone, "latents"):
            raise ValueError(f"DiscEdit needs a backbone with latents of pictures, {type(backbone).__name__} has none")
        return backbone.latents(pictures, module.device)


def _get(entry: Any, key: str) -> Any:
    return entry.get(key) if isinstance(entry, dict) else None


def _words(entry: Any) -> str:
    """The instruction; earlier versions of the files call it ``prompt``."""
    return _text(_get(entry, "instruction")) or _text(_get(entry, "prompt"))


def _text(value: Any) -> str:
    """An instruction in words; of several wordings the first, so that runs can be compared."""
    first = value[0] if isinstance(value, list) and value else value
    return first.strip() if isinstance(first, str) else ""
