"""Checkpoints, judges' answers and files of earlier runs with random damage: refused in words, or left out."""

from __future__ import annotations

import copy
import json
import math
from contextlib import suppress
from dataclasses import asdict

import pytest
import torch
from PIL import Image

from support.cli import config, here
from support.damage import ODD, Damage
from support.suites.scienceworld import step
from support.swirl import build, equal
from swirl_lightning import SWIRL
from swirl_lightning.callbacks.row_scores import read as read_scores
from swirl_lightning.checkpoints.file import check_file
from swirl_lightning.checkpoints.restore import load_into
from swirl_lightning.engine.drawing import SamplingConfig
from swirl_lightning.exports.settings import build as build_shared
from swirl_lightning.exports.settings import read as read_settings
from swirl_lightning.generation_store import GenerationStore
from swirl_lightning.judge.client import _read
from swirl_lightning.judge.endpoint import Unanswered, _message, _reply, _retry_after
from swirl_lightning.judge.templates import builtin
from swirl_lightning.prepare.edit_corpora import write as write_edits
from swirl_lightning.prepare.scienceworld import freeze
from swirl_lightning.prepare.video_pairs import PairConfig, _check_settings, _entries
from swirl_lightning.prompts import PromptTemplates
from swirl_lightning.results.curves import scalars
from swirl_lightning.results.table import read as read_results
from swirl_lightning.results.table import table
from swirl_lightning.use.label_log import LabelLog


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, gemma_path):
    """Configuration, checkpoint and its run's folder, after the first micro-batch of Phase I."""
    folder = tmp_path_factory.mktemp("run")
    path = config(folder, gemma_path, **{"data/init_args": {"size": 8, "batch_size": 8}})
    here("fit", "-c", path, "--trainer.max_steps", "2")
    return path, folder / "runs" / "r" / "checkpoints" / "last.ckpt"


def outcome(call, *args, **options):
    """What a call returns, and its message if it refuses: one that a user can read."""
    try:
        return call(*args, **options), None
    except ValueError as error:
        message = str(error)
    assert 10 < len(message) < 20_000
    return None, message


# ---- checkpoints -----------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(60))
def test_bytes_of_a_checkpoint(checkpoint, tmp_path, seed):
    """Replaced, cut off, doubled or moved: every change is found, or changes nothing."""
    damage, path = Damage(seed), tmp_path / "x.ckpt"
    whole = checkpoint[1].read_bytes()
    at = damage.draw.randrange(len(whole))
    path.write_bytes((whole[:at] + whole, whole[at:], damage.content(whole, share=1.0))[seed % 3])
    if (told := outcome(check_file, path, resume=True)[1]) is not None:
        assert len(told.splitlines()) == 1
        return
    same, given = (torch.load(file, weights_only=True) for file in (path, checkpoint[1]))
    assert equal(same["state_dict"], given["state_dict"])


def replaced(state, place, value):
    """A copy without the entry at a place, or with another one there."""
    at = state = copy.copy(state)
    for key in place[:-1]:
        at[key] = copy.copy(at[key])
        at = at[key]
    if value is None:
        at.pop(place[-1], None)
    else:
        at[place[-1]] = value
    return state


TENSORS = [torch.zeros(2, 3), torch.ones(1, dtype=torch.int64), torch.tensor(float("nan"))]


def test_values_of_a_checkpoint(checkpoint, gemma_path, tmp_path):
    """Each is dropped or replaced: refused, or weights of the right shape are loaded."""
    draw, path = Damage(0).draw, tmp_path / "x.ckpt"
    module = SWIRL.load_from_checkpoint(checkpoint[1], backbone=build(gemma_path).backbone)
    state = torch.load(checkpoint[1], weights_only=True)
    shapes = {name: tensor.shape for name, tensor in state["state_dict"].items()}
    places = [(key,) for key in state] + [("swirl", key) for key in state["swirl"]]
    for part in ("base", "lora", "parts", "lengths"):
        places += [("swirl", part, key) for key in [*state["swirl"][part], "new", 7]]
    places += [("state_dict", key) for key in [*[*shapes][:3], "new", 7]]
    told = []
    for place in places:
        for value in draw.sample([*TENSORS, *ODD], 3):
            torch.save(replaced(state, place, value), path)
            told.append(outcome(check_file, path, resume=True)[1] or outcome(loaded, path, module)[1])
            assert {name: tensor.shape for name, tensor in module.state_dict().items()} == shapes, (place, value)
    assert len(told) > 110
    assert sum(line is not None for line in told) > 50


