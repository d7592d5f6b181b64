"""Uses of a trained run: labels for pairs of states, and rollouts of the world model.

Each name is imported at first use, so that the commands answer ``--help`` at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from swirl_lightning.lazy_names import lazy_names

if TYPE_CHECKING:
    from swirl_lightning.use.collapse import CollapseConfig, collapse_files
    from swirl_lightning.use.environment import WorldModelEnv, WorldModelVectorEnv
    from swirl_lightning.use.labelling import LabelConfig, label_files
    from swirl_lightning.use.labels import Label, label
    from swirl_lightning.use.rollout import Step, simulate
    from swirl_lightning.use.runs import Run
    from swirl_lightning.use.simulation import SimulateConfig, simulate_files

_HOMES = {
    "CollapseConfig": "collapse",
    "Label": "labels",
    "LabelConfig": "labelling",
    "Run": "runs",
    "SimulateConfig": "simulation",
    "Step": "rollout",
    "WorldModelEnv": "environment",
    "WorldModelVectorEnv": "environment",
    "collapse_files": "collapse",
    "label": "labels",
    "label_files": "labelling",
    "simulate": "rollout",
    "simulate_files": "simulation",
}

__all__ = [
    "CollapseConfig",
    "Label",
    "LabelConfig",
    "Run",
    "SimulateConfig",
    "Step",
    "WorldModelEnv",
    "WorldModelVectorEnv",
    "collapse_files",
    "label",
    "label_files",
    "simulate",
    "simulate_files",
]


__getattr__, __dir__ = lazy_names(__name__, {name: f"{__name__}.{home}" for name, home in _HOMES.items()})
