"""The verbs of the FWM and the IDM against the prompts and completions that they stand for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from support.swirl import build, randomize
from swirl_lightning import GRPOConfig
from swirl_lightning.engine.drawing import GREEDY, SamplingConfig
from swirl_lightning.engine.noise import uniforms
from swirl_lightning.roles import Role

CONFIG = SamplingConfig(1.0, 1.0)
KEYS = ["a", "b"]


@pytest.fixture(scope="module")
def module(gemma_path):
    module = build(gemma_path, grpo=GRPOConfig(group_size=3))
    randomize(module)
    return module


@pytest.fixture(scope="module")
def ids(module):
    encode = module.backbone.encode_states
    return encode(["37", "84"], module.device), [module.backbone.encode_action(z) for z in ("swap", "inc")]


def test_the_forward_model_draws_what_its_prompts_draw(module, ids):
    x, z = ids
    drawn = module.models.fwm.sample(x, z, KEYS, CONFIG, group=3)
    prompts = [module.prompts.fwm(a, b) for a, b in zip(x, z, strict=True)]
    noise = uniforms(KEYS, 3, module.models.grammars["fwm"].max_length)
    assert drawn.prompts == prompts
    assert drawn.group_size == 3
    assert drawn.completions.rows() == module.models.fwm.sample_ids(prompts, noise, CONFIG).rows()
    assert drawn.contents == [module.models.fwm.grammar.content(row) for row in drawn.completions.rows()]


@pytest.mark.parametrize("given", ["samples", "contents"])
def test_one_action_stands_for_its_group_of_states(module, ids, given):
    """r_k = log Q(z | x, y_k) of Phase I, each alone: no index of a group may slip."""
    x, _ = ids
    z = module.models.idm.sample(x, list(reversed(x)), KEYS, CONFIG)
    y_hat = module.models.fwm.sample(x, z, KEYS, CONFIG, group=3)
    target = z if given == "samples" else z.contents
    rewards = module.models.idm.log_prob(target, x, y_hat).mean_per_token()
    rows = z.completions.rows() if given == "samples" else [module.models.idm.grammar.complete(c) for c in z.contents]
    for n, y in enumerate(y_hat.contents):
        alone = module.models.idm.score_ids([module.prompts.idm(x[n // 3], y)], [rows[n // 3]])
        torch.testing.assert_close(rewards[n : n + 1], alone.mean_per_token(), atol=1e-5, rtol=1e-5)


def test_one_state_stands_for_its_group_of_actions(module, ids):
    """r_k = log P(y | x, z_k) of Phase II."""
    x, _ = ids
    y = list(reversed(x))
    z_hat = module.models.idm.sample(x, y, KEYS, CONFIG, group=3)
    rewards = module.models.fwm.log_prob(y, x, z_hat).mean_per_token()
    for n, z in enumerate(z_hat.contents):
        completion = module.models.fwm.grammar.complete(y[n // 3])
        alone = module.models.fwm.score_ids([module.prompts.fwm(x[n // 3], z)], [completion])
        torch.testing.assert_close(rewards[n : n + 1], alone.mean_per_token(), atol=1e-5, rtol=1e-5)


def test_numbers_that_do_not_divide_are_refused(module, ids):
    x, z = ids
    with pytest.raises(ValueError, match="2 rows cannot stand for 3"):
        module.models.idm.log_prob(z, x, [x[0], x[1], x[0]])


def test_a_frozen_model_and_a_reference_have_adapters_of_their_own(gemma_path):
    shared = build(gemma_path, shared_weights=True)
    shared.configure_model()
    for role in Role:
        model = shared.models.of(role)
        assert [model.adapter, model.reward_model.adapter, model.reference.adapter] == [
            "world",
            "world_reward",
            "world_ref",
        ]


def test_prediction_is_sampling_decoded(module, ids):
    x, z = ids
    states = module.predict_state("37", "swap", n=4, seed=5)
    drawn = module.models.fwm.sample(x[:1], z[:1], ["predict|5"], module.sampling, group=4)
    assert states == module.backbone.decode_states(drawn.contents, module.device)
    assert states == module.predict_state("37", "swap", n=4, seed=5)
    assert states != module.predict_state("37", "swap", n=4, seed=6)
    actions = module.predict_action("37", "84", n=4)
    drawn = module.models.idm.sample(x[:1], x[1:], ["predict|0"], module.sampling, group=4)
    assert actions == [module.backbone.decode_action(content) for content in drawn.contents]
    (likeliest,) = module.predict_action("37", "84", greedy=True)
    drawn = module.models.idm.sample(x[:1], x[1:], ["any"], GREEDY)
    assert likeliest == module.backbone.decode_action(drawn.contents[0])


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda module: module.predict_state("37", "swap", n=0), r"predict\.n must lie in \[1, inf\), got 0"),
        (lambda module: module.predict_action("37", "84", n=-1), r"predict\.n must lie in \[1, inf\), got -1"),
        (lambda module: module.predict_state("37", " "), "an action must have words, got ' '"),
        (lambda module: module.predict_state("37", "increase"), "outside the grammar of TextLLM"),
        (lambda module: module.predict_state("37", None), "an action must have words, got None"),
        (lambda module: module.predict_action("37", None), "a text or an image .*, got NoneType"),
        (lambda module: module.predict_state(np.zeros((4, 4, 3)), "swap"), "a text or an image .*, got ndarray"),
    ],
)
def test_what_cannot_be_predicted_is_told(module, call, told):
    with pytest.raises(ValueError, match=told):
        call(module)


def test_a_model_that_is_not_trained_predicts_nothing(gemma_path):
    """As in ``swirl simulate``: what its adapter would give is the base's."""
    with pytest.raises(ValueError, match=r"no FWM, which predicts here: model\.roles are \['idm'\]"):
        build(gemma_path, roles=("idm",)).predict_state("37", "swap")
    with pytest.raises(ValueError, match=r"no IDM, which predicts here: model\.roles are \['fwm'\]"):
        build(gemma_path, roles=("fwm",)).predict_action("37", "84")


def test_before_the_base_is_loaded_the_cure_is_told(gemma_path):
    with pytest.raises(RuntimeError, match=r"call configure_model\(\)"):
        build(gemma_path).predict_state("37", "swap")
