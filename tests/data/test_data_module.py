"""The DataModule and its loaders inside a real Trainer."""

from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch
from lightning import Callback, LightningModule, seed_everything

from support.named_rows import SIZES, Data, data
from support.tiny import text_backbone
from support.trainers import quiet_trainer
from swirl_lightning import SWIRL, OptimConfig, PhaseOptimConfig
from swirl_lightning.callbacks import PhaseSwitch
from swirl_lightning.data import TransitionBatch
from swirl_lightning.transition import Transition


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


def trainer(tmp_path, callbacks=(), **options):
    settings = {"max_epochs": 5, "num_sanity_val_steps": 0, "reload_dataloaders_every_n_epochs": 1}
    callbacks = callbacks if isinstance(callbacks, (list, tuple)) else [callbacks]
    return quiet_trainer(tmp_path, *callbacks, **(settings | options))


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


def test_a_fit_that_goes_on_after_the_warm_up_reads_no_labels(tmp_path):
    first, datamodule = data(), data()
    trainer(tmp_path, max_epochs=1).fit(Recorder(), first)
    assert first.loads.count("warmup") == 1
    going_on = trainer(tmp_path, PhaseSwitch(warmup_epochs=1, iterations=2), max_epochs=2)
    datamodule.trainer = going_on
    assert datamodule.splits_needed("fit")[:2] == ["warmup", "state_only"]
    datamodule.first_epoch = 1
    assert "warmup" not in datamodule.splits_needed("fit")
    datamodule.labelled_per_batch = 2
    assert "warmup" in datamodule.splits_needed("fit")


def test_all_pairs_without_a_number():
    datamodule = data(pairs_per_iteration=None)
    assert [row.id for row in datamodule.pairs(3)] == [f"state_only-{i}" for i in range(12)]
    assert len({row.id for row in data(pairs_per_iteration=99).pairs(1)}) == 12


def test_phase_one_alone_is_given_counterfactual_actions(tmp_path):
    class Watch(Recorder):
        schedule = ("warmup", "bootstrap", "fwm", "idm")
        asked = ()

        def num_policy_iterations(self, phase):
            return 1

        def training_step(self, batch, batch_idx):
            asked = any(row.counterfactual for row in batch.transitions)
            self.asked = (*self.asked, (self.phase.name, asked))
            return self.layer(torch.ones(1, 1)).sum()

    module = Watch()
    trainer(tmp_path, max_epochs=4).fit(module, data(counterfactual_share=1.0))
    assert set(module.asked) == {("warmup", False), ("bootstrap", False), ("fwm", True), ("idm", False)}


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


HOOKS = ["on_train_batch_end", "on_validation_start", "on_validation_end", "on_train_epoch_end"]


@pytest.mark.parametrize(
    ("name", "hook"),  # processes take their time to start
    [(name, hook) for name in RUNS for hook in (HOOKS[:2] if name == "workers" else HOOKS)],
)
def test_resume_goes_on_exactly(tmp_path, name, hook):
    options = RUNS[name]
    whole = run(tmp_path, **options)
    places = {"on_train_batch_end": (1, 2, 4, 6, 7, len(whole) - 1)}.get(hook, (1, 2))
    places = places[::3] if name == "workers" else places
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
    seen = []

    def training_step(batch):
        seen.append((type(batch), len(batch)))
        return module.layer(torch.ones(1, 1, dtype=module.dtype)).sum()

    module.training_step = training_step
    trainer(tmp_path, precision=precision, max_epochs=1).fit(module, data())
    assert seen == [(TransitionBatch, 2)] * 3
    assert module.dtype == {"bf16-true": torch.bfloat16, "64-true": torch.float64}[precision]


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


