"""Credit by turn: by hand, against the advantage of the whole, packed, and stored."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from envs import Outcome
from rewards import Score
from rl.algorithms import load
from rl.batch import pack
from rl.buffer import useful
from rl.store import Run
from rl.trajectory import Group, Member
from tests.rl.test_algorithms import accumulated, policy_now
from tests.rl.test_batch import member


def attempt(*rewards: float, lengths: Sequence[int] | None = None, outcome: Outcome = Outcome.SOLVED) -> Member:
    """A member whose turns bring these rewards, with as many tokens as `lengths` says."""
    made = member([[9] * n for n in lengths or [1] * len(rewards)], outcome=outcome)
    made.score = Score(math.fsum(rewards), {}, rewards)
    return made


def terminal(score: float, lengths: Sequence[int]) -> Member:
    return member([[9] * n for n in lengths], score=score)


def group(*members: Member) -> Group:
    return Group(lease=0, world="w", version=0, members=list(members))


def credited(made: Group, **knobs: object) -> list[tuple[float, ...]]:
    load("turns", **knobs).advantages(made)
    return [m.turn_advantages for m in made.members]


def test_by_hand() -> None:
    """Returns to go: 3, 2, 2 and 1, 1 and 0. Means: 4/3 at the first turn, 1.5 at the second; one has a third turn, and
    it is held against the mean of the whole returns.
    """
    made = group(attempt(1, 0, 2, lengths=[1, 2, 1]), attempt(0, 1, lengths=[3, 1]), attempt(0, lengths=[2]))
    assert [list(one) for one in credited(made)] == [
        pytest.approx([5 / 3, 0.5, 2 - 4 / 3]),
        pytest.approx([-1 / 3, -0.5]),
        pytest.approx([-4 / 3]),
    ]
    assert [m.advantage for m in made.members] == pytest.approx([(5 / 3 + 2 * 0.5 + 2 / 3) / 4, -3 / 8, -4 / 3])
    assert made.members[1].advantages == pytest.approx([0, 0, 0, *[-1 / 3] * 3, 0, 0, 0, -0.5])
    assert [list(one) for one in credited(made, baseline="group")] == [
        pytest.approx([5 / 3, 2 / 3, 2 / 3]),
        pytest.approx([-1 / 3, -1 / 3]),
        pytest.approx([-4 / 3]),
    ]


def test_what_comes_later_counts_less_below_gamma_1() -> None:
    """At gamma 0.5: 1 + 0.5 * 1 = 1.5 (as 0 + 0.5 * 2 = 1 from the second on) and 0.5, 1."""
    made = group(attempt(1, 0, 2), attempt(0, 1))
    assert [list(one) for one in credited(made, gamma=0.5)] == [
        pytest.approx([0.5, 0.0, 2 - 1.0]),
        pytest.approx([-0.5, 0.0]),
    ]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("baseline", ["turn", "group"])
def test_with_rewards_only_at_the_end_a_turn_has_the_advantage_of_the_whole(baseline: str, seed: int) -> None:
    """By turn where all take equally many; against the group's mean always. `dr_grpo` knows no turns."""
    g = torch.Generator().manual_seed(seed)
    counts = [3] * 6 if baseline == "turn" else torch.randint(1, 5, (6,), generator=g).tolist()
    lengths = [torch.randint(1, 9, (n,), generator=g).tolist() for n in counts]
    scores = torch.randn(6, generator=g).tolist()
    by_turn, whole = (group(*(terminal(s, own) for s, own in zip(scores, lengths, strict=True))) for _ in range(2))
    load("turns", baseline=baseline).advantages(by_turn)
    load("dr_grpo").advantages(whole)
    for one, other in zip(by_turn.members, whole.members, strict=True):
        assert one.turn_advantages == pytest.approx([other.advantage] * len(one.trajectory.turns))
        assert one.advantage == pytest.approx(other.advantage)


def test_a_potential_that_telescopes_over_the_whole_still_moves_credit_between_turns() -> None:
    made = group(attempt(0.5, -0.5), attempt(0.25, -0.25))
    load("grpo").advantages(made)
    assert not useful(made) and [m.turn_advantages for m in made.members] == [(), ()]
    assert [list(one) for one in credited(made)] == [pytest.approx([0.0, -0.125]), pytest.approx([0.0, 0.125])]
    assert useful(made)


def test_advantages_that_cancel_over_tokens_still_teach() -> None:
    made = group(attempt(0.5, -1, lengths=[1, 1]), attempt(-0.5, 1, lengths=[1, 1]))
    assert [list(one) for one in credited(made)] == [pytest.approx([-0.5, -1.0]), pytest.approx([0.5, 1.0])]
    made = group(attempt(2, -1, lengths=[1, 1]), attempt(-2, 1, lengths=[1, 1]))
    assert [list(one) for one in credited(made)] == [pytest.approx([1.0, -1.0]), pytest.approx([-1.0, 1.0])]
    assert [m.advantage for m in made.members] == [0.0, 0.0] and useful(made)


