"""Predictions as files: images, JSON lines and a contact sheet, which an interrupted command adds to."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from PIL import Image

from swirl_lightning.callbacks.listener import EvaluationListener
from swirl_lightning.callbacks.run_folder import run_folder
from swirl_lightning.callbacks.transition_images import CELL, image_grid
from swirl_lightning.data.token_cache import state_key
from swirl_lightning.engine.ranges import check_ranges
from swirl_lightning.evaluation import MODES
from swirl_lightning.files.writing import remove_ranks, whole_file, written_to
from swirl_lightning.generation_store import GenerationStore
from swirl_lightning.results.table import CONTACT_SHEET, PREDICTIONS
from swirl_lightning.transition import State, Transition

_SheetRow = tuple[Transition, State, str | None]
"""Transition, predicted state, predicted action."""


class Predictions(EvaluationListener):
    """Writes what ``swirl test`` and ``swirl predict`` generate into ``predictions/`` of the run's folder, at once.

    - ``<mode>-rank<r>.jsonl``: a line per prediction: id, action, the states before and after, the IDM's action, and
      the predicted state. States are words, or the name of an image. ``predict`` is a mode of its own. A command
      begins by removing the lines of an earlier one.
    - ``<mode>/<id>.png``: predicted images.
    - ``states/<hash>.png``: images before and after, each once.
    - ``contact_sheet.png``: before, after and predicted, the action and the IDM's, for image suites; rows of all tasks
      in turn where the suite has tasks.
    - ``generated-rank<r>.jsonl``: the tokens of everything generated. A command that is killed and started
      again with the same settings, weights and data reuses them; with others it generates everything anew.

    Does nothing in a ``fast_dev_run``.

    Args:
        contact_sheet_rows: transitions on the contact sheet; 0 for none.

    Raises:
        ValueError: ``contact_sheet_rows`` is negative.

    Example::

        >>> from swirl_lightning.callbacks.predictions import Predictions
        >>> callback = Predictions(contact_sheet_rows=8)
    """

    def __init__(self, contact_sheet_rows: int = 16) -> None:
        check_ranges("Predictions", {"contact_sheet_rows": contact_sheet_rows}, contact_sheet_rows="whole [0, inf)")
        self.contact_sheet_rows = contact_sheet_rows
        self.generations: GenerationStore | None = None
        self._sheet: dict[str, list[_SheetRow]] = {}  # by task
        self._sheet_mode: str | None = None  # the first one
        self._category_key = ""
        self._open: dict[str, Any] = {}
        self._place = Path()
        self._rank = 0

    def on_test_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Listen to the evaluator, and give it the earlier generations."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self._place = run_folder(trainer) / PREDICTIONS
        self._place.mkdir(parents=True, exist_ok=True)
        self._rank, self._sheet, self._sheet_mode, self._open = trainer.global_rank, {}, None, {}
        self._category_key = getattr(trainer.datamodule, "category_key", "")  # type: ignore[attr-defined]
        # of other weights, maybe: a rank that predicts nothing now would leave its lines beside the new ones
        for mode in ["predict"] if trainer.predicting else MODES:
            (self._place / f"{mode}-rank{self._rank}.jsonl").unlink(missing_ok=True)
            if trainer.is_global_zero:
                remove_ranks(self._place, f"{mode}-rank", trainer.world_size)
        self.generations = GenerationStore(self._place, generation_settings(pl_module), self._rank)
        self.listen(pl_module)
        pl_module.evaluator.generations = self.generations

    def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Write the contact sheet and remove the listener."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if self._sheet and trainer.is_global_zero:
            contact_sheet(_spread(list(self._sheet.values()), self.contact_sheet_rows)).save(
                self._place / CONTACT_SHEET
            )
        rank_zero_info(f"predictions: {self._place}")
        self.stop()

    on_predict_start = on_test_start
    on_predict_end = on_test_end

    def stop(self) -> None:
        """Close the files, too, and take the generations back."""
        for file in self._open.values():
            file.close()
        self._open, self._sheet = {}, {}
        if self._evaluator is not None:
            self._evaluator.generations = None
        super().stop()

    def told(
        self, mode: str, rows: Sequence[Transition], states: Sequence[State | None], words: Sequence[str | None]
    ) -> None:
        """Write a batch of predictions."""
        for row, state, guess in zip(rows, states, words, strict=True):
            entry = {
                "id": row.id,
                "action": row.action,
                "before": self._shown(row.before),
                "after": self._shown(row.after),
                "predicted_action": guess,
                "predicted_state": self._shown(state, f"{mode}/{file_name(row.id)}.png"),
            }
            meta = {k: v for k, v in row.meta.items() if isinstance(v, (str, int, float, bool))}
            file = self._file(mode)
            file.write(json.dumps(meta | entry, ensure_ascii=False) + "\n")
            if isinstance(state, Image.Image) and isinstance(row.before, Image.Image):
                self._keep_for_sheet(mode, row, state, guess)
        with written_to(self._file(mode).name):
            self._file(mode).flush()

    def _shown(self, state: State | None, name: str | None = None) -> str | None:
        """Words, or the name of the file that an image is written to: of a name of its own, or by its content, once."""
        if not isinstance(state, Image.Image):
            return state
        path = self._place / (name or f"states/{state_key(state).hex()}.png")
        if name is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            state.save(path)
        elif not path.exists():
            with whole_file(path, alone=False) as file:  # a cut one would stay
                state.save(file, "PNG")
        return path.relative_to(self._place).as_posix()

    def _keep_for_sheet(self, mode: str, row: Transition, state: Image.Image, guess: str | None) -> None:
        self._sheet_mode = self._sheet_mode or mode
        if self._rank or mode != self._sheet_mode or not self.contact_sheet_rows:
            return
        kept = self._sheet.setdefault(str(row.meta.get(self._category_key)), [])
        if len(kept) < self.contact_sheet_rows:
            small = replace(row, before=_small(row.before), after=row.after and _small(row.after))
            kept.append((small, _small(state), guess))

    def _file(self, mode: str) -> Any:
        if mode not in self._open:
            path = self._place / f"{mode}-rank{self._rank}.jsonl"
            self._open[mode] = open(path, "w", encoding="utf-8")  # noqa: SIM115 - closed in teardown
        return self._open[mode]


def contact_sheet(rows: Sequence[_SheetRow]) -> Image.Image:
    """Draw before, after and predicted states, with the action and the IDM's action under each row."""
    lines = []
    for row, state, guess in rows:
        after = Image.new("RGB", _size(row.before), (230, 230, 230)) if row.after is None else row.after
        lines.append(([row.before, after, state], [row.action or "", "", "" if guess is None else f"IDM: {guess}"]))
    return image_grid(lines, ["before", "after", "predicted"])


