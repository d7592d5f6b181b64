"""``SWIRL.load_from_checkpoint``: a trained module without a Trainer, and without trust in the checkpoint."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from support.cli import here, longer_config
from support.random_state import RandomState
from support.swirl import equal
from support.tiny import gemma_folder, text_backbone
from support.tiny_liquid import liquid_folder, vqgan
from support.trainers import quiet_trainer
from support.world import Digits
from swirl_lightning import SWIRL, AdapterConfig, GRPOConfig
from swirl_lightning.backbones import Liquid
from swirl_lightning.backbones.text import TextLLM
from swirl_lightning.callbacks import PhaseSwitch
from swirl_lightning.checkpoints.fit import check_fits
from swirl_lightning.prompts import PromptTemplates
from swirl_lightning.transition import Transition


@pytest.fixture(scope="module")
def run(tmp_path_factory, gemma_path):
    """The folder of a real run: a warm-up epoch and one iteration, adapters of rank 4 and α 32."""
    folder = tmp_path_factory.mktemp("run")
    here("fit", "-c", longer_config(folder, gemma_path))
    return folder / "runs" / "r"


@pytest.fixture
def last(run):
    return run / "checkpoints" / "last.ckpt"


@pytest.fixture
def backbone(gemma_path):
    return text_backbone(gemma_path, max_state_tokens=4, max_action_tokens=5)


@pytest.fixture
def alone(last, tmp_path):
    """The checkpoint's file and nothing beside it."""
    (tmp_path / "sent").mkdir()
    return shutil.copy(last, tmp_path / "sent" / "some.ckpt")


def saved(path):
    return torch.load(path, weights_only=True)


def test_the_runs_own_configuration_is_found(last):
    module = SWIRL.load_from_checkpoint(last)
    assert equal(module.state_dict(), saved(last)["state_dict"])
    with pytest.raises(TypeError, match="cannot be called on an instance"):
        module.load_from_checkpoint(last)
    assert (module.lora, module.grpo.group_size) == (AdapterConfig(r=4, dropout=0.1), 4)
    assert (module.label, module.training, module.model.training) == ("SWIRL iteration 1", False, False)
    assert module.device == torch.device("cpu")
    assert module.tokens_seen == saved(last)["swirl"]["tokens_seen"] > 0


def test_it_predicts_what_a_trainer_predicts(last, backbone, tmp_path):
    data = Digits(size=8, eval_batch_size=8)
    fresh = SWIRL(backbone, lora=AdapterConfig(r=4))
    (rows,) = quiet_trainer(tmp_path).predict(fresh, data, ckpt_path=last, weights_only=True)
    module = SWIRL.load_from_checkpoint(last)
    assert module.evaluator.predict(data.load_split("test"), module.device) == rows
    assert all(row["predicted_state"] and row["predicted_action"] is not None for row in rows)
    untrained = SWIRL(backbone, lora=AdapterConfig(r=4))
    untrained.configure_model()
    assert untrained.evaluator.predict(data.load_split("test"), untrained.device) != rows


def test_arguments_take_the_place_of_the_configurations(last, gemma_path):
    longer = text_backbone(gemma_path, max_state_tokens=9)
    module = SWIRL.load_from_checkpoint(str(last), seed=5, backbone=longer, config_path=last.parents[1] / "config.yaml")
    assert (module.seed, module.backbone, module.grpo.group_size) == (5, longer, 4)
    with pytest.raises(TypeError, match="sed"):
        SWIRL.load_from_checkpoint(last, sed=5)


def test_a_configuration_may_have_short_names_of_classes(last, tmp_path):
    """In a fresh process: the parser knows those of imported classes alone, and the tests import them all."""
    text = (last.parents[1] / "config.yaml").read_text()
    (short := tmp_path / "short.yaml").write_text(text.replace("swirl_lightning.backbones.text.TextLLM", "TextLLM"))
    assert short.read_text() != text
    code = f"from swirl_lightning import SWIRL; SWIRL.load_from_checkpoint({str(last)!r}, config_path={str(short)!r})"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_with_a_backbone_no_file_beside_the_checkpoint_is_read(alone, last, backbone):
    (alone.parent / "config.yaml").write_text("model: {class_path: os.system}")
    module = SWIRL.load_from_checkpoint(alone, backbone=backbone)
    assert equal(module.state_dict(), saved(last)["state_dict"])
    assert module.lora == AdapterConfig(r=4, alpha=32)  # two numbers that the checkpoint says
    with pytest.raises(ValueError, match=r"config\.yaml: [\s\S]*os\.system does not correspond to a subclass of SWIRL"):
        SWIRL.load_from_checkpoint(alone)


