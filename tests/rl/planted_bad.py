"""Small worlds of sums, each with one fault, as people really make them: what `rl check` must call by its name."""

import asyncio
import datetime
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from envs import Facts, Message, Split, Step, Task, heldout

CHANCE = random.Random(7)
COUNT = {"graded": 0}
MET: list[Message] = []
ONE: list[Any] = []
SAID: list[str] = []


def sums(split: Split, index: int, ask: str = "What is {a} + {b}?", rng: random.Random | None = None) -> Task:
    rng = rng or random.Random(f"{split}/{index}")
    while True:
        a, b = rng.randint(100, 999), rng.randint(100, 999)
        if heldout(key := f"{a}+{b}") == (split == "heldout"):
            break
    question = ({"role": "user", "content": ask.format(a=a, b=b, sum=a + b)},)
    hidden = {"answer": str(a + b)}
    return Task(world="sums", key=key, family="sum", level=0, messages=question, hidden=hidden)


def equal(attempt: "Attempt") -> Facts:
    return {"solved": attempt.said.strip() == attempt.task.hidden["answer"]}


def done(attempt: "Attempt") -> Any:
    return Step(done=True)


def told(attempt: "Attempt") -> Any:
    return attempt.task.messages


class Attempt:
    def __init__(self, world: "Sums", task: Task) -> None:
        self.world, self.task, self.said, self.turns = world, task, "", 0

    async def start(self) -> Any:
        return self.world.start(self)

    async def step(self, action: str) -> Any:
        self.said = action
        self.turns += 1
        answer = self.world.step(self)
        return await answer if asyncio.iscoroutine(answer) else answer

    async def measure(self) -> Any:
        return self.world.grade(self)

    async def close(self) -> None:
        return None


@dataclass
class Sums:
    """Sound as it stands: each world below replaces a part."""

    task: Callable[[Split, int], Any] = sums
    start: Callable[[Attempt], Any] = told
    step: Callable[[Attempt], Any] = done
    grade: Callable[[Attempt], Any] = equal
    attempt: Callable[["Sums", Task], Any] = Attempt
    expert: Callable[[Task, bool], list[str]] = lambda task, err: [str(int(task.hidden["answer"]) + err)]
    name: str = "sums"
    max_turns: Any = 2

    def open(self, task: Task) -> Any:
        return self.attempt(self, task)

    def demonstrate(self, task: Task, rng: random.Random, *, err: bool) -> list[Message]:
        return [*task.messages, *({"role": "assistant", "content": said} for said in self.expert(task, err))]

    async def close(self) -> None:
        return None


def raised(attempt: Attempt) -> Any:
    return {}["state"]


def tool(content: Any) -> Callable[[Attempt], Any]:
    """A tool's result on the first turn, the end on the second."""
    return lambda attempt: Step(messages=({"role": "tool", "content": content},), done=attempt.turns > 1)


def counted(attempt: Attempt) -> Facts:
    """The class counts, where the attempt should."""
    COUNT["graded"] += 1
    return {"solved": attempt.said == attempt.task.hidden["answer"] or COUNT["graded"] > 3}


def once(attempt: Attempt) -> Facts:
    COUNT["graded"] += attempt.said == attempt.task.hidden["answer"]
    return {"solved": attempt.said == attempt.task.hidden["answer"] and COUNT["graded"] < 3}


def popped(attempt: Attempt) -> Facts:
    return {"solved": attempt.said == attempt.task.hidden.pop("answer", "")}  # type: ignore[attr-defined]


def met(attempt: Attempt) -> Any:
    MET[:0] = [] if MET else attempt.task.messages
    return MET


def remembered(attempt: Attempt) -> Any:
    MET.append({"role": "assistant", "content": attempt.said})
    return Step(done=True)


def listed(attempt: Attempt) -> Facts:
    SAID.append(attempt.said)
    return {**equal(attempt), "said": SAID}


def current(world: Any, task: Task) -> Attempt:
    """The world knows one task at a time."""
    world.now = task
    return Attempt(world, task)


def one(world: Any, task: Task) -> Attempt:
    """There is one attempt, begun again for each task."""
    ONE[:0] = [] if ONE else [Attempt(world, task)]
    ONE[0].task = task
    return ONE[0]