def _spread(tasks: Sequence[Sequence[_SheetRow]], most: int) -> list[_SheetRow]:
    """Take at most so many rows, the first ones of each task, from all tasks in turn."""
    turns = sorted((place, task) for task, rows in enumerate(tasks) for place in range(len(rows)))
    return [tasks[task][place] for task, place in sorted((task, place) for place, task in turns[:most])]


def _small(state: State) -> State:
    """A copy of an image no larger than a contact sheet shows it."""
    if isinstance(state, Image.Image):
        state = state.copy()
        state.thumbnail((CELL, CELL))
    return state


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
        "engine": _named(module.rollout_engine),
        "seed": module.evaluation.seed,
        "best_of": module.evaluation.best_of,
        "templates": dataclasses.asdict(module.templates),
    }


def _named(engine: Any) -> list[Any]:
    """Name a rollout engine by its class and what it has of plain options."""
    kept = {k: v for k, v in sorted(vars(engine).items()) if isinstance(v, str | int | float)} if engine else {}
    return [f"{type(engine).__module__}.{type(engine).__qualname__}", kept]


def file_name(record: str, longest: int = 100) -> str:
    """A record's id as a file name that no other id has: no path, and at most so many bytes and a digest."""
    plain = re.sub(r"[^\w.-]+", "_", record).strip("._").encode()[:longest].decode(errors="ignore")
    if plain == record:
        return plain
    return f"{plain}-{hashlib.blake2b(record.encode(), digest_size=4).hexdigest()}"


def _size(state: State) -> tuple[int, int]:
    return state.size if isinstance(state, Image.Image) else (1, 1)
