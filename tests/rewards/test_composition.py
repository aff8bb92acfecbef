"""Parts to one score: weights, gates, thresholds, normalising in the group, parts by turn, and what has no score."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import rewards
from envs import Episode, JudgeFailed, JudgeTimedOut, Outcome, Task
from rewards import Score, Unscored, score, score_group

LENGTH = {"soft_tokens": 100, "hard_tokens": 300}


def episode(
    *, solved: bool = True, tokens: int = 0, turns: int = 1, outcome: Outcome | None = None, **facts: Any
) -> Episode:
    task = Task(world="w", key="sum/1", family="f", level=0, messages=())
    messages = [{"role": "user", "content": "1+2?"}, *[{"role": "assistant", "content": "3"}] * turns]
    ended = outcome or (Outcome.SOLVED if solved else Outcome.FAILED)
    return Episode(
        task=task, messages=messages, outcome=ended, facts={"solved": solved, **facts}, turns=turns, tokens=tokens
    )


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A reward file of a test's own: `planted`."""
    module = ModuleType("rewards.planted")
    monkeypatch.setitem(sys.modules, "rewards.planted", module)
    monkeypatch.setattr(rewards, "available", lambda: ["outcome", "planted"])
    rewards._found.cache_clear()
    yield module
    rewards._found.cache_clear()


# -- composition ------------------------------------------------------------------------------------------------------


def test_weights_and_metrics() -> None:
    got = score(
        episode(tokens=200),
        {"outcome": {"weight": 2}, "length": {"weight": 0.5, **LENGTH}, "tool_format": {"weight": 0}},
    )
    assert got == Score(2 - 0.25, {"outcome": 1.0, "length": -0.5, "tool_format": 1.0})


@pytest.mark.parametrize(("said", "value"), [("\\boxed{3}", 1.0), ("3", 0.0)])
def test_a_gate_multiplies_the_whole_sum(said: str, value: float) -> None:
    judges = {"outcome": {}, "boxed": {"reward": "format", "gate": True, "pattern": r"\\boxed"}}
    attempt = episode()
    attempt.messages[-1] = {"role": "assistant", "content": said}
    assert score(attempt, judges) == Score(value, {"outcome": 1.0, "boxed": value})
    both = judges | {"half": {"reward": "fact", "name": "half", "gate": True}, "length": {"weight": 1, **LENGTH}}
    attempt = episode(tokens=200, half=0.5)
    attempt.messages[-1] = {"role": "assistant", "content": said}
    assert score(attempt, both).value == pytest.approx(value * 0.5 * (1 - 0.5))


@pytest.mark.parametrize(("share", "value"), [(0.49, 0.0), (0.5, 1.0), (0.9, 1.0)])
def test_a_threshold_makes_a_part_all_or_nothing(share: float, value: float) -> None:
    got = score(episode(solved=False, passed=share), {"tests": {"threshold": 0.5, "weight": 3}})
    assert got == Score(3 * value, {"tests": value})


def test_the_same_file_twice_under_two_names() -> None:
    judges = {"half": {"reward": "tests", "threshold": 0.5}, "most": {"reward": "tests", "threshold": 0.8, "weight": 2}}
    assert score(episode(solved=False, passed=0.6), judges).parts == {"half": 1.0, "most": 0.0}
    assert score(episode(solved=False, passed=0.9), judges).value == 3.0


def test_a_part_is_normalised_within_its_group_before_the_sum() -> None:
    """Tokens 100, 200, 300 at weight 2: prices 0, -0.5, -1 with mean -0.5 and sample deviation 0.5 (plus 1e-4)."""
    group = [episode(tokens=tokens) for tokens in (100, 200, 300)]
    got = score_group(group, {"outcome": {}, "length": {"weight": 2, "normalise": True, **LENGTH}})
    assert [one.value for one in got] == pytest.approx([1 + 2 * 0.9998, 1.0, 1 - 2 * 0.9998])
    assert [one.parts["length"] for one in got] == [0.0, -0.5, -1.0], "the parts are as the reward gave them"


def test_where_all_are_equal_nothing_is_blown_up() -> None:
    got = score_group([episode(passed=0.1 + 0.2, solved=False)] * 3, {"tests": {"normalise": True}})
    assert [one.value for one in got] == [0.0, 0.0, 0.0]
    assert score(episode(), {"outcome": {"normalise": True}}).value == 0.0, "one attempt has nobody to be compared with"


def test_whom_a_part_does_not_apply_to_is_not_in_its_mean() -> None:
    group = [episode(points=points) for points in (1.0, 3.0)] + [episode()]
    judges = {"outcome": {}, "fact": {"name": "points", "normalise": True}}
    got = score_group(group, judges)
    assert [one.value for one in got] == pytest.approx([1 - 0.70706, 1 + 0.70706, 1.0], abs=1e-4)
    assert "fact" not in got[2].parts


# -- by turn ----------------------------------------------------------------------------------------------------------


def test_parts_by_turn_add_up_and_what_is_not_by_turn_is_paid_at_the_end() -> None:
    got = score(episode(turns=3), {"outcome": {}, "turn_cost": {"weight": 0.1}})
    assert got.value == pytest.approx(0.8) and got.parts == {"outcome": 1.0, "turn_cost": -2.0}
    assert got.turns == pytest.approx((0.0, -0.1, 0.9))
    assert score(episode(turns=3), {"outcome": {}}).turns == ()
    assert score(episode(turns=3), {"outcome": {}, "turn_cost": {"weight": 0}}).turns == (), "a metric pays nothing"


