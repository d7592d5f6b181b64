"""The DataModule and its loaders inside a real Trainer."""

from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch
from lightning import Callback, LightningModule, Trainer

from swirl_lightning.data import TransitionBatch, TransitionDataModule
from swirl_lightning.transition import Transition

SIZES = {"warmup": 7, "state_only": 12, "validation": 5, "test": 3}


class Data(TransitionDataModule):
    loads = ()

    def load_split(self, split):
        self.loads = (*self.loads, split)
        return [Transition(f"x{i}", f"y{i}", f"z{i}", id=f"{split}-{i}") for i in range(SIZES[split])]


class Recorder(LightningModule):
    """Writes down what it is given; the phase follows the epoch as PhaseSwitch makes it."""

    schedule = ("warmup", "fwm", "idm", "fwm", "idm")

    def __init__(self, policy_iterations=1):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.policy_iterations = policy_iterations
        self.seen = []
        self.evaluated = []

    @property
    def phase(self):
        epoch = self.trainer.current_epoch
        name = self.schedule[epoch % len(self.schedule)]
        return SimpleNamespace(name=name, iteration=max(epoch - 1, 0) // 2)

    def num_policy_iterations(self, phase):
        assert phase in ("fwm", "idm")
        return self.policy_iterations

    def training_step(self, batch, batch_idx):
        assert isinstance(batch, TransitionBatch)
        labelled = {row.action is not None for row in batch.transitions}
        assert labelled == {self.phase.name == "warmup"}
        names = tuple(row.id for row in batch.transitions)
        self.seen.append((self.current_epoch, batch_idx, batch.index, batch.replay, names))
        return self.layer(torch.ones(1, 1)).sum()

    def validation_step(self, batch, batch_idx):
        self.evaluated += [row.id for row in batch.transitions]

    test_step = validation_step

    def predict_step(self, batch, batch_idx):
        return [row.id for row in batch.transitions]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Stop(Exception):
    pass


class SaveAndDie(Callback):
    """A kill: saves at batch ``at`` of the run, in ``hook``, and raises."""

    def __init__(self, path, at, hook="on_train_batch_end"):
        self.path, self.at, self.count = path, at, 0
        setattr(self, hook, self._act)

    def _act(self, trainer, *args, **kwargs):
        self.count += 1
        if self.count == self.at:
            trainer.save_checkpoint(self.path)
            raise Stop


def trainer(tmp_path, **options):
    return Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": 5, "num_sanity_val_steps": 0, "reload_dataloaders_every_n_epochs": 1, **options},
    )


def data(**options):
    return Data(**{"batch_size": 2, "seed": 5, "pairs_per_iteration": 8, **options})


def test_each_phase_sees_its_split(tmp_path):
    module, datamodule = Recorder(), data()
    trainer(tmp_path).fit(module, datamodule)
    by_epoch = [[n for epoch, *_, names in module.seen if epoch == e for n in names] for e in range(5)]
    assert {name.split("-")[0] for name in by_epoch[0]} == {"warmup"}
    assert {name.split("-")[0] for names in by_epoch[1:] for name in names} == {"state_only"}
    assert [len(names) for names in by_epoch] == [6, 8, 8, 8, 8]
    # both phases of an iteration have the same pairs, in another order
    assert set(by_epoch[1]) == set(by_epoch[2]) != set(by_epoch[3]) == set(by_epoch[4])
    assert by_epoch[1] != by_epoch[2]
    # 12 pairs in slices of 8: the second wraps around
    assert len(set(by_epoch[1]) | set(by_epoch[3])) == 12
    assert datamodule.loads.count("state_only") == 1


def test_all_pairs_without_a_number():
    datamodule = data(pairs_per_iteration=None)
    assert [row.id for row in datamodule.pairs(3)] == [f"state_only-{i}" for i in range(12)]
    assert len({row.id for row in data(pairs_per_iteration=99).pairs(1)}) == 12


RUNS = {
    "plain": {},
    "replay": {"policy_iterations": 2, "accumulate_grad_batches": 2},
    "limited": {"policy_iterations": 2, "limit_train_batches": 3},
    "workers": {"policy_iterations": 2, "num_workers": 2, "max_epochs": 3},
    "max_steps": {"max_steps": 18, "max_epochs": -1},
    "no_reload": {"reload_dataloaders_every_n_epochs": 0, "warmup_only": True},
}


