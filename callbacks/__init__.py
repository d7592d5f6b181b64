"""Lightning callbacks of SWIRL."""

from swirl_lightning.callbacks.action_table import ActionTable
from swirl_lightning.callbacks.adapter_export import AdapterExport
from swirl_lightning.callbacks.collapse_watch import CollapseWatch
from swirl_lightning.callbacks.end_other_ranks import EndOtherRanks
from swirl_lightning.callbacks.fit_lock import FitLock
from swirl_lightning.callbacks.held_out_states import HeldOutStates
from swirl_lightning.callbacks.hyperparameters import HyperparameterText
from swirl_lightning.callbacks.memory_report import MemoryReport
from swirl_lightning.callbacks.metric_glossary import MetricGlossary
from swirl_lightning.callbacks.phase_switch import PhaseSwitch
from swirl_lightning.callbacks.predictions import Predictions
from swirl_lightning.callbacks.progress import PhaseProgressBar
from swirl_lightning.callbacks.results import Results
from swirl_lightning.callbacks.row_scores import RowScores
from swirl_lightning.callbacks.save_at_end import SaveAtEnd
from swirl_lightning.callbacks.save_on_termination import SaveOnTermination
from swirl_lightning.callbacks.throughput import Throughput
from swirl_lightning.callbacks.transition_images import TransitionImages

__all__ = [
    "ActionTable",
    "AdapterExport",
    "CollapseWatch",
    "EndOtherRanks",
    "FitLock",
    "HeldOutStates",
    "HyperparameterText",
    "MemoryReport",
    "MetricGlossary",
    "PhaseProgressBar",
    "PhaseSwitch",
    "Predictions",
    "Results",
    "RowScores",
    "SaveAtEnd",
    "SaveOnTermination",
    "Throughput",
    "TransitionImages",
]
