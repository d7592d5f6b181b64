"""Rollouts of the FWM: from a state and a list of actions, each step from the model's own previous state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from swirl_lightning.engine.drawing import GREEDY
from swirl_lightning.engine.grammar import TokenIds
from swirl_lightning.engine.ranges import check_ranges
from swirl_lightning.roles import Role
from swirl_lightning.transition import State
from swirl_lightning.world_model_module import WorldModelModule


@dataclass(frozen=True)
class Step:
    """Step of a rollout, with two scores in nats per token, at most 0.

    Attributes:
        action: z in words.
        state: predicted next state.
        log_prob: mean log P(state given previous state, z), by the FWM.
        score: mean log Q(z given previous state, state), by the IDM; None for a run without IDM.
    """

    action: str
    state: State
    log_prob: float
    score: float | None = None


def simulate(
    model: WorldModelModule,
    state: State,
    actions: Sequence[str],
    *,
    branches: int = 1,
    best_of: int = 1,
    greedy: bool = False,
    seed: int = 0,
) -> list[list[Step]]:
    """Roll the FWM forward; all branches together, each from the tokens of its own previous state.

    Args:
        model: a trained module, for example of :meth:`swirl_lightning.SWIRL.load_from_checkpoint`.
        state: where every branch starts.
        actions: in words, one per step.
        branches: number K of rollouts, which differ by what is drawn.
        best_of: states drawn at each step of a branch, of which the IDM's score chooses the best.
        greedy: take the likeliest token at each place instead of the run's ``sampling``.
        seed: equal seeds draw equal rollouts.

    Returns:
        K lists of a step per action.

    Raises:
        ValueError: the run has no FWM, or no IDM to choose; there is no action, or one that the backbone cannot
            write; ``greedy`` with more than one draw; the backbone does not read the state.

    Example::

        model = SWIRL.load_from_checkpoint("runs/quickstart/checkpoints/last.ckpt")
        (steps,) = simulate(model, image, ["turn left", "move forward"], best_of=4)
        steps[-1].state.save("after.png")
    """
    check(model, actions, branches, best_of, greedy)
    models, config = model.models, GREEDY if greedy else model.sampling
    x: list[TokenIds] = model.states.encode([state], model.device) * branches  # K states
    rollouts: list[list[Step]] = [[] for _ in range(branches)]
    for number, action in enumerate(actions):
        z = [model.backbone.encode_action(action)] * branches
        names = [f"simulate|{seed}|{number}|{branch}" for branch in range(branches)]
        drawn = models.fwm.sample(x, z, names, config, group=best_of).contents  # K * N states
        chosen, scores = list(range(branches)), None
        if Role.IDM in model.roles:
            score = models.idm.log_prob(z, x, drawn).mean_per_token().view(branches, best_of)
            best = score.argmax(1).tolist()
            chosen = [branch * best_of + place for branch, place in enumerate(best)]
            scores = score.flatten()[chosen].tolist()
        y = [drawn[place] for place in chosen]
        log_probs = models.fwm.log_prob(y, x, z).mean_per_token().tolist()
        for branch, after in enumerate(model.backbone.decode_states(y, model.device)):
            own = None if scores is None else _rounded(scores[branch])
            rollouts[branch].append(Step(action, after, _rounded(log_probs[branch]), own))
        x = y
    return rollouts


def check(model: WorldModelModule, actions: Sequence[str], branches: int, best_of: int, greedy: bool) -> None:
    """Raise the errors of :func:`simulate` that need no weights."""
    check_ranges(
        "simulate", {"branches": branches, "best_of": best_of}, branches="whole [1, inf)", best_of="whole [1, inf)"
    )
    if Role.FWM not in model.roles:
        raise ValueError("next states come from the FWM, and this run has none (model.roles)")
    if best_of > 1 and Role.IDM not in model.roles:
        raise ValueError("best_of asks the IDM, and this run has none (model.roles): set best_of to 1")
    if greedy and branches * best_of > 1:
        raise ValueError("greedy draws are all equal: leave greedy out, or set branches and best_of to 1")
    if not actions:
        raise ValueError("no action is given: name at least one")
    for action in actions:
        model.backbone.check_action(action)


def _rounded(value: float) -> float:
    return round(value, 4) + 0.0
