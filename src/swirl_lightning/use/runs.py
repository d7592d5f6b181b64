"""The folder of a trained run: its checkpoint, its settings, its data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from swirl_lightning.data.module import TransitionDataModule
    from swirl_lightning.module import SWIRL


@dataclass(frozen=True)
class Run:
    """A trained run on disk.

    Attributes:
        checkpoint: its newest ``last.ckpt``, or the file that was named.
        config: its ``config.yaml``, whose classes are imported and called.
    """

    checkpoint: Path
    config: Path

    @classmethod
    def find(cls, run: str | Path, config: str | Path | None = None) -> Run:
        """Find the files of a run, and load nothing.

        Args:
            run: folder of a run, or a checkpoint.
            config: your own configuration; None takes the ``config.yaml`` beside the checkpoint or in the folder above.

        Raises:
            FileNotFoundError: there is no such run, no checkpoint in it, or no configuration.
        """
        if not str(run):  # which Path takes as the current folder
            raise FileNotFoundError("the run is an empty text: is the variable that should hold its folder set?")
        from swirl_lightning.checkpoints.finding import find_checkpoint

        checkpoint = find_checkpoint(Path(run))
        folder = checkpoint.absolute().parent
        places = [Path(config)] if config is not None else [folder / "config.yaml", folder.parent / "config.yaml"]
        for place in places:
            if place.is_file():
                return cls(checkpoint, place)
        raise FileNotFoundError(
            f"no {' or '.join(map(str, places))}, and a checkpoint holds adapters alone: give the config.yaml that it "
            "was trained with by --config"
        )

    def build(self) -> SWIRL:
        """Build the model with the run's settings; its base is not loaded yet.

        Raises:
            ValueError: the checkpoint is damaged or none of ours, or the configuration cannot be built.
        """
        from swirl_lightning.checkpoints.file import check_file
        from swirl_lightning.checkpoints.restore import from_config
        from swirl_lightning.module import SWIRL

        check_file(self.checkpoint)
        return from_config(SWIRL, self.config, {})

    def load(self, model: SWIRL, device: str | torch.device = "cpu") -> SWIRL:
        """Load the base and the checkpoint's adapters into what :meth:`build` gave, in eval mode.

        Raises:
            ValueError: the checkpoint belongs to another base or other settings.
        """
        from swirl_lightning.checkpoints.restore import load_into
        from swirl_lightning.files.safe_torch import load_torch

        return load_into(model, load_torch(self.checkpoint, device))

    def data(self) -> TransitionDataModule:
        """Build the data module of the run's configuration; nothing is read or checked yet.

        Raises:
            ValueError: the configuration has no ``data``, or it cannot be built.
        """
        from swirl_lightning.checkpoints.restore import from_config
        from swirl_lightning.data.module import TransitionDataModule

        return from_config(TransitionDataModule, self.config, {}, key="data")  # type: ignore[type-abstract]


def fastest_device() -> str:
    """Return ``cuda`` where there is a GPU, else ``cpu``."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
