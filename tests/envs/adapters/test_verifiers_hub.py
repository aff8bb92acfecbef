"""Environments written for the real package `verifiers`, v0 and v1, each as its author would ship it."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from replayed import gold, replay

from envs import EnvCrashed, JudgeFailed
from envs.adapters import verifiers_hub

verifiers = pytest.importorskip("verifiers")
T = TypeVar("T")
classic = pytest.mark.skipif(not hasattr(verifiers, "Rubric"), reason="this release of verifiers has no v0")

SINGLE = """
import verifiers as vf
from datasets import Dataset

def load_environment(n=20, broken=False):
    parser = vf.XMLParser(["answer"], answer_field="answer")

    def right(completion, answer, **kwargs):
        if broken:
            raise RuntimeError("the judge is out")
        return 1.0 if parser.parse_answer(completion) == answer else 0.0

    async def brief(completion):
        return 1.0 if len(completion[-1]["content"]) < 60 else 0.0

    rows = Dataset.from_list([{"question": f"Reverse w{i}", "answer": f"{i}w"} for i in range(n)])
    return vf.SingleTurnEnv(dataset=rows, system_prompt="Answer in <answer> tags.", parser=parser,
                            rubric=vf.Rubric(funcs=[right, brief], weights=[1.0, 0.2], parser=parser))
"""
TOOLS = '''
import verifiers as vf
from datasets import Dataset

def look_up(item: str) -> str:
    """The price of an item.

    Args:
        item: its name
    """
    return {"pen": "3", "ink": "9"}[item]

def load_environment():
    def right(completion, answer):
        return float(answer in completion[-1]["content"])

    rows = [{"question": f"What do {i} pens cost?", "answer": str(3 * i)} for i in range(2, 22)]
    train, held = Dataset.from_list(rows[:15]), Dataset.from_list(rows[12:])
    return vf.ToolEnv(dataset=train, eval_dataset=held, tools=[look_up], max_turns=4, rubric=vf.Rubric(funcs=[right]))
'''
TURNS = """
import verifiers as vf
from datasets import Dataset

class Guess(vf.MultiTurnEnv):
    async def setup_state(self, state):
        state["low"] = 0
        return state

    async def env_response(self, messages, state, **kwargs):
        said = messages[-1]["content"].strip()
        if said == "crash":
            raise vf.SandboxError("the box is gone") if hasattr(vf, "SandboxError") else vf.Error("the box is gone")
        if said == state["answer"]:
            state["found"] = True
            state["final_env_response"] = [{"role": "user", "content": "yes"}]
            return state["final_env_response"]
        return [{"role": "user", "content": "higher" if int(said) < int(state["answer"]) else "lower"}]

def load_environment():
    def found(state):
        return 1.0 if state.get("found") else 0.0

    rows = Dataset.from_list([{"question": "Guess.", "answer": str(i)} for i in range(12)])
    return Guess(dataset=rows, max_turns=5, rubric=vf.Rubric(funcs=[found]))
"""
GROUPS = """
import verifiers as vf
from datasets import Dataset

def load_environment():
    def best(completions, **kwargs) -> list[float]:
        return [1.0 for _ in completions]
    rows = Dataset.from_list([{"question": "q", "answer": "a"}])
    return vf.SingleTurnEnv(dataset=rows, rubric=vf.Rubric(funcs=[best]))
"""
TASKSET = """
import verifiers.v1 as vf

class SumData(vf.TaskData):
    answer: int

class SumTask(vf.Task[SumData]):
    @vf.reward(weight=1.0)
    async def right(self, trace) -> float:
        if self.data.answer == 13 and trace.last_reply == "crash":
            raise RuntimeError("unlucky")
        return float(trace.last_reply.strip() == str(self.data.answer))

    @vf.metric
    async def length(self, trace) -> float:
        return float(len(trace.last_reply))

class SumTaskset(vf.Taskset[SumTask, vf.TasksetConfig]):
    def load(self):
        for i in range(20):
            data = SumData(prompt=f"{i} + 3 =", system_prompt="Only the number.", answer=i + 3)
            yield SumTask(data, self.config.task)