def test_what_torch_says_at_length_of_a_tensor_is_one_line(checkpoint, gemma_path, tmp_path):
    module = SWIRL.load_from_checkpoint(checkpoint[1], backbone=build(gemma_path).backbone)
    state, path = torch.load(checkpoint[1], weights_only=True), tmp_path / "x.ckpt"
    name, tensor = next(iter(state["state_dict"].items()))
    torch.save(replaced(state, ("state_dict", name), tensor.to_sparse()), path)
    told = outcome(loaded, path, module)[1]
    assert "cannot be restored (NotImplementedError" in told
    assert len(told.splitlines()) == 1
    assert len(told) < 800


def loaded(path, module):
    load_into(module, torch.load(path, weights_only=True))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("loops", "fit_loop", "epoch_progress"), None),
        (("loops", "fit_loop", "epoch_loop.batch_progress", "current"), "x"),
        (("optimizer_states", 0, "param_groups"), [1, 2]),
        (("lr_schedulers",), [7]),
        (("swirl", "rng"), [{"python": 1}]),
        (("swirl", "updates"), [{0: {"other": 1}}]),
        (("swirl", "window"), [7]),
        (("swirl", "learned"), {"learner": 5}),
        (("swirl", "learned"), {"reward": {"state": {}}}),
        (("optimizer_states", 0, "state", 0, "exp_avg"), torch.ones(7)),
        (("optimizer_states", 0, "state", 0, "exp_avg_sq"), "x"),
        (("optimizer_states", 0, "state", 0, "exp_avg_sq"), torch.ones(4, 64).to_sparse()),
        (("optimizer_states", 0, "state", 0), {"step": torch.tensor(1.0), "exp_avg": torch.ones(4, 64)}),
        (("optimizer_states", 0, "state", 0, "step"), -1),
        (("optimizer_states", 0, "state", 0, "step"), torch.tensor(0.0)),
        (("optimizer_states", 0, "state", 0, "step"), torch.ones(3)),
        (("swirl", "rng", 0, "numpy", 1), [2**40] * 624),
    ],
)
def test_what_a_training_goes_on_with(checkpoint, place, value):
    path, last = checkpoint
    spoilt = last.with_name("spoilt.ckpt")  # in the run's own folder, or the fit would be another run there
    torch.save(replaced(torch.load(last, weights_only=True), place, value), spoilt)
    with pytest.raises(SystemExit) as end:
        here("fit", "-c", path, "--ckpt_path", spoilt, "--trainer.max_steps", "3")
    (line,) = str(end.value.code).splitlines()
    assert line.startswith("error: ")
    assert "cannot be restored (" in line


SHARED = {
    "base": {"name": "owner/name", "revision": None, "architecture": "a", "weights": "b"},
    "label": "SFT",
    "backbone": {"family": "TextLLM", "options": {"dtype": "float32", "max_state_tokens": 4, "gguf_file": None}},
    "lora": {"r": 4, "alpha": 8, "target_modules": None},
    "shared_weights": False,
    "roles": ["fwm", "idm"],
    "sampling": asdict(SamplingConfig()),
    "templates": asdict(PromptTemplates()),
}


@pytest.mark.parametrize("seed", range(40))
def test_settings_of_a_shared_folder(tmp_path, seed):
    damage = Damage(seed)
    for _ in range(8):
        (tmp_path / "swirl.json").write_bytes(damage.content(json.dumps(damage.value(SHARED)).encode(), share=0.05))
        settings, told = outcome(read_settings, tmp_path)
        module, told = (None, told) if settings is None else outcome(build_shared, SWIRL, settings, None)
        assert told is not None or type(module.backbone).__name__ == settings["backbone"]["family"]


def test_words_of_a_shared_folder_that_cannot_be_encoded(tmp_path):
    given = SHARED | {"templates": {"fwm": "\ud800{before}{action}", "idm": "{before}{after}"}}
    (tmp_path / "swirl.json").write_text(json.dumps(given))
    assert "no text that can be encoded" in outcome(build_shared, SWIRL, read_settings(tmp_path), None)[1]


