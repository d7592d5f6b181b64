"""``swirl predict`` on records without a state after, and on records without an action."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import yaml
from PIL import Image

from support.cli import config, here
from support.evaluated import evaluated
from support.tiny import text_backbone
from support.tiny_liquid import SIDE, liquid_folder, noise_images
from support.trainers import quiet_trainer
from support.world import Digits
from swirl_lightning import SWIRL, Transition
from swirl_lightning.callbacks import PhaseSwitch

CPU = torch.device("cpu")


def predictions(path, records, at):
    """Run the command, and return the lines that it writes, by id."""
    (at / "test.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    here("predict", "-c", path)
    written = at / "runs" / "r" / "predictions" / "predict-rank0.jsonl"
    return {row["id"]: row for row in map(json.loads, written.read_text().splitlines())}


def settings(at, model, **changes):
    data = {
        "class_path": "swirl_lightning.data.JSONLTransitions",
        "init_args": {"test": str(at / "test.jsonl"), "batch_size": 8},
    }
    return config(at, model, data=data, **changes)


def test_texts(tmp_path, gemma_path):
    records = [
        {"id": "both", "before": "12", "after": "13", "action": "add"},
        {"id": "ahead", "before": "12", "action": "add", "predicted_state": 1, "predicted_action": "theirs", "clip": 3},
        {"id": "back", "before": "12", "after": "13"},
    ]
    older = [tmp_path / "runs" / "r" / "predictions" / f"{name}.jsonl" for name in ("predict-rank1", "sampled-rank1")]
    older[0].parent.mkdir(parents=True)
    for path in older:
        path.write_text("{}\n")
    found = predictions(settings(tmp_path, gemma_path), records, tmp_path)
    assert [path.exists() for path in older] == [False, True]  # of an earlier prediction on two devices, and of a test
    assert found["ahead"]["clip"] == 3
    assert list(found) == ["both", "ahead", "back"]
    assert all(isinstance(row["predicted_state"], str) for row in found.values())
    assert [row["action"] for row in found.values()] == ["add", "add", None]
    assert [isinstance(row["predicted_action"], str) for row in found.values()] == [True, False, True]


def test_images(tmp_path):
    base = liquid_folder(tmp_path / "liquid")
    for n, image in enumerate(noise_images(2)):
        image.save(tmp_path / f"{n}.png")
    path = settings(tmp_path, base)
    changed = yaml.safe_load(path.read_text())
    changed["model"]["init_args"]["backbone"] = {
        "class_path": "swirl_lightning.backbones.Liquid",
        "init_args": {"model_name_or_path": str(base), "dtype": "float32", "max_action_tokens": 4},
    }
    path.write_text(yaml.safe_dump(changed))
    records = [
        {"id": "ahead", "before_image": "0.png", "action": "turn left"},
        {"id": "back", "before_image": "0.png", "after_image": "1.png"},
    ]
    found = predictions(path, records, tmp_path)
    folder = tmp_path / "runs" / "r" / "predictions"
    for row in found.values():
        assert Image.open(folder / row["predicted_state"]).size == (SIDE, SIDE)
    assert found["ahead"]["predicted_action"] is None
    assert isinstance(found["back"]["predicted_action"], str)
    assert (folder / "contact_sheet.png").is_file()


def test_a_record_with_neither_is_named(tmp_path, gemma_path, monkeypatch):
    monkeypatch.setattr(SWIRL, "configure_model", lambda self: pytest.fail("the model was loaded"))
    records = [{"id": "good", "before": "1", "after": "2"}, {"id": "lonely", "before": "1"}]
    with pytest.raises(SystemExit, match=r"error: 1 of 2 records in .*test\.jsonl have neither .*\n  lonely"):
        predictions(settings(tmp_path, gemma_path), records, tmp_path)


def test_what_is_not_known_changes_nothing_of_the_rest(gemma_path):
    module, (row, other, _), _ = evaluated(gemma_path, best_of=1)
    whole, both = module.evaluator.predict([row, other], CPU)
    ahead, same = module.evaluator.predict([Transition(row.before, None, row.action, row.id), other], CPU)
    assert "predicted_action" not in ahead
    assert (ahead["predicted_state"], same) == (whole["predicted_state"], both)


def test_without_an_action_the_fwm_follows_the_idms(gemma_path):
    """It follows the ids that were sampled, which words do not always reproduce."""
    module, (row, *_), _ = evaluated(gemma_path, best_of=1)
    (found,) = module.evaluator.predict([row.without_action()], CPU)
    (x, y), evaluator = module.states.encode([row.before, row.after], CPU), module.evaluator
    named = evaluator._sample(module.models.idm, [row], [x], [y], "sampled")
    assert found["predicted_action"] == module.backbone.decode_action(named[0])
    followed = evaluator._futures([row], [x], named, "sampled")
    assert [found["predicted_state"]] == module.backbone.decode_states(followed, CPU)
    own = evaluator._futures([row], [x], [module.backbone.encode_action(row.action)], "sampled")
    assert own != followed


def test_a_test_scores_what_is_known(gemma_path):
    """A row whose y is not known is predicted, and counts for no metric that needs y."""
    module, rows, shown = evaluated(gemma_path, best_of=1)
    whole = module.evaluator.compute()
    bare = Transition(rows[0].before, None, rows[0].action, "bare")
    shown.clear()
    module.evaluator.step([bare], CPU)
    assert len(shown) == 1
    after = module.evaluator.compute()
    unchanged = ["fwm/log_prob", "idm/log_prob", "likelihood"]
    unchanged += [name for name in whole if name.endswith("exact_match")]
    assert len(unchanged) == 5
    assert {name: after[name] for name in unchanged} == {name: whole[name] for name in unchanged}
    assert after["identifiability"] != whole["identifiability"]


class Lazy(Digits):
    """Rows that are made when they are accessed; the last has no state after."""

    def load_split(self, split):
        *rows, last = super().load_split(split)
        return (*rows, replace(last, after=None))


@pytest.mark.parametrize("switch", [PhaseSwitch(1, iterations=0), PhaseSwitch(0, ["fwm"], 1)])
def test_training_needs_the_state_after(gemma_path, tmp_path, switch):
    module = SWIRL(text_backbone(gemma_path, quantization=None))
    with pytest.raises(ValueError, match=r"transition '\w+-7' has no state after"):
        quiet_trainer(tmp_path, switch, limit_val_batches=0, max_epochs=-1).fit(module, Lazy(size=8, batch_size=8))


@pytest.mark.parametrize(
    ("roles", "row", "told"),
    [
        (("fwm", "idm"), Transition("1", None, None, "odd"), "'odd' has neither an action nor a state after"),
        (("fwm",), Transition("1", "2", None, "odd"), "'odd' has no action for the FWM"),
        (("idm",), Transition("1", None, "add", "odd"), "'odd' has no state after for the IDM"),
    ],
)
def test_what_a_model_starts_from_must_be_there(gemma_path, roles, row, told):
    module = SWIRL(text_backbone(gemma_path, quantization=None), roles=roles)
    module.configure_model()
    with pytest.raises(ValueError, match=told):
        module.evaluator.predict([row], CPU)
