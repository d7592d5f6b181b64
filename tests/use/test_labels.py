"""Labels of pairs: what the two models say of them, in batches as alone."""

from __future__ import annotations

import pytest

from support.tiny import text_backbone
from support.world import Digits
from swirl_lightning import SWIRL, Transition
from swirl_lightning.use import Label, label


@pytest.fixture(scope="module")
def pairs():
    return Digits(size=12).load_split("test")


def told(found: Label):
    return [found.action, found.log_prob, found.agreement]


def test_a_label_is_the_idms_greedy_action_with_the_log_probabilities_of_both_models(model, pairs):
    found = label(model, pairs, batch_size=5)
    assert len(found) == len(pairs)
    for pair, one in zip(pairs, found, strict=True):
        assert [one.action] == model.predict_action(pair.before, pair.after, greedy=True)
        x, y = ([ids] for ids in model.states.encode([pair.before, pair.after], model.device))
        z = [model.backbone.encode_action(one.action)]
        assert one.log_prob == pytest.approx(float(model.models.idm.log_prob(z, x, y).mean_per_token()), abs=2e-4)
        assert one.agreement == pytest.approx(float(model.models.fwm.log_prob(y, x, z).mean_per_token()), abs=2e-4)
        assert one.alternatives == ()
    assert len({one.agreement for one in found}) > 6


def test_a_pairs_own_action_changes_nothing(model, pairs):
    bare = [pair.without_action() for pair in pairs]
    assert [told(one)[0] for one in label(model, bare)] == [told(one)[0] for one in label(model, pairs)]


def test_alternatives_are_others_and_scored_as_if_alone(model, pairs):
    found = label(model, pairs, alternatives=2)
    assert any(one.alternatives for one in found)
    for pair, one in zip(pairs, found, strict=True):
        others = [other.action for other in one.alternatives]
        assert len(others) <= 2
        assert len({one.action, "", *others}) == 2 + len(others)
        log_probs = [other.log_prob for other in one.alternatives]
        assert log_probs == sorted(log_probs, reverse=True)
        for other in one.alternatives:
            x, y = ([ids] for ids in model.states.encode([pair.before, pair.after], model.device))
            z = [model.backbone.encode_action(other.action)]
            log_prob, agreement = model.models.idm.log_prob(z, x, y), model.models.fwm.log_prob(y, x, z)
            assert other.log_prob == pytest.approx(float(log_prob.mean_per_token()), abs=2e-4)
            assert other.agreement == pytest.approx(float(agreement.mean_per_token()), abs=2e-4)


def test_draws_depend_on_seed_and_id_and_not_on_the_batch(model, pairs):
    def others(found):
        return [[other.action for other in one.alternatives] for one in found]

    whole = others(label(model, pairs, alternatives=3))
    assert others(label(model, pairs, alternatives=3, batch_size=1)) == whole
    assert others(label(model, pairs, alternatives=3, seed=1)) != whole


def test_an_idm_alone_labels_without_agreement_and_an_fwm_alone_does_not(gemma_path, pairs):
    alone = SWIRL(text_backbone(gemma_path, quantization=None), roles=("idm",))
    alone.configure_model()
    assert {one.agreement for one in label(alone.eval(), pairs[:3])} == {None}
    with pytest.raises(ValueError, match="labels come from the IDM"):
        label(SWIRL(text_backbone(gemma_path), roles=("fwm",)), pairs)


def test_a_confidence_that_is_no_number_is_told(gemma_path, pairs):
    model = SWIRL(text_backbone(gemma_path, max_state_tokens=4, max_action_tokens=5))
    model.configure_model()
    for parameter in model.adapters.parameters("fwm"):
        parameter.data.fill_(1e30)
    with pytest.raises(
        FloatingPointError, match=f"pair {pairs[0].id!r}: a log-probability .* take an earlier checkpoint"
    ):
        label(model, pairs)


def test_what_cannot_be_labelled_is_named(model):
    with pytest.raises(ValueError, match="'odd' has no state after"):
        label(model, [Transition("12", None, id="odd")])
    with pytest.raises(ValueError, match=r"label\.alternatives must lie in"):
        label(model, [], alternatives=-1)
    assert label(model, []) == []