def test_without_either_the_cure_is_told(alone, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config\.yaml in .*sent.* give backbone=\.\.\. .*config_path="):
        SWIRL.load_from_checkpoint(alone)
    other = tmp_path / "other.yaml"
    other.write_text("trainer: {}")
    with pytest.raises(ValueError, match=r"other\.yaml has no key 'model'"):
        SWIRL.load_from_checkpoint(alone, config_path=other)
    for content, told in (
        ("model: [x", r"other\.yaml is no configuration: while parsing"),
        ("model: {a: 1, a: 2}", r"other\.yaml is no configuration: the key 'a' comes twice"),
    ):
        other.write_text(content)
        with pytest.raises(ValueError, match=told) as error:
            SWIRL.load_from_checkpoint(alone, config_path=other)
        assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"gone\.ckpt does not exist"):
        SWIRL.load_from_checkpoint(alone.with_name("gone.ckpt"))


def test_nothing_a_checkpoint_says_becomes_configuration(alone, last, backbone, tmp_path):
    state = saved(last)
    state["hyper_parameters"] = {
        "seed": 77,
        "roles": ["fwm"],
        "_instantiator": "lightning.pytorch.cli.instantiate_module",
        "_class_path": "os.system",
        "backbone": {"class_path": "os.system"},
    }
    state["hparams_name"] = "backbone"
    torch.save(state, alone)
    shutil.copy(last.parents[1] / "config.yaml", tmp_path / "config.yaml")
    for module in (SWIRL.load_from_checkpoint(alone), SWIRL.load_from_checkpoint(alone, backbone=backbone)):
        assert (module.seed, module.roles, type(module.backbone)) == (0, ("fwm", "idm"), TextLLM)
    state["swirl"]["lora"] = {"r": "4", "alpha": 32}
    torch.save(state, alone)
    with pytest.raises(ValueError, match=r"lora\.r is no positive integer but '4'"):
        SWIRL.load_from_checkpoint(alone, backbone=backbone)


class Harm:
    def __reduce__(self):
        return (exec, ("raise SystemExit('a checkpoint ran code')",))


def test_code_in_a_checkpoint_is_not_run(alone, last, backbone):
    torch.save({**saved(last), "extra": Harm()}, alone)
    with pytest.raises(ValueError, match=r"some\.ckpt cannot be read"):
        SWIRL.load_from_checkpoint(alone, backbone=backbone)


def test_other_prompts_than_those_of_the_training_are_told(alone, last, backbone, recwarn):
    SWIRL.load_from_checkpoint(last, backbone=backbone)
    assert not [warning for warning in recwarn if "prompt" in str(warning.message)]
    other = PromptTemplates(fwm="{before} then {action} gives ")
    with pytest.warns(UserWarning, match=r"trained with another prompt than model\.templates\.fwm gives"):
        SWIRL.load_from_checkpoint(last, backbone=backbone, templates=other)
    state = saved(last)
    state["swirl"]["templates"] = {"idm": ["a list"]}
    torch.save(state, alone)
    with pytest.warns(UserWarning, match=r"than model\.templates\.idm gives"):
        SWIRL.load_from_checkpoint(alone, backbone=backbone)


def test_another_base_or_other_adapters_are_refused_in_one_message(last, backbone, tmp_path):
    other = text_backbone(gemma_folder(tmp_path / "other", seed=1))
    with pytest.raises(ValueError, match=r"set model\.backbone\.model_name_or_path to .* has other weights$"):
        SWIRL.load_from_checkpoint(last, backbone=other)
    with pytest.raises(ValueError, match="other settings") as told:
        SWIRL.load_from_checkpoint(last, lora=AdapterConfig(r=8, alpha=8), shared_weights=True)
    assert str(told.value) == (
        "the checkpoint's adapters were trained with other settings: set model.shared_weights to false; "
        "set model.lora.r to 4 (8 here); set model.lora.alpha to 32 (8 here)"
    )
    with pytest.raises(ValueError, match=r"target_modules so that adapters are in .*'q_proj'.* \(in \['q_proj'\] here"):
        SWIRL.load_from_checkpoint(last, backbone=backbone, lora=AdapterConfig(r=4, target_modules=["q_proj"]))


def test_the_command_names_every_setting_before_the_base_loads(run, tmp_path, monkeypatch):
    monkeypatch.setattr("swirl_lightning.backbones.text.TextLLM.load_model", None)
    settings = ("--model.init_args.lora.r", "8", "--model.init_args.shared_weights", "true")
    with pytest.raises(SystemExit, match=r"shared_weights to false; set model\.lora\.r to 4 \(8 here\)$"):
        here("test", "-c", run / "config.yaml", "--ckpt_path", run / "checkpoints" / "last.ckpt", *settings)


