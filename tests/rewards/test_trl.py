"""TRL's reward functions on the episodes of any world."""

from pathlib import Path
from typing import Any

import pytest

import rewards
from envs import Episode, JudgeFailed, Outcome, Task

MINE = str(Path(__file__).parent.parent / "envs/adapters/trl_examples.py")


def episode(*said: str, **hidden: Any) -> Episode:
    task = Task(
        world="w", key="k", family="f", level=0, messages=({"role": "user", "content": "2 + 2?"},), hidden=hidden
    )
    talk = [*task.messages]
    for text in said:
        talk += [{"role": "tool", "name": "t", "content": "heard"}] if len(talk) > 1 else []
        talk.append({"role": "assistant", "content": text})
    return Episode(task=task, messages=talk, outcome=Outcome.FAILED, turns=len(said))


def reward(one: Episode, *names: str, **settings: Any) -> float:
    call: Any = rewards.load("trl")
    return float(call(one, functions=[f"{MINE}:{name}" for name in names], **settings))


def test_columns_come_from_the_task_by_their_own_or_another_name() -> None:
    assert reward(episode("4", answer="4"), "exact", conversational=False) == 1.0
    assert reward(episode("4", gold="4"), "exact", columns={"answer": "gold"}, conversational=False) == 1.0
    assert reward(episode("4", columns={"answer": 5}), "exact", conversational=False) == 0.0
    with pytest.raises(ValueError, match=r"no 'golden'; available: gold"):
        reward(episode("4", gold="4"), "exact", columns={"answer": "golden"}, conversational=False)


def test_a_conversation_begins_with_the_policy_s_first_word() -> None:
    assert reward(episode("four", "five"), "contents") == pytest.approx(3.04)


def test_functions_wait_together_and_are_weighted() -> None:
    assert reward(episode("x"), "slow_judge", "other_judge", weights=[1.0, 10.0]) == 22.0


def test_what_does_not_apply_is_left_out_and_nothing_at_all_is_no_verdict() -> None:
    one = episode("4", answer="4", kind="product")
    assert reward(one, "exact", "only_sums", conversational=False) == 1.0
    assert reward(one, "only_sums", otherwise=0.0) == 0.0
    with pytest.raises(JudgeFailed, match="all returned None"):
        reward(one, "only_sums")


def test_it_is_checked_before_a_run() -> None:
    rewards.check("trl", {"functions": [f"{MINE}:exact"]})
    for functions, words in ((f"{MINE}:exact", "expected a list"), ([f"{MINE}:tokens"], "completion_ids")):
        with pytest.raises(ValueError, match=words):
            rewards.check("trl", {"functions": functions})
