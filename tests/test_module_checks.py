"""What the LightningModule refuses, and its gradient clipping."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
    OnExceptionCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from lightning.pytorch.tuner import Tuner
from PIL import Image
from torch.optim.lr_scheduler import StepLR

from support.random_state import RandomState
from support.swirl import CONSTANT, SGD, build, snapshot, trainer
from support.trainers import quiet_trainer
from support.world import Digits
from swirl_lightning import SWIRL
from swirl_lightning.callbacks import PhaseSwitch
from swirl_lightning.training import trainer_checks
from swirl_lightning.training.trainer_checks import check_optimizer, check_strategy


def test_without_phase_switch_the_error_names_it(gemma_path, tmp_path):
    with pytest.raises(ValueError, match="PhaseSwitch"):
        quiet_trainer(tmp_path).fit(build(gemma_path), Digits())


def test_unlabelled_warmup_is_named(gemma_path, tmp_path):
    class Unlabelled(Digits):
        def load_split(self, split):
            return [t.without_action() for t in super().load_split(split)]

    with pytest.raises(ValueError, match=r"warmup-\d+"):
        trainer(tmp_path).fit(build(gemma_path), Unlabelled())


@pytest.mark.parametrize(
    ("precision", "quantization", "what"),
    [
        ("64-true", "nf4", "the packed 4-bit weights"),
        ("bf16-true", "nf4", "the adapters"),
        ("bf16-true", None, "the adapters"),
        ("16-true", None, "the adapters"),
    ],
)
def test_a_trainer_that_would_cast_weights_is_refused(gemma_path, tmp_path, precision, quantization, what):
    module = build(gemma_path, quantization=quantization)
    with pytest.raises(ValueError, match=f"would cast {what}"):
        trainer(tmp_path, precision=precision).fit(module, Digits(size=8, batch_size=8))
    assert module.model is None  # nothing was loaded


@pytest.mark.parametrize("options", [{}, {"lr": 7.0}])
def test_a_learning_rate_of_the_optimiser_is_told_to_have_no_effect(recwarn, options):
    check_optimizer(lambda p: torch.optim.SGD(p, **options), 2, SimpleNamespace(precision="32-true"))
    told = ["model.optimizer: lr 7.0 has no effect: learning rates are those of model.optim, by phase"]
    assert [str(warning.message) for warning in recwarn] == (told if options else [])


@pytest.mark.parametrize("kind", ["StepLR", "NoneType"])
def test_another_scheduler_is_refused_by_name(gemma_path, tmp_path, kind):
    module = build(gemma_path)
    optimizer = module.configure_optimizers

    def configure_optimizers():
        made = optimizer()["optimizer"]
        return {"optimizer": made} | ({"lr_scheduler": StepLR(made, 1)} if kind == "StepLR" else {})

    module.configure_optimizers = configure_optimizers
    with pytest.raises(TypeError, match=rf"the scheduler {kind}, .* keep SWIRL's scheduler \(PhaseLR\)"):
        trainer(tmp_path).fit(module, Digits(size=8, batch_size=8))


def test_a_static_graph_is_refused():
    with pytest.raises(ValueError, match="leave static_graph out"):
        check_strategy(DDPStrategy(static_graph=True))


def test_ranks_with_seeds_of_their_own_are_refused(gemma_path, tmp_path, monkeypatch):
    """As after ``seed_everything(seed + rank)``: they would see some pairs twice and others never."""
    for part, other in (("data", 0), ("model", 1)):
        with monkeypatch.context() as patch:
            patch.setattr(trainer_checks, "over_ranks", lambda seed, other=other: [seed, other])
            module = build(gemma_path, seed=0)
            with pytest.raises(ValueError, match=rf"{part}.seed differs between the processes \(.*seed_everything"):
                trainer(tmp_path).fit(module, Digits(size=8, batch_size=8, seed=1))
            assert module.model is None


def test_strategies_that_shard_are_refused(gemma_path, tmp_path):
    module = build(gemma_path)
    with pytest.raises(ValueError, match=r"ModelParallelStrategy.* use auto .* or ddp"):
        trainer(tmp_path, strategy=ModelParallelStrategy(), devices=1).fit(module, Digits(size=8, batch_size=8))
    assert module.model is None


@pytest.mark.parametrize("kind", [ModelCheckpoint, OnExceptionCheckpoint])
def test_checkpoints_in_the_middle_of_a_batch_are_refused(gemma_path, tmp_path, kind):
    """Resumed, such a run went on without its window and its validation; or one of NaN took the place of a good one."""
    keeper = kind(tmp_path, **({"save_on_exception": True} if kind is ModelCheckpoint else {}))
    module = build(gemma_path)
    with pytest.raises(ValueError, match=rf"^trainer\.callbacks: {kind.__name__}.* in the middle of a batch"):
        trainer(tmp_path, callbacks=[keeper], enable_checkpointing=True).fit(module, Digits(size=8, batch_size=8))
    assert module.model is None


@pytest.mark.parametrize(
    "callback",
    [EMAWeightAveraging(), StochasticWeightAveraging(1e-3), LearningRateFinder(), BatchSizeFinder()],
    ids=lambda callback: type(callback).__name__,
)
def test_callbacks_that_know_nothing_of_phases_are_refused(gemma_path, tmp_path, callback):
    module = build(gemma_path)
    with pytest.raises(ValueError, match=rf"^trainer\.callbacks: {type(callback).__name__} cannot train"):
        trainer(tmp_path, callbacks=[callback], enable_checkpointing=True).fit(module, Digits(size=8, batch_size=8))
    assert module.model is None or isinstance(callback, EMAWeightAveraging)  # whose own setup loads the base


def test_a_scheduler_of_accumulation_is_refused(gemma_path, tmp_path):
    module = build(gemma_path)
    with pytest.raises(ValueError, match=r"GradientAccumulationScheduler .* set data\.pairs_per_step"):
        trainer(tmp_path, callbacks=[GradientAccumulationScheduler({1: 2})]).fit(module, Digits(size=8, batch_size=8))
    assert module.model is None


@pytest.mark.parametrize(
    ("precision", "fused", "clip", "refused"),
    [
        ("16-mixed", True, 1.0, True),
        ("16-mixed", True, None, False),
        ("16-mixed", False, 1.0, False),
        ("bf16-mixed", True, 1.0, False),
    ],
)
def test_a_fused_optimiser_whose_scaled_gradients_would_be_clipped_is_refused(precision, fused, clip, refused):
    """Precision 16-mixed needs a GPU."""
    settings = SimpleNamespace(precision=precision, gradient_clip_val=clip)
    with pytest.raises(ValueError, match="unscales only afterwards") if refused else nullcontext():
        check_optimizer(lambda groups: torch.optim.AdamW(groups, fused=fused), 2, settings)


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("AdamW", {"weight_decay": float("inf")}, r"^model\.optimizer\.weight_decay must be finite, got inf"),
        ("AdamW", {"weight_decay": float("nan")}, r"^model\.optimizer: Invalid weight_decay"),
        ("AdamW", {"eps": float("inf")}, r"^model\.optimizer\.eps must be finite"),
        ("SGD", {"lr": 1.0, "momentum": float("inf")}, r"^model\.optimizer\.momentum must be finite"),
        ("Rprop", {"step_sizes": (1e-6, float("inf"))}, r"^model\.optimizer\.step_sizes must be finite"),
        ("LBFGS", {}, r"^model\.optimizer: LBFGS doesn't support"),
    ],
)
def test_an_optimiser_that_cannot_be_is_refused(gemma_path, tmp_path, name, options, told):
    module = build(gemma_path, optimizer=lambda groups: getattr(torch.optim, name)(groups, **options))
    with pytest.raises(ValueError, match=told):
        trainer(tmp_path).fit(module, Digits(size=8, batch_size=8))
    assert module.model is None


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_each_adapter_is_clipped_by_itself(gemma_path, tmp_path, algorithm):
    """In the warm-up both train: a model's step is that of a warm-up of its own."""

    def warm(roles):
        module = build(gemma_path, optimizer=SGD, optim=CONSTANT, quantization=None, roles=roles)
        clip = {"gradient_clip_val": 1e-3, "gradient_clip_algorithm": algorithm}
        trainer(tmp_path, PhaseSwitch(1, iterations=0), **clip).fit(module, Digits(size=16, batch_size=8))
        return snapshot(module)

    both = warm(("fwm", "idm"))
    for role in ("fwm", "idm"):
        for key, value in warm((role,)).items():
            if key.startswith(f"{role}."):
                torch.testing.assert_close(both[key], value, atol=1e-6, rtol=1e-5)


