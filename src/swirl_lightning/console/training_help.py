"""Short help of ``swirl fit``, ``validate``, ``test`` and ``predict``, which have hundreds of options."""

from __future__ import annotations

ALL = "--help_all"
"""Shows every option of these commands, as jsonargparse prints them."""

_ABOUT = {
    "fit": "Trains: the warm-up on labelled triples, then the phases on state-only pairs.",
    "validate": "Scores a checkpoint on the validation split, as a row of results.json.",
    "test": "Scores a checkpoint on the test split, as a row of results.json.",
    "predict": "Writes what a checkpoint predicts for the test split, in predictions/.",
}

_OWN = {
    "fit": (
        ("--phase_switch.warmup_epochs N", "epochs of the warm-up"),
        ("--phase_switch.iterations N", "rounds of the phases after it"),
        ("--data.pairs_per_step N", "pairs of an optimiser step on all devices"),
        ("--model.grpo.group_size N", "rollouts of each pair"),
    )
}
_MEASURED = (
    ("--data.eval_batch_size N", "transitions at a time"),
    ("--model.evaluation.modes MODES", "'[sampled, greedy]', or one of the two"),
)

_EXAMPLE = {"fit": "swirl fit -c configs/minigrid_quickstart.yaml \\\n      --trainer.default_root_dir runs/mine"}


def training_help(command: str) -> str:
    """Return the help of one of the commands of LightningCLI, at most 80 characters wide."""
    options = (
        ("-c FILE, --config FILE", "YAML of the run; of several the last wins"),
        ("--ckpt_path FILE", "checkpoint to go on from" if command == "fit" else "checkpoint that is measured"),
        ("--ckpt_path last", "the newest checkpoint of the run's folder"),
        ("--trainer.default_root_dir FOLDER", "the run's folder: all is written there"),
        ("--trainer.accelerator A", "cpu, gpu or auto"),
        ("--trainer.devices N", "number of devices"),
        *_OWN.get(command, _MEASURED),
        ("--seed_everything N", "seed of all that is drawn"),
    )
    further = (
        ("--print_config=skip_default", "what the configuration changes, as YAML"),
        ("--model.help", "options of the model"),
        ("--data.help CLASS", "options of a class that the YAML names"),
        ("-h, --help", "this text"),
        (ALL, "every option"),
    )
    return (
        f"usage: swirl {command} -c FILE [--ckpt_path FILE] [--OPTION VALUE ...]\n\n{_ABOUT[command]}\n\n"
        f"often set (each is a key of the YAML, too):\n{_lines(options)}\n\nmore:\n{_lines(further)}\n\n"
        f"example:\n  {_EXAMPLE.get(command, f'swirl {command} -c runs/mine/config.yaml --ckpt_path last')}"
    )


def _lines(options: tuple[tuple[str, str], ...]) -> str:
    return "\n".join(f"  {name:<35}{text}" for name, text in options)