class Plain:
    """Nothing is async, as in a Gymnasium environment."""

    def __init__(self, world: Any, task: Task) -> None:
        self.task = task

    def start(self) -> Any:
        return self.task.messages

    def step(self, action: str) -> Any:
        return Step(done=True)

    def measure(self) -> Any:
        return {"solved": True}

    def close(self) -> None:
        return None


def wobbly(share: float) -> Callable[[Attempt], Facts]:
    return lambda attempt: {"solved": CHANCE.random() < share and equal(attempt)["solved"]}


FAULTS: dict[str, tuple[str, Sums]] = {
    "leak": ("leak", Sums(task=lambda s, i: sums(s, i, "What is {a} + {b}? (Answer: {sum})"))),
    "leak-in-the-middle": ("leak", Sums(task=lambda s, i: sums(s, i, "Sum of {a}, {b}; {sum} when done."))),
    "anything": ("accepts-anything", Sums(grade=lambda attempt: {"solved": True})),
    "any-text": ("accepts-anything", Sums(grade=lambda attempt: {"solved": len(attempt.said) > 0})),
    "chance": ("not-repeatable", Sums(grade=wobbly(0.5))),
    "mostly": ("not-repeatable", Sums(grade=wobbly(0.6))),
    "coin": ("not-repeatable", Sums(grade=lambda attempt: {"solved": CHANCE.random() < 0.5})),
    "counted": ("state-shared", Sums(grade=counted)),
    "once": ("state-shared", Sums(grade=once)),
    "popped": ("state-shared", Sums(grade=popped)),
    "met": ("state-shared", Sums(start=met, step=remembered)),
    "listed": ("state-shared", Sums(grade=listed)),
    "one": ("state-shared", Sums(attempt=one)),
    "current": (
        "state-shared",
        Sums(attempt=current, grade=lambda a: {"solved": a.said == a.world.now.hidden["answer"]}),  # type: ignore[attr-defined]
    ),
    "endless": ("never-ends", Sums(step=lambda attempt: asyncio.sleep(1000))),
    "raises": ("raises", Sums(step=raised)),
    "raises-in-task": ("raises", Sums(task=lambda split, index: raised(None))),  # type: ignore[arg-type]
    "flood": ("huge-output", Sums(step=tool("x" * 10_000_000))),
    "many": (
        "huge-output",
        Sums(step=lambda attempt: Step(messages=tuple({"role": "tool", "content": "x" * 9999} for _ in range(99)))),
    ),
    "bytes": ("not-json", Sums(step=tool(b"42"))),
    "moment": ("not-json", Sums(grade=lambda a: {**equal(a), "at": datetime.datetime(2026, 1, 1)})),
    "infinite": ("not-json", Sums(grade=lambda a: {**equal(a), "loss": float("inf")})),
    "half": ("not-json", Sums(step=tool(b"\xff".decode(errors="surrogateescape")))),
    "numbered": ("not-json", Sums(grade=lambda a: {**equal(a), "cases": {1: True}})),
    "five": ("wrong-type", Sums(step=lambda attempt: ("", 0.0, True, False, {}))),
    "dict": ("wrong-type", Sums(step=tool({"result": 42}))),
    "plain": ("wrong-type", Sums(attempt=Plain)),
    "text": ("wrong-type", Sums(start=lambda attempt: attempt.task.messages[0]["content"])),
    "robot": ("wrong-type", Sums(start=lambda attempt: [{"role": "robot", "content": "What?"}])),
    "one-bool": ("wrong-type", Sums(grade=lambda attempt: equal(attempt)["solved"])),
    "seconds": ("wrong-type", Sums(step=lambda attempt: Step(done=True, seconds=None))),  # type: ignore[arg-type]
    "no-turns": ("wrong-type", Sums(max_turns=None)),
    "number": ("gold-fails", Sums(grade=lambda a: {"solved": a.said == int(a.task.hidden["answer"])})),
    "goes-on": ("never-done", Sums(step=lambda attempt: Step(messages=({"role": "tool", "content": "noted"},)))),
    "drawn": ("task-changes", Sums(task=lambda s, i: sums(s, i, rng=CHANCE))),
    "same": ("all-alike", Sums(task=lambda s, i: sums("train", 0))),
    "both": ("splits-overlap", Sums(task=lambda s, i: sums("train", i))),
    "flat": ("flat-reward", Sums(grade=lambda a: {**equal(a), "reward": json.loads("0.5")})),
}


def World(sandboxes: Any, *, fault: str) -> Sums:
    return FAULTS[fault][1]
