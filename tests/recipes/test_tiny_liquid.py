"""The shipped base: what it can do, what it has seen, and that it is what the recipe builds."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from recipes.tiny_edits import FLOOR, WALL, Scenes, agent_place, ahead
from recipes.tiny_lm import LMConfig, build_lm, exact_match, learning_rate, train_lm
from recipes.tiny_tasks import NAMES, PLACES, Sample, Tasks
from recipes.tiny_text import build_tokenizer, commands
from transformers import GemmaForCausalLM, PreTrainedTokenizerFast

from recipes import tiny_liquid, tiny_vqgan
from swirl_lightning.backbones.liquid import Liquid
from swirl_lightning.benchmarks.minigrid.simulator import generate
from swirl_lightning.benchmarks.minigrid.tiles import CELLS, HELD_OUT, Scene, read, split_of

BASE = "builtin/tiny-liquid"
CPU = torch.device("cpu")
CODES = list(range(len(CELLS)))
LEAST = {"changed": 0.6, "edit": 0.25, "copy": 0.9, "difference": 0.75}
"""Share of whole answers that must be right; guessing gives about 0 in each."""


@pytest.fixture(scope="module")
def base() -> Liquid:
    return Liquid(BASE, dtype="float32")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture(scope="module")
def training_scenes() -> Scenes:
    return Scenes(40, seed=11)


@pytest.fixture(scope="module")
def asked(tokenizer: PreTrainedTokenizerFast) -> list[Sample]:
    tasks = Tasks(Scenes(60, 3, "validation"), tokenizer, CODES)
    return [tasks.draw(task) for task in tuple(LEAST) for _ in range(24)]


# ---- the shipped files ---------------------------------------------------------------------------
def test_small_and_without_pickles(base: Liquid) -> None:
    files = [p for p in Path(base.path).rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 8e6
    assert {p.suffix for p in files} <= {".json", ".safetensors", ".yaml", ".sha256"}


def test_it_is_what_the_recipe_builds(base: Liquid, tokenizer: PreTrainedTokenizerFast) -> None:
    assert (Path(base.path) / tiny_liquid.HASH_FILE).read_text().strip() == tiny_liquid.recipe_hash()
    assert base.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert base.vqgan_config == tiny_vqgan.CONFIG


@pytest.mark.parametrize("quantization", ["nf4", None])
def test_it_understands_held_out_scenes(quantization: str | None, asked: list[Sample]) -> None:
    model = Liquid(BASE, dtype="float32", quantization=quantization).load_model()
    assert isinstance(model, GemmaForCausalLM)
    scores = exact_match(model, asked, pad=0)
    assert all(scores[task] >= least for task, least in LEAST.items()), scores


def test_frames_survive_the_codes(base: Liquid) -> None:
    steps = generate("validation", 40, seed=5)
    frames = [s for t in steps for s in (t.before, t.after) if isinstance(s, Image.Image)]
    codes = base.encode_states(frames, CPU)
    scenes = read(frames)
    assert (np.array(codes) - base.image_start == scenes.reshape(len(frames), -1)).all()
    decoded = [s for s in base.decode_states(codes, CPU) if isinstance(s, Image.Image)]
    assert (read(decoded) == scenes).mean() > 0.999


def test_text_comes_back_and_actions_are_short(base: Liquid) -> None:
    assert all(2 <= len(base.encode_text(command)) <= 6 for command in commands())
    for text in (*commands(), "Größe\n  \t~ 世界", ""):
        assert base.decode_text(base.encode_text(text)) == text


# ---- what it has seen ----------------------------------------------------------------------------
def test_no_held_out_layout_is_learnt_from(training_scenes: Scenes) -> None:
    for sparse in (False, True):
        for _ in range(200):
            scene = training_scenes.draw(sparse)
            edited, _ = training_scenes.edited(scene, 2)
            assert not {split_of(scene), split_of(edited)} & set(HELD_OUT)


def test_no_sample_ties_an_action_to_frames(training_scenes: Scenes, tokenizer: PreTrainedTokenizerFast) -> None:
    tasks = Tasks(training_scenes, tokenizer, CODES, PLACES | NAMES)
    for _ in range(300):
        sample = tasks.draw()
        text = tokenizer.decode([i for i in sample.ids if i < len(tokenizer)])
        if sample.task != "text":
            assert "Action" not in text
            assert not any(command in text for command in commands())
        else:
            assert max(sample.ids) < len(tokenizer)


# ---- the recipe's parts --------------------------------------------------------------------------
def _shown(sample: Sample, first_id: int, grid: int = 6) -> list[Scene]:
    codes = np.array([i - first_id for i in sample.ids if i >= first_id], dtype=np.uint8)
    return list(codes.reshape(-1, grid, grid))


@pytest.mark.parametrize("grid", [6, 8])
def test_answers_are_true(grid: int) -> None:
    tokenizer = build_tokenizer(grid)
    tasks, start = Tasks(Scenes(40, 11, grid=grid), tokenizer, CODES, PLACES | NAMES), len(tokenizer)
    for task in (
        *("changed", "count", "copy", "difference", "edit"),
        *("where", "ahead", "glance", "look", "objects", "draw"),
    ):
        sample = tasks.draw(task)
        scenes = _shown(sample, start, grid)
        text = tokenizer.decode([i for i in sample.ids if i < start], skip_special_tokens=True)
        if task == "changed":
            assert text.count(" to ") == (scenes[0] != scenes[1]).sum()
        elif task == "count":
            assert text.endswith(f"? {(scenes[0] != scenes[1]).sum()}")
        elif task == "copy":
            assert np.array_equal(*scenes)
        elif task == "difference":
            assert np.array_equal(scenes[2], np.where(scenes[0] != scenes[1], scenes[1], FLOOR))
        elif task == "edit":
            assert (scenes[0] != scenes[1]).any()
        elif task == "ahead":
            front = ahead(scenes[0])
            name = "nothing" if front is None else CELLS[scenes[0].reshape(-1)[front]].name
            assert f"agent: {name}" in text
            at = agent_place(scenes[0])
            assert text.endswith(f"row {at // grid + 1} column {at % grid + 1}")
        elif task in ("glance", "look"):
            said = re.findall(r"row (\d) column (\d): ([^;]+);", text)
            assert len(said) == {"glance": 6, "look": 7}[task]
            for row, column, name in said:
                assert CELLS[scenes[0][int(row) - 1, int(column) - 1]].name == name


@pytest.mark.parametrize("bare_weight", [0.3, 1.0])
def test_bare_cells_of_an_answer_have_less_weight(
    bare_weight: float, training_scenes: Scenes, tokenizer: PreTrainedTokenizerFast
) -> None:
    sample = Tasks(training_scenes, tokenizer, CODES, PLACES, bare_weight).draw("copy")
    first_id, cells = len(tokenizer), _shown(sample, len(tokenizer))[1].reshape(-1)
    weights = [w for i, w in zip(sample.ids, sample.weights, strict=True) if i >= first_id][-len(cells) :]
    assert weights == [bare_weight if cell in (FLOOR, WALL) else 1.0 for cell in cells]


def test_learning_rate_rises_stays_and_falls() -> None:
    settings = LMConfig(steps=1000, warmup=100, decay=0.5, learning_rate=1.0)
    assert [learning_rate(step, settings) for step in (0, 49, 99, 499, 750, 999)] == [0.01, 0.5, 1, 1, 0.5, 0.01]
    assert learning_rate(999, replace(settings, decay=0.0)) == 1


def test_the_vqgan_learns_and_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_vqgan, "STAGES", {"both": (6, 1), "decoder": (2, 1)})
    lines: list[str] = []
    model = tiny_vqgan.train_vqgan(tiny_liquid.tiles(), FLOOR, WALL, 0, lines.append)
    assert len(lines) == 2
    coded, painted = tiny_vqgan.check_vqgan(model, tiny_liquid.tiles()[:, :, :, :], FLOOR, WALL, 1)
    assert 0 <= min(coded, painted) <= max(coded, painted) <= 1


def test_a_base_for_larger_frames(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small = LMConfig(hidden=32, layers=1, heads=2, mlp=32, batch=4, chunk=2, steps=2, evaluate_every=2, save_every=2)
    monkeypatch.setattr(tiny_vqgan, "STAGES", {"both": (8, 2)})
    monkeypatch.setattr(tiny_vqgan, "check_vqgan", lambda *_: (1.0, 1.0))
    monkeypatch.setattr(tiny_liquid, "STAGES", ((NAMES, 1.0, small),))
    monkeypatch.setattr(tiny_liquid, "HELD_OUT_TASKS", {"copy": 2})
    monkeypatch.setattr(tiny_liquid, "BASE_TRANSITIONS", 40)
    tiny_liquid.build(tmp_path, lambda line: None, grid=8)
    base = Liquid(str(tmp_path), dtype="float32")
    frames = [row.before for row in generate("test", 4, grid=8)]
    codes = base.encode_states(frames, CPU)
    assert {len(code) for code in codes} == {64}
    assert {state.size for state in base.decode_states(codes, CPU) if isinstance(state, Image.Image)} == {(64, 64)}


def test_the_language_model_learns(training_scenes: Scenes, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    settings = LMConfig(hidden=32, layers=1, heads=2, mlp=32, batch=8, chunk=4, steps=6, evaluate_every=3, save_every=6)
    torch.manual_seed(0)
    model = build_lm(settings, tokenizer, 128)
    tasks, lines = Tasks(training_scenes, tokenizer, CODES), []
    held_out = [tasks.draw("copy")]
    average = train_lm(model, tasks, held_out, settings, 0, lines.append, lambda m: tiny_liquid.save_lm(m, tmp_path))
    assert [line for line in lines if "exact" in line]
    again = GemmaForCausalLM.from_pretrained(tmp_path, dtype="float32")
    for a, b in zip(average.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0.01, atol=1e-3)
