"""A small module that samples rollouts without a model, and runs of it."""

import torch
from lightning import LightningModule
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from support.trainers import quiet_trainer
from swirl_lightning.data import TransitionDataModule
from swirl_lightning.schedule import PhaseSchedule
from swirl_lightning.training.rollouts import Completions, Rollouts
from swirl_lightning.transition import Transition


def frame(place, size=16):
    """A red agent on a grid."""
    image = Image.new("RGB", (size, size), (40, 40, 40))
    image.paste((220, 30, 30), (4 * (place % 4), 4, 4 * (place % 4) + 4, 8))
    return image


class Data(TransitionDataModule):
    def __init__(self, text=False, rows=8, **options):
        super().__init__(**{"batch_size": 4, **options})
        self.text, self.rows = text, rows

    def load_split(self, split):
        state = (lambda i: f"the agent is at {i} | {i}") if self.text else frame
        return [Transition(state(i), state(i + 1), "go", id=f"{split}-{i}") for i in range(self.rows)]


class Backbone:
    """Content ids of an image are one number, of a text its characters."""

    def __init__(self, text):
        self.text = text

    def encode_action(self, action):
        return list(action.encode())

    def decode_states(self, contents, device):
        return [f"state <{ids[0]}>" if self.text else frame(ids[0]) for ids in contents]


class Model(LightningModule):
    """Phase by phase as SWIRL; rollouts come from a counter."""

    def __init__(self, text=False, actions=("turn left", "pick up the red key"), hparam=3):
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(1, 1)
        self.register_buffer("buffer", torch.zeros(1))
        self.backbone = Backbone(text)
        self.actions = list(actions)
        self.schedule = PhaseSchedule(1, ("fwm", "idm"), None)
        self.tokens_seen = 0
        self.evaluated = []

    def export(self, folder, data, results):
        (folder / "fwm").write_text("weights")

    @property
    def phase(self):
        return self.schedule.at(self.trainer.current_epoch)

    def num_policy_iterations(self, phase):
        return 1

    def forward(self, size):
        return self.layer(torch.ones(size, 1)).sum()

    def training_step(self, batch, batch_idx):
        self.tokens_seen += 10
        rollouts = None if self.phase.name == "warmup" else self.roll_out(batch.transitions)
        return {"loss": self.layer(torch.ones(1, 1)).sum(), "rollouts": rollouts}

    def roll_out(self, transitions, group=3):
        count = len(transitions) * group
        rewards = torch.linspace(-2, -0.5, count)
        named = [self.actions[i % len(self.actions)] for i in range(count)]
        completions = Completions(torch.ones(count, 2).long(), torch.ones(count, 2).bool())
        phase = self.phase.name
        actions = named if phase == "idm" else named[: len(transitions)]
        contents = [[i] for i in range(count)]
        return Rollouts(phase, transitions, actions, contents, completions, rewards, rewards * 0, group)

    def validation_step(self, batch, batch_idx):
        # every rank is at the same batch
        assert set(self.all_gather(torch.tensor([batch_idx])).flatten().tolist()) == {batch_idx}
        self.evaluated += [row.id for row in batch.transitions]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(folder, callbacks, logger=True, **options):
    settings = {
        "logger": TensorBoardLogger(folder, name="", version="run", default_hp_metric=False) if logger else False,
        "max_epochs": 3,
        "num_sanity_val_steps": 0,
        "reload_dataloaders_every_n_epochs": 1,
        "log_every_n_steps": 1,
    }
    return quiet_trainer(folder, *callbacks, **(settings | options))


def fit(folder, callbacks, model=None, data=None, **options):
    """Trains and reads back what TensorBoard has."""
    model = model or Model()
    trainer(folder, callbacks, **options).fit(model, data or Data(text=model.backbone.text))
    return events(folder)


def events(folder):
    found = EventAccumulator(str(folder / "run"), size_guidance={"images": 0, "tensors": 0, "scalars": 0})
    found.Reload()
    return found


def texts(found, tag):
    """step -> text."""
    name = f"{tag}/text_summary"
    return {e.step: e.tensor_proto.string_val[0].decode() for e in found.Tensors(name)}