__all__ = ["SumTaskset"]
"""
RUNTIME = TASKSET.replace("async def right(self, trace)", "async def right(self, trace, runtime)")


def go(work: Awaitable[T]) -> T:
    async def bounded() -> T:
        return await asyncio.wait_for(work, 120)

    return asyncio.run(bounded())


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def made(source: str, **args: Any) -> verifiers_hub.World:
        name = f"hub_{len(list(tmp_path.iterdir()))}_{tmp_path.name.replace('-', '_')}"
        (tmp_path / f"{name}.py").write_text(source)
        sys.modules.pop(name, None)
        return verifiers_hub.World(None, environment=name, **args)  # type: ignore[arg-type]

    return made


def a_task(world: verifiers_hub.World, answer: str | None = None) -> Any:
    sizes = {"train": world.size("train"), "heldout": world.size("heldout")}
    tasks = (world.task(split, n) for split, size in sizes.items() for n in range(size))  # type: ignore[arg-type]
    return next(task for task in tasks if answer is None or task.hidden["answer"] == answer)


@classic
def test_one_answer_is_scored_by_the_packages_own_rubric(make: Any) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    world = make(SINGLE, gold="<answer>{answer}</answer>", args={"n": 30}, solved_at=1.2)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    task = a_task(world)
    assert world.size("train") + world.size("heldout") == 30 and world.max_turns == 1
    assert task.messages[0]["role"] == "system" and "Reverse" in task.messages[1]["content"]
    played = go(replay(world, task, gold(world, task)))
    assert played.solved and played.facts["reward"] == pytest.approx(1.2)
    assert played.facts["parts"] == {"right": 1.0, "brief": 1.0, "num_turns": 1.0}
    wrong = go(replay(world, task, gold(world, task, err=True)))
    assert not wrong.solved and wrong.facts["reward"] == pytest.approx(0.2)
    silent = make(SINGLE)
    with pytest.raises(ValueError, match="no `gold` says"):
        gold(silent, a_task(silent))


@classic
def test_a_reward_that_raises_is_no_zero(make: Any) -> None:
    world = make(SINGLE, gold="<answer>{answer}</answer>", args={"broken": True})
    task = a_task(world)
    with pytest.raises(JudgeFailed, match="right raised RuntimeError: the judge is out"):
        go(replay(world, task, gold(world, task)))


@classic
def test_tools_are_called_in_both_syntaxes_and_splits_do_not_meet(make: Any) -> None:
    world = make(TOOLS)
    assert world.max_turns == 4 and world.size("heldout") == 8 and world.size("train") == 12
    task = a_task(world, "12")
    assert '"look_up"' in task.messages[0]["content"] and task.messages[0]["role"] == "system"
    again = '<tool_call>{"name": "look_up", "arguments": {"item": "gold"}}</tool_call>'
    played = go(replay(world, task, ["<tool: look_up>\npen\n</tool>", again, "They cost 12."]))
    assert played.heard[0] == task.messages[0]["content"] and played.heard[2] == "3" and "gold" in played.heard[3]
    assert played.solved and played.facts["parts"]["look_up_calls"] == 2
    assert not go(replay(world, task, ["They cost 13."])).solved
    assert go(replay(world, task, ["<tool: nosuchtool>\nx\n</tool>"])).invalid


@classic
def test_an_environment_that_answers_keeps_its_state_and_its_errors(make: Any) -> None:
    world = make(TURNS)
    task = a_task(world, "7")

    async def both() -> Any:
        return await asyncio.gather(*(replay(world, task, ["3", "9", "7"]) for _ in range(2)))

    for played in go(both()):
        assert played.heard[1:] == ["higher", "lower"] and played.solved
    missed = go(replay(world, task, ["1", "2", "3", "4", "5"]))
    assert not missed.solved and missed.facts["turns"] == 5
    with pytest.raises(EnvCrashed, match="the box is gone"):
        go(replay(world, task, ["crash"]))
    assert not go(replay(world, task, ["1"])).solved, "left early"


@classic
@classic
def test_a_prompt_is_on_one_side_of_the_split(make: Any) -> None:
    named = SINGLE.replace(
        'f"Reverse w{i}", "answer": f"{i}w"', 'f"Reverse w{i % 20}", "answer": "w", "info": {"id": i}'
    )
    world = make(named, args={"n": 60})
    train, held = (
        [world.task(s, i).messages[-1]["content"] for i in range(world.size(s))] for s in ("train", "heldout")
    )
    assert train and held and not set(train) & set(held) and len(train) + len(held) == 60
    apart = make(
        TOOLS.replace("str(3 * i)} for i in range(2, 22)]", "str(i)} for i in range(2, 17)]").replace(
            "Dataset.from_list(rows[12:])", 'Dataset.from_list([{**row, "answer": "0"} for row in rows[:4]])'
        )
    )
    assert apart.size("train") == 11 and apart.size("heldout") == 4


def test_rewards_of_whole_groups_are_refused(make: Any) -> None:
    with pytest.raises(ValueError, match="rewards of whole groups"):
        make(GROUPS)


@pytest.mark.skipif(hasattr(verifiers, "Rubric"), reason="this release of verifiers has v0")
def test_v0_without_v0_says_which_release_has_it(make: Any) -> None:
    with pytest.raises(ValueError, match=r"verifiers==0\.3\.1"):
        make("def load_environment(): ...\n")


def test_a_taskset_is_answered_once_and_graded_by_its_rewards(make: Any) -> None:
    pytest.importorskip("verifiers.v1")
    world = make(TASKSET, gold="{answer}")
    task = a_task(world, "13")
    assert task.messages[0] == {"role": "system", "content": "Only the number."} and world.max_turns == 1
    played = go(replay(world, task, gold(world, task)))
    assert played.solved and played.facts["parts"] == {"right": 1.0, "length": 2.0}
    assert not go(replay(world, task, gold(world, task, err=True))).solved
    with pytest.raises(JudgeFailed, match="unlucky"):
        go(replay(world, task, ["crash"]))
    with pytest.raises(ValueError, match="a runtime for right"):
        make(RUNTIME)


def test_what_is_not_installed_or_makes_no_sense_is_said(make: Any) -> None:
    with pytest.raises(ValueError, match=r"expected a text with \{answer\}"):
        make(TASKSET, gold={"answer": None})
    with pytest.raises(ValueError, match="not a module 'no_such_environment'"):
        verifiers_hub.World(None, environment="someone/no-such-environment")  # type: ignore[arg-type]
