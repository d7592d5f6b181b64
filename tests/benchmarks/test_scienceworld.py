from __future__ import annotations

import json
import random
import shutil
from itertools import pairwise
from pathlib import Path

import pytest

from support.suites.scienceworld import step, write
from support.text_suites import SAMPLES, bert_folder, evaluated, tiny_model, tiny_trainer
from swirl_lightning.benchmarks.scienceworld import FILE, ScienceWorld, sha256
from swirl_lightning.prepare.scienceworld import choose, freeze, generate, replay, stray

REAL = SAMPLES / "scienceworld" / "gold_transitions.jsonl"


@pytest.fixture
def folder(tmp_path) -> Path:
    plan = [("train", range(4)), ("dev", range(4, 5)), ("test", range(5, 7))]
    rows = [
        step(task, variation, split, n)
        for task in ("boil", "melt")
        for split, variations in plan
        for variation in variations
        for n in range(3)
    ]
    write(tmp_path, rows)
    return tmp_path


def test_states_actions_and_splits(folder):
    data = ScienceWorld(str(folder))
    data.setup("fit")
    rows = {name: data.split(name) for name in ("warmup", "state_only", "validation", "test")}
    assert {name: len(found) for name, found in rows.items()} == {
        "warmup": 12,
        "state_only": 12,
        "validation": 6,
        "test": 12,
    }
    row = rows["test"][0]
    assert row.before == "Observation: boil 0\n\nThis room is called the hall.\n\nIn your inventory, you see:\n\ta cat"
    assert row.after.startswith("Observation: boil 1\n\nThis room is called the attic.")
    assert (row.action, row.id) == ("wait0", "test/boil/5/0")
    assert data.counts == {"all": {"records": 42, "used": 42, "skipped": 0}}
    assert all(pair.action is None for pair in data.pairs(0))
    for task in ("boil", "melt"):
        halves = [{r.meta["episode"] for r in rows[name] if r.meta["task"] == task} for name in rows]
        assert [len(found) for found in halves[:2]] == [2, 2]
        assert not halves[0] & halves[1]


def test_halves_depend_on_the_split_seed_alone(folder):
    def labelled(**options):
        return [row.id for row in ScienceWorld(str(folder), **options).split("warmup")]

    assert labelled() == labelled(seed=3)
    assert len({tuple(labelled(split_seed=seed)) for seed in range(5)}) > 1


def test_tasks_can_be_chosen(folder):
    data = ScienceWorld(str(folder), tasks=["melt"])
    assert [row.id for row in data.split("test")] == [f"test/melt/{v}/{n}" for v in (5, 6) for n in range(3)]
    with pytest.raises(ValueError, match=r"unknown ScienceWorld tasks \['fry'\]; .* has \['boil', 'melt'\]"):
        ScienceWorld(str(folder), tasks=["fry"]).setup("test")
    with pytest.raises(ValueError, match=r"limit must lie in \[1, inf\) or null"):
        ScienceWorld(str(folder), limit=0)


def test_a_limit_is_spread_over_all_tasks(folder):
    data = ScienceWorld(str(folder), limit=4)
    assert [row.id for row in data.split("test")] == [
        "test/boil/5/0",
        "test/boil/6/0",
        "test/melt/5/0",
        "test/melt/6/0",
    ]
    assert [row.id for row in data.split("validation")] == [
        f"dev/{task}/4/{n}" for task, n in (("boil", 0), ("boil", 1), ("melt", 0), ("melt", 1))
    ]
    used = {"test": {"records": 12, "used": 4, "left out by limit": 8}}
    used["validation"] = {"records": 6, "used": 4, "left out by limit": 2}
    assert data.counts == {"all": {"records": 42, "used": 42, "skipped": 0}, **used}
    assert len(ScienceWorld(str(folder), limit=99).split("test")) == 12
    assert len(data.split("warmup")) == 12


