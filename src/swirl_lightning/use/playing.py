"""The page of ``swirl play`` for runs on disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from swirl_lightning.console.run import MENDABLE
from swirl_lightning.data.module import TransitionDataModule
from swirl_lightning.data.simulator import Simulator
from swirl_lightning.transition import State
from swirl_lightning.use.game import Game
from swirl_lightning.use.page import Page
from swirl_lightning.use.runs import Run, fastest_device
from swirl_lightning.world_model_module import WorldModelModule

_OFFERED = 100
"""Most states and actions to choose among."""


def open_page(runs: Sequence[Run], host: str = "127.0.0.1", port: int = 7860) -> Page:
    """Load runs, and listen; states and actions of the first run's test split are offered.

    Raises:
        OSError: the port is in use.
        ValueError: a run cannot be loaded, or has no FWM.
    """
    names = _names(runs)
    modules = [run.build() for run in runs]
    data = _data(runs[0])
    rows = [] if data is None else data.split("test")
    shown = [rows[n] for n in range(min(_OFFERED, len(rows)))]

    def read(name: str) -> State:
        number = int(name.removeprefix("test:"))
        if number >= len(rows):
            raise ValueError(f"no state {name}: the split has {len(rows)} records, from test:0 on")
        return rows[number].before

    starts = [f"test:{n}" for n in range(len(shown))]
    actions = [action for action, _ in Counter(row.action for row in shown if row.action).most_common()]
    models: dict[str, WorldModelModule] = dict(zip(names, modules, strict=True))
    game = Game(models, None if data is None else _world(data))
    page = Page(game, read, starts, actions, host, port)  # a port in use is told before bases load
    device = fastest_device()
    try:
        for run, module in zip(runs, modules, strict=True):
            run.load(module, device)
        if starts:
            game.begin(shown[0].before)
    except BaseException:
        page.server_close()
        raise
    return page


def _names(runs: Sequence[Run]) -> list[str]:
    """Name runs by their checkpoint, with its folders where that is not enough."""
    for parts in (1, 3):
        names = ["/".join(run.checkpoint.absolute().parts[-parts:]) for run in runs]
        if len(set(names)) == len(names):
            return names
    return [f"{number}: {name}" for number, name in enumerate(names, start=1)]


def _data(run: Run) -> TransitionDataModule | None:
    """The run's data if they can be read; without them, states are uploaded or typed."""
    try:
        data = run.data()
        data.check()
        data.split("test")
    except MENDABLE as error:
        rank_zero_warn(f"{run.checkpoint}: its data cannot be read, so the page offers no states of them ({error})")
        return None
    return data


def _world(data: TransitionDataModule) -> Simulator | None:
    try:
        return data.simulator()
    except ImportError:
        return None
