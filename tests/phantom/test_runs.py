"""Every family on the phantom device: nothing mixes devices from the first load to the last prediction."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from support.attention import skip_if_torch_cannot_attend
from support.phantom.device import CUDA, PhantomCuda
from support.tiny_families import FAMILIES, backbone_of
from support.tiny_liquid import SIZES
from support.trainers import quiet_trainer
from swirl_lightning import SWIRL, AdapterConfig, GRPOConfig, SamplingConfig, Transition
from swirl_lightning.callbacks import CollapseWatch, MemoryReport, PhaseSwitch
from swirl_lightning.data import TransitionDataModule
from swirl_lightning.engine import decoding
from swirl_lightning.engine.noise import uniforms
from swirl_lightning.training.rewards import MeanLogProb


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Bases of one layer, where they have a choice: a second would call the same operations again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "num_hidden_layers", 1)
        return {name: family.write(tmp_path_factory.mktemp(name)) for name, family in FAMILIES.items()}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_base_is_loaded_where_lightning_makes_models(name, folders):
    """Lightning configures models under the root device; states are then read and shown there."""
    states = FAMILIES[name].states(2)
    with PhantomCuda():
        backbone = backbone_of(name, folders[name])
        with torch.device(CUDA):
            model = backbone.load_model()
            backbone.state_grammar  # noqa: B018
        assert all(p.is_cuda for p in model.parameters())
        ids = backbone.encode_states(states, CUDA)
        shown = backbone.decode_states(ids, CUDA)
        assert [type(state) for state in shown] == [type(state) for state in states]


class OnTheCpu(MeanLogProb):
    """As a user's own may be."""

    def __call__(self, scored):
        return super().__call__(scored).cpu()


def swirl(name, folder, budget=None, **options):
    return SWIRL(
        backbone_of(name, folder, **options),
        reward=OnTheCpu(),
        lora=AdapterConfig(r=2, dropout=0.1),
        grpo=GRPOConfig(group_size=2, num_iterations=2),
        sampling=SamplingConfig(1.0, 0.9, top_k=12),
        anchor_weight=0.1,
        idm_state_noise=0.0 if name in VLMS else 0.2,
        max_tokens_per_forward=budget,
    )


class Pairs(TransitionDataModule):
    """Two transitions of a family."""

    def __init__(self, name):
        super().__init__(batch_size=2)
        self.name = name

    def load_split(self, split):
        states = FAMILIES[self.name].states(4)
        return [Transition(states[n], states[2 + n], f"go {n}", id=str(n)) for n in range(2)]


VLMS = ("qwen_vl", "smolvlm")
DTYPES = ("float32", "bfloat16")
QUANTIZED = {"quantization": "nf4", "cuda_graphs": True, "budget": 160}
PLAIN = {"quantization": None, "cuda_graphs": False, "gradient_checkpointing": True}
CASES = {  # a family each way in turn; dtypes alternate with both
    name: (QUANTIZED, PLAIN)[number % 2] | {"dtype": DTYPES[(number + 1) // 2 % 2]}
    for number, name in enumerate(FAMILIES)
}
CASES["liquid"] = QUANTIZED | {"dtype": "bfloat16"}  # Chameleon, of the same base class, is the plain one


@pytest.mark.parametrize(
    ("name", "options"), CASES.items(), ids=lambda v: "-".join(map(str, v.values())) if type(v) is dict else v
)
def test_all_phases_run_on_cuda(name, options, folders, tmp_path):
    """Warm-up, Phase I, stopped between two uses of its rollouts, resumed there, Phase II, test and prediction."""
    skip_if_torch_cannot_attend(getattr(torch, options["dtype"]))
    data, report = Pairs(name), MemoryReport(samples=1)

    def trainer(*callbacks, **settings):
        saved = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        options = {"limit_val_batches": 0, "gradient_clip_val": 1.0}  # a test does what a validation does
        switch = PhaseSwitch(1, iterations=1)
        return quiet_trainer(tmp_path, switch, saved, *callbacks, **(gpu.trainer() | options | settings))

    with PhantomCuda() as gpu:
        stop = 3 if name in VLMS else 2  # images of a VLM do not outlive the process: it stops after the phase
        trainer(max_steps=stop).fit(swirl(name, folders[name], **options), data)
        module, second = swirl(name, folders[name], **options), trainer(report, CollapseWatch(), max_epochs=-1)
        second.fit(module, data, ckpt_path=tmp_path / f"step={stop}.ckpt")
        assert second.global_step == 5
        second.test(module, data, verbose=False)
        second.predict(module, data, return_predictions=False)
    assert report.estimate is not None
    assert (gpu.replays > 0) == (options["cuda_graphs"] and name not in VLMS)
    assert gpu.waits


# the others sample as one of these
@pytest.mark.parametrize("name", ["text", "liquid", "emu3", "qwen_vl"])
def test_a_decode_step_never_waits_for_the_device(name, folders, monkeypatch):
    """Longer rollouts make the host wait no more often. (Looking for finished ones does: that is switched off.)"""
    monkeypatch.setattr(decoding, "STEPS_BETWEEN_LEAVING", 1000)
    with PhantomCuda() as gpu:
        module = swirl(name, folders[name], quantization=None)
        with torch.device(CUDA):
            module.configure_model()
        x, y = module.backbone.encode_states(FAMILIES[name].states(2), CUDA)
        prompts = {"fwm": module.prompts.fwm(x, module.backbone.encode_action("go")), "idm": module.prompts.idm(x, y)}
        for role, prompt in prompts.items():
            whole, waits = module.models.grammars[role], []
            for length in (3, 3, 6):  # at first, tables are made that stay
                forced = tuple((place, token) for place, token in whole.forced if place < length)
                shorter = replace(whole, max_length=length, forced=forced)
                setattr(module.backbone, {"fwm": "state_grammar", "idm": "action_grammar"}[role], shorter)
                gpu.waits.clear()
                module.models.of(role).sample_ids([prompt], uniforms(["a"], 3, length), module.sampling)
                waits.append(dict(gpu.waits))
            assert waits[1] == waits[2]
