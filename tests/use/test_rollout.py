"""Rollouts: each step from the model's own state, chosen by the other model."""

from __future__ import annotations

import pytest

from support.tiny import text_backbone
from swirl_lightning import SWIRL
from swirl_lightning.engine.drawing import GREEDY
from swirl_lightning.use import simulate

ACTIONS = ["inc", "swap", "dec"]


def test_each_step_starts_from_the_tokens_of_the_last_one(model):
    """The greedy rollout, by single calls; the world is random, so its states are no texts that encode back."""
    (steps,) = simulate(model, "37", ACTIONS, greedy=True)
    (x,) = model.states.encode(["37"], model.device)
    for step, action in zip(steps, ACTIONS, strict=True):
        z = model.backbone.encode_action(action)
        (y,) = model.models.fwm.sample([x], [z], ["any"], GREEDY).contents
        assert [step.state] == model.backbone.decode_states([y], model.device)
        assert step.action == action
        own = float(model.models.fwm.log_prob([y], [x], [z]).mean_per_token())
        other = float(model.models.idm.log_prob([z], [x], [y]).mean_per_token())
        assert (step.log_prob, step.score) == pytest.approx((own, other), abs=2e-4)
        x = y


def test_the_idm_chooses_the_best_draw_of_each_branch(model):
    keys = [f"simulate|3|0|{branch}" for branch in range(2)]
    x = model.states.encode(["37"], model.device)
    z = [model.backbone.encode_action("inc")]
    y = model.models.fwm.sample(x * 2, z * 2, keys, model.sampling, group=8).contents
    scores = model.models.idm.log_prob(z * 2, x * 2, y).mean_per_token().view(2, 8)
    assert len({round(float(value), 3) for value in scores.flatten()}) > 4
    found = simulate(model, "37", ["inc"], branches=2, best_of=8, seed=3)
    for branch, (step,) in enumerate(found):
        place = branch * 8 + int(scores[branch].argmax())
        assert [step.state] == model.backbone.decode_states([y[place]], model.device)
        assert step.score == pytest.approx(float(scores[branch].max()), abs=2e-4)


def test_branches_differ_and_do_not_depend_on_their_number(model):
    three = simulate(model, "37", ACTIONS, branches=3)
    states = [[step.state for step in steps] for steps in three]
    assert len({tuple(branch) for branch in states}) == 3
    two = simulate(model, "37", ACTIONS, branches=2)
    assert [[step.state for step in steps] for steps in two] == states[:2]
    other = simulate(model, "37", ACTIONS, branches=3, seed=1)
    assert [[step.state for step in steps] for steps in other] != states


@pytest.mark.parametrize(
    ("roles", "options", "told"),
    [
        (("idm",), {}, "next states come from the FWM"),
        (("fwm",), {"best_of": 2}, "best_of asks the IDM"),
        (("fwm", "idm"), {"greedy": True, "branches": 2}, "greedy draws are all equal"),
        (("fwm", "idm"), {"branches": 0}, r"simulate.branches must lie in \[1, inf\), got 0"),
        (("fwm", "idm"), {"actions": []}, "no action is given"),
        (("fwm", "idm"), {"actions": ["inc", " "]}, "an action must have words, got ' '"),
        (("fwm", "idm"), {"actions": ["increase"]}, "'increase' is outside the grammar of TextLLM, .* as 'incre'"),
    ],
)
def test_what_cannot_be_simulated_is_refused_before_the_base_loads(gemma_path, roles, options, told):
    module = SWIRL(text_backbone(gemma_path, max_action_tokens=6), roles=roles)
    with pytest.raises(ValueError, match=told):
        simulate(module, "37", **({"actions": ["inc"]} | options))
    assert module.model is None


def test_an_fwm_alone_has_no_score(gemma_path):
    module = SWIRL(text_backbone(gemma_path, quantization=None), roles=("fwm",))
    module.configure_model()
    ((step,),) = simulate(module.eval(), "37", ["inc"])
    assert step.score is None
    assert step.log_prob <= 0