def test_missing_and_changed_files_stop_before_the_model(folder, gemma_path, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"1 of 1 files are missing:\n.*\n.*prepare\.scienceworld"):
        ScienceWorld(str(tmp_path / "none")).setup("test")
    path = folder / FILE
    (folder / f"{FILE}.sha256").write_text(f"{sha256(path)}  {FILE}\n")
    ScienceWorld(str(folder)).setup("test")
    path.write_text(path.read_text().replace("attic", "cellar"))
    module = tiny_model(gemma_path)
    with pytest.raises(ValueError, match=r"is not the file that .*sha256 was written for"):
        tiny_trainer(tmp_path).test(module, datamodule=ScienceWorld(str(folder)))
    assert module.model is None


BROKEN = [
    (json.dumps(step("boil", 5, "test", 0))[:80], "not JSON"),
    ({**step("boil", 5, "test", 0), "action": "  "}, "action must be a text that is not empty"),
    ({**step("boil", 5, "test", 0), "split": "exam"}, "split must be one of"),
    ({**step("boil", 5, "test", 0), "obs": None}, "obs must be a text"),
    ({**step("boil", 5, "test", 0), "obs": "\ud83d"}, "half of a surrogate pair"),
    ("[1]", "an object is needed"),
    ({**step("boil", 5, "test", 0), "variation": None}, "variation is missing"),
    (step("boil", 9, "test", 0), "comes twice"),
]


def broken_file(folder: Path) -> Path:
    good = step("boil", 9, "test", 0)
    path = write(folder, [good, *(row for row, _ in BROKEN)])
    with open(path, "ab") as file:
        file.write(json.dumps(step("boil", 7, "test", 0)).encode().replace(b"hall", b"h\xe4ll") + b"\n")
    return path


def test_broken_lines_are_named_counted_and_the_rest_is_scored(tmp_path, gemma_path):
    path = broken_file(tmp_path)
    data = ScienceWorld(str(tmp_path))
    with pytest.warns(UserWarning, match="9 of 10 records cannot be used") as caught:
        results = evaluated(data, gemma_path, tmp_path)
    message = next(str(w.message) for w in caught if "cannot be used" in str(w.message))
    for number, (_, reason) in enumerate(BROKEN, start=2):
        assert f"{path}:{number}: {reason}" in message or reason in message.split(f":{number}: ")[1]
    assert f"{path}:10: not JSON" in message
    counts = data.counts["all"]
    assert [counts.pop(name) for name in ("records", "used", "skipped")] == [10, 1, 9]
    assert sum(counts.values()) == 9
    assert counts["skipped: not JSON"] >= 1
    assert results["fwm/sampled/rouge_l"] >= 0


def test_strict_stops_before_the_model(tmp_path, gemma_path):
    broken_file(tmp_path)
    module = tiny_model(gemma_path)
    with pytest.raises(ValueError, match=r"gold_transitions\.jsonl:2: not JSON"):
        tiny_trainer(tmp_path).test(module, datamodule=ScienceWorld(str(tmp_path), strict=True))
    assert module.model is None


def test_end_to_end(folder, gemma_path, tmp_path):
    data = ScienceWorld(str(folder), batch_size=4, per_task=True)
    with pytest.warns(UserWarning, match=r"ScienceWorld: metrics left out:\n  bert_score: set bert"):
        results = evaluated(data, gemma_path, tmp_path)
    about = json.loads((tmp_path / "results.json").read_text())["about"]["test"]["base"]
    assert about["suite"] == "ScienceWorld"
    assert about["counts"] == {"all": {"records": 42, "used": 42, "skipped": 0}}
    assert about["missing"] == {"bert_score": "set bert, for example to roberta-large"}
    assert about["settings"]["data"]["data_sha256"] == sha256(folder / FILE)
    for name in ("exact_match", "rouge_l", "rouge_l/boil", "rouge_l/melt", "bleu_char", "bleu_word"):
        assert 0 <= results[f"fwm/sampled/{name}"] <= 100
    assert {"idm/sampled/exact_match", "idm/sampled/rouge_l", "likelihood"} <= set(results)
    again = evaluated(ScienceWorld(str(folder), eval_batch_size=5, per_task=True), gemma_path, tmp_path)
    assert again == pytest.approx(results, rel=1e-5)


