"""Studies: rows from one start over seeds, trained, tested and compared."""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from recipes import study
from support import cli, processes
from support.tiny import gemma_folder
from swirl_lightning.benchmarks.scienceworld import ScienceWorld
from swirl_lightning.callbacks.row_scores import read
from swirl_lightning.cli import swirl_cli
from swirl_lightning.console.run import run_command

ROOT = Path(__file__).parents[2]
STUDIES = sorted((ROOT / "recipes" / "studies").glob("*.yaml"))


def rows():
    """The first row of each study, and those with an option, or a value of one, that no row before them has."""
    found, seen = [], set()
    for path in STUDIES:
        for place, (name, row) in enumerate(study.Study.load(path).rows.items()):
            said = {f"{option}={value}" for option, value in row.options.items()}
            if not place or not said <= seen:
                found.append(pytest.param(path, name, id=f"{path.stem}-{name}"))
            seen |= said
    return found


@pytest.mark.parametrize(("path", "name"), rows())
def test_the_parser_takes_the_rows(path, name, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    loaded = study.Study.load(path)
    cli = swirl_cli(loaded.arguments(name, 3, tmp_path), run=False)
    usual = "GRPO" if any("paper" in config for config in loaded.configs) else "BestOfN"
    learner = loaded.rows[name].options.get("model.init_args.learner", usual)
    assert type(cli.model.learner).__name__ == learner.rpartition(".")[2]
    assert cli.trainer.default_root_dir == str(tmp_path)
    assert {cli.model.seed, cli.datamodule.seed} == {3}
    worlds = {
        "minigrid_tables": 2003,
        "minigrid_video": 5003,
        "minigrid_unseen": 5003,
        "minigrid_rare": 6003,
        "minigrid_single": 8003,
        "textworld": 0,  # the same games for all seeds
        "textworld_rare": 103,
        "textworld_converged": 103,
        "scienceworld": None,  # a file of transitions
    }
    assert getattr(cli.datamodule, "world_seed", None) == worlds[path.stem]


def test_the_transitions_of_the_scienceworld_study_lie_beside_it(tmp_path):
    path = ROOT / "recipes" / "studies" / "scienceworld.yaml"
    with gzip.open(path.with_name("scienceworld_transitions.jsonl.gz")) as file:
        (tmp_path / "gold_transitions.jsonl").write_bytes(file.read())
    options = study.Study.load(path).options
    tasks, limit = (options[f"data.init_args.{name}"] for name in ("tasks", "limit"))
    suites = [ScienceWorld(str(tmp_path), tasks=tasks, limit=limit, split_seed=seed) for seed in range(3)]
    tests, labelled, pairs = ([suite.load_split(s) for suite in suites] for s in ("test", "warmup", "state_only"))
    assert {len(rows) for rows in tests} == {limit}
    assert {row.meta["task"] for row in tests[0]} == set(tasks)
    for own, rest in zip(labelled, pairs, strict=True):
        assert min(len(own), len(rest)) >= options["data.init_args.pairs_per_iteration"]
        assert not {row.id for row in own} & {row.id for row in rest}
        assert len({row.id for row in own} | {row.id for row in rest}) == 293


def test_a_row_starts_from_one_before_it(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump({"config": "c", "rows": {"a": {"start": "b"}, "b": {}}}))
    with pytest.raises(ValueError, match="row 'a' starts from 'b', which does not stand before it"):
        study.Study.load(path)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("rows: [", "s.yaml is no YAML: while parsing"),
        ("- a", "s.yaml must be a mapping of config, seeded, options, rows, iterations, shared_test, not"),
        ("config: c", "s.yaml lacks rows"),
        ("config: c\nrows: [a]", "s.yaml: rows cannot be"),
        ("config: c\nrows: {a: 7}", "row 'a' must be a mapping of start, options, train"),
        ("config: c\nrows: {a: {option: {x: 1}}}", "row 'a' has no key 'option'; did you mean 'options'?"),
        ("config: c\nrows: {a: {train: 'no'}}", "row 'a': train cannot be 'no'"),
        ("config: c\nrows: {a: {train: false}}", "row 'a' trains nothing, and has no start"),
        ("config: c\nrows: {a: , b: {start: a, train: false}, c: {start: b}}", "'c' starts from 'b', which trains"),
        ("config: c\nrows: {1: }", "row 1 must be named by a text"),
        ("config: c\nrows: {a b: , 'a, b': }", "row 'a, b' would be trained in the folder of 'a b'"),
        ("config: c\nrows: {a: }\niterations: {s: [a, b]}", "iterations of 's' must be a list of rows, not"),
        ("config: c\nseeded: {seed_everything: x}\nrows: {a: }", "a whole number for seed_everything"),
        (None, "s.yaml"),
    ],
)
def test_what_is_no_study_is_one_line(tmp_path, monkeypatch, given, told):
    path = tmp_path / "s.yaml"
    if given is not None:
        path.write_text(given)
    monkeypatch.setattr("sys.argv", ["study", str(path)])
    with pytest.raises(SystemExit) as end:
        run_command(study.main)
    (line,) = str(end.value.code).splitlines()
    assert line.startswith("error: ")
    assert told in line


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ([], "the following arguments are required: study"),
        (["s.yaml", "--sedes", "1"], "unrecognized arguments: --sedes 1; did you mean '--seeds'?"),
        (["s.yaml", "--seed", "1"], "unrecognized arguments: --seed 1; did you mean '--seeds'?"),
        (["--tabel"], "unrecognized arguments: --tabel; did you mean '--table'?"),
        (["s.yaml", "--jobs", "0"], "study.jobs must lie in [1, inf), got 0"),
    ],
)
def test_a_mistyped_option_is_one_line(monkeypatch, capsys, args, told):
    monkeypatch.setattr("sys.argv", ["study", *args])
    with pytest.raises(SystemExit) as end:
        run_command(study.main)
    (line,) = (str(end.value.code) if isinstance(end.value.code, str) else capsys.readouterr().err).splitlines()
    assert line.startswith(f"error: {told}")