def test_templates_take_states_and_actions_as_they_are():
    for wrong in ("{before:>99}{action}", "{before!r}{action}"):
        with pytest.raises(ValueError, match=r"templates\.fwm: states and actions enter as they are"):
            PromptTemplates(fwm=wrong)


def test_a_shared_folder_of_many_names(tmp_path):
    lora = SHARED["lora"] | {"target_modules": [f"layer{index}" for index in range(10_000)]}
    (tmp_path / "swirl.json").write_text(json.dumps(SHARED | {"lora": lora}))
    with pytest.raises(ValueError, match=r"swirl\.json is damaged: .* bytes are more than 100,000"):
        read_settings(tmp_path)


# ---- a judge's answers -----------------------------------------------------------------------------
def completion(damage):
    """A body as OpenAI's API gives it, and what servers of other minds make of it."""
    score = damage.draw.choice([7, "7", -1, 11, [3, 4], *ODD])
    words = damage.draw.choice(["", "Well. ", "```json\n", "{" * 200, '{"Score": 3} or '])
    text = words + json.dumps({damage.draw.choice(["score", "Score", "mark"]): score})
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": damage.draw.choice([5, -5, *ODD]), "completion_tokens": 2}
    return {"id": "1", "choices": [{"index": 0, "message": message}], "usage": usage, "error": {"message": text}}


@pytest.mark.parametrize("name", ["aurora", "bytemorph", "worldprediction"])
@pytest.mark.parametrize("seed", range(40))
def test_answers_of_a_judge(tmp_path, name, seed):
    damage, template, cache = Damage(seed), builtin(name), tmp_path / "answer.json"
    for _ in range(10):
        body = damage.content(json.dumps(damage.value(completion(damage))).encode())
        assert isinstance(_message(body), str)
        headers = [None, "", "-1", "1" * 400, "\xa0" * 12 + "5", "١", "Thu, 99 Feb", body.decode("latin-1")]
        header = damage.draw.choice(headers)
        assert _retry_after(header) >= 0
        cache.write_bytes(body)
        texts = [_read(cache)]
        with suppress(Unanswered):
            reply = _reply(body)
            assert min(reply.prompt_tokens, reply.completion_tokens) >= 0
            texts.append(reply.text)
        for text in texts:
            score, problem = template.parse(text)
            assert (score is None) == (problem == "unparsable")
            assert score is None or template.low <= score <= template.high


# ---- files of earlier runs -------------------------------------------------------------------------
def label_line(n):
    record = {"id": f"r{n}", "before": "a", "after": "b", "action": "go", "log_prob": -0.5, "given_action": "go"}
    return {"key": str(n), "record": record} if n % 4 else {"key": str(n), "id": f"r{n}", "skipped": "too long"}


@pytest.mark.parametrize("seed", range(40))
def test_a_log_of_labels(tmp_path, seed):
    damage = Damage(seed)
    damage.lists(tmp_path / "all-rank0.jsonl", [label_line(n) for n in range(12)], lines=True)
    log = LabelLog(tmp_path / "new", {"a": 1})
    log.folder = tmp_path
    found = log.read()
    summary, told = outcome(log.summary, list(found), -1.0, -1.0 if seed % 2 else None, 0)
    if summary is None:
        assert "records cannot be used" in told  # all of those that are left
        return
    assert summary.lines()
    log.write(summary)
    assert all(math.isfinite(record["log_prob"]) for record in summary.kept)


@pytest.mark.parametrize("seed", range(40))
def test_what_was_generated(tmp_path, seed):
    damage = Damage(seed)
    lines = [{"key": str(n), "ids": [[n, 2, 3], [4]]} for n in range(12)]
    damage.lists(tmp_path / "generated-rank0.jsonl", lines, lines=True)
    store = GenerationStore(tmp_path, {})
    assert all(store.get(str(n), 3) is None for n in range(12))
    for ids in filter(None, (store.get(str(n), 2) for n in range(12))):
        assert all(type(number) is int and 0 <= number < 2**31 for sample in ids for number in sample)