@pytest.mark.parametrize(("batch_size", "warmup_batch_size"), [(1, 2), (2, 1), (4, 4)])
def test_pairs_per_step_sets_the_accumulation_of_each_phase(tmp_path, batch_size, warmup_batch_size):
    """Steps of 4 pairs: 7 labelled make a whole step and a short one, 8 state-only pairs two, whatever the batches."""
    sizes = {"batch_size": batch_size, "warmup_batch_size": warmup_batch_size}
    steps = []

    class Steps(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            steps.append(trainer.global_step)

    runner = trainer(tmp_path, callbacks=[Steps()], max_epochs=3)
    runner.fit(Recorder(), data(pairs_per_step=4, **sizes))
    short = 1 if warmup_batch_size < 4 else 0  # a batch that is not full is left out
    assert steps == [1 + short, 3 + short, 5 + short]
    assert runner.accumulate_grad_batches == 4 // batch_size


def test_pairs_per_step_that_cannot_be_is_refused_before_the_model_is_built(tmp_path):
    class Module(Recorder):
        def configure_model(self):
            pytest.fail("too late")

    with pytest.raises(ValueError, match=r"pairs_per_step 5 is no multiple of 2 \(warmup_batch_size\) x 1 \(devices\)"):
        trainer(tmp_path).fit(Module(), data(pairs_per_step=5))
    switch = PhaseSwitch(warmup_epochs=1, iterations=1)
    with pytest.raises(ValueError, match=r"pairs_per_step 4 is no multiple of 3 \(batch_size\) x 1 \(devices\) = 3"):
        trainer(tmp_path, callbacks=[switch]).fit(Module(), data(pairs_per_step=4, batch_size=3, warmup_batch_size=1))
    with pytest.raises(ValueError, match=r"pairs_per_step 4 and trainer\.accumulate_grad_batches 2 both say"):
        trainer(tmp_path, accumulate_grad_batches=2).fit(Module(), data(pairs_per_step=4))
    with pytest.raises(ValueError, match=r"pairs_per_step must lie in \[1, inf\) or null, got 0"):
        data(pairs_per_step=0)


@pytest.mark.parametrize(
    ("stage", "switch", "options", "needed"),
    [
        ("fit", None, {}, ["warmup", "validation"]),
        ("fit", {"warmup_epochs": 1, "iterations": 1}, {}, ["warmup", "state_only", "validation"]),
        ("fit", {"warmup_epochs": 0, "iterations": 1}, {}, ["state_only", "validation"]),
        ("fit", {"warmup_epochs": 1, "iterations": 0}, {}, ["warmup", "validation"]),
        ("fit", {"warmup_epochs": 2}, {"max_epochs": 2}, ["warmup", "validation"]),
        ("fit", {"warmup_epochs": 2}, {"max_epochs": 3}, ["warmup", "state_only", "validation"]),
        ("fit", {"warmup_epochs": 2}, {"max_epochs": -1}, ["warmup", "state_only", "validation"]),
        ("fit", {"warmup_epochs": 1, "iterations": 0}, {"limit_val_batches": 0}, ["warmup"]),
        ("validate", {"warmup_epochs": 1}, {}, ["validation"]),
        ("test", {"warmup_epochs": 1}, {}, ["test"]),
        ("predict", None, {}, ["test"]),
    ],
)
def test_the_splits_that_a_command_needs(tmp_path, stage, switch, options, needed):
    datamodule = data()
    callbacks = [] if switch is None else [PhaseSwitch(**switch)]
    datamodule.trainer = trainer(tmp_path, callbacks=callbacks, **options)
    assert datamodule.splits_needed(stage) == needed
    datamodule.counterfactual_share = 0.5  # their actions are those of the labels
    trains_fwm = "state_only" in needed
    assert (set(datamodule.splits_needed(stage)) - set(needed) == {"warmup"}) is (trains_fwm and "warmup" not in needed)
    datamodule.counterfactual_share = 0.0
    datamodule.trainer = None
    if switch is None:
        assert datamodule.splits_needed(stage) == needed


def test_setup_loads_the_splits_and_no_other(tmp_path):
    datamodule = data()
    datamodule.setup("fit")
    assert datamodule.loads == ("warmup", "validation")
    datamodule.setup("test")
    assert datamodule.loads == ("warmup", "validation", "test")


def test_a_warmup_of_the_learning_rate_longer_than_its_phase_is_refused_before_the_model_loads(tmp_path, gemma_path):
    """12 state-only pairs in batches of 2 are 6 steps, 7 labelled ones 3 in each of two epochs."""

    class Loads(Exception):
        pass

    class Module(SWIRL):
        def configure_model(self):
            raise Loads

    def fit(optim, **options):
        module = Module(text_backbone(gemma_path), optim=PhaseOptimConfig(**optim))
        switch = PhaseSwitch(warmup_epochs=2, iterations=1)
        size = {"pairs_per_iteration": None, "pairs_per_step": options.pop("pairs_per_step", None)}
        trainer(tmp_path, callbacks=[switch], max_epochs=-1, **options).fit(module, data(**size))

    fits = {"warmup": OptimConfig(1.0, 6), "fwm": OptimConfig(1.0, 6), "idm": OptimConfig(1.0, 0.5)}
    with pytest.raises(Loads):
        fit(fits)
    for phase in fits:
        with pytest.raises(ValueError, match=rf"model.optim.{phase}: warmup has 7 steps and the phase 6,"):
            fit(fits | {phase: OptimConfig(1.0, 7)})
    with pytest.raises(ValueError, match=r"model.optim.fwm: warmup has 6 steps and the phase 3,"):
        fit(fits | {"warmup": OptimConfig(1.0)}, pairs_per_step=4)
    with pytest.raises(ValueError, match=r"model.optim.warmup: warmup has 6 steps and the phase 4,"):
        fit(fits, limit_train_batches=2)
    with pytest.raises(Loads):
        fit(fits, fast_dev_run=True)


@pytest.mark.parametrize("split", ["warmup", "state_only", "validation", "test"])
def test_records_of_one_id_are_refused(split):
    """They would draw the same rollouts."""

    class Repeating(Data):
        def load_split(self, split):
            return [*super().load_split(split), *super().load_split(split)[:2]]

    with pytest.raises(
        ValueError, match=rf"Repeating: 2 ids of the split '{split}' .*\n  '{split}-0', 2 times\n  '{split}-1', 2 times"
    ):
        Repeating().split(split)


@pytest.mark.parametrize("given", [None, 5])
def test_seed_everything_sets_the_order_unless_there_is_a_seed(given):
    orders = []
    for seed in (1, 2):
        seed_everything(seed, verbose=False)
        data = Data(seed=given, batch_size=1)
        orders.append([row.id for batch in data.train_dataloader() for row in batch.transitions])
    assert (orders[0] == orders[1]) == (given is not None)
    assert sorted(orders[0]) == sorted(orders[1])


def test_rows_that_fill_no_batch_are_told(tmp_path, caplog):
    with caplog.at_level("INFO"):
        trainer(tmp_path, max_epochs=1).fit(Recorder(), data(batch_size=4))
    told = [record.getMessage() for record in caplog.records if "leaves" in record.getMessage()]
    assert told == ["an epoch of the phase 'warmup' leaves 3 of 7 rows out, which fill no batch of 4"]