def test_states_of_another_kind_are_refused_before_the_base_loads(gemma_path, tmp_path):
    """It was found in the first batch, and the error named no file, record or split."""

    class Pictures(Digits):
        def load_split(self, split):
            image = Image.new("RGB", (8, 8))
            pictures = split == "state_only"
            return [replace(row, before=image, after=image) if pictures else row for row in super().load_split(split)]

    module = build(gemma_path)
    told = r"the states of the split 'state_only' \(record 'state_only-0'\) are images, and TextLLM reads texts"
    with pytest.raises(ValueError, match=told):
        trainer(tmp_path).fit(module, Pictures(size=8, batch_size=8))
    assert module.model is None


def test_parameters_beside_the_adapters_are_refused(gemma_path, tmp_path, monkeypatch):
    """A checkpoint would not hold them, and ranks would train them apart."""

    class Headed(SWIRL):
        def configure_model(self):
            super().configure_model()
            self.head = torch.nn.Linear(2, 2)

        def configure_optimizers(self):
            found = super().configure_optimizers()
            found["optimizer"].add_param_group({"params": self.head.parameters()})
            return found

    data = Digits(size=8, batch_size=8)
    with pytest.raises(ValueError, match=r"2 parameters beside the adapters: head.weight, head.bias\."):
        trainer(tmp_path).fit(Headed(build(gemma_path).backbone), data)
    monkeypatch.setattr(torch.nn.Linear, "reset_parameters", lambda layer: layer.requires_grad_(False))
    trainer(tmp_path, max_epochs=1).fit(Headed(build(gemma_path).backbone), data)  # frozen ones are trained by nobody


