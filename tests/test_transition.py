import pytest

from swirl_lightning.transition import Choices, Transition


def test_a_pair_without_its_action_has_no_turns_and_no_choices():
    turn = Transition("b", "c", "shut")
    row = Transition("a", "b", "open", "id", {"task": "t"}, (turn,), Choices(("open", "shut"), 0, "b"))
    bare = row.without_action()
    assert (bare.before, bare.after, bare.id, bare.meta) == ("a", "b", "id", {"task": "t"})
    assert (bare.action, bare.turns, bare.choices) == (None, (), None)


@pytest.mark.parametrize(
    ("actions", "answer", "why"),
    [
        ((), 0, "at least two actions"),
        (("a",), 0, "at least two actions"),
        (("a", " "), 0, "none that is blank"),
        (("a", "b"), 2, "answer must be 0 to 1"),
        (("a", "b"), -1, "answer must be 0 to 1"),
    ],
)
def test_choices_that_cannot_be_answered_are_refused(actions, answer, why):
    with pytest.raises(ValueError, match=why):
        Choices(actions, answer, "y")