def test_another_algorithm_takes_advantages_by_turn_back() -> None:
    made = group(attempt(1, 0), attempt(0, 0))
    credited(made)
    load("grpo").advantages(made)
    assert [m.turn_advantages for m in made.members] == [(), ()] and made.members[0].advantages == [0.5] * 8


def test_where_members_do_not_differ_there_are_exact_zeros() -> None:
    for made in (group(attempt(0.1, 0.2)), group(*(attempt(0.1, 0.2, 0.7) for _ in range(3))), group()):
        assert not any(any(one) for one in credited(made)) and not useful(made)
    rounding = group(attempt(0.1, 0.2), attempt(0.3, 0.0))
    credited(rounding)
    assert rounding.members[0].turn_advantages[0] == 0.0, "0.1 + 0.2 is not 0.3, and teaches nothing"


def test_members_that_are_lost_are_neither_read_nor_written() -> None:
    lost = attempt(100, 100, outcome=Outcome.SANDBOX_LOST)
    with_it, without = (group(attempt(1, 0), attempt(0, 1)) for _ in range(2))
    with_it.members.insert(1, lost)
    load("turns").advantages(with_it)
    load("turns").advantages(without)
    assert [m.turn_advantages for m in with_it.valid] == [m.turn_advantages for m in without.members]
    assert lost.turn_advantages == ()


def test_rewards_for_another_number_of_turns_are_not_guessed_at() -> None:
    with pytest.raises(ValueError, match="got rewards for 3 turns, of an attempt of 2; expected as many"):
        load("turns").advantages(group(replace(attempt(1, 0), score=Score(1.0, {}, (1.0, 0.0, 0.0)))))
    with pytest.raises(ValueError, match="got 1 advantages of 2 turns; expected one for each"):
        pack([replace(attempt(1, 0), turn_advantages=(1.0,))], 64)
    with pytest.raises(ValueError, match="expected finite"):
        pack([replace(attempt(1, 0), turn_advantages=(1.0, math.nan))], 64)


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"gamma": 1.5}, "got gamma 1.5; expected a number from 0 to 1"),
        ({"baseline": "mean"}, "there is no baseline 'mean'; available: turn, group"),
        ({"clip_low": 2.0}, "got clip_low 2.0"),
    ],
)
def test_knobs_that_make_no_sense_are_refused(knobs: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        load("turns", **knobs)


def some_groups(seed: int) -> list[Member]:
    g = torch.Generator().manual_seed(seed)
    members = []
    for _ in range(12):
        lengths = torch.randint(1, 9, (int(torch.randint(1, 4, (1,), generator=g)),), generator=g).tolist()
        members.append(attempt(*torch.randn(len(lengths), generator=g).tolist(), lengths=lengths))
    for start in range(0, 12, 4):
        load("turns").advantages(group(*members[start : start + 4]))
    return members


@pytest.mark.parametrize("seed", range(3))
def test_packing_and_order_change_nothing_and_each_turn_is_pushed_by_its_own(seed: int) -> None:
    algorithm, members = load("turns"), some_groups(seed)
    assert any(len(set(m.turn_advantages)) > 1 for m in members), "turns differ in this test"
    now = policy_now(members, 0.3)
    loss, sums, gradient = accumulated(algorithm, now, [pack(members, 4096)], 100.0)
    rows = list(pack(members, 48).split(rows=1))
    assert len(rows) > 2
    other_loss, other_sums, other = accumulated(algorithm, now, rows, 100.0)
    assert other_loss == pytest.approx(loss, abs=1e-5) and other_sums == pytest.approx(sums, rel=1e-5)
    torch.testing.assert_close(other, gradient, atol=1e-6, rtol=1e-5)
    accumulated(algorithm, now[::-1], [pack(members[::-1], 64)], 100.0)
    backwards = torch.cat([tensor.grad for tensor in now if tensor.grad is not None])
    torch.testing.assert_close(backwards, gradient, atol=1e-6, rtol=1e-5)
    still = accumulated(algorithm, policy_now(members, 0.0), [pack(members, 64)], 100.0)[2]
    torch.testing.assert_close(
        still, -torch.tensor([a for m in members for a in m.advantages]) / 100, atol=1e-7, rtol=1e-5
    )


def test_a_run_keeps_rewards_and_advantages_by_turn(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    lease = run.grant("math", 0)
    made = Group(lease.id, "math", 0, [attempt(1, 0, 2), attempt(0, 1), terminal(1.0, [2, 2])])
    load("turns").advantages(made)
    run.keep(made, "train")
    run.close()
    stored = Run.reopen(tmp_path / "run").attempts.group("train", lease.id)
    for one, other in zip(stored.members, made.members, strict=True):
        assert one.score is not None and other.score is not None
        assert one.score.turns == other.score.turns and one.turn_advantages == other.turn_advantages
    again = replace(stored, members=[replace(m, turn_advantages=(), advantage=0.0) for m in stored.members])
    load("turns").advantages(again)
    assert [m.turn_advantages for m in again.members] == [m.turn_advantages for m in made.members]