def run(tmp_path, callbacks=(), ckpt_path=None, policy_iterations=1, num_workers=0, warmup_only=False, **options):
    module = Recorder(policy_iterations)
    if warmup_only:
        module.schedule = ("warmup",)
    fit = trainer(tmp_path, callbacks=list(callbacks), **options)
    with suppress(Stop):
        fit.fit(module, data(num_workers=num_workers), ckpt_path=ckpt_path)
    fit.fit_loop.teardown()  # dying in validation, Lightning tears down that loop alone: workers would linger
    return module.seen


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize(
    "hook", ["on_train_batch_end", "on_validation_start", "on_validation_end", "on_train_epoch_end"]
)
def test_resume_goes_on_exactly(tmp_path, name, hook):
    options = RUNS[name]
    whole = run(tmp_path, **options)
    places = {"on_train_batch_end": (1, 2, 4, 6, 7, len(whole) - 1)}.get(hook, (1, 2))
    for at in places:
        first = run(tmp_path, [SaveAndDie(tmp_path / "a.ckpt", at, hook)], **options)
        rest = run(tmp_path, ckpt_path=tmp_path / "a.ckpt", **options)
        assert len(first) < len(whole)
        assert first + rest == whole, at


def test_limits_and_development_flags(tmp_path):
    assert len(run(tmp_path, fast_dev_run=True)) == 1
    limited = run(tmp_path, limit_train_batches=2, max_epochs=2)
    assert [place[:3] for place in limited] == [(0, 0, 0), (0, 1, 1), (1, 0, 0), (1, 1, 1)]
    overfit = run(tmp_path, overfit_batches=2, max_epochs=2, warmup_only=True)
    assert [names for *_, names in overfit] == [("warmup-0", "warmup-1"), ("warmup-2", "warmup-3")] * 2


def test_evaluation_loaders(tmp_path):
    module = Recorder()
    runner = trainer(tmp_path)
    runner.validate(module, data(), verbose=False)
    assert module.evaluated == [f"validation-{i}" for i in range(5)]
    module.evaluated.clear()
    runner.test(module, data(eval_batch_size=9), verbose=False)
    assert module.evaluated == [f"test-{i}" for i in range(3)]
    assert runner.predict(module, data()) == [["test-0", "test-1"], ["test-2"]]


def test_an_empty_split_is_named(monkeypatch):
    monkeypatch.setitem(SIZES, "validation", 0)
    with pytest.raises(ValueError, match=r"Data: the split 'validation' is empty; .*limit_val_batches"):
        data().val_dataloader()


def test_check_runs_before_the_model_is_built(tmp_path):
    class Unhappy(Data):
        def check(self):
            raise ValueError("no such folder")

    class Module(Recorder):
        def configure_model(self):
            pytest.fail("too late")

    with pytest.raises(ValueError, match="no such folder"):
        trainer(tmp_path).fit(Module(), Unhappy())


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_batches_pass_through_precision_plugins(tmp_path, precision):
    module = Recorder()
    module.schedule = ("warmup",)
    module.training_step = lambda batch: module.layer(torch.ones(1, 1, dtype=module.dtype)).sum()
    trainer(tmp_path, precision=precision, max_epochs=1).fit(module, data())


def test_default_metrics():
    state, action = data().state_metrics(), data().action_metrics()
    row = Transition("a", "b c", "go")
    state.update(["b  c", None], [row, row])
    action.update(["stay", "go"], [row, row.without_action()])
    assert float(state.compute()["exact_match"]) == 0.5
    assert float(action.compute()["exact_match"]) == 0.0


@pytest.mark.parametrize("split", ["warmup", "state_only"])
def test_a_training_split_without_a_state_after_is_refused_by_name(split):
    class Bare(Data):
        def load_split(self, split):
            return [*super().load_split(split), Transition("x", None, "z", id="bare")]

    data = Bare()
    with pytest.raises(
        ValueError, match=rf"Bare: 1 of \d+ records of the split '{split}' have no state after.*\n  bare"
    ):
        data.split(split)
    assert data.split("test")[-1].after is None
