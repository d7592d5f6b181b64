"""Labels as files, by a Trainer: resumable, on any number of devices, filtered by confidence."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from swirl_lightning.callbacks import EndOtherRanks, SaveOnTermination
from swirl_lightning.data.batch import TransitionBatch
from swirl_lightning.data.module import Split, TransitionDataModule
from swirl_lightning.engine.ranges import check_ranges
from swirl_lightning.files.hashes import sha256
from swirl_lightning.module import SWIRL
from swirl_lightning.roles import Role
from swirl_lightning.transition import Transition
from swirl_lightning.use.label_log import LabelLog, Summary
from swirl_lightning.use.labels import Label, label
from swirl_lightning.use.pairs import Pairs
from swirl_lightning.use.runs import Run

HOPELESS = 32
"""Pairs of a rank after which it gives up, if neither it nor an earlier call could label any."""
_OURS = ("log_prob", "agreement", "alternatives", "given_action")
"""Fields that the records of an earlier labelling have, too."""


@dataclass(frozen=True)
class LabelConfig:
    """Settings of :func:`label_files`.

    Attributes:
        alternatives: most other actions of each pair.
        min_log_prob: labels with a lower mean log Q(z given x, y) are left out; None keeps all.
        min_agreement: labels with a lower mean log P(y given x, z) are left out; None keeps all.
        batch_size: pairs at a time on each device.
        seed: of the alternatives.
        seconds: between the two frames of a video.
        step: frames between the two of a folder of frames.
    """

    alternatives: int = 0
    min_log_prob: float | None = None
    min_agreement: float | None = None
    batch_size: int = 32
    seed: int = 0
    seconds: float = 6.0
    step: int = 1

    def __post_init__(self) -> None:
        least = dict.fromkeys(("min_log_prob", "min_agreement"), "(-inf, 0] or null")
        whole = {"alternatives": "whole [0, 10000]", "batch_size": "whole [1, inf)", "step": "whole [1, inf)"}
        check_ranges("label", vars(self), seconds="(0, inf)", seed="whole [0, inf)", **least, **whole)


def label_files(
    run: Run,
    source: str,
    folder: str | Path,
    config: LabelConfig = LabelConfig(),
    accelerator: str = "auto",
    devices: int | str = "auto",
) -> Summary:
    """Label the pairs of a source, and write those that pass the thresholds as ``folder/labelled.jsonl``.

    What is computed is kept in ``folder``: a call that was interrupted goes on, and one with other thresholds
    computes nothing anew. Neither does one whose source has grown label old pairs again.

    Args:
        run: the trained run.
        source: see :class:`swirl_lightning.use.pairs.Pairs`.
        folder: of the labels.
        config: thresholds and sizes.
        accelerator: as in Lightning's Trainer.
        devices: as in Lightning's Trainer.

    Raises:
        FileNotFoundError: there is no such source.
        ValueError: the run has no IDM, or no FWM for the agreement; the folder is of other settings or holds
            something else; no pair can be labelled.
    """
    folder = Path(folder)
    model = run.build()
    if Role.IDM not in model.roles:
        raise ValueError(f"labels come from the IDM, and {run.config} trains none: name it in model.roles")
    if Role.FWM not in model.roles and config.min_agreement is not None:
        raise ValueError(f"min_agreement asks the FWM, and {run.config} trains none: filter by min_log_prob instead")
    pairs = Pairs(source, run, folder, config.seconds, config.step)
    log = LabelLog(folder, _settings(run, pairs, config))
    data = _Data(pairs, log, config.batch_size)
    try:
        trainer = Trainer(
            accelerator=accelerator,
            devices=devices,
            logger=False,
            callbacks=[_Bar(), SaveOnTermination(), EndOtherRanks()],
            enable_checkpointing=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.predict(_Labeller(run, model, data, config), data, return_predictions=False)
    except (MisconfigurationException, torch.OutOfMemoryError) as error:
        raise ValueError(str(error)) from error
    except TypeError as error:
        if "`devices`" not in str(error):
            raise
        raise ValueError(f"--devices {devices}: {error}") from error
    except SIGTERMException as end:
        sys.exit(end.code or 128 + signal.SIGTERM)
    trainer.strategy.barrier("labels are written")
    summary = log.summary(data.keys, config.min_log_prob, config.min_agreement, pairs.skipped)
    if trainer.is_global_zero:
        log.write(summary)
    return summary


def _settings(run: Run, pairs: Pairs, config: LabelConfig) -> dict[str, Any]:
    """Collect what the labels depend on beside the pairs themselves."""
    made = {"videos": ("seconds",), "frames": ("step",)}.get(pairs.kind, ())
    files = {name: sha256(path) for name, path in (("checkpoint", run.checkpoint), ("config", run.config))}
    return {**files, "alternatives": config.alternatives, "seed": config.seed, **{n: getattr(config, n) for n in made}}


class _Bar(TQDMProgressBar):
    @property
    def predict_description(self) -> str:
        return "Labelling"


class _Data(TransitionDataModule):
    """Pairs without a label so far."""

    def __init__(self, pairs: Pairs, log: LabelLog, batch_size: int) -> None:
        super().__init__(batch_size=batch_size)
        self.source, self.log = pairs, log
        self.started = False  # an earlier call has labelled a pair
        self.keys: list[str] = []
        self.left: list[int] = []
        self.place: dict[str, int] = {}  # of each id
        self.prepare_data_per_node = False  # one folder for all

    def prepare_data(self) -> None:
        """Make the folder and the pairs of frames, in one process."""
        self.log.start()
        self.source.prepare()

    def setup(self, stage: str) -> None:
        """Read the pairs, and what is labelled already."""
        self.source.read()
        self.keys = [self.source.key(n) for n in range(len(self.source))]
        done = self.log.read()
        self.started = any("record" in line for line in done.values())
        self.left = [n for n, key in enumerate(self.keys) if key not in done]
        if found := len(self.keys) - len(self.left):
            rank_zero_info(f"{found} of {len(self.keys)} pairs are labelled already")

    def load_split(self, split: Split) -> Sequence[Transition]:
        """Refuse: this data has no splits."""
        raise NotImplementedError

    def predict_rows(self) -> Sequence[Transition]:
        """Return the pairs that are left."""
        return _Left(self)


class _Left(Sequence[Transition]):
    def __init__(self, data: _Data) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data.left)

    def __getitem__(self, index: int) -> Transition:  # type: ignore[override]
        place = self.data.left[index]
        pair = self.data.source[place]
        self.data.place[pair.id] = place
        return pair


class _Labeller(LightningModule):
    """Labels each batch and writes it at once."""

    def __init__(self, run: Run, model: SWIRL, data: _Data, config: LabelConfig) -> None:
        super().__init__()
        self.run, self.world, self.data, self.config = run, model, data, config
        self._tried = self._labelled = 0

    def configure_model(self) -> None:
        """Load the base and the adapters, if there is something to label."""
        if not self.data.left or self.world.model is not None:
            return
        self.run.load(self.world)
        if sha256(self.run.checkpoint) != self.data.log.settings["checkpoint"]:
            raise ValueError(
                f"{self.run.checkpoint} has been written anew since this began, by a training that goes on: label with "
                "a copy of it, or wait for its end"
            )

    def predict_step(self, batch: TransitionBatch, batch_idx: int) -> int:
        """Label a batch and return its size; a pair that the backbone cannot read is skipped."""
        lines = []
        for pair, found in zip(batch.transitions, self._label(batch.transitions), strict=True):
            place = self.data.place.pop(pair.id)
            line: dict[str, Any] = {"key": self.data.keys[place]}
            if isinstance(found, str):
                line |= {"id": pair.id, "skipped": found}
            else:
                record = self.data.source.as_record(place, pair) | _fields(found, pair.action)
                others = {name: value for name, value in pair.meta.items() if name not in {*record, *_OURS}}
                line["record"] = record | others
            lines.append(line)
        self.data.log.add(lines, self.global_rank)
        return len(lines)

    def _label(self, pairs: Sequence[Transition]) -> list[Label | str]:
        """Label pairs together, or each alone if one of them cannot be read: the reason in place of its label."""
        if not pairs:
            return []
        found: list[Label | str] = []
        try:
            found += self._ask(pairs)
        except ValueError:
            for pair in pairs:
                try:
                    found += self._ask([pair])
                except ValueError as error:
                    found.append(str(error))
        found = [one if isinstance(one, str) or one.action else "the IDM names no action" for one in found]
        self._tried += len(pairs)
        self._labelled += sum(isinstance(one, Label) for one in found)
        if self._tried >= HOPELESS and not self._labelled and not self.data.started:
            raise ValueError(f"none of the first {self._tried} pairs can be labelled: {found[0]}")
        return found

    def _ask(self, pairs: Sequence[Transition]) -> list[Label]:
        return label(
            self.world,
            pairs,
            alternatives=self.config.alternatives,
            batch_size=len(pairs),
            seed=self.config.seed,
        )


def _fields(found: Label, given: str | None) -> dict[str, Any]:
    """Fields of a label; an action that the pair had is kept under another name."""
    fields: dict[str, Any] = {"action": found.action, "log_prob": found.log_prob}
    if found.agreement is not None:
        fields["agreement"] = found.agreement
    if found.alternatives:
        fields["alternatives"] = [_fields(other, None) for other in found.alternatives]
    return fields if given is None else {**fields, "given_action": given}
