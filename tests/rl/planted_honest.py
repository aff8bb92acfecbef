"""Small sound worlds that look like faulty ones: `rl check` must find nothing in any of them."""

import asyncio
import json
import random
import time
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

from envs import Facts, Split, Step, Task
from tests.rl.planted_bad import Attempt, Sums, equal, sums, tool

CAPITALS = {
    "France": "Paris",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Peru": "Lima",
    "Chile": "Santiago",
    "Cuba": "Havana",
}
FREE: list[Attempt] = []
KNOWN: dict[str, int] = {}


def choices(split: Split, index: int, long: bool = False, letters: bool = False) -> Task:
    """The answer is one of four in the prompt, below an example that announces what may be the answer as well."""
    rng = random.Random(f"{split}/{index}")
    names = rng.sample(sorted(CAPITALS), 4)
    right, *others = (
        "the famous old city of " * long + CAPITALS[name] + ", seat of the government" * long for name in names
    )
    texts = rng.sample([right, *others], 4)
    question = (
        f"Example: the capital of Italy? (A) Oslo (B) Rome. Answer: {'B' if letters else 'Rome'}.\n"
        f"Number {index} of {split}: what is the capital of {names[0]}?\n"
        + "\n".join(f"({label}) {text}" for label, text in zip("ABCD", texts, strict=True))
        + "\nThe answer is A, B, C or D." * letters
    )
    answer = "ABCD"[texts.index(right)] if letters else right
    made = sums(split, index)
    message = {"role": "user", "content": question}
    return replace(
        made, key=f"{split}/{index}", messages=(message,), given={"choices": texts}, hidden={"answer": answer}
    )


def chosen(task: Task, err: bool) -> list[str]:
    return ["none of these" if err else task.hidden["answer"]]


def number(attempt: Attempt) -> Facts:
    """Any way to write the number."""
    try:
        return {"solved": Fraction(attempt.said.strip()) == int(attempt.task.hidden["answer"])}
    except (ValueError, ZeroDivisionError):
        return {"solved": False}


def secret(split: Split, index: int) -> Task:
    """All games begin alike; what is hidden differs."""
    made = sums(split, index)
    message = {"role": "user", "content": "Guess a number below 2000. The result is larger, smaller or right."}
    return replace(made, messages=(message,), hidden={"number": int(made.hidden["answer"])})


def seeded(split: Split, index: int) -> Task:
    """Only a seed that is given differs."""
    message = {"role": "user", "content": "Reach the largest tile."}
    made = sums(split, index)
    return replace(made, messages=(message,), given={"seed": made.key}, hidden={"answer": "64"})


def guessed(attempt: Attempt) -> Any:
    """State of the attempt's own, and the answer told once it is over."""
    hidden = attempt.task.hidden["number"]
    guess = int(attempt.said) if attempt.said.isascii() and attempt.said.isdecimal() and len(attempt.said) < 9 else 0
    if guess == hidden or attempt.turns == 11:
        said = f"{guess}: right" if guess == hidden else f"lost; the answer is {hidden}"
        return Step(messages=({"role": "user", "content": said},), done=True)
    return Step(messages=({"role": "user", "content": "larger" if guess < hidden else "smaller"},))


def search(task: Task, err: bool) -> list[str]:
    low, high, said = 0, 2000, []
    while not said or said[-1] != task.hidden["number"]:
        said.append((low + high) // 2)
        low, high = (said[-1] + 1, high) if said[-1] < task.hidden["number"] else (low, said[-1] - 1)
    return ["1"] * 11 if err else [str(guess) for guess in said]


def noted(attempt: Attempt) -> Facts:
    """The world remembers what changes no verdict: how often a task was tried, and its parsed answer."""
    KNOWN[attempt.task.key] = KNOWN.get(attempt.task.key, 0) + 1
    return {**equal(attempt), "tried": KNOWN[attempt.task.key], "at": time.perf_counter()}


def recycled(world: Any, task: Task) -> Attempt:
    """An object is used again once its attempt is closed."""

    class Again(Attempt):
        async def close(self) -> None:
            if self not in FREE:
                FREE.append(self)

    attempt = FREE.pop() if FREE else Again(world, task)
    Attempt.__init__(attempt, world, task)
    return attempt


async def slow(attempt: Attempt) -> Step:
    await asyncio.sleep(0.05)
    return Step(done=True, seconds=0.1)


def shown(attempt: Attempt) -> Any:
    """Two worked examples come first."""
    pairs = [("What is 1 + 1?", "2"), ("What is 2 + 5?", "7")]
    turns = [
        {"role": role, "content": text}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    return [*turns, *attempt.task.messages]


def tagged(attempt: Attempt) -> Facts:
    return {"solved": attempt.said == f"<answer>{attempt.task.hidden['answer']}</answer>"}


async def closed() -> None:
    return None


def without_expert(sound: Sums) -> Any:
    return SimpleNamespace(name="sums", max_turns=1, task=sound.task, open=sound.open, close=closed)


def sized(sound: Sums) -> Any:
    return SimpleNamespace(**vars(without_expert(sound)), size=lambda split: 1, demonstrate=sound.demonstrate)


HONEST: dict[str, Any] = {
    "choices": Sums(task=choices, expert=chosen),
    "long-choices": Sums(task=lambda s, i: choices(s, i, long=True), expert=chosen),
    "letters": Sums(task=lambda s, i: choices(s, i, letters=True), expert=chosen),
    "equivalent": Sums(grade=number, expert=lambda task, err: [f" {int(task.hidden['answer']) + err}.0 "]),
    "game": Sums(
        task=secret,
        step=guessed,
        grade=lambda a: {"solved": a.said == str(a.task.hidden["number"])},
        expert=search,
        max_turns=12,
    ),
    "seeded": Sums(task=seeded),
    "noted": Sums(grade=noted),
    "recycled": Sums(attempt=recycled),
    "dice": Sums(
        step=lambda a: tool(str(random.random()))(a), expert=lambda t, err: ["roll", "1" if err else t.hidden["answer"]]
    ),
    "slow": Sums(step=slow),
    "strict": Sums(step=lambda a: Step(done=True) if a.said.isdecimal() else Step(invalid=True)),
    "long": Sums(
        step=lambda a: tool("x" * 150_000)(a), expert=lambda t, err: ["look", "1" if err else t.hidden["answer"]]
    ),
    "json": Sums(
        step=lambda a: tool(json.dumps({"é": [1, None, "漢 😀"]}, ensure_ascii=False))(a),
        grade=lambda a: {
            **equal(a),
            "cases": [{"name": "😀", "passed": None, "share": 0.5}],
            "reward": float(equal(a)["solved"]),
        },
        expert=lambda t, err: ["look", "1" if err else t.hidden["answer"]],
    ),
    "partly": Sums(grade=lambda a: {**equal(a), "reward": 1.0 if equal(a)["solved"] else 0.3 * a.said.isdecimal()}),
    "shown": Sums(start=shown),
    "one-task": sized(Sums(task=lambda split, index: sums(split, 0))),
    "no-expert": without_expert(Sums()),
    "tagged": without_expert(Sums(grade=tagged)),
}


def World(sandboxes: Any, *, kind: str) -> Any:
    return HONEST[kind]