def test_a_row_alone_waits_for_no_start_that_nobody_trains(tmp_path, monkeypatch):
    """It did so for ever, also where the start was done."""
    path, out, ran = tmp_path / "s.yaml", tmp_path / "out", []
    path.write_text("{config: c, rows: {a: , b: {start: a}}}")
    monkeypatch.setattr(study, "run", lambda given, name, seed, out: ran.append((seed, name)))
    monkeypatch.setattr("sys.argv", ["study", str(path), "--rows", "b", "--against", "b", "--out", str(out)])
    with pytest.raises(ValueError, match="the row 'a' of seed 0, which others start from, is not done"):
        study.main()
    assert not ran
    for seed in range(3):
        place = study.place(out, seed, "a")
        place.mkdir(parents=True)
        (place / "fit.done").touch()
    study.main()
    assert ran == [(0, "b"), (1, "b"), (2, "b")]


@pytest.mark.parametrize("kept", ['{"options": ["--lr=99"]}', '["--lr=99"]', "{}", ""])
def test_scores_of_other_options_are_left_out(tmp_path, kept):
    path = tmp_path / "s.yaml"
    path.write_text("{config: c, options: {lr: 0.1}, rows: {a: , b: }}")
    loaded = study.Study.load(path)
    for name in loaded.rows:
        folder = study.place(tmp_path, 0, name)
        (folder / "row_scores").mkdir(parents=True)
        (folder / "row_scores" / "rank0.jsonl").write_text('{"id": "x", "m": 1.0}\n')
        (folder / "options.json").write_text(kept)
    own = study.arguments_of(loaded, "b", 0, study.place(tmp_path, 0, "b"))
    (study.place(tmp_path, 0, "b") / "options.json").write_text(json.dumps({"options": study._own(own)}))
    with pytest.warns(UserWarning, match="a holds runs of other options"):
        assert {name: len(rows) for name, rows in study.tested(loaded, [0], tmp_path).items()} == {"a": 0, "b": 1}


def test_a_row_that_fails_costs_those_that_start_from_it(tmp_path, monkeypatch, capsys):
    """The others of a night's runs go on, and the study ends in an error all the same. A seed given twice is one."""
    path, ran = tmp_path / "s.yaml", []

    def run(given, name, seed, out):
        if (name, seed) == ("b", 0):
            raise ChildProcessError("out of memory")
        ran.append((seed, name))

    path.write_text("{config: c, rows: {a: , b: {start: a}, c: {start: b}, d: {start: a}}}")
    monkeypatch.setattr(study, "run", run)
    line = [
        "study",
        str(path),
        "--against",
        "a",
        "--out",
        str(tmp_path / "out"),
        "--seeds",
        "0",
        "1",
        "0",
        "--jobs",
        "2",
    ]
    monkeypatch.setattr("sys.argv", line)
    with pytest.raises(ChildProcessError, match=r"1 rows failed: seed 0, row 'b': out of memory"):
        study.main()
    assert sorted(ran) == [(0, "a"), (0, "d"), *((1, name) for name in "abcd")]
    assert "seed 0, row 'b': out of memory" in capsys.readouterr().err


def test_a_run_that_fails_ends_a_study_in_one_line(tmp_path):
    with pytest.raises(SystemExit, match=r"error: swirl fit failed: see .*fit\.log"):
        run_command(lambda: study.swirl(tmp_path, "fit", ["--nosuch"]))


