"""Gymnasium environments over a trained FWM: Gymnasium's own check, one call a step, equal to single steps."""

from __future__ import annotations

import re

import numpy as np
import pytest

gymnasium = pytest.importorskip("gymnasium")

from gymnasium.utils.env_checker import check_env  # noqa: E402

from support.tiny import text_backbone  # noqa: E402
from swirl_lightning import SWIRL  # noqa: E402
from swirl_lightning.backbones.liquid import Liquid  # noqa: E402
from swirl_lightning.benchmarks.minigrid import MiniGrid  # noqa: E402
from swirl_lightning.engine.drawing import GREEDY  # noqa: E402
from swirl_lightning.use import WorldModelEnv, WorldModelVectorEnv  # noqa: E402

ACTIONS = ["inc", "swap", "dec"]
STARTS = ["37", "12", "90"]


def reward(before, action, after):
    return len(set(after) - set(before)) + ACTIONS.index(action) / 10


@pytest.fixture(scope="module")
def frames():
    """The embedded default, untrained."""
    module = SWIRL(Liquid("builtin/tiny-liquid", quantization=None, dtype="float32", max_action_tokens=16))
    module.configure_model()
    return module.eval()


@pytest.fixture
def calls(monkeypatch):
    """The batch sizes of the FWM's calls."""
    from swirl_lightning.world_models import WorldModel

    sizes, sample = [], WorldModel.sample

    def counted(self, before, *args, **kwargs):
        sizes.append(len(before))
        return sample(self, before, *args, **kwargs)

    monkeypatch.setattr(WorldModel, "sample", counted)
    return sizes


def test_gymnasium_has_nothing_to_say_about_texts(model):
    check_env(WorldModelEnv(model, STARTS, ACTIONS, reward, max_steps=3))


def test_gymnasium_has_nothing_to_say_about_images(frames):
    starts = [row.before for row in MiniGrid(test_size=2).load_split("test")]
    env = WorldModelEnv(frames, starts, ["turn left", "move forward"], lambda *step: 0)
    assert env.observation_space == gymnasium.spaces.Box(0, 255, (48, 48, 3), np.uint8)
    check_env(env)
    seen, _ = env.reset(options={"state": starts[1]})
    assert np.abs(seen.astype(int) - np.asarray(starts[1]).astype(int)).mean() < 4
    assert np.array_equal(env.render(), seen)


def test_an_action_is_an_index_or_words_and_the_user_gives_reward_and_end(model):
    env = WorldModelEnv(model, STARTS, ACTIONS, reward, lambda state: True, greedy=True)
    (x,) = model.states.encode(["12"], model.device)
    (y,) = model.models.fwm.sample([x], [model.backbone.encode_action("swap")], ["any"], GREEDY).contents
    (after,) = model.backbone.decode_states([y], model.device)
    for action in (1, "swap"):
        assert env.reset(options={"state": "12"}) == ("12", {})
        assert env.step(action) == (after, reward("12", "swap", after), True, False, {})
        assert env.state == env.render() == after


def test_many_rollouts_are_one_call_a_step_and_are_those_of_single_environments(model, calls):
    def ends(state):
        return ord(state[0]) % 3 == 0

    many = WorldModelVectorEnv(model, STARTS, ACTIONS, reward, ends, num_envs=4, max_steps=3)
    singles = [WorldModelEnv(model, STARTS, ACTIONS, reward, ends, max_steps=3) for _ in range(4)]
    seen, _ = many.reset(seed=5)
    assert many.observation_space.contains(seen)
    assert list(seen) == [env.reset(seed=5 + n)[0] for n, env in enumerate(singles)]
    over, restarts, kept = [False] * 4, 0, set()
    for step in range(6):
        actions = [(step + n) % 3 for n in range(4)]
        calls.clear()
        found = many.step(np.array(actions))
        live = [n for n in range(4) if not over[n]]
        assert calls == ([len(live)] if live else [])
        for n, env in enumerate(singles):
            alone = env.step(actions[n]) if n in live else (env.reset()[0], 0.0, False, False, {})
            assert alone[:4] == tuple(part[n] for part in found[:4])
            over[n] = alone[2] or alone[3]
            kept.add(alone[2:4])
        restarts += 4 - len(live)
    assert restarts
    assert kept >= {(False, False), (False, True)}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"actions": []}, "no action is given: name at least one"),
        ({"actions": ["increase"]}, "'increase' is outside the grammar of TextLLM"),
        ({"starts": []}, "no start is given"),
        ({"num_envs": 0}, "WorldModelEnv.num_envs must lie in [1, inf), got 0"),
        ({"max_steps": 0}, "WorldModelEnv.max_steps must lie in [1, inf) or null, got 0"),
    ],
)
def test_what_is_no_environment_is_refused(model, settings, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        WorldModelVectorEnv(model, **({"starts": STARTS, "actions": ACTIONS, "reward": reward} | settings))


def test_what_is_no_step_is_refused(model, gemma_path):
    envs = WorldModelVectorEnv(model, STARTS, ACTIONS, reward, num_envs=2)
    alone = WorldModelEnv(model, STARTS, ACTIONS, reward)
    for early in (lambda: envs.step([0, 1]), lambda: alone.state, alone.render):
        with pytest.raises(RuntimeError, match="call reset"):
            early()
    with pytest.raises(ValueError, match="3 states for 2 environments"):
        envs.reset(options={"states": STARTS})
    for wrong, known in ((envs, "states"), (alone, "state")):
        with pytest.raises(ValueError, match=f"reset has no option 'State'; it has '{known}'"):
            wrong.reset(options={"State": STARTS[:1]})
    with pytest.raises(ValueError, match="reset has no option 'state'"):
        envs.reset(options={"state": STARTS[0]})
    for value in (None, float("nan")):
        unsure = WorldModelEnv(model, STARTS, ACTIONS, lambda *step, value=value: value)
        unsure.reset(seed=0)
        with pytest.raises(ValueError, match="the reward of a step is no finite number, but nan"):
            unsure.step(0)
    envs.reset(seed=[3, None])
    for actions, told in (
        ([0, 3], "action 3 is none of the 3 actions"),
        ([0, -1], "action -1 is none"),
        ([0], "1 actions for 2 environments"),
        ([0, "increase"], "outside the grammar of TextLLM"),
    ):
        with pytest.raises(ValueError, match=told):
            envs.step(actions)
    with pytest.raises(ValueError, match="next states come from the FWM"):
        WorldModelEnv(SWIRL(text_backbone(gemma_path), roles=("idm",)), STARTS, ACTIONS, reward)