def test_embedding_similarity_where_it_is_asked_for(folder, gemma_path, tmp_path):
    encoder = str(bert_folder(tmp_path / "bert"))
    results = evaluated(ScienceWorld(str(folder), embedding=encoder, per_task=True), gemma_path, tmp_path)
    assert -1 <= results["fwm/sampled/embedding_similarity"] <= 1
    assert "fwm/sampled/embedding_similarity/boil" in results
    data = ScienceWorld(str(folder), embedding=str(tmp_path / "none"))
    data.setup("test")
    assert "cannot be loaded" in data.missing_metrics["embedding_similarity"]
    assert "embedding_similarity" not in data.state_metrics()


def test_a_missing_package_leaves_its_metrics_out(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "nltk", None)
    data = ScienceWorld(str(folder))
    data.setup("test")
    assert list(data.missing_metrics) == ["bert_score", "bleu_char", "bleu_word"]
    assert set(data.state_metrics().keys()) == {"exact_match", "rouge_l"}


def test_trains_on_it(folder, gemma_path, tmp_path):
    from swirl_lightning import GRPOConfig

    trainer = tiny_trainer(tmp_path, max_epochs=3, limit_train_batches=1, limit_val_batches=0)
    trainer.fit(
        tiny_model(gemma_path, grpo=GRPOConfig(group_size=2)), datamodule=ScienceWorld(str(folder), batch_size=2)
    )
    assert trainer.current_epoch == 3


@pytest.mark.skipif(not REAL.is_file(), reason="no samples of ScienceWorld beside the repository")
def test_real_transitions(tmp_path, gemma_path):
    rows = [json.loads(line) for line in REAL.read_text().splitlines()]
    tasks = sorted({row["task"] for row in rows})
    for row in rows:
        row["split"] = {tasks[0]: "test", tasks[1]: "dev"}.get(row["task"], "train")
    write(tmp_path, rows)
    data = ScienceWorld(str(tmp_path), limit=3)
    data.setup("fit")
    assert data.counts["all"] == {"records": 229, "used": 229, "skipped": 0}
    found = [data.split(name) for name in ("warmup", "state_only")]
    assert {row.meta["task"] for split in found for row in split} == set(tasks[2:])
    assert 0 <= evaluated(data, gemma_path, tmp_path)["fwm/sampled/rouge_l"] < 0.5
    official = ScienceWorld(str(REAL.parent))
    assert len(official.split("warmup")) + len(official.split("state_only")) == 229


# ---- generator -----------------------------------------------------------------------------------
class Server:
    """The part of the simulator's server that the generator calls."""

    def __init__(self) -> None:
        self.steps = 0

    def freeActionLook(self) -> str:
        return f"room {self.steps}\n"

    def freeActionInventory(self) -> str:
        return "nothing\n"

    def getScore(self) -> float:
        return self.steps / 3

    def step(self, action: str) -> str:
        self.steps += action != "eat nothing"
        return f" did {action} "


class Simulator:
    """Three steps of gold path in every episode; notes what was loaded with a gold path."""

    def __init__(self, fail_after: int = 99) -> None:
        self.played: list[tuple[str, int]] = []
        self.fail_after = fail_after

    def get_task_names(self) -> list[str]:
        return ["boil", "melt"]

    def load(self, task: str, variation: int, simplifications: str, gold: bool) -> None:
        self.server = Server()
        if gold:
            if len(self.played) == self.fail_after:
                raise RuntimeError("Java died")
            self.played.append((task, variation))

    def get_gold_action_sequence(self) -> list[str]:
        return ["look", "open door", "go"]

    def get_valid_action_object_combinations(self) -> list[str]:
        return ["look around", "focus on door", "open door", "eat apple", "eat pie", "eat nothing"]

    def get_variations_train(self) -> list[int]:
        return list(range(10))

    get_variations_dev = get_variations_test = get_variations_train

    def close(self) -> None:
        pass


