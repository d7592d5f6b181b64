"""Data loader with a reproducible order, a resumable position and replay."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from threading import Thread
from typing import Any, cast
from zlib import crc32

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from PIL.Image import Image
from torch.utils.data import DataLoader, Dataset

from swirl_lightning.data.batch import TransitionBatch
from swirl_lightning.data.rows import Counterfactuals, Joined, laps
from swirl_lightning.transition import Transition

_CHECKSUM, _LABELLED = "checksum of the records", "global labelled_per_batch"
_IMAGES = 32
_SECONDS = 2.0  # between two looks at whether the run still lives


class TransitionLoader:
    """Loader of one epoch of transitions, batch by batch.

    It wraps a ``DataLoader`` but is none, so that Lightning injects no sampler: the order is a function of
    ``seed`` and ``epoch`` alone, and draws nothing from the global random state.

    Training (``train=True``): a global batch is ``batch_size * world_size`` rows, of which this rank takes
    its ``batch_size``; one process with that global batch size has the same global batches. The last,
    incomplete global batch is dropped, so all ranks have the same batches of the same size.

    Evaluation (``train=False``): no row is dropped and none is given twice. Rows go round-robin to the
    ranks, in order. All ranks have equally many batches, since metrics are gathered and Lightning leaves the
    evaluation out on a rank that has none: the last batch of a rank with fewer rows may be empty.

    Replay: every window of ``window`` consecutive batches is given ``replays`` times in a row, for example
    ``b0 b1 b0 b1 b2 b3 b2 b3``. An incomplete last window is given once. The first batch of a window brings the whole
    window along, so that what belongs to the optimiser step as a whole can be computed at once.

    ``state_dict`` holds the number of batches already handed over; batches that workers have fetched ahead
    do not count. After ``load_state_dict`` that epoch goes on with the next one, inside a window as well.

    Args:
        rows: the transitions; only those of this rank are accessed, but for a sample that is compared on a resume.
        batch_size: rows per batch and rank.
        train: see above.
        shuffle: new order in every epoch.
        seed: of the order.
        epoch: the epoch to give, or a function that returns it when an iteration starts. (Not ``set_epoch``:
            resuming an epoch-end checkpoint under ``max_steps``, Lightning calls that with a wrong number.)
        rank: of this process.
        world_size: number of processes.
        num_workers: of the wrapped ``DataLoader``.
        replays: number of times that each window is given.
        window: number of batches in a window.
        labelled: labelled transitions, some of which are in every training batch, in an order of their own; when all
            have been given, they begin anew.
        labelled_per_batch: number of them, per batch and rank.

    Attributes:
        limit: batches that are taken in an epoch, as by ``limit_train_batches``, so that no window brings others; None
            for all.

    Raises:
        ValueError: a size is not positive, or training would have no batch.
    """

    def __init__(
        self,
        rows: Sequence[Transition],
        *,
        batch_size: int,
        train: bool = True,
        shuffle: bool = False,
        seed: int = 0,
        epoch: int | Callable[[], int] = 0,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        replays: int = 1,
        window: int = 1,
        labelled: Sequence[Transition] = (),
        labelled_per_batch: int = 0,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("replays", replays), ("window", window)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in [0, {world_size}), got {rank}")
        if train and len(rows) < batch_size * world_size:
            raise ValueError(
                f"no training batch: {len(rows)} transitions do not fill one global batch of {batch_size} "
                f"(batch_size) x {world_size} (devices) = {batch_size * world_size}; "
                "lower batch_size or use fewer devices"
            )
        self.rows = rows
        self.batch_size = batch_size
        self.train = train
        self.shuffle = shuffle
        self.seed = seed
        self._epoch = epoch
        self.rank = rank
        self.world_size = world_size
        self.num_workers = num_workers
        self.replays = replays
        self.window = window
        self.labelled = labelled
        self.labelled_per_batch = labelled_per_batch
        self.limit: int | None = None
        self._given = (self.epoch, 0)
        self._brought = 0
        self._resume: dict[str, int] | None = None

    def __len__(self) -> int:
        """Number of batches that this rank gives in an epoch, replays included, resumed or not."""
        return len(self._schedule(self._num_batches()))

    def __iter__(self) -> Iterator[TransitionBatch]:
        # A generator: nothing happens before the first `next`. Lightning calls `iter` up to three times an
        # epoch, partly before the epoch's number is right, and uses the last one.
        epoch = self.epoch
        given, brought = self._take_resume(epoch)
        self._given = (epoch, given)
        batches = self._batches(epoch)
        whole = self._schedule(len(batches))
        end = 1 + max((index for index, _ in whole[: self.limit]), default=-1)
        schedule = whole[given:]
        if brought is None and schedule:  # of an older checkpoint: all of its window
            index, replay = schedule[0]
            brought = index if index % self.window == 0 and not replay else self._window_end(index, len(batches))
        self._brought = brought or 0
        order = list(dict.fromkeys(index for index, _ in schedule))
        beside = self._labelled(epoch, len(batches))
        fetched = iter(self._fetch([batches[index] + beside[index] for index in order]))
        left = Counter(index for index, _ in schedule)
        held: dict[int, TransitionBatch] = {}
        for place, (index, replay) in enumerate(schedule, start=given + 1):
            starts = replay == 0 and index >= self._brought
            window = range(index, max(index + 1, self._window_end(index, end)) if starts else index + 1)
            self._brought = max(self._brought, window.stop)
            for number in window:
                if number not in held:
                    rows, count = next(fetched), len(batches[number])
                    held[number] = TransitionBatch(rows[:count], number, labelled=rows[count:])
            batch, together = held[index], [held[number] for number in window] if starts else []
            left[index] -= 1
            if not left[index]:
                del held[index]
            self._given = (epoch, place)
            yield TransitionBatch(batch.transitions, index, replay, batch.labelled, together)

    @property
    def epoch(self) -> int:
        """Epoch that an iteration gives if it starts now."""
        return self._epoch() if callable(self._epoch) else self._epoch

    # ---- position --------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, int]:
        """Return the epoch, the batches given in it, and the settings that these numbers depend on."""
        epoch = self.epoch
        if self._resume is not None and self._resume["epoch"] == epoch:
            return dict(self._resume)
        given = self._given[1] if self._given[0] == epoch else 0
        return {"epoch": epoch, "given": given, "brought": self._brought if given else 0, **self._shape()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the batches of ``state`` when its epoch is given; other epochs start afresh.

        Raises:
            ValueError: it is no state of a loader, as in a damaged checkpoint.
        """
        counts = [state.get(name) for name in ("epoch", "given")] if isinstance(state, dict) else [None]
        counts += [state["brought"]] if isinstance(state, dict) and "brought" in state else []
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError(f"the checkpoint's place in the epoch is damaged: {str(state)[:100]}")
        self._resume = dict(state)

    def _take_resume(self, epoch: int) -> tuple[int, int | None]:
        """Return how many batches were given, and the first that no window has brought; None if that is not known."""
        state, self._resume = self._resume, None
        if state is None or state["epoch"] != epoch or not state["given"]:
            return 0, 0
        shape = self._shape()
        later = (_CHECKSUM, _LABELLED)  # which older checkpoints lack
        saved = {key: state.get(key, value if key in later else 0) for key, value in shape.items()}
        changed = {key: (saved[key], value) for key, value in shape.items() if saved[key] != value}
        if changed:
            told = ", ".join(f"{key} was {was} and is {now}" for key, (was, now) in changed.items())
            raise ValueError(
                f"cannot go on in the middle of epoch {epoch}, after {state['given']} batches: {told}. "
                "Resume with the settings of the first run, or from a checkpoint of an epoch's end."
            )
        return int(state["given"]), state.get("brought")

    def _shape(self) -> dict[str, int]:
        return {
            "rows": len(self.rows),
            "global_batch_size": self.batch_size * self.world_size,
            "replays": self.replays,
            "window": self.window,
            _LABELLED: self.labelled_per_batch * self.world_size,
            "counterfactual pairs": self.rows.number if isinstance(self.rows, Counterfactuals) else 0,
            "checksum of counterfactual actions": self.rows.checksum if isinstance(self.rows, Counterfactuals) else 0,
            "seed": self.seed,
            _CHECKSUM: self._checksum,
        }

    @cached_property
    def _checksum(self) -> int:
        """Checksum of all texts, or of some images, spread over all: to read them all would take long."""
        found = 0
        for rows in (self.rows, self.labelled):
            count = len(rows)
            if count and not isinstance(_content(rows, 0)[1], str):
                count = min(count, _IMAGES)
            for index in np.linspace(0, len(rows) - 1, count, dtype=int).tolist():
                parts = [
                    (part.mode, part.size, crc32(part.tobytes())) if isinstance(part, Image) else part
                    for part in _content(rows, index)
                ]
                found = crc32(repr(parts).encode(), found)  # with quotes: no letter can go over to the next field
        return found

    # ---- order -----------------------------------------------------------------------------------
    def say_left_out(self, epoch: str) -> None:
        """Tell how many rows of an ``epoch`` fill no batch and are not trained on in it; each has others."""
        whole = self.batch_size * self.world_size
        if left := len(self.rows) % whole:
            rank_zero_info(f"{epoch} leaves {left} of {len(self.rows)} rows out, which fill no batch of {whole}")

    def _num_batches(self) -> int:
        full, rest = divmod(len(self.rows), self.batch_size * self.world_size)
        return full if self.train else full + bool(rest)

    def _batches(self, epoch: int) -> list[list[int]]:
        """Return the row numbers of each of this rank's batches."""
        order = np.arange(len(self.rows))
        if self.shuffle:
            order = np.random.default_rng([self.seed, epoch]).permutation(order)
        if not self.train:
            own, size = order[self.rank :: self.world_size].tolist(), self.batch_size
            return [own[n * size : (n + 1) * size] for n in range(self._num_batches())]
        kept = order[: self._num_batches() * self.batch_size * self.world_size]
        table = kept.reshape(-1, self.world_size, self.batch_size)  # (batches, ranks, rows)
        return table[:, self.rank].tolist()

    def _labelled(self, epoch: int, batches: int) -> list[list[int]]:
        """Return the numbers of the labelled rows of each of this rank's batches; they follow those of the rows."""
        count = batches * self.world_size * self.labelled_per_batch
        random = np.random.default_rng([self.seed, epoch, 1])
        order = len(self.rows) + laps(len(self.labelled), count, random)
        table = order.reshape(batches, self.world_size, self.labelled_per_batch)
        return table[:, self.rank].tolist()

    def _window_end(self, index: int, batches: int) -> int:
        return min((index // self.window + 1) * self.window, batches)

    def _schedule(self, batches: int) -> list[tuple[int, int]]:
        """List (index, replay) of all batches that are given in an epoch."""
        schedule: list[tuple[int, int]] = []
        for start in range(0, batches, self.window):
            window = range(start, min(start + self.window, batches))
            # A short window makes one optimiser step however often it is given.
            for replay in range(self.replays if len(window) == self.window else 1):
                schedule.extend((index, replay) for index in window)
        return schedule

    def _fetch(self, batches: list[list[int]]) -> DataLoader[Transition]:
        return DataLoader(
            cast("Dataset[Transition]", Joined(self.rows, self.labelled)),
            batch_sampler=batches,
            collate_fn=list,
            num_workers=self.num_workers,
            worker_init_fn=partial(_obey_the_run_alone, os.getpid()),
            # Its own generator: DataLoader draws a seed for its workers, by default from the global state,
            # and a resumed run starts its DataLoader at another moment than an uninterrupted one.
            generator=torch.Generator().manual_seed(self.seed),
        )


def _obey_the_run_alone(run: int, _: int) -> None:
    """Have a worker end when the run asks it to, or is gone, and at no signal from elsewhere.

    Schedulers and terminals send their signals to all processes of a job, and the run still needs its data until it has
    saved a checkpoint. A worker of a killed run that waits for room in a pipe would do so for ever.
    """
    for name in {"SIGINT", "SIGHUP"} & set(dir(signal)):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigtimedwait"):  # neither Windows nor macOS has it
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        Thread(target=_await_the_end, args=(run, os.getppid()), daemon=True).start()


def _await_the_end(run: int, parent: int) -> None:
    process = multiprocessing.parent_process()  # the run, where a fork server is the parent, too
    while os.getppid() == parent and process is not None and process.is_alive():
        received = signal.sigtimedwait({signal.SIGTERM}, _SECONDS)
        if received is not None and received.si_pid == run:
            break
    os._exit(0)


def _content(rows: Sequence[Transition], index: int) -> tuple[Any, ...]:
    """A record's id, states and action; nothing if it cannot be read: no checkpoint fails because a file has gone."""
    try:
        row = rows[index]
    except (OSError, ValueError):
        return ("", None, None, None)
    return (row.id, row.before, row.after, row.action)
