"""Test-time verification: of several futures the one whose action the IDM recognises best."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest

from support.evaluated import CPU, evaluated
from support.world import Digits
from swirl_lightning.engine.noise import uniforms
from swirl_lightning.evaluation import EvaluationConfig
from swirl_lightning.transition import Choices


def test_best_of_takes_the_future_with_the_likeliest_action(gemma_path):
    module, rows, shown = evaluated(gemma_path, best_of=5)
    models, prompts, backbone = module.models, module.prompts, module.backbone
    chosen = []
    for row in rows:
        (x,), z = backbone.encode_states([row.before], CPU), backbone.encode_action(row.action)
        grammar = models.fwm.grammar
        noise = uniforms([f"eval|4|fwm|{row.id}"], 5, grammar.max_length)
        rows_drawn = models.fwm.sample_ids([prompts.fwm(x, z)], noise, module.sampling).rows()
        drawn = [grammar.content(ids) for ids in rows_drawn]
        completion = models.grammars["idm"].complete(z)
        values = [float(models.idm.score_ids([prompts.idm(x, y)], [completion]).mean_per_token()[0]) for y in drawn]
        assert len(set(values)) > 1
        chosen.append(values.index(max(values)))
        assert backbone.decode_states([drawn[chosen[-1]]], CPU) == [shown[len(chosen) - 1]]
    assert any(chosen)  # not always the first


def test_best_of_one_is_the_first_draw(gemma_path):
    module, rows, shown = evaluated(gemma_path, best_of=1)
    (x,), z = module.backbone.encode_states([rows[0].before], CPU), module.backbone.encode_action(rows[0].action)
    fwm = module.models.fwm
    noise = uniforms([f"eval|4|fwm|{rows[0].id}"], 1, fwm.grammar.max_length)
    (drawn,) = fwm.sample_ids([module.prompts.fwm(x, z)], noise, module.sampling).rows()
    assert module.backbone.decode_states([fwm.grammar.content(drawn)], CPU) == shown[:1]
    with pytest.raises(ValueError, match=r"best_of must lie in \[1, 100000\], got 0"):
        EvaluationConfig(best_of=0)
    with pytest.raises(ValueError, match=r"best_of chooses among samples: add sampled to evaluation.modes"):
        EvaluationConfig(modes=("greedy",), best_of=2)


@pytest.mark.parametrize("right", [0, 1, 3])
def test_what_is_predicted_right_is_scored_once(gemma_path, right, monkeypatch):
    module, rows, _ = evaluated(gemma_path, best_of=1)
    models, encode, count = module.models, module.backbone.encode_states, len(rows)
    x, y = encode([row.before for row in rows], CPU), encode([row.after for row in rows], CPU)
    z = [module.backbone.encode_action(row.action) for row in rows]
    drawn = {
        "fwm": [*y[:right], *encode(["7", "77", "777"], CPU)[right:]],
        "idm": [*z[:right], *[[9], [9, 8], [8]][right:]],
    }
    wanted = {
        "identifiability": [
            float(models.idm.log_prob([z[n]], [x[n]], [drawn["fwm"][n]]).mean_per_token()) for n in range(count)
        ],
        "likelihood": [
            float(models.fwm.log_prob([y[n]], [x[n]], [drawn["idm"][n]]).mean_per_token()) for n in range(count)
        ],
    }
    monkeypatch.setattr(module.evaluator, "_sample", lambda model, *given: drawn[model.role])
    scored, score = [], models.engine.score

    def spy(grammar, prompts, *args, **kwargs):
        scored.append(len(prompts))
        return score(grammar, prompts, *args, **kwargs)

    monkeypatch.setattr(models.engine, "score", spy)
    module.evaluator.start(Digits(), CPU)
    module.evaluator.step(rows, CPU)
    assert sum(scored) == 2 * count + 2 * (count - right)
    found = module.evaluator.compute()
    for name, values in wanted.items():
        assert float(found[name]) == pytest.approx(sum(values) / count, abs=1e-5)


def test_a_transition_with_choices_is_enough_for_their_accuracy(gemma_path):
    """One question with each answer: one is right. Without a question there is no accuracy, and no warning."""
    module, (row, *_), _ = evaluated(gemma_path, best_of=1)
    asked = [replace(row, choices=Choices(("inc", "dec"), answer, row.after)) for answer in (0, 1)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not [name for name in module.evaluator.compute() if name.startswith("choice/")]
    module.evaluator.step(asked, CPU)
    found = module.evaluator.compute()
    assert [float(found[f"choice/{role}_accuracy"]) for role in ("fwm", "idm")] == [0.5, 0.5]


@pytest.mark.parametrize(("role", "best_of"), [("fwm", 1), ("idm", 3)])
def test_a_model_that_is_not_a_number_stops_the_evaluation(gemma_path, role, best_of):
    """Its means would leave the rows out, and of several futures such a one would be the best."""
    module, rows, _ = evaluated(gemma_path, best_of=best_of)
    weight = next(p for name, p in module.named_parameters() if f".{role}." in name and "lora_B" in name)
    weight.data.fill_(float("nan"))
    message = f"record {rows[0].id!r}: the {role.upper()}'s log-probability is not a number"
    with pytest.raises(ValueError, match=message):
        module.evaluator.step(rows[:2], CPU)
    if role == "idm":
        with pytest.raises(ValueError, match=message):
            module.evaluator.predict([replace(row, after=None) for row in rows[:2]], CPU)