def test_replay_chains_states():
    rows = list(replay(Simulator(), "boil", 0, 2))
    assert [row["action"] for row in rows] == ["look", "open door"]
    assert rows[0]["prev_obs"] == "room 0"
    assert rows[0]["obs"] == rows[1]["prev_obs"] == "did look"
    assert rows[0]["look_after"] == rows[1]["look_before"] == "room 1\n"


def test_steps_off_the_path_go_on_from_it_and_change_what_is_seen():
    found, begun = set(), set()
    for seed in range(20):
        rows = list(stray(Simulator(), "boil", 0, 100, 4, random.Random(seed)))
        assert [row["step"] for row in rows] == [100, 101, 102, 103]  # a gold path of any length ends before
        assert not any(row["on_path"] or row["look_before"] == row["look_after"] for row in rows)
        assert all(one["look_after"] == other["look_before"] for one, other in pairwise(rows))
        found |= {row["action"] for row in rows}
        begun.add(rows[0]["look_before"])
    assert found == {"open door", "eat apple", "eat pie"}
    assert begun == {f"room {n}\n" for n in range(4)}


def test_an_interrupted_generation_goes_on_and_gives_the_same_file(tmp_path, monkeypatch):
    pytest.importorskip("scienceworld", reason="the version of the simulator is noted")
    module = "swirl_lightning.prepare.scienceworld._simulator"
    monkeypatch.setattr(module, Simulator)
    whole = generate(str(tmp_path / "whole"), train=2, dev=1, test=1)
    monkeypatch.setattr(module, lambda: Simulator(fail_after=3))
    with pytest.raises(RuntimeError, match="Java died"):
        generate(str(tmp_path / "two"), train=2, dev=1, test=1)
    second = Simulator()
    monkeypatch.setattr(module, lambda: second)
    path = generate(str(tmp_path / "two"), train=2, dev=1, test=1)
    assert len(second.played) == 8 - 3
    assert path.read_bytes() == whole.read_bytes()
    assert json.loads(path.with_suffix(".json").read_text())["transitions"] == {"train": 12, "dev": 6, "test": 6}
    data = ScienceWorld(str(path.parent))
    data.setup("fit")
    assert len(data.split("warmup")) == 6
    assert freeze(tmp_path / "two", [], {}).read_text() == ""


def test_steps_off_the_path_are_not_kept_for_another_seed(tmp_path, monkeypatch):
    pytest.importorskip("scienceworld", reason="the version of the simulator is noted")
    monkeypatch.setattr("swirl_lightning.prepare.scienceworld._simulator", Simulator)
    paths = [generate(str(tmp_path / name), train=10, dev=0, test=0, seed=1, off_path=3) for name in ("one", "two")]
    first = generate(str(tmp_path / "two"), train=10, dev=0, test=0, seed=0, off_path=3).read_bytes()
    again = generate(str(tmp_path / "two"), train=10, dev=0, test=0, seed=1, off_path=3).read_bytes()
    assert paths[0].read_bytes() == again != first


def test_variations_are_chosen_by_seed():
    counts = {"train": 3, "dev": 1, "test": 20}
    chosen = choose(Simulator(), counts, None, 0)
    assert len(chosen) == 2 * (3 + 1 + 10)
    assert chosen == choose(Simulator(), counts, None, 0) != choose(Simulator(), counts, None, 1)
    with pytest.raises(ValueError, match=r"unknown ScienceWorld tasks \['fry'\]; choose from \['boil', 'melt'\]"):
        choose(Simulator(), counts, ["fry"], 0)


@pytest.mark.skipif(shutil.which("java") is None, reason="no Java on this machine")
def test_the_real_simulator(tmp_path):
    pytest.importorskip("scienceworld", reason="the simulator is not installed")
    path = generate(str(tmp_path), train=2, dev=1, test=1, max_steps=4, tasks=["power-component"], off_path=2)
    data = ScienceWorld(str(tmp_path))
    data.setup("fit")
    assert data.counts["all"]["used"] == 16 + 8 == len(path.read_text().splitlines())
    assert sum(not row.meta["on_path"] for row in data.split("test")) == 2
    first = data.split("test")[0]
    assert first.before.startswith("Observation: This room is called")
    assert "In your inventory, you see" in first.after
