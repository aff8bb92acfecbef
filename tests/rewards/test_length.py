"""The price of length: nothing below the soft limit, all of it at the hard one, for right answers only by default."""

import pytest

import rewards
from envs import Episode, Outcome, Task


def episode(tokens: int, *, solved: bool = True) -> Episode:
    task = Task(world="w", key="k", family="f", level=0, messages=())
    outcome = Outcome.SOLVED if solved else Outcome.FAILED
    return Episode(task=task, messages=[], outcome=outcome, facts={"solved": solved}, tokens=tokens)


@pytest.mark.parametrize(("tokens", "price"), [(0, 0), (100, 0), (101, -0.01), (150, -0.5), (200, -1), (900, -1)])
def test_it_falls_in_a_line_between_the_limits(tokens: int, price: float) -> None:
    length = rewards.load("length")
    assert length(episode(tokens), soft_tokens=100, hard_tokens=200) == pytest.approx(price)
    assert length(episode(tokens, solved=False), soft_tokens=100, hard_tokens=200) == 0
    assert length(episode(tokens, solved=False), soft_tokens=100, hard_tokens=200, only_solved=False) == price


@pytest.mark.parametrize(("weight", "least"), [(1.0, 0.0), (2.0, -1.0)])
def test_beside_outcome_a_right_answer_is_worth_one_when_short(weight: float, least: float) -> None:
    judges = {"outcome": {}, "length": {"weight": weight, "soft_tokens": 100, "hard_tokens": 200}}
    assert rewards.score(episode(50), judges).value == 1.0
    assert rewards.score(episode(200), judges).value == least
    assert rewards.score(episode(200, solved=False), judges).value == 0.0
    assert rewards.score(episode(200), judges).parts == {"outcome": 1.0, "length": -1.0}


@pytest.mark.parametrize("limits", [(200, 200), (-1, 5), ("a", 5), ({"from": 1, "to": 2}, 5)])
def test_limits_that_make_no_sense_are_refused(limits: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="expected numbers, 0 <= soft < hard"):
        rewards.check("length", {"soft_tokens": limits[0], "hard_tokens": limits[1]})
    with pytest.raises(TypeError, match="missing a required argument: 'soft_tokens'"):
        rewards.check("length", {"hard_tokens": 5})