def test_gates_and_normalising_go_down_to_the_turns() -> None:
    gate = {"half": {"reward": "fact", "name": "half", "gate": True}}
    got = score(episode(turns=3, half=0.5), {"outcome": {}, "turn_cost": {"weight": 0.1}, **gate})
    assert got.turns == pytest.approx((0.0, -0.05, 0.45)) and got.value == pytest.approx(0.4)
    group = [episode(turns=turns) for turns in (1, 3)]
    scores = score_group(group, {"outcome": {}, "turn_cost": {"normalise": True}})
    scale = 1 / (2**0.5 + 1e-4)  # costs 0 and -2: mean -1, deviation sqrt 2
    assert scores[0].turns == pytest.approx((1 + scale,))
    assert scores[1].turns == pytest.approx((0.0, -scale, -scale + 1 + scale)), "the mean is given back at the end"
    assert sum(scores[1].turns) == pytest.approx(scores[1].value) == pytest.approx(1 - scale)


def test_a_threshold_on_a_part_by_turn_is_paid_at_the_end() -> None:
    assert score(episode(turns=3), {"turn_cost": {"threshold": -2}}) == Score(1.0, {"turn_cost": 1.0})


def test_an_attempt_without_a_turn_has_none() -> None:
    got = score(episode(turns=0, solved=False, outcome=Outcome.TOKENS_SPENT), {"outcome": {}, "turn_cost": {}})
    assert got == Score(0.0, {"outcome": 0.0, "turn_cost": 0.0})


# -- what has no score ------------------------------------------------------------------------------------------------


def test_what_the_machinery_ended_belongs_into_no_group() -> None:
    with pytest.raises(ValueError, match="ended as sandbox_lost is the machinery's doing and has no score"):
        score_group([episode(), episode(outcome=Outcome.SANDBOX_LOST)], {"outcome": {"normalise": True}})


def test_where_no_part_applies_there_is_no_number() -> None:
    judges: dict[str, dict[str, Any]] = {"fact": {"name": "points"}, "outcome": {"weight": 0}}
    with pytest.raises(Unscored, match="no reward applies to an attempt at sum/1; got None of fact") as caught:
        score_group([episode(points=2), episode()], judges)
    assert set(caught.value.failed) == {1} and caught.value.failed[1].outcome is Outcome.JUDGE_FAILED
    assert score(episode(points=2), judges).value == 2.0


def test_whose_reward_fails_is_named_and_the_others_are_not(planted: ModuleType) -> None:
    def reward(attempt: Episode) -> Any:
        if attempt.tokens == 1:
            raise JudgeTimedOut("no answer in 10 s")
        return {2: float("nan"), 3: "much", 4: None, 5: 1.0}[attempt.tokens]

    planted.reward = reward  # type: ignore[attr-defined]
    with pytest.raises(Unscored) as caught:
        score_group([episode(tokens=n) for n in (5, 1, 2, 3, 4)], {"planted": {}})
    outcomes = {number: error.outcome for number, error in caught.value.failed.items()}
    failed = Outcome.JUDGE_FAILED
    assert outcomes == {1: Outcome.JUDGE_TIMED_OUT, 2: failed, 3: failed, 4: failed}
    assert str(caught.value.failed[2]) == "reward planted: ValueError: came to nan; expected a finite number"


@pytest.mark.parametrize(
    ("kind", "gives", "said"),
    [
        ("group", [1.0], "reward planted: ValueError: gave 1 numbers for 2 attempts"),
        ("turns", [1.0, 2.0], "reward planted: ValueError: gave 2 numbers for 1 turns"),
    ],
)
def test_a_reward_of_another_length_than_asked_for_is_none(
    planted: ModuleType, kind: str, gives: Any, said: str
) -> None:
    setattr(planted, kind, lambda given: gives)
    with pytest.raises(Unscored) as caught:
        score_group([episode(), episode()], {"planted": {}})
    assert [str(error) for error in caught.value.failed.values()] == [said, said]


def test_a_sum_beyond_all_measure_is_no_score(planted: ModuleType) -> None:
    planted.reward = lambda attempt: 1e308  # type: ignore[attr-defined]
    with pytest.raises(Unscored, match=r"the sum of planted.* came to inf|overflow"):
        score(episode(), {"planted": {"weight": 10}})


def test_a_file_that_exports_no_reward_or_two_is_refused(planted: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"rewards/planted.py exports none of reward, turns, group; expected one"):
        rewards.load("planted")
    planted.reward = planted.group = lambda given: 0.0  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="exports reward, group of"):
        rewards.load("planted")


def test_what_is_lost_is_a_judges_failure_by_type() -> None:
    assert issubclass(Unscored, JudgeFailed)


def test_every_file_of_the_library_is_a_reward_with_a_docstring_and_is_on_the_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text()
    for name in rewards.available():
        rewards.load(name)
        assert (sys.modules[f"rewards.{name}"].__doc__ or "").strip(), name
        assert f"`{name}`" in page, f"docs/rewards.md says nothing of {name}"