@pytest.mark.parametrize("seed", range(40))
def test_a_log_of_videos(tmp_path, seed):
    damage = Damage(seed)
    pair = {"id": "v@1", "before_image": "a.jpg", "after_image": "b.jpg"}
    reasons = [{"left_out": {"too dark": 2}}, {"reason": "too dark"}]  # as it is written now, and as it was
    lines = [{"video": f"{n}.mp4", "pairs": [pair], **reasons[n % 2]} for n in range(8)]
    damage.lists(tmp_path / "videos.jsonl", lines, lines=True)
    for entry in _entries(tmp_path / "videos.jsonl"):
        assert isinstance(entry["video"], str)
        assert all(type(count) is int for count in entry["left_out"].values())
        assert all("id" in pair for pair in entry["pairs"])
    (tmp_path / "settings.json").write_bytes(damage.content(b'{"seconds": 6.0}', share=1.0))
    calls = [(_check_settings, tmp_path / "settings.json", PairConfig()), (LabelLog, tmp_path, {"a": 1})]
    for call, *given in calls:
        _, told = outcome(call, *given)
        assert told is not None  # no damage makes these settings
        assert str(tmp_path) in told
        assert len(told.splitlines()) == 1


@pytest.mark.parametrize("seed", range(40))
def test_a_manifest_of_edits(tmp_path, seed):
    damage = Damage(seed)
    for n in range(4):
        Image.new("RGB", (8, 8), (n, 0, 0)).save(tmp_path / f"{n}.png")
    single = {"text": "add a hat", "edit_type": "Add", "local_input_image": "0.png", "output_image": "1.png"}
    several = {"files": [{"url": f"https://x.org/{n}.png"} for n in range(3)], "metadata_edit_turn_prompts": ["a", "b"]}
    damage.lists(tmp_path / "x.jsonl", [single, several] * 5, lines=True)
    counts, told = outcome(write_edits, tmp_path / "out" / "warmup.jsonl", (), [tmp_path / "x.jsonl"], validation=1)
    if counts is None:
        assert "usable" in told or "cannot be used" in told
        return
    rows = [json.loads(line) for path in (tmp_path / "out").iterdir() for line in path.read_text().splitlines()]
    assert len(rows) == counts["used"]
    assert all(row["action"].strip() and (tmp_path / "out" / row["after_image"]).is_file() for row in rows)


@pytest.mark.parametrize("seed", range(20))
def test_episodes_of_scienceworld(tmp_path, seed):
    damage, path = Damage(seed), tmp_path / "dev-boil-0.jsonl"
    damage.lists(path, [step("boil", 0, "dev", n) for n in range(8)], lines=True)
    made, told = outcome(freeze, tmp_path, [path], {})
    if made is None:
        assert f"{path}:" in told
    else:
        assert all(json.loads(line)["split"] for line in made.read_text().split("\n")[:-1])


@pytest.mark.parametrize("seed", range(40))
def test_scores_and_results(tmp_path, seed):
    damage = Damage(seed)
    lines = [{"id": f"t{n}", "mode": "greedy", "fwm/greedy/exact_match": 1.0} for n in range(8)]
    damage.lists(tmp_path / "row_scores" / "rank0.jsonl", lines, lines=True)
    about = {"label": "SFT", "suite": "x", "counts": {"test": {"used": 8}}, "settings": {"evaluation": {"seed": 0}}}
    results = {"test": {"SFT": {"fwm/greedy/exact_match": 0.5}}, "about": {"test": {"SFT": about}}}
    (tmp_path / "results.json").write_bytes(damage.content(json.dumps(damage.value(results)).encode()))
    for read in (lambda: read_scores(tmp_path), lambda: read_results(tmp_path / "results.json")):
        found, told = outcome(read)
        if found is None:
            assert str(tmp_path) in told
            continue
        for split, rows in found.items():
            if split != "about" and all(isinstance(row, dict) for row in rows.values()):
                assert table(rows).row_count == len(rows)


@pytest.mark.parametrize("seed", range(20))
def test_tensorboard_files(tmp_path, seed):
    from torch.utils.tensorboard import SummaryWriter

    damage = Damage(seed)
    with SummaryWriter(tmp_path) as writer:
        for step in range(10):
            writer.add_scalar("fwm/reward", float(step), step)
    (path,) = tmp_path.glob("events*")
    path.write_bytes(damage.content(path.read_bytes(), share=1.0))
    for curve in scalars(tmp_path, ["fwm/reward", "idm/reward"]).values():
        assert len(curve.positions) == len(curve.values)
        assert set(curve.values) <= set(range(10))
