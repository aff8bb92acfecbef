"""TRL's reward functions on the episodes of any world."""

from pathlib import Path
from typing import Any

import pytest

from envs import Episode, JudgeFailed, Outcome, Task
from rewards import trl

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


def judged(episodes: list[Episode], *names: str, **settings: Any) -> list[float | None]:
    return trl.group(episodes, functions=[f"{MINE}:{name}" for name in names], **settings)


def test_columns_come_from_the_task_by_their_own_or_another_name() -> None:
    assert judged([episode("4", answer="4"), episode("5", answer="4")], "exact", conversational=False) == [1.0, 0.0]
    assert judged([episode("4", gold="4")], "exact", columns={"answer": "gold"}, conversational=False) == [1.0]
    assert judged([episode("4", columns={"answer": 5})], "exact", conversational=False) == [0.0]
    with pytest.raises(ValueError, match=r"no 'golden'; available: gold"):
        judged([episode("4", gold="4")], "exact", columns={"answer": "golden"}, conversational=False)


def test_a_conversation_begins_with_the_policy_s_first_word() -> None:
    assert judged([episode("four", "five")], "contents") == [pytest.approx(3.04)]


def test_a_group_comes_in_one_call_so_that_its_members_can_be_compared() -> None:
    assert judged([episode("a"), episode("bb"), episode("ccc")], "shortest", conversational=False) == [1.0, 0.0, 0.0]


def test_functions_wait_together_and_are_weighted() -> None:
    assert judged([episode("x")], "slow_judge", "other_judge", weights=[1.0, 10.0]) == [22.0]


def test_what_does_not_apply_is_left_out_of_the_sum_and_alone_it_is_no_reward() -> None:
    pair = [episode("4", answer="4", kind="product"), episode("4", answer="4", kind="sum")]
    assert judged(pair, "exact", "only_sums", conversational=False) == [1.0, 1.25]
    assert judged(pair, "only_sums") == [None, 0.25]


def test_a_function_that_raises_gives_no_verdict() -> None:
    with pytest.raises(JudgeFailed, match="no such thing"):
        judged([episode("x")], "raises")


def test_it_is_checked_before_a_run() -> None:
    trl.check(functions=[f"{MINE}:exact"])
    with pytest.raises(ValueError, match="expected a list"):
        trl.check(functions=f"{MINE}:exact")
    with pytest.raises(ValueError, match="completion_ids"):
        trl.check(functions=[f"{MINE}:tokens"])
    with pytest.raises(ValueError, match="2 weights for 1"):
        trl.check(functions=[f"{MINE}:exact"], weights=[1.0, 2.0])
