"""Six suites through ``swirl test``: whole, killed in the middle, and on two processes."""

from __future__ import annotations

import json
import signal

import pytest
import torch
from PIL import Image

from support.image_world import liquid_folder
from support.judge_server import KEY, serving
from support.processes import swirl
from support.suites import HOMES, IMAGE_SUITES, write_config
from swirl_lightning.__main__ import main
from swirl_lightning.results.table import read


def results(folder):
    return read(folder / "run" / "results.json")["test"]["base, best of 2"]


def predicted(folder):
    """Lines of all processes, in no order."""
    files = (folder / "run" / "predictions").glob("sampled-rank*.jsonl")
    return [json.loads(line) for path in files for line in path.read_text().splitlines()]


def generated(folder):
    files = (folder / "run" / "predictions").glob("generated-rank*.jsonl")
    return [json.loads(line)["key"] for path in files for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def small(tmp_path_factory, gemma_path):
    """A base for a suite, as small as can be."""
    liquid = liquid_folder(tmp_path_factory.mktemp("liquid"))
    return lambda name: liquid if name in IMAGE_SUITES else gemma_path


EXPECTED = {
    "aurora": (9, "fwm/sampled/clip_target/kubric"),
    "bytemorph": (4, "fwm/sampled/clip_d_img/camera_zoom"),
    "worldprediction": (5, "fwm/sampled/clip_target/COIN/turn 2"),
    "scienceworld": (27, "fwm/sampled/rouge_l/boil"),
    "mind2web": (9, "idm/sampled/element_accuracy/test_domain"),
    "stabletoolbench": (15, "fwm/sampled/bleu_char/OOD-fail"),
}
"""Number of predicted states, and a metric that only this suite has."""


@pytest.mark.parametrize("name", HOMES)
def test_end_to_end_by_the_command(name, tmp_path, gemma_path, capsys):
    base = "builtin/tiny-liquid" if name in IMAGE_SUITES else gemma_path
    config = write_config(name, tmp_path, base, eval_batch_size=8)
    main(["test", "-c", str(config)])
    count, metric = EXPECTED[name]
    assert metric in results(tmp_path)
    assert {"identifiability", "fwm/log_prob", "idm/sampled/exact_match"} <= results(tmp_path).keys()
    lines = predicted(tmp_path)
    assert len({line["id"] for line in lines}) == len(lines) == count
    about = read(tmp_path / "run" / "results.json")["about"]["test"]["base, best of 2"]
    assert about["suite"].lower() == name
    assert [part["skipped"] for part in about["counts"].values()] == [0]
    if name in IMAGE_SUITES:
        folder = tmp_path / "run" / "predictions"
        assert {Image.open(folder / line["predicted_state"]).size for line in lines} == {(48, 48)}
        assert Image.open(folder / "contact_sheet.png").height > 128
    capsys.readouterr()
    main(["report", str(tmp_path / "run")])
    assert about["suite"] in capsys.readouterr().out


def test_killed_in_the_middle_it_repeats_nothing(tmp_path, small, monkeypatch):
    """SIGKILL to a process of its own; then a new start, against a run that was left alone."""
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with serving() as server:
        server.answer = lambda request: json.dumps({"score": len(json.dumps(request)) % 11})

        def config(folder):
            init = {"model": "grader", "base_url": server.url, "api_key_env": "JUDGE_KEY", "concurrency": 1}
            init["cache_dir"] = str(folder / "kept")
            judge = {"class_path": "swirl_lightning.judge.Judge", "init_args": init}
            return write_config("aurora", folder, small("aurora"), judge=judge)

        alone, killed = tmp_path / "alone", tmp_path / "killed"
        main(["test", "-c", str(config(alone))])
        questions = len(server.requests)
        assert questions > 10

        path = config(killed)
        kill = ["--trainer.callbacks+=support.suites.KillAt", "--trainer.callbacks.batch=3"]
        kill += ["--trainer.callbacks.answers=5", f"--trainer.callbacks.cache_dir={killed / 'kept'}"]
        done = swirl("test", "-c", path, *kill)
        assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
        assert not (killed / "run" / "results.json").exists()
        before = generated(killed)
        assert 0 < len(before) < len(generated(alone))
        answered = len(list((killed / "kept").rglob("*.json")))
        server.requests.clear()

        main(["test", "-c", str(path)])
        after = generated(killed)
        assert after[: len(before)] == before
        assert len(set(after)) == len(after)  # nothing was generated twice
        assert sorted(after) == sorted(generated(alone))
        assert len(server.requests) == questions - answered  # nothing was judged twice
        assert predicted(killed) == predicted(alone)
        spent = ("prompt_tokens", "completion_tokens")  # of this process alone
        assert {k: v for k, v in results(killed).items() if not k.endswith(spent)} == {
            k: v for k, v in results(alone).items() if not k.endswith(spent)
        }


@pytest.mark.skipif(not torch.distributed.is_available(), reason="no torch.distributed")
@pytest.mark.parametrize("name", ["worldprediction"])
def test_two_processes_give_the_scores_of_one(name, tmp_path, small):
    """An odd number of samples: one process has one more than the other."""
    one, two = tmp_path / "one", tmp_path / "two"
    main(["test", "-c", str(write_config(name, one, small(name)))])
    spread = ("--trainer.strategy=ddp", "--trainer.devices=2")
    done = swirl("test", "-c", write_config(name, two, small(name)), *spread, ranks=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert read(two / "run" / "results.json")["about"]["test"]["base, best of 2"]["settings"]["devices"] == 2
    # batches of another shape round otherwise: a CLIP score has been seen to move by 1e-5 from one CPU's kernels to
    # another's; a sample lost moves at least one mean by more than 1e-2 in each of these suites
    assert results(two) == pytest.approx(results(one), abs=1e-4)
    shares = [len((two / "run" / "predictions" / f"sampled-rank{r}.jsonl").read_text().splitlines()) for r in (0, 1)]
    assert shares[0] != shares[1]
    alone, shared = ({line["id"]: line for line in predicted(folder)} for folder in (one, two))
    assert len(alone) == sum(shares)
    assert shared == alone
