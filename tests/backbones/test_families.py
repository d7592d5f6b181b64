"""What is particular to Emu3, Chameleon, text models and VLMs, and what they say when parts do not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    ChameleonForConditionalGeneration,
    DynamicCache,
    Emu3ForConditionalGeneration,
    GraniteConfig,
    GraniteForCausalLM,
    PreTrainedTokenizerFast,
)

from support.tiny import SPECIALS, byte_tokenizer, gemma_folder
from support.tiny_families import CODES, CPU, FAMILIES, SIDE, backbone_of, pictures, vqgan
from support.tiny_liquid import SIZES
from support.trainers import quiet_trainer
from swirl_lightning import SWIRL, OptimConfig, PhaseOptimConfig
from swirl_lightning.backbones.images import to_pixels
from swirl_lightning.backbones.text import TextLLM
from swirl_lightning.callbacks import PhaseSwitch
from swirl_lightning.callbacks.predictions import Predictions
from swirl_lightning.checkpoint import base_identity
from swirl_lightning.data import StateTokens, TransitionDataModule
from swirl_lightning.evaluation import EvaluationConfig
from swirl_lightning.prompts import PromptBuilder, PromptTemplates
from swirl_lightning.transition import Transition


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: FAMILIES[name].write(tmp_path_factory.mktemp(name)) for name in ("chat", "emu3", "chameleon")}


@pytest.fixture
def broken(folders, tmp_path):
    return lambda name: Path(shutil.copytree(folders[name], tmp_path / name))


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# ---- Emu3 ----------------------------------------------------------------------------------------
def test_emu3_ids_are_those_of_the_family(folders):
    """Codes and end-of-row tokens as transformers lays them out; the opening names the size in codes."""
    backbone = backbone_of("emu3", folders["emu3"])
    model = Emu3ForConditionalGeneration.from_pretrained(folders["emu3"]).eval()
    images = pictures(3)
    batch = backbone._processor.preprocess(images, do_resize=False, return_tensors="pt")
    theirs = model.model.get_image_tokens(batch["pixel_values"], batch["image_sizes"]).view(3, -1).tolist()
    side = SIDE // 2
    mark = backbone.tokenizer.convert_tokens_to_ids
    opening = [mark("<|image start|>"), *backbone.encode_text(f"{side}*{side}"), mark("<|image token|>")]
    closing = [mark("<|extra_201|>"), mark("<|image end|>")]
    contents = backbone.encode_states(images, CPU)
    for content, layout in zip(contents, theirs, strict=True):
        assert backbone.wrap_state(content) == [*opening, *layout, *closing]
    assert backbone.state_opening() == opening
    assert backbone.state_grammar.complete(contents[0]) == [*theirs[0], *closing]


def test_emu3_pictures_are_those_of_the_family(folders):
    backbone = backbone_of("emu3", folders["emu3"])
    model = Emu3ForConditionalGeneration.from_pretrained(folders["emu3"]).eval()
    content = backbone.encode_states(pictures(1), CPU)[0]
    tokens = torch.tensor([[*backbone.state_grammar.complete(content), 1]])  # with an EOS, as generate leaves it
    pixels = model.model.decode_image_tokens(tokens, height=SIDE // 2, width=SIDE // 2)
    expected = ((pixels[0] / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
    got = backbone.decode_states([content], CPU)[0]
    difference = torch.tensor(list(got.tobytes())).float() - expected.flatten().float()
    assert difference.abs().max() <= 1


def test_emu3_another_size_is_another_grammar(folders):
    backbone = backbone_of("emu3", folders["emu3"], resolution=4)
    ids = backbone.encode_states([Image.new("L", (30, 7))], CPU)[0]
    assert len(ids) == 4
    assert backbone.fingerprint() != backbone_of("emu3", folders["emu3"]).fingerprint()
    with pytest.raises(ValueError, match="multiple of 2"):
        _ = backbone_of("emu3", folders["emu3"], resolution=5).grid


def test_emu3_names_parts_that_do_not_fit(broken):
    folder = broken("emu3")
    state = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in state.items() if "vqmodel.decoder" not in k}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"lacks \d+ weights of its image tokenizer.*-hf"):
        backbone_of("emu3", folder).encode_states(pictures(1), CPU)
    config = json.loads((folder / "config.json").read_text())
    edit(folder / "config.json", vq_config=config["vq_config"] | {"codebook_size": CODES + 1})
    with pytest.raises(ValueError, match=f"names {CODES} image codes.*has {CODES + 1}"):
        backbone_of("emu3", folder).load_model()
    edit(folder / "config.json", vocabulary_map=None)
    with pytest.raises(ValueError, match="no vocabulary_map"):
        backbone_of("emu3", folder).load_model()
    byte_tokenizer().save_pretrained(folder)
    with pytest.raises(ValueError, match=r"tokenizer lacks <\|image start\|>"):
        _ = backbone_of("emu3", folder).tokenizer


def test_emu3_vq_of_another_shape_is_named(broken):
    folder = broken("emu3")
    state = load_file(folder / "model.safetensors")
    key = next(k for k in state if k.endswith("quantize.embedding.weight"))
    save_file(state | {key: state[key][:, :2].contiguous()}, folder / "model.safetensors")
    with pytest.raises(ValueError, match="VQ weights do not fit vq_config"):
        backbone_of("emu3", folder).encode_states(pictures(1), CPU)


# ---- Chameleon -----------------------------------------------------------------------------------
def test_chameleon_ids_are_those_of_the_family(folders):
    backbone = backbone_of("chameleon", folders["chameleon"])
    model = ChameleonForConditionalGeneration.from_pretrained(folders["chameleon"]).eval()
    images = pictures(3)
    assert backbone.encode_states(images, CPU) == model.get_image_tokens(to_pixels(images, SIDE)).tolist()


def test_chameleon_sees_past_the_mask_of_its_forward(folders):
    backbone = backbone_of("chameleon", folders["chameleon"], quantization=None)
    model = backbone.load_model()
    ids = torch.tensor([[2, *backbone.wrap_state(backbone.encode_states(pictures(1), CPU)[0])]])
    image = list(backbone.state_grammar.allowed)
    assert (model(input_ids=ids).logits[..., image] < -1e30).all()
    hidden = backbone.trunk(model)(input_ids=ids).last_hidden_state
    assert (backbone.head(model)(hidden)[..., image].abs() < 1e3).all()


def test_chameleon_names_parts_that_do_not_fit(broken):
    folder = broken("chameleon")
    whole = vqgan(folder / "vqgan")
    shuffled = whole.state_dict() | {"quantize.embedding.weight": whole.quantize.embedding.weight.flip(0)}
    save_file({k: v.contiguous() for k, v in shuffled.items()}, folder / "vqgan" / "vqgan.safetensors")
    with pytest.raises(ValueError, match=r"codebook of .* is another one"):
        backbone_of("chameleon", folder).load_model()
    vqgan(folder / "vqgan", codes=CODES + 4)
    with pytest.raises(ValueError, match=f"VQ has {CODES} codes of 8 numbers.*{CODES + 4} of 8"):
        backbone_of("chameleon", folder).load_model()
    shutil.rmtree(folder / "vqgan")
    with pytest.raises(ValueError, match="set vqgan_path"):
        backbone_of("chameleon", folder).load_model()


# ---- text ----------------------------------------------------------------------------------------
def test_chat_template_stands_around_the_prompt(folders):
    backbone = backbone_of("chat", folders["chat"])
    builder = PromptBuilder(backbone, PromptTemplates(fwm="{before}|{action}|", idm="{before}|{after}|"))
    ids = builder.fwm(*[backbone.encode_action(t) for t in ("x", "go")])
    text = backbone.tokenizer.decode(ids)
    assert text == "<|im_start|>user\nx|go|<|im_end|>\n<|im_start|>assistant\n"
    assert backbone.action_grammar.eos == backbone.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert backbone.tokenizer.convert_tokens_to_ids("<|im_start|>") not in backbone.state_grammar.allowed


def test_pieces_that_end_with_a_line_break_are_the_ids_of_the_whole(tmp_path):
    """With a tokenizer that joins a blank with the word after it, as GPT's and Qwen's do."""
    core = Tokenizer(models.BPE())
    split = Regex(r"""[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""")
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(split, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    corpus = ["Before:\nthe red door\nAction:\nopen the red door\nAfter:\nthe open door\n"] * 9
    core.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=400, special_tokens=SPECIALS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    folder = gemma_folder(tmp_path / "bpe")
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>").save_pretrained(folder)
    backbone = backbone_of("text", folder, max_state_tokens=50)
    templates = PromptTemplates(fwm="Before:\n{before}\nAction:\n{action}\nAfter:\n", idm="{before}\n{after}\n")
    x, z = backbone.encode_states(["the red door"], CPU)[0], backbone.encode_action("open")
    whole = "Before:\nthe red door\nAction:\nopen\nAfter:\n"
    assert PromptBuilder(backbone, templates).fwm(x, z) == backbone.encode_text(whole)


def test_lengths_policy(folders):
    state = "0123456789abcdef"
    with pytest.warns(UserWarning, match="state of 16 tokens exceeds the 9"):
        ids = backbone_of("chat", folders["chat"]).encode_states([state], CPU)[0]
    assert backbone_of("chat", folders["chat"]).decode_text(ids) == "01234cdef"
    strict = backbone_of("chat", folders["chat"], too_long="error")
    with pytest.raises(ValueError, match="raise max_state_tokens"):
        strict.encode_states([state], CPU)
    with pytest.raises(ValueError, match="raise max_action_tokens"):
        strict.encode_action(state)
    with pytest.raises(ValueError, match="too_long must be one of"):
        backbone_of("chat", folders["chat"], too_long="wrap")
    with pytest.raises(ValueError, match="at least 2"):
        backbone_of("chat", folders["chat"], max_action_tokens=1)


def test_text_names_what_does_not_fit(broken, tmp_path):
    folder = broken("chat")
    tokenizer = byte_tokenizer(["<|im_start|>", "<|im_end|>", *[f"<more{n}>" for n in range(20)]])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match="use its own tokenizer files"):
        backbone_of("chat", folder).load_model()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match="lacks eos_token"):
        backbone_of("chat", folder).load_model()
    tokenizer.eos_token, tokenizer.chat_template = "<eos>", "hello"
    tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match="chat template does not show"):
        backbone_of("chat", folder).frame_prompt("{before}")


# ---- families ------------------------------------------------------------------------------------
@pytest.mark.parametrize("scaling", [1.0, 8.0])
def test_logits_beyond_the_output_layer_are_refused(tmp_path, scaling):
    tokenizer = byte_tokenizer()
    config = GraniteConfig(vocab_size=len(tokenizer), logits_scaling=scaling, **SIZES)
    GraniteForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    backbone = TextLLM(str(tmp_path), quantization=None, dtype="float32")
    if scaling != 1:
        with pytest.raises(ValueError, match="scales or caps"):
            backbone.load_model()
    else:
        backbone.load_model()


@pytest.mark.parametrize("name", ["chat", "emu3", "chameleon", "qwen_vl", "smolvlm"])
def test_a_base_is_the_same_at_any_dtype(tmp_path, name):
    folder = FAMILIES[name].write(tmp_path)
    models = [
        backbone_of(name, folder, dtype=dtype, quantization=None).load_model() for dtype in ("float32", "bfloat16")
    ]
    assert base_identity(models[0]) == base_identity(models[1])


def test_another_family_is_named(folders):
    for name, folder, wanted in (
        ("emu3", "chat", r"'qwen2' model, needed: \['emu3'\]"),
        ("chameleon", "emu3", "'emu3' model.*use swirl_lightning.backbones.Emu3"),
        ("text", "emu3", "no causal language model; use swirl_lightning.backbones.Emu3"),
        ("text", "chameleon", "use swirl_lightning.backbones.Chameleon"),
    ):
        with pytest.raises(ValueError, match=wanted):
            backbone_of(name, folders[folder]).load_model()


def test_a_truncated_picture_is_named(folders, tmp_path):
    pictures(1, side=64)[0].save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    for name in ("emu3", "chameleon"):
        with pytest.raises(ValueError, match=r"half.png.*truncated or damaged"):
            backbone_of(name, folders[name]).encode_states([Image.open(tmp_path / "half.png")], CPU)


def test_other_modes_become_rgb(folders):
    for name in ("emu3", "chameleon"):
        backbone = backbone_of(name, folders[name])
        grey = Image.new("RGBA", (SIDE, SIDE), (0, 0, 0, 0))
        white = Image.new("RGB", (SIDE, SIDE), (255, 255, 255))
        assert backbone.encode_states([grey], CPU) == backbone.encode_states([white], CPU)


def test_backbones_are_imported_when_they_are_asked_for():
    import swirl_lightning.backbones as package

    assert all(getattr(package, name).__name__ == name for name in package.__all__)
    with pytest.raises(AttributeError, match="TextLLM"):
        _ = package.Nothing


# ---- VLM -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["qwen_vl", "smolvlm"])
def test_a_vlm_reads_pictures_and_cannot_predict_them(name, tmp_path):
    backbone = backbone_of(name, FAMILIES[name].write(tmp_path), quantization=None)
    one, two, again = backbone.encode_states([*pictures(2), pictures(1)[0]], CPU)
    assert one == again
    assert not set(one) & set(two)
    before, after = backbone._marks
    assert backbone.wrap_state(one) == [*before, *one, *after]
    assert len(one) == backbone.grid**2
    with pytest.raises(ValueError, match="describe it in words"):
        backbone.state_grammar.complete(one)
    with pytest.raises(ValueError, match="none of the last 1024 images"):
        backbone.store.image(two[-1] + 1)


def test_a_vlm_keeps_a_bounded_number_of_pictures(tmp_path):
    """Encoding or reading a picture keeps it, and no cache stands in front of an encoding."""
    backbone = backbone_of("smolvlm", FAMILIES["smolvlm"].write(tmp_path), images_kept=2)
    first, second, third = pictures(3)
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


def test_a_vlm_uses_the_features_of_each_picture(tmp_path):
    """More pictures than are kept, some twice: rows alone give what they give in a batch."""
    import swirl_lightning.backbones.image_trunk as module

    backbone = backbone_of("qwen_vl", FAMILIES["qwen_vl"].write(tmp_path), quantization=None)
    trunk = backbone.trunk(backbone.load_model())
    rows = [[3, *backbone.wrap_state(ids), 4] for ids in backbone.encode_states(pictures(5), CPU)]
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
def test_a_picture_tells_where_the_text_after_it_goes_on(tmp_path):
    """The cache holds keys and values alone; a step after it gives what the whole row gives."""
    backbone = backbone_of("qwen_vl", FAMILIES["qwen_vl"].write(tmp_path), quantization=None)
    trunk = backbone.trunk(model := backbone.load_model().eval())
    (picture,) = backbone.encode_states(pictures(1), CPU)
    ids = torch.tensor([[3, *backbone.wrap_state(picture), 4, 5]])
    mask, positions, cache = torch.ones_like(ids), torch.arange(ids.shape[1])[None], DynamicCache()
    prompt = trunk(ids[:, :-1], mask[:, :-1], positions[:, :-1], past_key_values=cache)
    assert prompt.rope_deltas.tolist() == [[backbone.grid - backbone.grid**2]]
    assert len(cache.layers) == len(model.get_decoder().layers)
    step = trunk(ids[:, -1:], mask, positions[:, -1:] + prompt.rope_deltas, past_key_values=cache)
    whole = trunk(ids, mask, positions)
    torch.testing.assert_close(step.last_hidden_state[:, 0], whole.last_hidden_state[:, -1], atol=1e-5, rtol=1e-5)


def test_vlm_names_what_does_not_fit(folders, tmp_path):
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
    """Pairs of pictures; the action tells which picture comes second."""

    def load_split(self, split):
        first, *others = pictures(4)
        return [Transition(first, y, z, id=z) for y, z in zip(others, ("go", "turn", "wait"), strict=True)]


def test_a_vlm_learns_to_name_actions_between_frames(tmp_path):
    """The IDM alone: the next state is a picture, which the FWM cannot say."""
    module = SWIRL(
        backbone_of("qwen_vl", FAMILIES["qwen_vl"].write(tmp_path)),
        roles=("idm",),
        optim=PhaseOptimConfig(warmup=OptimConfig(5e-3)),
    )
    predictions = Predictions(folder=str(tmp_path / "predictions"))
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


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"roles": ("judge",)}, "roles must be among"),
        ({"roles": ("fwm",), "evaluation": EvaluationConfig(best_of=2)}, "asks both models"),
    ],
)
def test_roles_that_do_not_fit_are_refused(settings, said, folders):
    with pytest.raises(ValueError, match=said):
        SWIRL(backbone_of("chat", folders["chat"]), **settings)


def test_one_role_takes_no_part_in_rl(folders, tmp_path):
    trainer = quiet_trainer(tmp_path, PhaseSwitch(1))
    with pytest.raises(ValueError, match="RL needs both"):
        trainer.fit(SWIRL(backbone_of("chat", folders["chat"]), roles=("idm",)), Frames(batch_size=3))
