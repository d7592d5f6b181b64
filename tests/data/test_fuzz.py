"""Files of every suite with random damage: each gives whole records, or says in words what is wrong with it."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support.damage import Damage
from support.image_world import write_aurora
from support.suites import mind2web, scienceworld, stabletoolbench, worldprediction
from swirl_lightning.benchmarks.aurora import Aurora
from swirl_lightning.benchmarks.mind2web import Mind2Web
from swirl_lightning.benchmarks.scienceworld import ScienceWorld
from swirl_lightning.benchmarks.stabletoolbench import StableToolBench
from swirl_lightning.benchmarks.worldprediction import WorldPrediction
from swirl_lightning.data import JSONLTransitions, TransitionDataModule
from swirl_lightning.data.images import FORMATS


def own(folder: Path, damage: Damage) -> TransitionDataModule:
    record = {"before": "a", "after": "b", "action": "c", "own": [1, {"y": 2}]}
    damage.lists(folder / "x.jsonl", [record | {"id": n} for n in range(8)], lines=True)
    path = str(folder / "x.jsonl")
    return JSONLTransitions(warmup=path, state_only=path, validation=path, test=path, batch_size=1)


def parquet(folder: Path, damage: Damage) -> TransitionDataModule:
    pa, written = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = folder / "x.parquet"
    rows = [{"before": f"a{n}", "after": "b", "action": "c", "id": n} for n in range(8)]
    written.write_table(pa.Table.from_pylist(rows), path, compression="none")
    path.write_bytes(damage.content(path.read_bytes(), share=0.9))
    names = ("warmup", "state_only", "validation", "test")
    return JSONLTransitions(**dict.fromkeys(names, str(path)), batch_size=1)


def images(folder: Path, damage: Damage) -> TransitionDataModule:
    pixels = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24), dtype=np.uint8))
    records = []
    for n, kind in enumerate(damage.draw.choices(FORMATS, k=6)):
        content = io.BytesIO()
        pixels.convert("L" if kind == "GIF" else "RGB").save(content, kind)
        (folder / str(n)).write_bytes(damage.content(content.getvalue(), share=0.8))
        records.append({"before_image": str(n), "after_image": "0", "action": "go"})
    (folder / "x.jsonl").write_text("\n".join(map(json.dumps, records)))
    path = str(folder / "x.jsonl")
    return JSONLTransitions(warmup=path, state_only=path, validation=path, test=path, batch_size=1)


def aurora(folder: Path, damage: Damage) -> TransitionDataModule:
    damage.lists(folder / "test.json", write_aurora(folder))
    path = folder / "data" / "kubric" / "train.json"
    damage.lists(path, json.loads(path.read_text()))
    return Aurora(data_dir=str(folder), validation_size=1)


def world(folder: Path, damage: Damage) -> TransitionDataModule:
    pytest.importorskip("av")
    content = {"COIN": {str(n): worldprediction.sample(n) for n in range(3)}}
    worldprediction.write(folder, content)
    damage.lists(folder / "WorldPrediction-PP.json", content)
    return WorldPrediction(data_dir=str(folder), ground_truth=damage.draw.choice(["0", "auto"]))


def stable(folder: Path, damage: Damage) -> TransitionDataModule:
    for name in ("train_sft.json", "test_sft/id_high.json"):
        damage.lists(folder / name, [stabletoolbench.mirror(n) for n in range(8)])
    return StableToolBench(str(folder), test_splits=["ID-high"], validation_episodes=2)


def science(folder: Path, damage: Damage) -> TransitionDataModule:
    places = [(split, n, m) for split in ("train", "dev", "test") for n in range(3) for m in range(2)]
    rows = [scienceworld.step("boil", n, split, m) for split, n, m in places]
    damage.lists(folder / scienceworld.FILE, rows, lines=True)
    return ScienceWorld(str(folder))


def web(folder: Path, damage: Damage) -> TransitionDataModule:
    pytest.importorskip("lxml")
    for part in ("train", "test_task"):
        damage.lists(folder / part / f"{part}_0.json", [mind2web.task(f"t{n}") for n in range(4)])
    return Mind2Web(str(folder), test_splits=["test_task"], validation_episodes=1)


KINDS: list[Callable[[Path, Damage], TransitionDataModule]] = [
    *(own, parquet, images),
    *(aurora, world, stable, science, web),
]


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_damage_is_said_or_costs_its_records_alone(tmp_path, kind, seed):
    data = kind(tmp_path, Damage(seed))
    for stage in ("test",) if kind is world else ("fit", "test", "predict"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                data.setup(stage)
                refused = None
            except (ValueError, OSError) as error:  # a line for the user; anything else would be a traceback
                refused = str(error)
        assert all(len(str(warning.message)) < 20_000 for warning in caught)
        if refused is not None:
            assert 10 < len(refused) < 20_000
            continue
        for split in ("test",) if stage != "fit" else ("warmup", "validation"):
            rows = list(data.predict_rows() if stage == "predict" else data.split(split))
            assert rows
            assert len({row.id for row in rows}) == len(rows)
            for row in rows:
                check(row, complete=stage != "predict" and kind is not aurora)


def check(row: Any, complete: bool) -> None:
    """Fail if a record could end a run: on its way to the model, to a file, or to another process."""
    assert row.action or not complete
    for state in (row.before, row.after, *(turn.after for turn in row.turns)):
        assert isinstance(state, str | Image.Image) or (state is None and not complete)
        assert not isinstance(state, Image.Image) or state.mode == "RGB"
    texts = [row.id, row.action or "", *(state for state in (row.before, row.after) if isinstance(state, str))]
    assert all(isinstance(text, str) for text in texts)
    json.dumps([*texts, row.meta], ensure_ascii=False, default=str).encode()
