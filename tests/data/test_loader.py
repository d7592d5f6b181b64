"""Order, sharding, replay and position of the loader, without a Trainer."""

import multiprocessing
import signal
from dataclasses import replace
from itertools import chain

import pytest
import torch
from PIL import Image

from support.killed_loader import feed
from support.processes import CONTEXT, environment, start
from swirl_lightning.data import TransitionBatch, TransitionLoader
from swirl_lightning.transition import Transition


def rows(count):
    return [Transition(f"before {i}", f"after {i}", "go", id=str(i)) for i in range(count)]


def ids(batch):
    return [int(row.id) for row in batch.transitions]


def places(loader):
    return [(batch.index, batch.replay) for batch in loader]


@pytest.mark.parametrize("state", [7, {}, {"epoch": 0}, {"epoch": "x", "given": 1}, {"epoch": 0, "given": -3}])
def test_what_is_no_place_in_an_epoch_is_refused(state):
    with pytest.raises(ValueError, match="the checkpoint's place in the epoch is damaged"):
        TransitionLoader(rows(4), batch_size=2).load_state_dict(state)


def test_order_depends_on_seed_and_epoch_only():
    def order(**options):
        return [ids(batch) for batch in TransitionLoader(rows(20), batch_size=3, shuffle=True, **options)]

    first = order(seed=1, epoch=2)
    torch.rand(5)
    assert order(seed=1, epoch=2) == first
    assert order(seed=1, epoch=3) != first
    assert order(seed=2, epoch=2) != first
    assert len(first) == 6
    assert len({i for batch in first for i in batch}) == 18


