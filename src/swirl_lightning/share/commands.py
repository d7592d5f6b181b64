"""``swirl export`` and ``swirl push``: their options, and what they print."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from swirl_lightning.console.options import subcommand_parser


def export(args: Sequence[str] | None = None) -> None:
    """Entry point of ``swirl export``."""
    parser = subcommand_parser(
        "export",
        "RUN --to FOLDER",
        "A run's two models as a folder with a model card: adapters in PEFT format, or\n"
        "with --merged whole weights that plain transformers and what builds on it read.",
        "swirl export runs/mine --to exports/mine",
    )
    parser.add_argument("run", metavar="RUN", help="a run's folder, or a checkpoint")
    parser.add_argument("--to", required=True, type=Path, metavar="FOLDER", help="new folder")
    parser.add_argument("--merged", action="store_true", help="whole weights, one folder for each model")
    parser.add_argument("--config", metavar="FILE", help="config.yaml of a checkpoint that has none beside it")
    options = parser.parse_args(args)
    from swirl_lightning.use.runs import Run

    run = Run.find(options.run, options.config)
    from swirl_lightning.share.export import export_run

    export_run(run, options.to, options.merged)
    print(f"written: {options.to}; its README.md says how to load it")


def push(args: Sequence[str] | None = None) -> None:
    """Entry point of ``swirl push``."""
    parser = subcommand_parser(
        "push",
        "FOLDER NAME",
        "Uploads an exported folder to the Hugging Face hub, as a model repository. The\n"
        "token is that of `hf auth login` or of the environment variable HF_TOKEN.",
        "swirl push exports/mine my-name/my-world-model --private",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="written by swirl export or by a training")
    parser.add_argument("name", metavar="NAME", help="of the repository: owner/name")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--dry_run", action="store_true", help="say what would be uploaded, and do not")
    options = parser.parse_args(args)
    from swirl_lightning.share.hub import check_name, files_of, upload

    check_name(options.name)
    files = files_of(options.folder)
    for path in files:
        print(f"{path.stat().st_size:>12,}  {path.relative_to(options.folder)}")
    if options.dry_run:
        print(f"would be uploaded to {options.name}: {len(files)} files")
        return
    print(f"uploaded: {upload(options.folder, options.name, options.private)}")