def test_a_vqgan_that_is_another_or_missing_is_named_with_the_other_settings(tmp_path):
    folder = liquid_folder(tmp_path / "liquid")
    parts = Liquid(str(folder)).parts()
    base = {"name": "base", "architecture": "a", "weights": "w"}
    state = {"base": base, "label": "SFT", "parts": parts, "lora": {"r": 4, "alpha": 8}}
    checkpoint = {"swirl": state, "state_dict": {"fwm.layer.lora_A": torch.zeros(4, 2)}}
    settings = {"lora": AdapterConfig(r=4, alpha=16)}
    check_fits(checkpoint, SWIRL(Liquid(str(folder)), lora=AdapterConfig(r=4, alpha=8)))
    vqgan(tmp_path / "other", codes=8)
    for path, told in (("other", r"set model\.backbone\.vqgan_path to that"), ("none", "no VQGAN folder at .*none")):
        with pytest.raises(ValueError, match=rf"{told}.*; set model\.lora\.alpha to 8 \(16 here\)$"):
            check_fits(checkpoint, SWIRL(Liquid(str(folder), vqgan_path=str(tmp_path / path)), **settings))
    checkpoint["swirl"]["lora"]["alpha"] = torch.zeros(3)  # damaged
    with pytest.raises(ValueError, match=r": set model\.lora\.alpha to tensor\(\[0\., 0\., 0\.\]\) \(8 here\)$"):
        check_fits(checkpoint, SWIRL(Liquid(str(folder)), lora=AdapterConfig(r=4, alpha=8)))


def test_lengths_left_to_the_data_come_from_the_checkpoint(gemma_path, tmp_path, caplog):
    """Chosen once, at the start of the training, and the same in everything that is done with its weights."""

    class Growing(Digits):
        def load_split(self, split):
            rows = super().load_split(split)
            words = "a long way" if split == "test" else "go"
            return [replace(row, before=f"{row.before}{'.' * (n == 3)}", action=words) for n, row in enumerate(rows)]

    module = SWIRL(TextLLM(str(gemma_path), dtype="float32"), lora=AdapterConfig(r=4))
    quiet_trainer(tmp_path).test(module, Growing(size=2), verbose=False)  # its lengths are no training's
    assert module.backbone.chosen_lengths == {"max_state_tokens": 3, "max_action_tokens": 11}
    state_only = quiet_trainer(
        tmp_path, PhaseSwitch(0, phases=["fwm"], iterations=1), max_epochs=-1, limit_val_batches=0
    )
    again = SWIRL(
        TextLLM(module.backbone.name, dtype="float32"), lora=AdapterConfig(r=4), grpo=GRPOConfig(group_size=2)
    )
    quiet_trainer(tmp_path).test(again, Growing(size=2), verbose=False)
    state_only.fit(again, Growing(size=8, batch_size=8))  # pairs tell no length of actions
    assert (again.backbone.chosen_lengths, again.backbone.max_action_tokens) == ({"max_state_tokens": 4}, 64)
    caplog.clear()
    trainer = quiet_trainer(tmp_path, PhaseSwitch(1, iterations=0), max_epochs=-1, limit_val_batches=0)
    with caplog.at_level("INFO"):
        trainer.fit(module, Growing(size=8, batch_size=8))
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        trainer.test(module, Growing(size=2), verbose=False)
    chosen = {"max_state_tokens": 4, "max_action_tokens": 3}  # with the EOS
    assert module.backbone.chosen_lengths == chosen
    assert [module.models.grammars[role].max_length for role in ("fwm", "idm")] == [4, 3]
    told = "99th percentile: max_state_tokens 4 (of 16 texts the longest has 3 tokens), max_action_tokens 3"
    assert caplog.text.count(told) == caplog.text.count("percentile") == 1
    for given, lengths in (({}, [4, 3]), ({"max_state_tokens": 9}, [9, 3])):
        backbone = TextLLM(str(gemma_path), dtype="float32", **given)
        again = SWIRL.load_from_checkpoint(tmp_path / "last.ckpt", backbone=backbone)
        assert [again.models.grammars[role].max_length for role in ("fwm", "idm")] == lengths
        assert len(again.predict_action("12", "34")[0]) <= 3
    state = saved(tmp_path / "last.ckpt")
    state["swirl"]["lengths"]["max_state_tokens"] = "4"
    torch.save(state, tmp_path / "bad.ckpt")
    with pytest.raises(ValueError, match="length max_state_tokens is no number of tokens but '4'"):
        SWIRL.load_from_checkpoint(tmp_path / "bad.ckpt", backbone=TextLLM(str(gemma_path), dtype="float32"))
    assert SWIRL(TextLLM(str(gemma_path))).backbone.max_state_tokens == 1024  # where nothing tells


