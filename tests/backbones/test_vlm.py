"""VLMs: images are read and cannot be predicted."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import DynamicCache

from support.tiny import byte_tokenizer
from support.tiny_families import CPU, FAMILIES, backbone_of, noise_images
from support.trainers import quiet_trainer
from swirl_lightning import SWIRL, OptimConfig, PhaseOptimConfig
from swirl_lightning.callbacks import PhaseSwitch
from swirl_lightning.callbacks.predictions import Predictions
from swirl_lightning.data import StateTokens, TransitionDataModule
from swirl_lightning.transition import Transition


@pytest.mark.parametrize("name", ["qwen_vl", "smolvlm"])
def test_a_vlm_reads_images_and_cannot_predict_them(name, tmp_path):
    backbone = backbone_of(name, FAMILIES[name].write(tmp_path), quantization=None)
    one, two, again = backbone.encode_states([*noise_images(2), noise_images(1)[0]], CPU)
    assert one == again
    assert not set(one) & set(two)
    before, after = backbone._marks
    assert backbone.wrap_state(one) == [*before, *one, *after]
    assert len(one) == backbone.grid**2
    with pytest.raises(ValueError, match="describe it in words"):
        backbone.state_grammar.complete(one)
    with pytest.raises(ValueError, match="none of the last 1024 images"):
        backbone.store.image(two[-1] + 1)


def test_a_vlm_keeps_a_bounded_number_of_images(tmp_path):
    """Encoding or reading an image keeps it, and encodings are not cached."""
    backbone = backbone_of("smolvlm", FAMILIES["smolvlm"].write(tmp_path), images_kept=2)
    first, second, third = noise_images(3)
    states = StateTokens(backbone)
    ids = states.encode([first, second], CPU)
    assert backbone.decode_states(ids[:1], CPU)[0].tobytes() == first.tobytes()  # now the second is the oldest
    states.encode([third], CPU)
    assert len(backbone.store) == 2
    with pytest.raises(ValueError, match="raise images_kept"):
        backbone.store.image(ids[1][0])
    assert states.encode([second], CPU) == [ids[1]]
    assert backbone.store.image(ids[1][0]).tobytes() == second.tobytes()
    with pytest.raises(ValueError, match="images_kept must lie in"):
        backbone_of("smolvlm", tmp_path, images_kept=0)


def test_a_vlm_uses_the_features_of_each_image(tmp_path):
    """More images than are kept, some twice: rows alone give what they give in a batch."""
    import swirl_lightning.backbones.image_trunk as module

    backbone = backbone_of("qwen_vl", FAMILIES["qwen_vl"].write(tmp_path), quantization=None)
    trunk = backbone.trunk(backbone.load_model())
    rows = [[3, *backbone.wrap_state(ids), 4] for ids in backbone.encode_states(noise_images(5), CPU)]
    ids = torch.tensor([*rows, rows[0]])
    mask, positions = torch.ones_like(ids), torch.arange(ids.shape[1]).expand(len(ids), -1)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(module, "FEATURES_KEPT", 2)
        whole = trunk(ids, mask, positions).last_hidden_state
        assert len(trunk._kept) == 2
        for n in range(len(ids)):
            alone = trunk(ids[n : n + 1], mask[:1], positions[:1]).last_hidden_state[0]
            torch.testing.assert_close(alone, whole[n], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(whole[0], whole[1])


@torch.no_grad()
def test_an_image_tells_where_the_text_after_it_goes_on(tmp_path):
    """The cache holds keys and values alone; a step after it gives what the whole row gives."""
    backbone = backbone_of("qwen_vl", FAMILIES["qwen_vl"].write(tmp_path), quantization=None)
    trunk = backbone.trunk(model := backbone.load_model().eval())
    (image,) = backbone.encode_states(noise_images(1), CPU)
    ids = torch.tensor([[3, *backbone.wrap_state(image), 4, 5]])
    mask, positions, cache = torch.ones_like(ids), torch.arange(ids.shape[1])[None], DynamicCache()
    prompt = trunk(ids[:, :-1], mask[:, :-1], positions[:, :-1], past_key_values=cache)
    assert prompt.rope_deltas.tolist() == [[backbone.grid - backbone.grid**2]]
    assert len(cache.layers) == len(model.get_decoder().layers)
    step = trunk(ids[:, -1:], mask, positions[:, -1:] + prompt.rope_deltas, past_key_values=cache)
    whole = trunk(ids, mask, positions)
    torch.testing.assert_close(step.last_hidden_state[:, 0], whole.last_hidden_state[:, -1], atol=1e-5, rtol=1e-5)


def test_parts_that_do_not_fit_are_named(folders, tmp_path):
    qwen = FAMILIES["qwen_vl"].write(tmp_path / "q")
    with pytest.raises(ValueError, match="resolution must be a multiple of 4"):
        backbone_of("qwen_vl", qwen, resolution=6).load_model()
    with pytest.raises(ValueError, match=r"'qwen2' model, needed: \['qwen2_5_vl'"):
        backbone_of("qwen_vl", folders["chat"]).load_model()
    with pytest.raises(ValueError, match="no causal language model"):
        backbone_of("text", qwen).load_model()
    smol = FAMILIES["smolvlm"].write(tmp_path / "s")
    with pytest.raises(ValueError, match="leave it out"):
        _ = backbone_of("smolvlm", smol, resolution=512).grid
    byte_tokenizer(["<image>"]).save_pretrained(smol)
    with pytest.raises(ValueError, match="lacks <fake_token_around_image>, <global-img>"):
        backbone_of("smolvlm", smol).load_model()


class Frames(TransitionDataModule):
    """Pairs of images; the action tells which image comes second."""

    def load_split(self, split):
        first, *others = noise_images(4)
        return [Transition(first, y, z, id=z) for y, z in zip(others, ("go", "turn", "wait"), strict=True)]


def test_a_vlm_learns_to_name_actions_between_frames(tmp_path):
    """The IDM alone: the next state is an image, which the FWM cannot generate."""
    module = SWIRL(
        backbone_of("qwen_vl", FAMILIES["qwen_vl"].write(tmp_path)),
        roles=("idm",),
        optim=PhaseOptimConfig(warmup=OptimConfig(5e-3)),
    )
    predictions = Predictions()
    trainer = quiet_trainer(tmp_path, PhaseSwitch(100, iterations=0), predictions, limit_val_batches=0)
    data = Frames(batch_size=3)
    trainer.fit(module, data)
    assert not any(p.any() for n, p in module.named_parameters() if "lora_B.fwm." in n)
    (found,) = trainer.test(module, data, verbose=False)
    assert found["test/idm/greedy/exact_match"] == 1.0
    assert not [name for name in found if "fwm" in name or name in ("test/identifiability", "test/likelihood")]
    rows = [json.loads(line) for line in (tmp_path / "predictions/greedy-rank0.jsonl").read_text().splitlines()]
    assert [(row["predicted_action"], row["predicted_state"]) for row in rows] == [
        (name, None) for name in ("go", "turn", "wait")
    ]
    (answers,) = trainer.predict(module, data)
    assert [sorted(row) for row in answers] == [["action", "id", "predicted_action"]] * 3
