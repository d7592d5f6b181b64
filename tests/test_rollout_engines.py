"""Another engine behind the same method: what it samples, and how its tokens are weighted."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from lightning.pytorch import Callback

from support.swirl import CONSTANT, SGD, build, randomize, snapshot, trainer
from support.tiny_families import FAMILIES, backbone_of
from support.world import Digits
from swirl_lightning import SWIRL, AdapterConfig, GRPOConfig, SamplingConfig
from swirl_lightning.callbacks import PhaseSwitch
from swirl_lightning.engine.drawing import GREEDY
from swirl_lightning.engine.grammar import Grammar
from swirl_lightning.engine.noise import uniforms
from swirl_lightning.engine.samples import Samples
from swirl_lightning.rollout_engines import Generate
from swirl_lightning.training.learners import GRPO, Policy

GRAMMARS = {
    "ends": Grammar(tuple(range(1, 60)), 9, eos=1),
    "fixed": Grammar((5, 9, *range(40, 90)), 7, forced=((2, 9), (6, 5))),
}
PROMPTS = [[2, 40, 41], [2, 50, 51, 52, 53, 54], [2, 99]]


@pytest.fixture(scope="module")
def module(gemma_path):
    module = build(gemma_path, quantization=None, grpo=GRPOConfig(group_size=4, beta=0.0))
    randomize(module)
    return module


@pytest.mark.parametrize("sampling", [SamplingConfig(1.5, 1.0), SamplingConfig(0.8, 0.9, top_k=9), GREEDY], ids=str)
@pytest.mark.parametrize("name", GRAMMARS)
def test_generate_draws_what_ours_draws_and_knows_its_log_probabilities(module, name, sampling):
    grammar, noise = GRAMMARS[name], uniforms(["p", "q", "r"], 4, 9)
    given = module.adapters, "idm", grammar, PROMPTS, noise, sampling
    # whatever the checkpoint's own file says of generation
    base = module.adapters.model.get_base_model()
    base.generation_config.update(repetition_penalty=5.0, max_length=4, do_sample=True)
    ours, theirs = module.models.rollout_engine.sample(*given), Generate(rows=5).sample(*given)
    assert theirs.rows() == ours.rows()
    assert torch.equal(theirs.ids, ours.ids)
    assert ours.log_probs is None
    repeated = [prompt for prompt in PROMPTS for _ in range(4)]
    with module.adapters.use("idm"), torch.no_grad():
        scored = module.models.engine.score(
            grammar, repeated, ours.rows(), group_size=4, temperature=sampling.temperature or 1.0
        )
    torch.testing.assert_close(theirs.log_probs, scored.values, atol=1e-4, rtol=1e-4)
    assert base.generation_config.repetition_penalty == 5.0


def test_a_run_on_another_engine_is_the_run_on_ours(gemma_path, tmp_path):
    ends, weights = [], []

    class Keep(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            weights.append({k: float(v) for k, v in trainer.callback_metrics.items() if k.endswith("importance")})

    for engine in (None, Generate()):
        module = build(gemma_path, quantization=None, optimizer=SGD, optim=CONSTANT, rollout_engine=engine)
        randomize(module)
        run = trainer(tmp_path, PhaseSwitch(0, iterations=1), [Keep()], precision="64-true")
        run.fit(module, Digits(size=8, batch_size=4))
        ends.append(snapshot(module))
    for key, value in ends[0].items():
        torch.testing.assert_close(ends[1][key], value, atol=1e-5, rtol=1e-4)
    assert not any(weights[:4])
    for role, found in zip(("fwm", "fwm", "idm", "idm"), weights[4:], strict=True):
        assert found[f"{role}/importance"] == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(("ratio", "weight"), [(0.5, 0.5), (1.0, 1.0), (1.7, 1.7), (4.0, 2.0)])
def test_the_surrogate_of_another_engines_tokens_is_weighed_up_to_two(module, ratio, weight):
    """π / μ of every token is ``ratio``; rows of equal rewards are left out of the update and of the weights."""
    idm, noise = module.models.idm, uniforms(["p", "q", "r"], 4, 9)
    drawn = idm.sample_ids(PROMPTS, noise, SamplingConfig(1.0, 1.0))
    repeated = [prompt for prompt in PROMPTS for _ in range(4)]
    exact = idm.score_ids(repeated, drawn.rows(), group_size=4).values
    advantages = torch.tensor([0.0] * 4 + [1.0, -1.0, 0.5, -0.5] + [0.3, 0.1, -0.2, -0.2])
    policy = Policy(idm, module.grpo, 1.0, None)
    totals = []
    for engine in (None, (exact - math.log(ratio)) * drawn.mask):
        samples = Samples(PROMPTS, drawn._replace(log_probs=engine), [idm.grammar.content(row) for row in drawn.rows()])
        loss = GRPO().loss(policy, GRPO().update(policy, samples, advantages))
        totals.append(torch.autograd.grad(loss.total, module.adapters.parameters("idm")))
    assert loss.metrics["importance"] == pytest.approx(weight, rel=1e-4)
    for plain, weighted in zip(*totals, strict=True):
        torch.testing.assert_close(weighted, weight * plain, atol=1e-5, rtol=1e-3)
    assert any(part.any() for part in totals[0])
    assert idm.grammar.eos is not None


@pytest.mark.parametrize(("name", "told"), [("qwen_vl", "cannot show images"), ("chameleon", "masks the ids")])
def test_a_family_that_generate_would_read_differently_is_refused(tmp_path, name, told):
    folder = FAMILIES[name].write(tmp_path)
    module = SWIRL(backbone_of(name, folder, quantization=None), lora=AdapterConfig(r=2), rollout_engine=Generate())
    module.configure_model()
    x, y = module.backbone.encode_states(FAMILIES[name].states(2), module.device)
    role = "idm" if name == "qwen_vl" else "fwm"
    prompt = module.prompts.idm(x, y) if role == "idm" else module.prompts.fwm(x, module.backbone.encode_action("go"))
    grammar = replace(module.models.grammars[role], max_length=3, forced=())
    module.models.grammars[role] = grammar
    with pytest.raises(ValueError, match=told):
        module.models.of(role).sample_ids([prompt], uniforms(["a"], 2, 3), module.sampling)