class Kept(SWIRL):
    """A subclass that keeps its arguments, as modules of Lightning do."""

    def __init__(self, extra=1, **options):
        super().__init__(**options)
        self.save_hyperparameters()


class KeptDigits(Digits):
    def __init__(self, rows=None, **options):
        super().__init__(**options)
        self.save_hyperparameters()


def test_hyperparameters_that_are_objects_leave_a_checkpoint_readable(gemma_path, tmp_path):
    """Lightning puts them there as they are, and a checkpoint is read without code."""

    def module():
        return Kept(extra=3, backbone=TextLLM(str(gemma_path), dtype="float32"), lora=AdapterConfig(r=4))

    def trainer(epochs):
        return quiet_trainer(tmp_path, PhaseSwitch(epochs, iterations=0), max_epochs=-1, limit_val_batches=0)

    data = KeptDigits(rows=[Transition("1", "2")], size=8, batch_size=8)
    first, path = trainer(1), tmp_path / "kept.ckpt"
    first.fit(module(), data)
    first.save_checkpoint(path)
    kept = saved(path)
    assert kept["hyper_parameters"] == {"extra": 3}
    assert kept["datamodule_hyper_parameters"] == {"size": 8, "batch_size": 8}
    assert Kept.load_from_checkpoint(path, backbone=TextLLM(str(gemma_path), dtype="float32")).predict_action("1", "2")
    again = trainer(2)
    again.fit(module(), data, ckpt_path=path)
    assert again.current_epoch == 2


def test_arguments_of_lightning_that_have_no_place_here_are_named(last):
    with pytest.raises(TypeError, match="has no hparams_file and no strict: all of the adapters"):
        SWIRL.load_from_checkpoint(last, strict=False, hparams_file="hparams.yaml")


def test_map_location_says_where_the_module_is(last, monkeypatch):
    asked = []
    load = torch.load

    def watched(path, map_location=None, **kwargs):
        asked.append((map_location, kwargs["weights_only"]))
        return load(path, map_location=map_location, **kwargs)

    monkeypatch.setattr(torch, "load", watched)
    SWIRL.load_from_checkpoint(last)
    assert asked[-1] == ("cpu", True)
    with pytest.raises(RuntimeError, match="no-such-device"):
        SWIRL.load_from_checkpoint(last, map_location="no-such-device")


def test_what_is_loaded_trains_as_a_run_of_its_own(run, tmp_path):
    """It has the weights of a run cut off in Phase I, but not its epoch, rollouts and random states."""
    middle = run / "checkpoints" / "epoch=1-step=6.ckpt"
    assert saved(middle)["swirl"]["label"] == "fwm 1 unfinished"
    module, random = SWIRL.load_from_checkpoint(middle), RandomState()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    trainer = quiet_trainer(tmp_path, PhaseSwitch(0, ["fwm"], 1), random, max_epochs=-1, limit_val_batches=0)
    trainer.fit(module, Digits(size=8, batch_size=8))
    assert trainer.global_step == 1
    assert not equal(module.state_dict(), before)
    assert not torch.equal(random.seen, saved(middle)["swirl"]["rng"][0]["torch"])


LATER = ("written", "parts", "lengths", "optimizer", "window", "templates", "learned")
"""What the first checkpoints did not hold."""


def test_a_checkpoint_of_the_old_layout_loads_and_goes_on(run, tmp_path, gemma_path):
    folder = shutil.copytree(run, tmp_path / "runs" / "r")
    for path in (folder / "checkpoints").glob("*.ckpt"):
        state = saved(path)
        state["swirl"] = {name: value for name, value in state["swirl"].items() if name not in LATER}
        del state["swirl"]["base"]["files"], state["swirl"]["base"]["vocabulary"]
        torch.save(state, path)
    last, ended = folder / "checkpoints" / "last.ckpt", saved(run / "checkpoints" / "last.ckpt")
    assert set(saved(last)["swirl"]) == {"base", "label", "lora", "tokens_seen", "rng", "updates"}
    assert equal(SWIRL.load_from_checkpoint(last).state_dict(), ended["state_dict"])
    within = folder / "checkpoints" / "epoch=1-step=6.ckpt"
    here("fit", "-c", longer_config(tmp_path, gemma_path), "--ckpt_path", within)
    assert equal(saved(last)["state_dict"], ended["state_dict"])
