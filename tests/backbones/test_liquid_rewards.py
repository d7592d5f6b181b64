"""Liquid's rewards against a computation that shares no code with the engine."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tokenizers import pre_tokenizers

from support.tiny_families import CODES, IMAGES, backbone_of, liquid_folder, noise_images
from swirl_lightning import SWIRL, GRPOConfig
from swirl_lightning.roles import Role
from swirl_lightning.training.rewards import Scored
from swirl_lightning.transition import Transition

GROUP = 3
BOS, EOS, BOI, EOI = 2, 1, 3, 4
TEXT = 261  # ids below are text, the rest are codes
LONGEST = IMAGES["max_action_tokens"]


@pytest.fixture(scope="module", params=["nf4", None], ids=str)
def module(request, tmp_path_factory):
    backbone = backbone_of("liquid", liquid_folder(tmp_path_factory.mktemp("liquid")), quantization=request.param)
    module = SWIRL(backbone, grpo=GRPOConfig(group_size=GROUP))
    module.configure_model()
    generator = torch.Generator().manual_seed(3)
    for name in module.adapters.names:
        for parameter in module.adapters.parameters(name):
            parameter.data.normal_(0, 0.1, generator=generator)
    module.trainer = Stub()
    return module


class Stub:
    """The attributes of a Trainer that sampling reads."""

    current_epoch = 0


def words(text):
    """Encode text by hand: the byte tokenizer's alphabet follows its five specials."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return [alphabet.index({" ": "Ġ", "\n": "Ċ"}.get(c, c)) + 5 for c in text]


def prompt(before, other, role):
    """Write out the prompts of the default templates."""
    image = [BOI, *before, EOI]
    if role == "fwm":
        return [BOS, *words("Before: "), *image, *words("\nAction: "), *other, *words("\nAfter: "), BOI]
    return [BOS, *words("Before: "), *image, *words("\nAfter: "), BOI, *other, EOI, *words("\nAction: ")]


def straightforward(module, adapter, prompt_ids, completion, allowed):
    """Mean log-probability per token: whole row, whole vocabulary, mask, cross entropy token by token."""
    model = module.adapters.model.get_base_model()
    with torch.no_grad(), module.adapters.use(adapter):
        logits = model(input_ids=torch.tensor([prompt_ids + completion])).logits[0].double()
    banned = torch.ones(logits.shape[-1], dtype=torch.bool)
    banned[list(allowed)] = False
    logits[:, banned] = -torch.inf
    losses = [
        F.cross_entropy(logits[len(prompt_ids) - 1 + n][None], torch.tensor([token]))
        for n, token in enumerate(completion)
    ]
    return max(-float(torch.stack(losses).mean()), -10.0)


def pairs():
    states = noise_images(4)
    return [Transition(states[n], states[2 + n], id=str(n)) for n in range(2)]


ACTION_IDS = [i for i in range(TEXT) if i not in (0, BOS, BOI, EOI)]
STATE_IDS = list(range(TEXT, TEXT + CODES))


def rolled_out(module, phase, transitions=None):
    """Contents, rewards and prompts of one batch of rollouts."""
    given, role = transitions or pairs(), Role.FWM if phase == module.phase_one else Role.IDM
    with torch.no_grad():
        ((_, sampled, judged),) = phase([given])
    prompts = [asked for asked in sampled.prompts for _ in range(sampled.group_size)]
    return sampled.contents, module.reward(Scored(role, given, sampled, judged, module.backbone, sampled)), prompts


def test_phase_one_rewards_log_q_of_the_action_given_the_imagined_state(module):
    before, _ = module.encode_pairs(pairs())
    contents, rewards, prompts = rolled_out(module, module.phase_one)
    assert len(contents) == 2 * GROUP
    tail = [*words("\nAfter: "), BOI]
    for n, future in enumerate(contents):
        x, asked = before[n // GROUP], prompts[n]
        head = prompt(x, [], "fwm")[: -len(tail)]
        z = asked[len(head) : -len(tail)]
        assert prompt(x, z, "fwm") == asked
        completion = z if len(z) == LONGEST else [*z, EOS]  # as sampled: at its longest it has no EOS
        reward = straightforward(module, "idm", prompt(x, future, "idm"), completion, ACTION_IDS)
        assert float(rewards[n]) == pytest.approx(reward, abs=1e-5)


def test_a_counterfactual_action_is_rolled_out_and_rewarded_in_place_of_the_idms(module):
    first, second = pairs()
    asked = [replace(first, counterfactual="go up"), second]
    (x, *_), _ = module.encode_pairs(pairs())
    contents, rewards, prompts = rolled_out(module, module.phase_one, asked)
    for n in range(GROUP):
        assert prompts[n] == prompt(x, words("go up"), "fwm")
        reward = straightforward(module, "idm", prompt(x, contents[n], "idm"), [*words("go up"), EOS], ACTION_IDS)
        assert float(rewards[n]) == pytest.approx(reward, abs=1e-5)
    own, earned, written = rolled_out(module, module.phase_one)
    assert (contents[GROUP:], prompts[GROUP:]) == (own[GROUP:], written[GROUP:])  # the other pair is as ever
    assert torch.allclose(rewards[GROUP:], earned[GROUP:], atol=1e-5)


def test_phase_two_rewards_log_p_of_the_observed_state_given_the_action(module):
    before, after = module.encode_pairs(pairs())
    contents, rewards, prompts = rolled_out(module, module.phase_two)
    for n, action in enumerate(contents):
        pair = n // GROUP
        assert prompts[n] == prompt(before[pair], after[pair], "idm")
        reward = straightforward(module, "fwm", prompt(before[pair], action, "fwm"), after[pair], STATE_IDS)
        assert float(rewards[n]) == pytest.approx(reward, abs=1e-5)


def test_the_prompts_of_the_sft_data_are_the_same(module):
    """Prompts of the warm-up are those of the rewards above."""
    (x, *_), (y, *_) = module.encode_pairs(pairs())
    z = module.backbone.encode_action("go")
    assert module.prompts.fwm(x, z) == prompt(x, words("go"), "fwm")
    assert module.prompts.idm(x, y) == prompt(x, y, "idm")
