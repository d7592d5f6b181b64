"""Predictions as files: images, JSON lines and a contact sheet, which an interrupted command adds to."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from PIL import Image

from swirl_lightning.callbacks.transition_images import image_grid
from swirl_lightning.evaluation import MODES
from swirl_lightning.files import remove_ranks
from swirl_lightning.generation_memory import GenerationMemory
from swirl_lightning.results.table import CONTACT_SHEET
from swirl_lightning.transition import State, Transition


class Predictions(Callback):
    """Writes what ``swirl test`` and ``swirl predict`` generate into ``predictions/`` of the run's folder, at once.

    - ``<mode>-rank<r>.jsonl``: a line per prediction: id, action, the IDM's action, and the predicted state
      (words, or the name of an image beside it). ``predict`` is a mode of its own. A command begins by removing the
      lines of an earlier one.
    - ``<mode>/<id>.png``: predicted images.
    - ``contact_sheet.png``: before, after, predicted and the action, for image suites.
    - ``generated-rank<r>.jsonl``: the tokens of everything generated. A command that is killed and started
      again with the same settings, weights and data reuses them; with others it generates everything anew.

    Args:
        folder: name of the folder, in the run's folder, or a path of its own.
        contact_sheet_rows: transitions on the contact sheet; 0 for none.
        resume: reuse what an earlier, interrupted command has generated.

    Raises:
        ValueError: ``contact_sheet_rows`` is negative.

    Example::

        >>> from swirl_lightning.callbacks.predictions import Predictions
        >>> callback = Predictions(contact_sheet_rows=8)
    """

    def __init__(self, folder: str = "predictions", contact_sheet_rows: int = 16, resume: bool = True) -> None:
        if contact_sheet_rows < 0:
            raise ValueError(f"contact_sheet_rows must not be negative, got {contact_sheet_rows}")
        self.folder, self.contact_sheet_rows, self.resume = folder, contact_sheet_rows, resume
        self.memory: GenerationMemory | None = None
        self._sheet: list[tuple[Transition, State]] = []
        self._open: dict[str, Any] = {}
        self._place = Path()
        self._rank = 0
        self._evaluator: Any = None  # the one that has our listener

    def on_test_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Listen to the evaluator, and give it the earlier generations."""
        self._place = Path(trainer.log_dir or trainer.default_root_dir) / self.folder
        self._place.mkdir(parents=True, exist_ok=True)
        self._rank, self._sheet, self._open = trainer.global_rank, [], {}
        # of other weights, maybe: a rank that predicts nothing now would leave its lines beside the new ones
        for mode in ["predict"] if trainer.predicting else MODES:
            (self._place / f"{mode}-rank{self._rank}.jsonl").unlink(missing_ok=True)
            if trainer.is_global_zero:
                remove_ranks(self._place, f"{mode}-rank", trainer.world_size)
        if self.resume:
            self.memory = GenerationMemory(self._place, generation_settings(pl_module), self._rank)
        self._evaluator = pl_module.evaluator
        self._evaluator.memory = self.memory
        self._evaluator.listeners.append(self._write)

    def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Write the contact sheet and remove the listener."""
        if self._sheet and trainer.is_global_zero:
            contact_sheet(self._sheet).save(self._place / CONTACT_SHEET)
        rank_zero_info(f"predictions: {self._place}")
        self.teardown(trainer, pl_module, "test")

    on_predict_start = on_test_start
    on_predict_end = on_test_end

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        """Close the files."""
        self.teardown(trainer, pl_module, "test")

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Close the files."""
        for file in self._open.values():
            file.close()
        self._open, self._sheet = {}, []
        evaluator, self._evaluator = self._evaluator, None
        if evaluator is not None and self._write in evaluator.listeners:
            evaluator.memory = None
            evaluator.listeners.remove(self._write)

    def _write(
        self, mode: str, rows: Sequence[Transition], states: Sequence[State | None], words: Sequence[str | None]
    ) -> None:
        for row, state, guess in zip(rows, states, words, strict=True):
            shown = self._image(mode, row, state) if isinstance(state, Image.Image) else state
            entry = {
                "id": row.id,
                "action": row.action,
                "predicted_action": guess,
                "predicted_state": shown,
            }
            entry |= {k: v for k, v in row.meta.items() if k not in entry and isinstance(v, (str, int, float, bool))}
            file = self._file(mode)
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")
            room = not self._rank and len(self._sheet) < self.contact_sheet_rows
            if room and isinstance(state, Image.Image) and isinstance(row.before, Image.Image):
                self._sheet.append((row, state))
        self._file(mode).flush()

    def _image(self, mode: str, row: Transition, state: Image.Image) -> str:
        name = f"{mode}/{file_name(row.id)}.png"
        path = self._place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        state.save(path)
        return name

    def _file(self, mode: str) -> Any:
        if mode not in self._open:
            path = self._place / f"{mode}-rank{self._rank}.jsonl"
            self._open[mode] = open(path, "w", encoding="utf-8")  # noqa: SIM115 - closed in teardown
        return self._open[mode]


def contact_sheet(rows: Sequence[tuple[Transition, State]]) -> Image.Image:
    """Draw before, after and predicted states, with the action under each row."""
    lines = []
    for row, state in rows:
        after = Image.new("RGB", _size(row.before), (230, 230, 230)) if row.after is None else row.after
        lines.append(([row.before, after, state], [row.action or "", "", ""]))
    return image_grid(lines, ["before", "after", "predicted"])


def generation_settings(module: Any) -> dict[str, Any]:
    """Return the settings that every generation of a module depends on, besides its prompt and record."""
    weights = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(module.adapters.state_dict().items()):
        weights.update(name.encode())
        weights.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    backbone = module.backbone
    return {
        "base": [backbone.name, backbone.revision, module.base_identity],
        "tokens": backbone.fingerprint(),
        "grammars": {role: [g.max_length, g.eos, g.forced] for role, g in module.models.grammars.items()},
        "precision": [backbone.quantization, str(backbone.dtype), str(module.trainer.precision)],
        "adapters": [weights.hexdigest(), module.lora.alpha],
        "sampling": dataclasses.asdict(module.sampling),
        "seed": module.evaluation.seed,
        "best_of": module.evaluation.best_of,
        "templates": dataclasses.asdict(module.templates),
    }


def file_name(record: str, longest: int = 100) -> str:
    """A record's id as a file name that no other id has: no path, and at most so many bytes and a digest."""
    plain = re.sub(r"[^\w.-]+", "_", record).strip("._").encode()[:longest].decode(errors="ignore")
    if plain == record:
        return plain
    return f"{plain}-{hashlib.blake2b(record.encode(), digest_size=4).hexdigest()}"


def _size(state: State) -> tuple[int, int]:
    return state.size if isinstance(state, Image.Image) else (1, 1)
