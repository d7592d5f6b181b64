"""Contract of every backbone: one list of tests, for each family, 4-bit and plain."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback

from support.tiny_families import CPU, FAMILIES, backbone_of
from support.trainers import quiet_trainer
from swirl_lightning import SWIRL, AdapterConfig, GRPOConfig, OptimConfig, PhaseOptimConfig, SamplingConfig
from swirl_lightning.callbacks import PhaseSwitch
from swirl_lightning.data import TransitionDataModule
from swirl_lightning.engine.completions import Completions
from swirl_lightning.engine.drawing import GREEDY, draw
from swirl_lightning.engine.noise import uniforms
from swirl_lightning.prompts import PromptBuilder, PromptTemplates
from swirl_lightning.transition import Transition
from swirl_lightning.world_models import WorldModel

LABELS = ["go", "turn", "wait"]
ADAPTERS = ("fwm", "idm")
VLMS = ("qwen_vl", "smolvlm")


# the others have the class of one of these
PLAIN = ("text", "gguf", "liquid", "qwen_vl")


@pytest.fixture(scope="module", params=[(n, q) for n in FAMILIES for q in ("nf4", None) if q or n in PLAIN], ids=str)
def case(request, folders):
    """A family on its real module, with adapters that differ from the base and from one another."""
    name, quantization = request.param
    module = SWIRL(
        backbone_of(name, folders[name], quantization=quantization),
        grpo=GRPOConfig(group_size=2),
        sampling=SamplingConfig(1.0, 1.0),
        optim=PhaseOptimConfig(*[OptimConfig(1e-3)] * 3),
    )
    module.configure_model()
    generator = torch.Generator().manual_seed(5)
    for adapter in ADAPTERS:
        for parameter in module.adapters.parameters(adapter):
            parameter.data.normal_(0, 0.1, generator=generator)
    return name, module


def rows_of(name, count=3):
    states = FAMILIES[name].states(2 * count)
    return [Transition(states[i], states[count + i], LABELS[i], id=f"row-{i}") for i in range(count)]


def tokens(module, rows):
    return (
        module.backbone.encode_states([t.before for t in rows], CPU),
        module.backbone.encode_states([t.after for t in rows], CPU),
        [module.backbone.encode_action(t.action) for t in rows],
    )


def examples(module, name):
    """Return (role, prompt, completion) of the labelled triples."""
    found = []
    for x, y, z in zip(*tokens(module, rows_of(name)), strict=True):
        found.append(("fwm", module.prompts.fwm(x, z), module.models.grammars["fwm"].complete(y)))
        found.append(("idm", module.prompts.idm(x, y), module.models.grammars["idm"].complete(z)))
    return found


def test_completions_share_their_prompt(case):
    """Without it, all tests below would pass on the plain path alone."""
    _, module = case
    assert module.models.engine.config.shared_attention


# ---- states and actions --------------------------------------------------------------------------
def test_states_and_actions_round_trip(case):
    name, module = case
    backbone, states = module.backbone, FAMILIES[name].states(3)
    ids = backbone.encode_states(states, CPU)
    back = backbone.decode_states(ids, CPU)
    assert backbone.encode_states(states[1:2], CPU) == [ids[1]]  # the batch changes nothing
    grammar = backbone.state_grammar
    made = [row for state, row in zip(states, ids, strict=True) if name not in VLMS or isinstance(state, str)]
    assert all(set(row) <= set(grammar.allowed) for row in made)
    assert [grammar.content(grammar.complete(row)) for row in made] == made
    if name in VLMS:
        assert back[1:] == states[1:]
        assert back[0].tobytes() == states[0].tobytes()
    elif isinstance(states[0], str):
        assert back == states
    else:
        # a random VQ keeps little of an image: what its ids decode to is theirs alone, whatever stands beside them
        assert [(p.size, p.mode) for p in back] == [(p.size, p.mode) for p in states]
        assert len(set(map(tuple, ids))) == len({p.tobytes() for p in back}) == len(states)
        for row, image in zip(ids, back, strict=True):
            (alone,) = backbone.decode_states([row], CPU)
            assert np.abs(np.asarray(alone, int) - np.asarray(image, int)).max() <= 1  # rounding to a level of 255
    for action in ("go", "é\n "):
        content = backbone.encode_action(action)
        assert len(content) <= backbone.action_grammar.max_length - 1
        assert set(content) <= set(backbone.action_grammar.allowed) - {backbone.action_grammar.eos}
        assert backbone.decode_action(content) == action.strip()


def test_special_tokens_in_data_are_plain_text(case):
    """Otherwise a page that contains an EOS would end a turn, or stop the training as outside the grammar."""
    _, module = case
    backbone = module.backbone
    for text in ("<eos>", "<bos>"):
        content = backbone.encode_action(text)
        assert set(content) <= set(backbone.action_grammar.allowed) - {backbone.action_grammar.eos}
        assert backbone.decode_action(content) == text


def test_what_is_too_long_still_fits_the_grammar(case):
    _, module = case
    grammar = module.backbone.action_grammar
    completion = grammar.complete(module.backbone.encode_action("walk to the far end of the corridor"))
    assert len(completion) == grammar.max_length
    assert completion[-1] == grammar.eos


def test_a_state_of_the_wrong_kind_is_named(case):
    name, module = case
    if name in VLMS:
        pytest.skip("reads both kinds")
    other = FAMILIES["emu3" if isinstance(FAMILIES[name].states(1)[0], str) else "text"].states(1)
    with pytest.raises(ValueError, match=type(module.backbone).__name__):
        module.backbone.encode_states(other, CPU)


# ---- prompts -------------------------------------------------------------------------------------
class Rows(TransitionDataModule):
    def __init__(self, name: str, **kwargs: Any) -> None:
        super().__init__(batch_size=3, **kwargs)
        self.name = name

    def load_split(self, split):
        return rows_of(self.name)


def fit(module, name, tmp_path, switch, callbacks=()):
    quiet_trainer(tmp_path, switch, *callbacks, limit_val_batches=0).fit(module, Rows(name))


def test_prompts_are_the_same_ids_in_warmup_sampling_and_scoring(case, tmp_path, monkeypatch):
    """Rollouts are replaced by the labels: then prompts and completions of RL must be those of the warm-up."""
    name, module = case
    expected = {(role, tuple(p), tuple(c)) for role, p, c in examples(module, name)}
    labels = {(role, p): c for role, p, c in expected}
    scored, sampled = set(), set()
    score_ids = WorldModel.score_ids

    def label(self, prompts, noise, config, drafts):
        sampled.update((self.role, tuple(p)) for p in prompts)
        group = len(noise) // len(prompts)
        rows = [labels[self.role, tuple(p)] for p in prompts for _ in range(group)]
        width = max(map(len, rows))
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
        return Completions(ids, torch.tensor([[n < len(row) for n in range(width)] for row in rows]))

    def spy(self, prompts, completions, **kwargs):
        scored.update((self.role, tuple(p), tuple(c)) for p, c in zip(prompts, completions, strict=True))
        return score_ids(self, prompts, completions, **kwargs)

    monkeypatch.setattr(WorldModel, "sample_ids", label)
    monkeypatch.setattr(WorldModel, "score_ids", spy)
    for switch in (PhaseSwitch(1, iterations=0), PhaseSwitch(0, ["fwm"], 1), PhaseSwitch(0, ["idm"], 1)):
        scored.clear()
        fit(module, name, tmp_path, switch)
        assert scored == expected
    assert sampled == labels.keys()


def test_prompts_need_no_model(case):
    """A second backbone on the same folder builds the same prompts without loading weights."""
    name, module = case
    fresh = type(module.backbone)(module.backbone.name, dtype="float32", **FAMILIES[name].options)
    builder = PromptBuilder(fresh, PromptTemplates())
    (first,) = rows_of(name, 1)
    x, y, z = (part[0] for part in tokens(module, [first]))
    assert fresh.encode_states([first.before, first.after], CPU) == [x, y]
    assert builder.fwm(x, z) == module.prompts.fwm(x, z)
    assert builder.idm(x, y) == module.prompts.idm(x, y)
    assert fresh.fingerprint() == module.backbone.fingerprint()


# ---- sampling ------------------------------------------------------------------------------------
@pytest.mark.parametrize("role", ADAPTERS)
def test_sampling_stays_in_the_vocabulary_and_ends_as_required(case, role):
    name, module = case
    grammar = module.models.grammars[role]
    prompts = [p for r, p, _ in examples(module, name) if r == role]
    noise = uniforms(["a", "b", "c"], 4, grammar.max_length)
    got = module.models.of(role).sample_ids(prompts, noise, SamplingConfig(5.0, 1.0))
    forced = dict(grammar.forced)
    for row, content in zip(got.rows(), map(grammar.content, got.rows()), strict=True):
        drawn = [token for place, token in enumerate(row) if place not in forced]
        assert set(drawn) <= set(grammar.allowed)
        assert [row[place] for place in forced] == list(forced.values())
        if grammar.eos is None:
            assert len(row) == grammar.max_length
        else:
            assert grammar.eos not in row[:-1]
            assert row[-1] == grammar.eos or len(row) == grammar.max_length
        assert grammar.complete(content)[: len(row)] == row or len(content) == grammar.max_length
    alone = module.models.of(role).sample_ids(prompts[1:2], noise[4:8], SamplingConfig(5.0, 1.0))
    assert alone.rows() == got.rows()[4:8]


# ---- scoring -------------------------------------------------------------------------------------
def plain_logits(name, module, ids):
    """Compute full-vocabulary logits of one row, by the family's own forward where that does not mask any."""
    model = module.adapters.model.get_base_model()
    if name == "chameleon":  # its forward masks the image tokens
        return model.lm_head(model.model(input_ids=torch.tensor([ids])).last_hidden_state)[0]
    if name in VLMS:
        return vlm_logits(name, module, ids, model)
    return model(input_ids=torch.tensor([ids])).logits[0]


