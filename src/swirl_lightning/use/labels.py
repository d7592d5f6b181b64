"""Actions for pairs of states: the IDM names them, and the FWM says how well they explain the state after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from swirl_lightning.engine.drawing import GREEDY, SamplingConfig
from swirl_lightning.engine.grammar import TokenIds
from swirl_lightning.engine.ranges import check_ranges
from swirl_lightning.roles import Role
from swirl_lightning.transition import Transition
from swirl_lightning.world_model_module import WorldModelModule

AS_IT_IS = SamplingConfig(temperature=1.0, top_p=1.0)
"""Alternatives are drawn from the distribution whose log-probabilities are reported."""
DRAWS = 4
"""Draws for each alternative that is asked for: several draws are often the same action."""


@dataclass(frozen=True)
class Label:
    """Action of a pair, with two confidences in nats per token, at most 0.

    Attributes:
        action: z in words; empty if the IDM names none.
        log_prob: mean log Q(z given x, y), by the IDM.
        agreement: mean log P(y given x, z), by the FWM; None for a run without FWM.
        alternatives: other actions, the likeliest first.
    """

    action: str
    log_prob: float
    agreement: float | None = None
    alternatives: tuple[Label, ...] = ()


def label(
    model: WorldModelModule,
    pairs: Sequence[Transition],
    *,
    alternatives: int = 0,
    batch_size: int = 32,
    seed: int = 0,
) -> list[Label]:
    """Label pairs with the IDM's likeliest action (token by token, greedily); their own actions are not looked at.

    Args:
        model: a trained module, for example of :meth:`swirl_lightning.SWIRL.load_from_checkpoint`.
        pairs: transitions with a state after.
        alternatives: most other actions for each pair: the likeliest different ones of ``4 * alternatives`` draws at
            temperature 1. Where the IDM is sure there are fewer.
        batch_size: pairs at a time.
        seed: of the draws; with a pair's id it fixes them.

    Raises:
        ValueError: the run has no IDM, a pair has no state after, or one that the backbone does not read.
        FloatingPointError: a log-probability is no finite number.

    Example::

        model = SWIRL.load_from_checkpoint("runs/quickstart/checkpoints/last.ckpt")
        labels = label(model, MiniGrid(test_size=100).load_split("test"))
        sure = [found.action for found in labels if found.agreement > -0.1]
    """
    check_ranges("label", locals(), alternatives="whole [0, inf)", batch_size="whole [1, inf)")
    if Role.IDM not in model.roles:
        raise ValueError("labels come from the IDM, and this run has none (model.roles)")
    labels: list[Label] = []
    for start in range(0, len(pairs), batch_size):
        labels += _label(
            model, [pairs[n] for n in range(start, min(start + batch_size, len(pairs)))], alternatives, seed
        )
    return labels


def _label(model: WorldModelModule, pairs: Sequence[Transition], alternatives: int, seed: int) -> list[Label]:
    models, backbone = model.models, model.backbone
    x, y = model.encode_pairs(pairs)
    names = [f"label|{seed}|{pair.id}" for pair in pairs]
    groups = [[z] for z in models.idm.sample(x, y, names, GREEDY).contents]  # B groups of C candidates
    if alternatives:
        size = DRAWS * alternatives
        drawn = models.idm.sample(x, y, names, AS_IT_IS, group=size).contents
        groups = [[*group, *drawn[n * size : (n + 1) * size]] for n, group in enumerate(groups)]
    words = [[backbone.decode_action(z) for z in group] for group in groups]
    # as a training would read the words; a blank one is scored for the shape's sake and then dropped
    candidates = [backbone.encode_action(text) for group in words for text in group]
    log_probs = _rows(models.idm.log_prob(candidates, x, y).mean_per_token(), pairs)
    agreements: list[list[float]] | None = None
    if Role.FWM in model.roles:
        agreements = _rows(_agreement(model, x, y, candidates), pairs)
    found = []
    for n, texts in enumerate(words):
        every = [
            Label(text, log_probs[n][k], None if agreements is None else agreements[n][k])
            for k, text in enumerate(texts)
        ]
        first, rest = every[0], {one.action: one for one in every if one.action not in ("", every[0].action)}
        others = sorted(rest.values(), key=lambda one: -one.log_prob)[:alternatives]
        found.append(Label(first.action, first.log_prob, first.agreement, tuple(others)))
    return found


def _agreement(model: WorldModelModule, x: list[TokenIds], y: list[TokenIds], candidates: list[TokenIds]) -> Tensor:
    """Mean log P(y given x, z) of C candidates for each of B pairs, (B * C,)."""
    return model.models.fwm.log_prob(y, x, candidates).mean_per_token()


def _rows(values: Tensor, pairs: Sequence[Transition]) -> list[list[float]]:
    """(B * C,) as B rows of C numbers, to four decimals: beyond them, batches and devices round differently.

    Raises:
        FloatingPointError: one is no finite number.
    """
    rows = values.view(len(pairs), -1)
    if broken := [pair.id for pair, row in zip(pairs, rows.isfinite().all(1).tolist(), strict=True) if not row]:
        raise FloatingPointError(
            f"pair {broken[0]!r}: a log-probability of its labels is no finite number. The weights of the models are "
            "damaged, or their training had failed: take an earlier checkpoint"
        )
    return [[round(value, 4) + 0.0 for value in row] for row in rows.tolist()]