@pytest.mark.parametrize(("given", "told"), [(None, "1"), ("3", "3")])
def test_runs_have_one_thread_or_as_many_as_the_environment_says(tmp_path, monkeypatch, given, told):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\necho $OMP_NUM_THREADS\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    study.swirl(tmp_path, "fit", [])
    assert (tmp_path / "fit.log").read_text() == f"{told}\n"


def test_a_study_that_is_ended_ends_its_runs(tmp_path):
    """They went on, and the study begun again found their folders in use."""
    (tmp_path / "c.yaml").touch()
    (tmp_path / "s.yaml").write_text(json.dumps({"config": str(tmp_path / "c.yaml"), "rows": {"recipe": None}}))
    said = tmp_path / "said"
    code = (
        "import subprocess, sys; from recipes import study; from pathlib import Path\n"
        "own = subprocess.Popen\n"
        f"busy = \"import time; open({str(said)!r}, 'w').close(); time.sleep(100)\"\n"
        "started = []\n"
        "def popen(line, **options): started.append(own([sys.executable, '-c', busy], **options)); return started[-1]\n"
        "study.subprocess.Popen = popen\n"
        f"sys.argv = ['study', {str(tmp_path / 's.yaml')!r}, '--out', {str(tmp_path / 'out')!r}]\n"
        "study.end_on_sigterm()\n"
        "try: study.main()\n"
        "finally: print([run.poll() for run in started])\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT, text=True) as running:
        while not said.exists():
            assert running.poll() is None
            time.sleep(0.05)
        running.terminate()
        out, _ = running.communicate(timeout=60)
    assert running.returncode == 128 + signal.SIGTERM
    assert out.split() == [f"[-{signal.SIGTERM.value}]"]


def test_rows_are_drawn_by_iteration_for_the_seeds_that_have_all(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("config: c\nrows: {a: , b: {start: a}}\niterations: {ours: [a, b]}\n")
    found = {
        "a": {0: {"x": {"m": 0.0}, "y": {"m": 1.0}}, 1: {"x": {"m": 1.0}, "y": {"m": 1.0}}},
        "b": {0: {"x": {"m": 1.0}, "y": {"m": 1.0}}},
    }
    drawn = study.by_iteration(study.Study.load(path), found, "m")
    (curve,) = drawn.lines["ours"]
    assert curve.positions.tolist() == [0, 1]
    assert curve.values.tolist() == [0.5, 1.0]
    assert study.by_iteration(study.Study.load(path), found, "other") is None


def test_rewards_are_drawn_of_rows_that_have_some(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("config: x.yaml\nrows: {recipe: null, reward off: null, not run: null}\n")
    found = study.Study.load(path)
    for name, slope in (("recipe", 0.5), ("reward off", 0.0)):
        with SummaryWriter(str(study.place(tmp_path, 0, name))) as writer:
            for step in range(40):
                writer.add_scalar("fwm/reward", slope * step, step)
    (panel,) = study.panels(found, [0], tmp_path, {name: {} for name in found.rows}, {}, [])
    assert list(panel.lines) == ["recipe"]
    (curve,) = panel.lines["recipe"]
    assert curve.values[0] == 0.5 * sum(range(20)) / 20


def test_a_study_trains_tests_and_compares(tmp_path, monkeypatch, capsys):
    """Real runs of the command line; a second call finds everything done."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    own = study.swirl

    def swirl(folder, command, arguments):
        if (folder.name, command) == ("SFT", "fit"):
            return own(folder, command, arguments)
        done = processes.swirl(command, *arguments)  # starts sooner
        assert done.returncode == 0, done.stderr[-3000:]

    monkeypatch.setattr(study, "swirl", swirl)
    changes = {"data/init_args/size": 8, "trainer/limit_val_batches": 0}
    config = cli.config(tmp_path, gemma_folder(tmp_path / "base"), **changes)
    given = {
        "config": str(config),
        "seeded": {"seed_everything": 0, "model.init_args.seed": 5},
        "options": {"trainer.logger": False},
        "rows": {
            "SFT": {"options": {"phase_switch.iterations": 0}},
            "best of 2": {"start": "SFT", "train": False, "options": {"model.init_args.evaluation.best_of": 2}},
            "Phase I": {"start": "SFT", "options": {"phase_switch.phases": ["fwm"]}},
        },
        "iterations": {"SWIRL": ["SFT", "Phase I"]},
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(given, sort_keys=False))
    out = tmp_path / "out"
    line = ["study", str(path), "--seeds", "0", "--out", str(out), "--against", "Phase I", "--jobs", "2"]
    line += ["--metrics", "idm/greedy/exact_match"]
    for repeated in (False, True):
        monkeypatch.setattr("sys.argv", line)
        if repeated:
            monkeypatch.setattr(study, "swirl", None)  # would be called
        study.main()
    assert not (study.place(out, 0, "best of 2") / "checkpoints").exists()
    assert read(study.place(out, 0, "best of 2")).keys() == read(study.place(out, 0, "SFT")).keys()
    assert capsys.readouterr().out.count("seed 0: Phase I") == 2
    table = json.loads((out / "table.json").read_text())
    packed = tmp_path / "packed.csv.gz"
    monkeypatch.setattr("sys.argv", [*line, "--table", "--pack", str(packed)])
    study.main()
    monkeypatch.setattr("sys.argv", [*line, "--out", str(tmp_path / "elsewhere"), "--table", "--join", str(packed)])
    study.main()
    assert json.loads((tmp_path / "elsewhere" / "table.json").read_text()) == table
    monkeypatch.setattr(
        "sys.argv",
        [*line, "--out", str(tmp_path / "elsewhere"), "--table", "--join", str(packed), "--pack", str(packed)],
    )
    content = packed.read_bytes()
    study.main()
    assert packed.read_bytes() == content, "what was joined is packed, too"
    monkeypatch.setattr("sys.argv", [*line, "--table", "--join", str(packed)])
    with pytest.raises(SystemExit):
        study.main()
    assert "row 'SFT' of the seeds [0] is there already" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", [*line, "--join", str(packed)])
    with pytest.raises(SystemExit):
        study.main()
    assert "--join has the seeds [0] already: leave them out of --seeds" in capsys.readouterr().err
    with Image.open(out / "curves.png") as image:  # of the intervals: these runs log no rewards
        assert np.array(image.convert("L")).std() > 5
    monkeypatch.setattr("sys.argv", [*line, "--metrics", "no/such"])
    with pytest.raises(SystemExit):
        study.main()
    assert "--metrics: the scores have no ['no/such']; they have [" in capsys.readouterr().err
    given["rows"]["Phase I"]["options"]["model.init_args.grpo.beta"] = 0.5
    path.write_text(yaml.safe_dump(given, sort_keys=False))
    monkeypatch.setattr("sys.argv", line)
    with (
        pytest.warns(
            UserWarning, match="Phase_I holds runs of other options than the study has: its scores are left out"
        ),
        pytest.raises(ChildProcessError, match=r"seed 0, row 'Phase I': .*Phase_I holds runs of .*give another --out"),
    ):
        study.main()
    del given["rows"]["Phase I"]["options"]["model.init_args.grpo.beta"]
    given["rows"]["best of 2"] = given["rows"].pop("best of 2") | {"start": "Phase I"}  # after its start
    path.write_text(yaml.safe_dump(given, sort_keys=False))
    with pytest.raises(ChildProcessError, match=r"best_of_2 holds runs of .*from another start than there is now"):
        study.main()
    given["rows"]["best of 2"].update(start="SFT", train=True)
    path.write_text(yaml.safe_dump(given, sort_keys=False))
    with pytest.raises(ChildProcessError, match="best_of_2 holds runs of other options"):
        study.main()
    given["rows"]["best of 2"].update(train=False)
    path.write_text(yaml.safe_dump(given, sort_keys=False))
    settings = config.read_text()
    config.write_text(settings.replace("size: 8", "size: 9"))
    with pytest.raises(ChildProcessError, match="SFT holds runs of other options"):
        study.main()
    config.write_text(f"# the same\n{settings}")
    start = study.last(study.place(out, 0, "SFT"))
    kept = start.read_bytes()
    start.write_bytes(kept + b"trained anew")
    with pytest.raises(ChildProcessError, match=r"(best_of_2|Phase_I) holds runs of .*from another start"):
        study.main()
    start.unlink()
    with pytest.raises(ChildProcessError, match=r"SFT.*last\.ckpt, from which .* starts, has gone"):
        study.main()
    start.write_bytes(kept)
    options = study.place(out, 0, "SFT") / "options.json"
    known = options.read_bytes()
    options.unlink()
    with pytest.raises(ChildProcessError, match="SFT holds runs of other options"):
        study.main()
    done = options.with_name("fit.done")
    done.rename(done.with_name("gone"))  # it was killed at its end
    with pytest.raises(ChildProcessError, match="SFT holds runs of other options"):
        study.main()
    done.with_name("gone").rename(done)
    options.write_bytes(known)
    study.main()
    scores = [read(study.place(out, 0, name)) for name in ("SFT", "Phase I")]
    assert scores[0].keys() == scores[1].keys()
    metric = "idm/greedy/exact_match"
    means = [np.mean([row[metric] for row in found.values()]) for found in scores]
    assert table["SFT"][metric]["mean"][0] == pytest.approx(means[0])
    assert table["SFT"][metric]["difference"][0] == pytest.approx(means[1] - means[0])
