"""``swirl label``, ``simulate``, ``collapse`` and ``play``: their options, and what they print."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from swirl_lightning.console.options import subcommand_parser
from swirl_lightning.engine.ranges import check_ranges
from swirl_lightning.files.reading import read_words
from swirl_lightning.use.runs import Run, fastest_device

_SPLITS = ("warmup", "state_only", "validation", "test")
_RUN = "a run's folder, or a checkpoint"
_CONFIG = "config.yaml of a checkpoint that has none beside it"


def label(args: Sequence[str] | None = None) -> None:
    """Entry point of ``swirl label``."""
    parser = subcommand_parser(
        "label",
        "RUN PAIRS --to FOLDER",
        "Actions for unlabelled pairs, by a run's IDM, as JSON lines to train on.",
        "swirl label runs/mine data/pairs.jsonl --to data/labels --min_agreement -0.1",
    )
    add = parser.add_argument
    add("run", metavar="RUN", help=_RUN)
    add("source", metavar="PAIRS", help="JSON lines, parquet, videos or frames in a folder, a split")
    add("--to", required=True, metavar="FOLDER", help="of labelled.jsonl; given again, it goes on there")
    add("--min_agreement", type=float, metavar="X", help="keep labels with mean log P(y | x, z) of X and above")
    add("--min_log_prob", type=float, metavar="X", help="keep labels with mean log Q(z | x, y) of X and above")
    add("--alternatives", type=int, default=0, metavar="N", help="write up to N other actions of each pair, too")
    add("--seconds", type=float, default=6.0, metavar="S", help="between the two frames of a video (6)")
    add("--step", type=int, default=1, metavar="N", help="frames between two in a folder of frames (1)")
    add("--batch_size", type=int, default=32, metavar="N", help="pairs at a time on each device (32)")
    add("--seed", type=int, default=0, metavar="N", help="of the alternatives (0)")
    add("--accelerator", default="auto", metavar="A", help="as in Lightning: cpu, gpu, auto (auto)")
    add("--devices", default="auto", metavar="N", help="as in Lightning (auto: every GPU, one process on a CPU)")
    add("--config", metavar="FILE", help=_CONFIG)
    options = vars(parser.parse_args(args))
    run = Run.find(options.pop("run"), options.pop("config"))
    from swirl_lightning.use.labelling import LabelConfig, label_files

    source, folder, accelerator, devices = (options.pop(name) for name in ("source", "to", "accelerator", "devices"))
    summary = label_files(run, source, folder, LabelConfig(**options), accelerator, devices)
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    rank_zero_only(print)("\n".join(summary.lines()))


def simulate(args: Sequence[str] | None = None) -> None:
    """Entry point of ``swirl simulate``.

    Raises:
        ValueError: no action is given, or their file is no text.
        OSError: the file of actions cannot be read.
    """
    parser = subcommand_parser(
        "simulate",
        "RUN --state STATE --action WORDS --to FOLDER",
        "Predicted states from a state and a list of actions, each step from the last\n"
        "prediction; beside the true states where the run's benchmark has a simulator.",
        'swirl simulate runs/mine --state test:0 --action "turn left" \\\n'
        '      --action "move forward" --branches 2 --best_of 4 --to runs/rollout',
    )
    add = parser.add_argument
    add("run", metavar="RUN", help=_RUN)
    add("--state", required=True, help="image or text file, words, or a split's record: test:0")
    add("--action", action="append", default=[], metavar="WORDS", help="one step; repeat it for the next ones")
    add("--actions", type=Path, metavar="FILE", help="a step per line, after those of --action")
    add("--to", required=True, metavar="FOLDER", help="for frames, contact sheet, GIF and steps.json")
    add("--branches", type=int, default=1, metavar="K", help="rollouts that differ by what is drawn (1)")
    add("--best_of", type=int, default=1, metavar="N", help="draws a step, the IDM chooses one (1)")
    add("--greedy", action="store_true", help="take the likeliest token at each place, draw nothing")
    add("--seed", type=int, default=0, metavar="N", help="of the draws (0)")
    add("--no_truth", action="store_true", help="leave out the true states")
    add("--config", metavar="FILE", help=_CONFIG)
    options = vars(parser.parse_args(args))
    run = Run.find(options.pop("run"), options.pop("config"))
    actions, file = options.pop("action"), options.pop("actions")
    if file is not None:
        if not file.is_file():
            raise FileNotFoundError(f"no such file of actions: {file}; give a text file with one a line")
        actions += [line.strip() for line in read_words(file).splitlines() if line.strip()]
    if not actions:
        where = "" if file is None else f" in {file}"
        raise ValueError(f'no action is given{where}: add --action "WORDS", or --actions FILE with one a line')
    from swirl_lightning.use.simulation import SimulateConfig, simulate_files

    state, folder = options.pop("state"), options.pop("to")
    found = simulate_files(run, state, actions, folder, SimulateConfig(**options), fastest_device())
    print("\n".join([*found.lines(), f"written: {folder}"]))


def collapse(args: Sequence[str] | None = None) -> None:
    """Entry point of ``swirl collapse``."""
    parser = subcommand_parser(
        "collapse",
        "RUN [SPLIT]",
        "Diversity, length and perplexity of a run's latent actions, one a pair, beside\n"
        "those of the human labels: after the warm-up and after each iteration.",
        "swirl collapse runs/mine state_only --language_model gpt2",
    )
    add = parser.add_argument
    add("run", metavar="RUN", help=f"{_RUN}: of a folder, all that end the warm-up or an iteration")
    add(
        "pairs",
        metavar="SPLIT",
        nargs="?",
        default="state_only",
        choices=_SPLITS,
        help="of the run's own data (state_only)",
    )
    add("--labels", default="warmup", choices=_SPLITS, help="whose actions are the human labels (warmup)")
    add("--language_model", metavar="M", help="causal language model of the perplexity: a folder or a hub name")
    add("--to", metavar="FOLDER", help="for collapse.json and collapse.png (the run's folder)")
    add("--batch_size", type=int, default=32, metavar="N", help="pairs at a time (32)")
    add("--seed", type=int, default=0, metavar="N", help="of the draws (0)")
    add("--config", metavar="FILE", help=_CONFIG)
    options = vars(parser.parse_args(args))
    given, folder = Path(options.pop("run")), options.pop("to")
    run = Run.find(given, options.pop("config"))
    from swirl_lightning.use.collapse import CollapseConfig, collapse_files, iterations_of

    checkpoints = iterations_of(given) if given.is_dir() else [run.checkpoint]
    folder = folder or (given if given.is_dir() else run.config.parent)
    table = collapse_files(run, checkpoints, folder, CollapseConfig(**options), fastest_device())
    for name, row in table.items():
        told = [f"{row.actions} actions", f"unique {row.unique:.3f}", f"length {row.length:.1f} tokens"]
        if row.perplexity is not None:
            told.append(f"perplexity {row.perplexity:.1f} ({row.perplexity_ratio:.2f} of the labels')")
        print(f"{name}: {', '.join(told)}")
    print(f"written: {folder}")


def play(args: Sequence[str] | None = None) -> None:
    """Entry point of ``swirl play``, which serves until it is interrupted."""
    parser = subcommand_parser(
        "play",
        "RUN [RUN ...]",
        "A web page on this machine to act in a run's world: predicted next states with\n"
        "the IDM's scores, undo, the true state where there is a simulator.",
        "swirl play runs/mine\n  swirl play runs/mine/checkpoints/epoch=23.ckpt runs/mine",
    )
    add = parser.add_argument
    add("runs", metavar="RUN", nargs="+", help=f"{_RUN}; several stand side by side")
    add("--port", type=int, default=7860, metavar="N", help="0 takes a free one (7860)")
    add("--host", default="127.0.0.1", metavar="ADDRESS", help="who may come: this machine alone (127.0.0.1)")
    add("--config", metavar="FILE", help=_CONFIG)
    options = parser.parse_args(args)
    check_ranges("play", vars(options), port="whole [0, 65535]")
    runs = [Run.find(run, options.config) for run in options.runs]
    from swirl_lightning.use.playing import open_page

    page = open_page(runs, options.host, options.port)
    print(f"open {page.url} in a browser; Ctrl+C ends it", flush=True)
    try:
        page.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        page.server_close()
