import math

import pytest
import torch

from swirl_lightning.training.grpo import (
    GRPOConfig,
    clipped_surrogate,
    group_advantages,
    kl_k3,
    token_weights,
    zero_variance_share,
)


def test_advantages_by_hand():
    rewards = torch.tensor([1.0, 2.0, 3.0, -1.0, -1.0, -1.0])
    got = group_advantages(rewards, 3)
    expected = torch.tensor([-1 / 1.0001, 0.0, 1 / 1.0001, 0.0, 0.0, 0.0])
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(group_advantages(rewards, 3, "none")[:3], torch.tensor([-1.0, 0.0, 1.0]))
    assert zero_variance_share(rewards, 3) == 0.5


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_equal_rewards_are_no_advantage_whatever_their_mean_is_rounded_to(scale):
    """Divided by a std of nearly 0, the last bit of the mean was an advantage of all members, and a step of Adam."""
    rewards = -5 * torch.rand(500, generator=torch.Generator().manual_seed(0))
    for size in range(2, 17):
        assert not group_advantages(rewards.repeat_interleave(size), size, scale).any()


def test_advantages_scaled_by_the_batch_leave_groups_that_hardly_differ_small():
    rewards = torch.tensor([1.0, 2.0, 3.0, -1.0, -1.0, -1.00001])
    got = group_advantages(rewards, 3, "batch")
    torch.testing.assert_close(got[:3], torch.tensor([-1.0, 0.0, 1.0]) / (rewards.std() + 1e-4))
    assert got[3:].abs().max() < 1e-5 < group_advantages(rewards, 3)[3:].abs().max()
    wider = group_advantages(rewards, 3, "batch", torch.tensor(4.0))
    torch.testing.assert_close(wider[:3], torch.tensor([-1.0, 0.0, 1.0]) / 4.0001)


def test_surrogate_by_hand():
    old = torch.zeros(4, 1)
    policy = torch.tensor([[1.5], [0.5], [1.5], [0.5]]).log()
    advantages = torch.tensor([2.0, 2.0, -1.0, -1.0])
    loss, held = clipped_surrogate(policy, old, advantages, 0.2)
    # min(1.5*2, 1.2*2), min(.5*2, .8*2), min(-1.5, -1.2), min(-.5, -.8)
    torch.testing.assert_close(loss[:, 0], torch.tensor([-2.4, -1.0, 1.5, 0.8]))
    assert held[:, 0].tolist() == [True, False, False, True]
    wide, _ = clipped_surrogate(policy, old, advantages, 0.2, epsilon_high=0.4)
    torch.testing.assert_close(wide[0, 0], torch.tensor(-2.8))


def test_on_policy_surrogate_has_the_policy_gradient():
    policy = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    loss, _ = clipped_surrogate(policy, policy.detach(), torch.tensor([3.0]), 0.2)
    loss.sum().backward()
    assert policy.grad.tolist() == [[-3.0, -3.0]]


def test_kl_by_hand_and_against_its_expectation():
    policy, reference = torch.tensor([[-1.0]]), torch.tensor([[-1.5]])
    assert kl_k3(policy, reference).item() == pytest.approx(math.exp(-0.5) + 0.5 - 1)
    torch.manual_seed(0)
    p, q = torch.randn(6).log_softmax(0), torch.randn(6).log_softmax(0)
    expected = (p.exp() * (p - q)).sum()
    torch.testing.assert_close((p.exp() * kl_k3(p, q)).sum(), expected)


def test_token_weights_by_hand():
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]]).bool()
    weights, total = token_weights(mask, "token", 5)
    assert weights.tolist() == [[1, 1, 0], [1, 0, 0]]
    assert total == 3
    weights, total = token_weights(mask, "sequence", 5)
    assert weights.tolist() == [[0.5, 0.5, 0], [1, 0, 0]]
    assert total == 2
    weights, total = token_weights(mask, "constant", 5)
    assert weights.sum() == 3
    assert total == 10


@pytest.mark.parametrize(
    ("kwargs", "word"),
    [
        ({"group_size": 1}, "group"),
        ({"beta": -0.1}, "beta"),
        ({"advantage_scale": "global"}, "advantage_scale"),
        ({"loss_normalization": "mean"}, "loss_normalization"),
        ({"num_iterations": 0}, "num_iterations"),
    ],
)
def test_bad_settings_are_named(kwargs, word):
    with pytest.raises(ValueError, match=word):
        GRPOConfig(**kwargs)


def test_an_unknown_normalization_of_a_learners_own_loss_is_refused():
    with pytest.raises(ValueError, match="no normalization 'mean': token, sequence or constant"):
        token_weights(torch.ones(1, 1).bool(), "mean", 1)
