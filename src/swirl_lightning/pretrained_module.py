"""LightningModule of two world models that is saved and loaded: checkpoints of Lightning, and exported folders."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from lightning.pytorch.utilities.model_helpers import _restricted_classmethod
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from swirl_lightning.backbones.base import Backbone
from swirl_lightning.checkpoints import state as ckpt
from swirl_lightning.checkpoints.fit import check_fits
from swirl_lightning.checkpoints.learned import leave_out_objects
from swirl_lightning.checkpoints.loops import forget_foreign_files
from swirl_lightning.checkpoints.restore import restore
from swirl_lightning.checkpoints.shared import is_shared, separate
from swirl_lightning.exports.folder import load_export, write_export
from swirl_lightning.world_model_module import WorldModelModule


class PretrainedModule(WorldModelModule):
    """Two world models on one base, saved and loaded. Arguments as :class:`swirl_lightning.SWIRL`."""

    _written = 0.0  # time of the last checkpoint, in seconds

    # ---- checkpoints -----------------------------------------------------------------------------
    @_restricted_classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | Path,
        map_location: Any = "cpu",
        config_path: str | Path | None = None,
        **kwargs: Any,
    ) -> Self:
        """Load a module from a checkpoint, in eval mode and ready for use; no Trainer is needed.

        Only adapters are taken from a checkpoint. The module's settings come from ``kwargs``, the constructor's
        arguments, or from the run's ``config.yaml``, whose classes are imported and called. So give ``backbone`` for
        a checkpoint that is not your own: then no file beside the checkpoint is read.

        Args:
            checkpoint_path: file saved by a run of SWIRL.
            map_location: device of the module, as for ``torch.load``.
            config_path: your own configuration with the key ``model``. None takes the ``config.yaml`` in the
                checkpoint's folder or the one above, unless there is a ``backbone``.
            kwargs: constructor arguments, which replace those of the configuration. With a ``backbone`` and no
                configuration, rank and α of the adapters are the checkpoint's unless ``lora`` is given.

        Raises:
            FileNotFoundError: no such checkpoint, or neither a ``backbone`` nor a configuration.
            TypeError: called on a module, which would be left as it is.
            ValueError: not a checkpoint of SWIRL, or of another base or other settings of the adapters.

        Example::

            model = SWIRL.load_from_checkpoint("runs/quickstart/checkpoints/last.ckpt")
            model = SWIRL.load_from_checkpoint("last.ckpt", backbone=Liquid("builtin/tiny-liquid", dtype="float32"))
        """
        return restore(cls, checkpoint_path, map_location, config_path, kwargs)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the time, the identity of the base, and the settings of the adapters.

        A checkpoint is later than the one that its run went on from, even where a clock was put back.
        """
        leave_out_objects(checkpoint)
        self._written = max(time.time(), self._written + 0.001)
        checkpoint["swirl"] = {
            "written": self._written,
            "base": {"name": self.backbone.name, "revision": self.backbone.revision, **self.base_identity},
            "label": self.label,
            "lora": {"r": self.lora.r, "alpha": self.lora.alpha},
            "parts": self.base_parts,
            "templates": self.templates.hashes(),
            "lengths": self.backbone.chosen_lengths,
            "optimizer": next((type(optimizer).__name__ for optimizer in self.trainer.optimizers), None),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the adapters were trained with these settings, and take the lengths that were left to the data.

        Shared weights become those of both models where those are separate. Other prompts than those of the training
        are a warning, as they may be meant.

        Raises:
            ValueError: another base, other parts beside it, or other settings of the adapters; or shared weights
                within a phase.
        """
        state = ckpt.own_state(checkpoint)
        check_fits(checkpoint, self)
        saved, here = state.get("templates", {}), self.templates.hashes()
        if other := [f"model.templates.{name}" for name, words in here.items() if saved.get(name, words) != words]:
            rank_zero_warn(f"the adapters were trained with another prompt than {' and '.join(other)} gives")
        if not self.shared_weights and is_shared(checkpoint):
            separate(checkpoint)
        if lengths := ckpt.chosen_lengths(state):
            self.backbone.set_lengths(lengths)
        if self._trainer is not None:
            forget_foreign_files(checkpoint.get("callbacks", {}), self.trainer.checkpoint_callbacks)
        self.label = state["label"]
        self._written = ckpt.written_at(state) or 0.0

    # ---- exported folders ------------------------------------------------------------------------
    def export(
        self, folder: str | Path, data: str = "", results: Mapping[str, Mapping[str, float]] | None = None
    ) -> None:
        """Write the adapters in PEFT format with a model card and what :meth:`from_pretrained` needs.

        Args:
            folder: gets a folder for each adapter, ``swirl.json`` and ``README.md``.
            data: name of the training data, for the card.
            results: rows of a table by name, each {metric: value}, for the card.
        """
        write_export(self, Path(folder), data, results or {})

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        base: str | None = None,
        backbone: Backbone | None = None,
        revision: str | None = None,
        device: str | torch.device = "cpu",
        **kwargs: Any,
    ) -> Self:
        """Load what :meth:`export`, ``swirl export`` or ``swirl push`` has written, in eval mode and ready for use.

        Nothing in it names a class that is imported, and only safetensors and JSON are read.

        Args:
            name_or_path: folder, or name on the Hugging Face hub.
            base: your own folder or hub name of the base; None takes the export's own.
            backbone: in place of the export's settings, for a family of your own.
            revision: hub revision of the export.
            device: of the module.
            kwargs: constructor arguments that the export does not hold, those of your own subclass for example.

        Raises:
            FileNotFoundError: the folder is no export.
            ValueError: its settings cannot be used, or its adapters belong to another base.

        Example::

            model = SWIRL.from_pretrained("runs/quickstart/adapters/last")
        """
        on_load = PretrainedModule.on_load_checkpoint  # a subclass's own reads what it has saved in checkpoints
        return load_export(cls, name_or_path, base, backbone, revision, device, on_load, kwargs)