def test_what_a_failed_resume_has_read_does_not_enter_the_next_fit(gemma_path, tmp_path):
    class Fails(Callback):
        def on_fit_start(self, trainer, pl_module):
            raise KeyError("once")

    data, module = Digits(size=8, batch_size=8), build(gemma_path)
    first = trainer(tmp_path, max_epochs=1)
    first.fit(module, data)
    first.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(KeyError, match="once"):
        trainer(tmp_path, callbacks=[Fails()], max_epochs=2).fit(module, data, ckpt_path=tmp_path / "a.ckpt")
    watch = RandomState()
    torch.manual_seed(11)
    before = torch.get_rng_state()
    trainer(tmp_path, callbacks=[watch], max_epochs=1).fit(module, data)
    assert torch.equal(watch.seen, before)


@pytest.mark.parametrize("command", ["validate", "test"])
def test_an_evaluation_without_a_data_module_of_ours_is_refused(gemma_path, tmp_path, command):
    with pytest.raises(TypeError, match="give one as datamodule, not NoneType or dataloaders"):
        getattr(trainer(tmp_path, limit_val_batches=1), command)(
            build(gemma_path), dataloaders=Digits(size=2).test_dataloader()
        )


def test_attention_leaves_out_the_kernel_whose_gradients_may_be_nan(gemma_path):
    torch.backends.cuda.enable_cudnn_sdp(True)
    build(gemma_path).configure_model()
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_rows_that_are_no_transitions_are_named(gemma_path, tmp_path):
    class Dicts(Digits):
        def load_split(self, split):
            return [{"before": "1", "after": "2", "action": "inc"}]

    with pytest.raises(TypeError, match=r"Dicts.load_split gave a dict, no Transition"):
        trainer(tmp_path).fit(build(gemma_path), Dicts())


def test_a_refused_finder_of_a_tuner_leaves_the_trainer_usable(gemma_path, tmp_path):
    """A Tuner takes its own out of the callbacks only where it ends well; a user's is refused each time."""
    run, data = trainer(tmp_path, max_epochs=1), Digits(size=8, batch_size=8)
    with pytest.raises(ValueError, match="LearningRateFinder"):
        Tuner(run).lr_find(build(gemma_path), data)
    run.fit(build(gemma_path), data)
    assert run.global_step == 1
    run = trainer(tmp_path, callbacks=[LearningRateFinder()], max_epochs=1)
    for _ in range(2):
        with pytest.raises(ValueError, match="LearningRateFinder"):
            run.fit(build(gemma_path), data)