def test_no_shuffle_keeps_the_order():
    assert [ids(batch) for batch in TransitionLoader(rows(5), batch_size=2)] == [[0, 1], [2, 3]]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_share_the_global_batches_of_one_process(world_size):
    options = {"shuffle": True, "seed": 3, "epoch": 1}
    whole = [ids(batch) for batch in TransitionLoader(rows(43), batch_size=8, **options)]
    ranks = [
        [
            ids(batch)
            for batch in TransitionLoader(
                rows(43), batch_size=8 // world_size, rank=rank, world_size=world_size, **options
            )
        ]
        for rank in range(world_size)
    ]
    assert [list(chain(*parts)) for parts in zip(*ranks, strict=True)] == whole


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_evaluation_gives_every_row_once(world_size, batch_size):
    for count in range(1, 30):
        loaders = [
            TransitionLoader(rows(count), batch_size=batch_size, train=False, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        given = [[ids(batch) for batch in loader] for loader in loaders]
        assert sorted(i for rank in given for batch in rank for i in batch) == list(range(count))
        assert [len(rank) for rank in given] == [len(loader) for loader in loaders]
        assert all(len(batch) <= batch_size for rank in given for batch in rank)
        assert {len(rank) for rank in given} == {-(-count // (batch_size * world_size))}


def test_replay_gives_windows_again():
    loader = TransitionLoader(rows(10), batch_size=2, replays=2, window=2)
    expected = [(0, 0), (1, 0), (0, 1), (1, 1), (2, 0), (3, 0), (2, 1), (3, 1), (4, 0)]
    assert places(loader) == expected
    assert len(loader) == len(expected)
    by_index = {}
    for batch in loader:
        assert by_index.setdefault(batch.index, ids(batch)) == ids(batch)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("stop", range(1, 16))
def test_a_limit_that_is_raised_within_a_window_brings_the_rest_of_it(stop, old):
    """What the window had left out had no rollouts then."""
    first, later = (TransitionLoader(rows(16), batch_size=1, window=4, replays=2) for _ in range(2))
    first.limit = None if old else stop + 1
    seen = {other.index for _, batch in zip(range(stop), first, strict=False) for other in batch.window}
    state = first.state_dict()
    later.load_state_dict({name: value for name, value in state.items() if name != "brought" or not old})
    for batch in later:
        brought = {other.index for other in batch.window}
        assert not seen & brought
        seen |= brought
        assert batch.index in seen
    assert seen == set(range(16))


@pytest.mark.parametrize(("limit", "brought"), [(None, [3, 3]), (6, [3, 3]), (5, [3, 2]), (4, [3, 1]), (2, [2, 0])])
def test_a_window_brings_no_batch_beyond_the_limit(limit, brought):
    """They were sampled and rewarded, and never trained on."""
    loader = TransitionLoader(rows(12), batch_size=2, window=3)
    loader.limit = limit
    assert len(loader) == 6  # of which a share is taken
    taken = [len(batch.window) for batch, _ in zip(loader, range(limit or 6), strict=False)]
    assert taken[::3] == brought[: len(taken[::3])]


@pytest.mark.parametrize("replays", [1, 2])
def test_the_first_batch_of_a_window_brings_all_of_it_along(replays):
    loader = TransitionLoader(rows(10), batch_size=2, replays=replays, window=2, shuffle=True)
    by_index = {batch.index: ids(batch) for batch in loader}
    windows = {(b.index, b.replay): [(w.index, ids(w)) for w in b.window] for b in loader}
    assert {place: [index for index, _ in window] for place, window in windows.items() if window} == {
        (0, 0): [0, 1],
        (2, 0): [2, 3],
        (4, 0): [4],
    }
    assert all(found == by_index[index] for window in windows.values() for index, found in window)
    assert len(windows) == (5 if replays == 1 else 9)


def labelled(count):
    return [Transition("b", "a", "go", id=str(1000 + i)) for i in range(count)]


def beside(loader):
    return [[int(row.id) - 1000 for row in batch.labelled] for batch in loader]


@pytest.mark.parametrize("workers", [0, 2])
def test_labelled_rows_come_along_in_an_order_of_their_own(workers):
    options = {"batch_size": 2, "shuffle": True, "seed": 3, "num_workers": workers}
    more = {"labelled": labelled(5), "labelled_per_batch": 3}
    plain, loader = TransitionLoader(rows(20), **options), TransitionLoader(rows(20), **options, **more)
    assert [ids(batch) for batch in loader] == [ids(batch) for batch in plain]
    given = [i for batch in beside(loader) for i in batch]
    assert len(given) == 30
    for lap in range(6):
        assert sorted(given[5 * lap : 5 * lap + 5]) == list(range(5)), "each once before any comes again"
    assert given[:5] != given[5:10]
    assert beside(TransitionLoader(rows(20), **options, **more, epoch=1)) != beside(loader)


def test_ranks_share_the_labelled_rows_of_one_process():
    more = {"shuffle": True, "seed": 3, "labelled": labelled(7)}
    whole = beside(TransitionLoader(rows(16), batch_size=4, labelled_per_batch=2, **more))
    ranks = [
        beside(TransitionLoader(rows(16), batch_size=2, labelled_per_batch=1, rank=rank, world_size=2, **more))
        for rank in range(2)
    ]
    assert [list(chain(*parts)) for parts in zip(*ranks, strict=True)] == whole


def test_labelled_rows_of_a_batch_stay_the_same_in_its_replays_and_when_resumed():
    options = {"batch_size": 2, "replays": 2, "window": 2, "shuffle": True}
    options |= {"labelled": labelled(5), "labelled_per_batch": 3}
    everything = beside(TransitionLoader(rows(8), **options))
    assert everything[0] == everything[2]
    assert everything[0] != everything[1]
    loader = TransitionLoader(rows(8), **options)
    iterator = iter(loader)
    for _ in range(3):
        next(iterator)
    resumed = TransitionLoader(rows(8), **options)
    resumed.load_state_dict(loader.state_dict())
    assert beside(resumed) == everything[3:]
    other = TransitionLoader(rows(8), **(options | {"labelled_per_batch": 1}))
    other.load_state_dict(loader.state_dict())
    with pytest.raises(ValueError, match="labelled_per_batch was 3 and is 1"):
        next(iter(other))


def test_labelled_rows_are_compared_over_all_devices_when_resumed():
    def loader(size, beside_it, world_size=1):
        return TransitionLoader(
            rows(8), batch_size=size, labelled=labelled(5), labelled_per_batch=beside_it, world_size=world_size
        )

    alone = loader(4, 2)
    next(iter(alone))
    same = loader(2, 1, world_size=2)
    same.load_state_dict(alone.state_dict())
    assert len(beside(same)) == 1
    twice = loader(2, 2, world_size=2)
    twice.load_state_dict(alone.state_dict())
    with pytest.raises(ValueError, match="global labelled_per_batch was 2 and is 4"):
        next(iter(twice))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("given", [0, 1, 3, 6, 8, 9])
def test_position_is_what_was_handed_over(given, workers):
    options = {
        "batch_size": 2,
        "shuffle": True,
        "replays": 2,
        "window": 2,
        "epoch": 4,
        "num_workers": workers,
    }
    everything = [(ids(batch), batch.index, batch.replay) for batch in TransitionLoader(rows(10), **options)]
    loader = TransitionLoader(rows(10), **options)
    iterator = iter(loader)
    for _ in range(given):
        next(iterator)
    state = loader.state_dict()

    resumed = TransitionLoader(rows(10), **options)
    resumed.load_state_dict(state)
    iter(resumed)  # Lightning does, and drops it
    assert resumed.state_dict() == state
    assert len(resumed) == len(everything)
    rest = [(ids(batch), batch.index, batch.replay) for batch in resumed]
    assert rest == everything[given:]
    assert resumed.state_dict()["given"] == len(everything)


def test_position_belongs_to_its_epoch():
    epoch = 0
    loader = TransitionLoader(rows(6), batch_size=2, shuffle=True, epoch=lambda: epoch)
    first = [ids(batch) for batch in loader]
    full = loader.state_dict()
    assert (full["epoch"], full["given"]) == (0, 3)
    epoch = 1
    assert (loader.state_dict()["epoch"], loader.state_dict()["given"]) == (1, 0)
    loader.load_state_dict(full)
    second = [ids(batch) for batch in loader]
    assert len(second) == 3
    assert first != second


def test_changed_sizes_cannot_resume_inside_an_epoch():
    loader = TransitionLoader(rows(6), batch_size=2)
    next(iter(loader))
    other = TransitionLoader(rows(6), batch_size=3)
    other.load_state_dict(loader.state_dict())
    with pytest.raises(ValueError, match="global_batch_size was 2 and is 3"):
        next(iter(other))


@pytest.mark.parametrize("workers", [0, 2])
def test_global_random_state_is_left_alone(workers):
    state = torch.get_rng_state()
    list(TransitionLoader(rows(6), batch_size=2, shuffle=True, num_workers=workers))
    assert torch.equal(torch.get_rng_state(), state)


def test_workers_give_the_same_batches():
    images = [Transition(Image.new("RGB", (4, 4), (i, 0, 0)), Image.new("RGB", (4, 4)), id=str(i)) for i in range(7)]
    plain, forked = (
        list(TransitionLoader(images, batch_size=2, shuffle=True, num_workers=workers)) for workers in (0, 2)
    )
    assert [ids(batch) for batch in plain] == [ids(batch) for batch in forked]
    assert forked[0].transitions[0].before.getpixel((0, 0))[0] == ids(forked[0])[0]


@pytest.mark.parametrize("changed", ["order", "state", "label", "image"])
def test_other_records_cannot_resume_inside_an_epoch(changed):
    """As many as before, in a file that was written anew."""
    images = [Transition(Image.new("L", (4, 4), i), Image.new("L", (4, 4)), id=str(i)) for i in range(6)]
    first, labels = images if changed == "image" else rows(6), rows(3)
    loader = TransitionLoader(first, batch_size=2, labelled=labels, labelled_per_batch=1)
    next(iter(loader))
    state = loader.state_dict()
    same = TransitionLoader(list(first), batch_size=2, labelled=list(labels), labelled_per_batch=1)
    same.load_state_dict(state)
    assert len(list(same)) == 2
    other, others = list(first), list(labels)
    if changed == "order":
        other[1], other[2] = other[2], other[1]
    elif changed == "label":
        others[2] = replace(others[2], action="stop")
    else:
        other[5] = replace(other[5], after=Image.new("L", (4, 4), 1) if changed == "image" else "after that")
    loader = TransitionLoader(other, batch_size=2, labelled=others, labelled_per_batch=1)
    loader.load_state_dict(state)
    with pytest.raises(ValueError, match=r"checksum of the records was \d+ and is \d+"):
        next(iter(loader))
    del state["checksum of the records"]  # of an older checkpoint
    loader.load_state_dict(state)
    assert len(list(loader)) == 2


@pytest.mark.parametrize(
    "other",
    [
        {"after": "yz", "action": ""},
        {"after": "", "action": "yz"},
        {"before": "xy", "after": ""},
        {"id": "0x", "before": ""},
        {"after": None, "action": "yz"},
        {"after": "None", "action": "z"},
    ],
)
def test_a_letter_that_goes_over_to_another_field_is_noticed(other):
    def given(**fields):
        row = {"id": "0", "before": "x", "after": "y", "action": "z"} | fields
        return [Transition(**row), Transition("x", "y", "z", id="1")]

    first = TransitionLoader(given(**({"after": None} if other.get("after") == "None" else {})), batch_size=1)
    next(iter(first))
    loader = TransitionLoader(given(**other), batch_size=1)
    loader.load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match=r"checksum of the records was \d+ and is \d+"):
        next(iter(loader))


def test_no_text_is_left_out():
    first = TransitionLoader(rows(100), batch_size=2)
    next(iter(first))
    state = first.state_dict()
    for place in range(100):
        other = rows(100)
        other[place] = replace(other[place], after="after that")
        loader = TransitionLoader(other, batch_size=2)
        loader.load_state_dict(state)
        with pytest.raises(ValueError, match=r"checksum of the records was \d+ and is \d+"):
            next(iter(loader))


def test_only_this_ranks_rows_are_read():
    class Counting(list):
        read = ()

        def __getitem__(self, index):
            self.read = (*self.read, index)
            return super().__getitem__(index)

    data = Counting(rows(8))
    list(TransitionLoader(data, batch_size=2, rank=1, world_size=2))
    assert data.read == (2, 3, 6, 7)


def test_too_few_rows_to_train_names_the_sizes():
    with pytest.raises(ValueError, match=r"7 transitions .* 4 \(batch_size\) x 2 \(devices\) = 8"):
        TransitionLoader(rows(7), batch_size=4, world_size=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"batch_size": 0}, "batch_size"), ({"replays": 0}, "replays"), ({"rank": 2}, "rank")],
)
def test_bad_sizes(options, message):
    with pytest.raises(ValueError, match=message):
        TransitionLoader(rows(4), **{"batch_size": 2, "world_size": 2, **options})


def test_batch_says_what_it_holds():
    assert repr(TransitionBatch(rows(2), 3, 1)) == "TransitionBatch(['0', '1'], index=3, replay=1)"
    assert len(TransitionBatch(rows(2))) == 2


@pytest.mark.skipif(not hasattr(signal, "sigtimedwait"), reason="this system has no sigtimedwait")
@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_no_worker_outlives_a_killed_run(method):
    here, there = multiprocessing.Pipe()
    run = CONTEXT.Process(target=feed, args=(there, method))
    start([run], environment())
    there.close()
    assert here.recv() == 2
    run.kill()
    assert here.poll(60)  # its end: all that had the other end are gone
    with pytest.raises(EOFError):
        here.recv()