def vlm_logits(name, module, ids, model):
    """Compute logits from the family's placeholders and pixel values; it finds positions by itself."""
    backbone, start = module.backbone, module.backbone.store.start
    images = [backbone.store.image(i) for i in ids if i >= start and (i - start) % backbone.grid**2 == 0]
    row = torch.tensor([[min(i, start) for i in ids]])
    row[row == start] = model.config.image_token_id
    if name == "smolvlm":
        batch = backbone._processor([images], do_image_splitting=False, return_tensors="pt")
        return model(input_ids=row, pixel_values=batch["pixel_values"]).logits[0]
    batch = backbone._processor(images, do_resize=False, return_tensors="pt")
    kinds = (row == model.config.image_token_id).int()
    return model(input_ids=row, attention_mask=torch.ones_like(row), mm_token_type_ids=kinds, **batch).logits[0]


@pytest.mark.parametrize("role", ADAPTERS)
@torch.no_grad()
def test_rollouts_equal_a_full_forward_from_scratch_at_every_token(case, role):
    """No cache, no padding, one row at a time, the whole vocabulary masked: the same ids for the same numbers."""
    name, module = case
    grammar, config = module.models.grammars[role], SamplingConfig(1.5, 0.95)
    prompts = [p for r, p, _ in examples(module, name) if r == role][:2]
    noise = uniforms(["a", "b"], 2, grammar.max_length)
    got = module.models.of(role).sample_ids(prompts, noise, config).rows()
    mask = None
    for n, row in enumerate(got):
        for step, token in enumerate(row):
            if step in dict(grammar.forced):
                continue
            with module.adapters.use(role):
                logits = plain_logits(name, module, prompts[n // 2] + row[:step])[-1:].float()
            if mask is None:
                mask = torch.full(logits.shape[-1:], -torch.inf)
                mask[list(grammar.allowed)] = 0
            assert int(draw(logits + mask, noise[n, step : step + 1], config)) == token


@pytest.mark.parametrize("adapter", ADAPTERS)
@torch.no_grad()
def test_log_probs_equal_a_full_forward_followed_by_the_mask(case, adapter):
    name, module = case
    rows = examples(module, name)
    for role in ADAPTERS:
        grammar = module.models.grammars[role]
        prompts, completions = [p for r, p, _ in rows if r == role], [c for r, _, c in rows if r == role]
        got = WorldModel(module.models, role, adapter).score_ids(prompts, completions, group_size=3, temperature=0.7)
        free = [n for n in range(grammar.max_length) if n not in dict(grammar.forced)]
        for n, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            with module.adapters.use(adapter):
                logits = plain_logits(name, module, prompt + completion)
            mask = torch.full(logits.shape[-1:], -torch.inf)
            mask[list(grammar.allowed)] = 0
            log_probs = ((logits + mask) / 0.7).log_softmax(-1)
            places = [place for place in free if place < len(completion)]
            expected = torch.stack([log_probs[len(prompt) - 1 + p, completion[p]] for p in places])
            torch.testing.assert_close(got.values[n, places], expected, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(got.mean_per_token()[n], expected.mean(), atol=1e-5, rtol=1e-5)
            assert int(got.mask[n].sum()) == len(places)


@torch.no_grad()
def test_padding_and_batch_composition_change_nothing(case):
    name, module = case
    rows = examples(module, name)
    for role in ADAPTERS:
        prompts, completions = [p for r, p, _ in rows if r == role], [c for r, _, c in rows if r == role]
        whole = module.models.of(role).score_ids(prompts, completions, group_size=3)
        for n in range(3):
            one = module.models.of(role).score_ids(prompts[n : n + 1], completions[n : n + 1])
            torch.testing.assert_close(one.values[0], whole.values[n, : one.values.shape[1]], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_vlm_names_the_action_between_two_frames(case):
    """IDM over frames: both states are images."""
    name, module = case
    if name not in VLMS:
        pytest.skip("an image is not both of its states")
    x, y = module.backbone.encode_states(FAMILIES["liquid"].states(2), CPU)
    prompt, grammar = module.prompts.idm(x, y), module.models.grammars["idm"]
    completion = grammar.complete(module.backbone.encode_action("go"))
    got = module.models.idm.score_ids([prompt], [completion])
    with module.adapters.use("idm"):
        logits = plain_logits(name, module, prompt + completion)
    log_probs = logits[:, list(grammar.allowed)].log_softmax(-1)
    columns = [grammar.allowed.index(token) for token in completion]
    expected = log_probs[range(len(prompt) - 1, len(prompt) + len(completion) - 1), columns]
    torch.testing.assert_close(got.values[0], expected, atol=1e-5, rtol=1e-5)
    (drawn,) = module.models.idm.sample_ids([prompt], uniforms(["a"], 1, grammar.max_length), GREEDY).rows()
    assert set(drawn) <= set(grammar.allowed)


# ---- training ------------------------------------------------------------------------------------
class Gradients(Callback):
    def __init__(self):
        self.seen = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        adapters = pl_module.adapters
        flags = {n: [p.grad is not None and bool(p.grad.any()) for p in adapters.parameters(n)] for n in adapters.names}
        base = [n for n, p in pl_module.named_parameters() if p.grad is not None and "lora_" not in n]
        self.seen.append((pl_module.phase.name, flags, base))


def test_both_phases_take_a_step_and_gradients_are_on_the_policy_alone(case, tmp_path):
    name, module = case
    watch = Gradients()
    fit(module, name, tmp_path, PhaseSwitch(0, ["fwm", "idm"], 1), [watch])
    assert [phase for phase, *_ in watch.seen] == ["fwm", "idm"]
    for phase, flags, base in watch.seen:
        assert not base
        for adapter, on in flags.items():
            assert all(on) if adapter == phase else not any(on), (phase, adapter)
    for adapter in ADAPTERS:
        assert all(torch.isfinite(p).all() for p in module.adapters.parameters(adapter))


@pytest.mark.parametrize("name", FAMILIES)
def test_training_gives_the_same_numbers_with_and_without_checkpointing(name, folders):
    """They are also those of scoring without gradient: the base has no dropout of its own."""
    found, runs = [], []
    for on in (False, True):
        module = SWIRL(backbone_of(name, folders[name], quantization=None, gradient_checkpointing=on))
        module.configure_model()
        generator = torch.Generator().manual_seed(5)
        for parameter in module.adapters.parameters("fwm"):
            parameter.data.normal_(0, 0.1, generator=generator)
        calls = []
        attention = [m for n, m in module.adapters.model.named_modules() if n.endswith("layers.0.self_attn")]
        attention[-1].register_forward_hook(lambda *_, calls=calls: calls.append(1))  # the language model's
        role, prompt, completion = examples(module, name)[0]
        scored = WorldModel(module.models, role, "fwm").score_ids([prompt], [completion], training=True)
        found.append(torch.autograd.grad(scored.values.sum(), module.adapters.parameters("fwm")))
        runs.append(len(calls))
        plain = WorldModel(module.models, role, "fwm").score_ids([prompt], [completion])
        torch.testing.assert_close(scored.values, plain.values, atol=1e-5, rtol=1e-5)
    assert runs[1] == 2 * runs[0] > 0
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_lora_targets_can_be_chosen(name, folders):
    module = SWIRL(backbone_of(name, folders[name]), lora=AdapterConfig(r=2, target_modules=["q_proj"]))
    module.configure_model()
    places = [path.split(".lora_")[0] for path, _ in module.adapters.model.named_parameters() if ".lora_" in path]
    assert {place.rsplit(".", 1)[-1] for place in places} == {"q_proj"}


def test_only_what_is_named_stays_unquantised(case):
    name, module = case
    if module.backbone.quantization is None:
        pytest.skip("nothing is quantised")
    kinds = {}
    for path, layer in module.adapters.model.get_base_model().named_modules():
        if isinstance(layer, torch.nn.Linear) and "lora_" not in path:
            kinds.setdefault(type(layer).__name__, set()).add(path.split(".")[-1])
    if name not in VLMS:  # VQ models are kept apart
        assert kinds["Linear"] == {"lm_head"}
    assert kinds["Linear4bit"] == {"base_layer"}
