"""What a phase is given: pairs with actions of the labels."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from support.named_rows import SIZES, Data, data
from swirl_lightning.data.images import open_rgb
from swirl_lightning.data.loader import TransitionLoader
from swirl_lightning.data.records import JSONLTransitions
from swirl_lightning.data.rows import Fitting, laps
from swirl_lightning.schedule import PhaseName


def test_a_share_of_the_pairs_of_phase_one_has_an_action_of_the_labels():
    datamodule = data(pairs_per_iteration=None, counterfactual_share=0.5)
    first, second = datamodule.with_counterfactuals(0), datamodule.with_counterfactuals(1)
    assert [row.id for row in first] == [row.id for row in datamodule.pairs(0)]
    actions = [row.counterfactual for row in first]
    assert actions == [row.counterfactual for row in datamodule.with_counterfactuals(0)]
    assert actions != [row.counterfactual for row in second], "other ones in each iteration"
    assert None in actions
    assert set(actions) - {None} <= {f"z{n}" for n in range(SIZES["warmup"])}
    assert all(row.action is None for row in first)
    without = (datamodule.pairs(0), data().with_counterfactuals(0))
    assert all(row.counterfactual is None for rows in without for row in rows)
    assert all(row.counterfactual for row in data(counterfactual_share=1.0).with_counterfactuals(0))
    with pytest.raises(ValueError, match=r"counterfactual_share must lie in \[0, 1\], got 1.5"):
        data(counterfactual_share=1.5)


def test_counterfactual_actions_can_be_chosen():
    chosen = data(counterfactual_share=1.0, counterfactual_actions=["z1", "z2"])
    assert {row.counterfactual for row in chosen.with_counterfactuals(0)} == {"z1", "z2"}
    for wrong in (["drop"], []):
        with pytest.raises(ValueError, match=r"begins with one of data.counterfactual_actions, \["):
            data(counterfactual_share=1.0, counterfactual_actions=wrong).with_counterfactuals(0)
    with pytest.raises(ValueError, match="counterfactual_actions must be a list, got the string 'drop'"):
        data(counterfactual_share=1.0, counterfactual_actions="drop")


def test_of_states_in_words_an_action_is_drawn_that_x_has_the_words_of():
    actions = ["drop the red key", "look", "eat pie", "drop pie", "drop the blue key", ""]
    allowed = Fitting(actions, ["The red key is in a pie", "a blue door"])
    assert allowed("You carry the red key. The pie is here.") == [actions[n] for n in (0, 1, 2, 3, 5)]
    assert allowed("A red door; the key is blue") == [actions[n] for n in (0, 1, 4, 5)]
    assert allowed("nothing") == ["look", ""]
    particles = Fitting(["pick up the key", "look around", "pick up the pie"], ["The key", "The pie"])
    assert particles("The key is here") == ["pick up the key", "look around"], "no state has 'up' or 'around'"

    class Pies(Data):
        def load_split(self, split):
            rows = super().load_split(split)
            if split == "warmup":
                things = ["pie" if n % 3 else "key" for n in range(len(rows))]
                return [replace(row, before=f"a {t}", action=f"drop {t}") for row, t in zip(rows, things, strict=True)]
            return [replace(row, before=("a pie", "nothing", "a key")[n % 3]) for n, row in enumerate(rows)]

    with pytest.warns(UserWarning, match=r"pairs, [0-9]+ have a state that allows one of these actions; the others"):
        rows = list(Pies(seed=1, counterfactual_share=1.0).with_counterfactuals(0))
    for row in rows:
        fitting = {"a pie": "drop pie", "nothing": None, "a key": "drop key"}[row.before]
        assert row.counterfactual == fitting
    assert len({row.before for row in rows}) == 3

    class Nothing(Pies):
        def load_split(self, split):
            rows = super().load_split(split)
            return rows if split == "warmup" else [replace(row, before="nothing") for row in rows]

    datamodule = Nothing(seed=1, counterfactual_share=1.0)
    with (
        pytest.warns(UserWarning, match="pairs, 0 have a state that allows"),
        pytest.raises(ValueError, match=r"no state before of [0-9]+ pairs allows an action; set it to 0"),
    ):
        datamodule.with_counterfactuals(0)
    with pytest.warns(UserWarning, match="pairs, 0 have a state that allows"):  # an iteration later, runs go on
        assert all(row.counterfactual is None for row in datamodule.with_counterfactuals(1))


def test_a_benchmark_may_tell_the_actions_that_a_state_in_words_allows():
    class Keys(Data):
        def load_split(self, split):
            rows = super().load_split(split)
            return [replace(row, before=f"key {n % 5}", action="drop key") for n, row in enumerate(rows)]

        def possible_actions(self, state):
            return [f"take {state}", f"drop {state}", f"drop the {state}"] if state != "key 4" else []

    datamodule = Keys(seed=1, counterfactual_share=1.0, counterfactual_actions=["drop"])
    with pytest.warns(UserWarning, match="have a state that allows one of these actions"):
        rows = list(datamodule.with_counterfactuals(0))
    told = {row.before: {r.counterfactual for r in rows if r.before == row.before} for row in rows}
    assert told.pop("key 4") == {None}
    assert all(found <= {f"drop {state}", f"drop the {state}"} for state, found in told.items())
    assert 2 in map(len, told.values())


def test_actions_are_read_without_their_images(tmp_path, monkeypatch):
    Image.new("RGB", (2, 2)).save(tmp_path / "0.png")
    for name in ("labels", "pairs"):
        lines = [{"before_image": "0.png", "after_image": "0.png", "action": f"drop {n}", "id": n} for n in range(9)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    datamodule = JSONLTransitions(
        warmup=str(tmp_path / "labels.jsonl"),
        state_only=str(tmp_path / "pairs.jsonl"),
        counterfactual_share=1.0,
        counterfactual_actions=["drop"],
        balanced_labels=True,
    )
    opened = []
    monkeypatch.setattr("swirl_lightning.data.lazy.open_rgb", lambda path: opened.append(path) or open_rgb(path))
    pairs = datamodule.with_counterfactuals(0)
    assert datamodule.with_counterfactuals(0) is pairs
    assert len(datamodule.labelled()) == 9
    assert len(opened) <= 2, "whether a state is an image"
    assert all(row.counterfactual.startswith("drop ") for row in pairs)


def test_each_action_that_a_state_allows_is_drawn_as_often():
    """One was drawn for each label, so that a list longer than these had actions that never came."""

    class Many(Data):
        def load_split(self, split):
            rows = super().load_split(split) * (200 if split == "state_only" else 1)
            return [replace(row, id=f"{split}-{n}") for n, row in enumerate(rows)]

        def possible_actions(self, state):
            return [f"drop {n}" for n in range(10)]

    rows = Many(seed=1, pairs_per_iteration=None, counterfactual_share=1.0).with_counterfactuals(0)
    counts = Counter(row.counterfactual for row in rows)
    assert len(counts) == 10
    assert all(180 < count < 300 for count in counts.values()), counts  # 240 each, standard deviation 15


def test_labels_without_an_action_cannot_be_counterfactual():
    class Bare(Data):
        def load_split(self, split):
            return [replace(row, action="") for row in super().load_split(split)]

    with pytest.raises(ValueError, match=r"'warmup-[0-9]+' of the labelled split .* has no action"):
        list(Bare(seed=1, counterfactual_share=1.0).with_counterfactuals(0))


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"counterfactual_share": 0.0}, "counterfactual pairs was 8 and is 0"),
        ({"counterfactual_actions": ["z1"]}, "checksum of counterfactual actions was [0-9]+ and is"),
    ],
)
def test_other_counterfactual_actions_in_mid_phase_are_refused(other, told):
    options = ({"counterfactual_share": 1.0} | given for given in ({}, other))
    before, after = (TransitionLoader(data(**given).with_counterfactuals(0), batch_size=2) for given in options)
    after.load_state_dict(before.state_dict())  # that of an epoch of which no batch has been given
    assert len(list(after)) == 4
    next(iter(before))
    after.load_state_dict(before.state_dict())
    with pytest.raises(ValueError, match=told):
        next(iter(after))


class Doors(Data):
    """Seven labelled triples: three times open, twice close, once go and once no word."""

    def load_split(self, split):
        actions = ["open a", "close a", "open b", "Go on", "open c", "!", "close b"]
        return [replace(row, action=actions[n % 7]) for n, row in enumerate(super().load_split(split))]


def test_balanced_labels_show_each_verb_as_often_as_the_most_frequent_one(caplog):
    options = {"batch_size": 2, "warmup_batch_size": 4, "seed": 5, "balanced_labels": True, "labelled_per_batch": 2}
    doors = Doors(**options, labelled_share=0.5)
    with caplog.at_level("INFO"):
        counts = Counter(row.action for row in doors.labelled())
    assert "data.balanced_labels: 7 labels of 4 verbs, 1 to 3 of each: by repeating them 12" in caplog.text
    assert [row.action.split()[0] for row in doors.labelled()][:4] == ["open", "close", "Go", "!"], "verbs take turns"
    assert counts == {"open a": 1, "open b": 1, "open c": 1, "close a": 2, "close b": 1, "Go on": 3, "!": 3}
    warmup = [row.action for batch in doors.train_dataloader() for row in batch.transitions]
    assert Counter(warmup) == counts, "3 batches of 4 in place of one"
    beside = [row.action for batch in doors._phase_loader(PhaseName.ONE) for row in batch.labelled]
    assert Counter(beside) == counts, "6 batches of 2 pairs have 2 labels each"
    assert Counter(row.action for row in list(doors.merged(0))[SIZES["state_only"] :]) == counts
    plain = Doors(**options | {"balanced_labels": False})
    assert list(plain.labelled()) == list(plain.split("warmup"))


def test_laps_give_each_number_once_before_any_comes_again():
    drawn = laps(5, 12, np.random.default_rng(1)).tolist()
    assert [sorted(drawn[:5]), sorted(drawn[5:10])] == [list(range(5))] * 2
    assert len(drawn) == 12
    assert len(set(drawn[10:])) == 2
    assert laps(0, 0, np.random.default_rng(1)).tolist() == []
