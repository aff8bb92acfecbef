"""GRPO by hand. Against TRL, and what holds for all algorithms: test_algorithms*.py."""

import pytest
import torch

from envs import Outcome
from rl.algorithms import available, load
from rl.trajectory import Group, Member
from tests.rl.test_batch import member


def group(*members: Member) -> Group:
    return Group(lease=0, world="w", version=0, members=list(members))


def attempt(score: float, tokens: int) -> Member:
    return member([[9] * tokens], score=score)


def test_advantages_by_hand() -> None:
    """Two groups of three. mu = (1*2 + 0*3 + 0*5) / 10 = 0.2, and (1*1 + 1*2 - 1*1) / 4 = 0.5."""
    first = group(attempt(1, 2), attempt(0, 3), attempt(0, 5))
    second = group(attempt(1, 1), attempt(1, 2), attempt(-1, 1))
    for g in (first, second):
        load("grpo").advantages(g)
    assert [m.advantage for m in first.members] == pytest.approx([0.8, -0.2, -0.2])
    assert [m.advantage for m in second.members] == pytest.approx([0.5, 0.5, -1.5])


def test_advantages_times_lengths_sum_to_zero() -> None:
    g = group(*(attempt(score, tokens) for score, tokens in ((0.3, 17), (-1.0, 400), (0.0, 3), (1.0, 58), (0.7, 9))))
    load("grpo").advantages(g)
    assert sum(m.advantage * m.trajectory.spoken for m in g.members) == pytest.approx(0, abs=1e-9)


def test_world_tokens_have_no_part_in_the_length() -> None:
    long_prompt = member([[9, 9]], heard=[1] * 50, score=1.0)
    g = group(long_prompt, attempt(0, 2))
    load("grpo").advantages(g)
    assert [m.advantage for m in g.members] == pytest.approx([0.5, -0.5])


def test_invalid_members_neither_get_an_advantage_nor_move_the_mean() -> None:
    lost = member([[9] * 7], score=None, outcome=Outcome.SANDBOX_LOST, advantage=0.125)
    scored_though_lost = member([[9] * 7], score=5.0, outcome=Outcome.ENGINE_LOST, advantage=0.125)
    silent = member([], score=5.0, advantage=0.125)
    g = group(lost, attempt(1, 2), scored_though_lost, attempt(0, 6), silent)
    load("grpo").advantages(g)
    assert [m.advantage for m in g.members] == pytest.approx([0.125, 0.75, 0.125, -0.25, 0.125])


@pytest.mark.parametrize("scores", [(0.1, 0.1, 0.1), (0.7,), (), (0.0, 0.1 + 0.6 - 0.7, 0.0)])
def test_a_group_that_teaches_nothing_has_exact_zeros(scores: tuple[float, ...]) -> None:
    g = group(*(attempt(score, tokens) for score, tokens in zip(scores, (3, 7, 11), strict=False)))
    load("grpo").advantages(g)
    assert all(m.advantage == 0.0 for m in g.members)


def test_loss_and_gradient_by_hand() -> None:
    """Two rows of three tokens; ratios 1, 1.5, 0.5 at A = 0.5 and (masked), 0.5, 1.5 at A = -1.

    Surrogates 0.5, 1.25 * 0.5 (clipped), 0.25 and -0.8 (clipped), -1.5: they sum to -0.925.
    """
    behaviour_BT = torch.tensor([[-1.0, -2.0, -0.5], [0.0, -3.0, -1.5]])
    ratio_BT = torch.tensor([[1.0, 1.5, 0.5], [9.0, 0.5, 1.5]])
    logprob_BT = (behaviour_BT + ratio_BT.log()).requires_grad_()
    advantage_BT = torch.tensor([[0.5] * 3, [-1.0] * 3])
    mask_BT = torch.tensor([[True, True, True], [False, True, True]])
    entropy_BT = torch.tensor([[1.0, 2.0, 3.0], [100.0, 4.0, 5.0]])
    document_BT = torch.tensor([[0, 0, 0], [1, 1, 1]])
    loss, sums = load("grpo").loss(
        logprob_BT, behaviour_BT, advantage_BT, mask_BT, entropy_BT, document_BT, denominator=10.0
    )
    loss.backward()
    assert loss.item() == pytest.approx(0.0925)
    expected = torch.tensor([[-0.05, 0.0, -0.025], [0.0, 0.0, 0.15]])
    torch.testing.assert_close(logprob_BT.grad, expected, atol=1e-6, rtol=0)
    assert {k: float(v) for k, v in sums.items()} == pytest.approx(
        {
            "tokens": 5,
            "clip_low": 1,
            "clip_high": 1,
            "truncated": 0,
            "ratio": 5.0,
            "kl": 2 * (0.5 - 0.405465) + 2 * (-0.5 + 0.693147),
            "gap": 2 * 0.405465 + 2 * 0.693147,
            "entropy": 15.0,
        },
        abs=1e-5,
    )


def test_unknown_names_and_knobs_are_refused() -> None:
    assert "grpo" in available()
    with pytest.raises(ValueError, match=r"no algorithm 'ppo'; available: .*grpo"):
        load("ppo")
    with pytest.raises(ValueError, match=r"has no knob clip_hi; available: clip_low, clip_high"):
        load("grpo", clip_hi=0.3)
    with pytest.raises(ValueError, match=r"got clip_low 1.5"):
        load("grpo", clip_low=1.5)
