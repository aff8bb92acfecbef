"""Generated mathematics problems and the scripted expert that solves them, rightly or not."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from envs import Message, Split, Task, heldout

FAMILIES = ("arithmetic", "compare", "word", "chain")

NAMES = ("Ann", "Ben", "Eva", "Ida", "Leo", "Max", "Mia", "Tom")
THINGS = ("apples", "books", "cards", "coins", "pens", "stamps")
STORIES = (
    ("{name} has {a} {things} and gets {b} more. How many {things} now?", "+"),
    ("{name} finds {a} {things}, then {b} others. How many {things} in all?", "+"),
    ("{name} has {a} {things} and loses {b}. How many {things} are left?", "-"),
    ("{name} gives away {b} of {a} {things}. How many {things} remain?", "-"),
    ("{name} fills {a} boxes with {b} {things} each. How many {things} in all?", "*"),
    ("{name} buys {b} {things} a day for {a} days. How many {things} in all?", "*"),
)
LARGEST = (20, 50, 99)
"""Largest number in a problem, by level."""
LINKS = ((2, 4), (3, 8), (6, 14))
"""Fewest and most operations of a chain, by level."""


@dataclass(frozen=True)
class Problem:
    key: str
    question: str
    expression: str
    """Python text whose value is the answer."""
    answer: int
    slips: tuple[str, ...]
    """Expressions that a careless reader would compute instead."""
    working: tuple[str, ...] = ()
    """The lines of a worked answer, where there is more to it than one operation."""


def _arithmetic(rng: random.Random, level: int) -> Problem:
    top = LARGEST[level]
    a, b, c = (rng.randint(2, top) for _ in range(3))
    op, other = rng.sample("+-*", 2)
    text = f"{a} {op} {b}" if level == 0 else f"{a} {op} {b} {rng.choice('+-')} {c}"
    slip = text.replace(f"{a} {op} {b}", f"{a} {other} {b}")
    question = rng.choice(("What is {}?", "Compute {}.", "Find {}.")).format(text)
    return Problem(f"arithmetic/{text}", question, text, _value(text), (slip, f"{text} + 1"))


def _compare(rng: random.Random, level: int) -> Problem:
    numbers = rng.sample(range(2, LARGEST[level] + 1), level + 2)
    word, function, wrong = rng.choice((("largest", "max", "min"), ("smallest", "min", "max")))
    listed = ", ".join(map(str, numbers))
    text = f"{function}({listed})"
    return Problem(f"compare/{text}", f"Which is the {word} of {listed}?", text, _value(text), (f"{wrong}({listed})",))


def _word(rng: random.Random, level: int) -> Problem:
    top = LARGEST[level]
    a, b = sorted((rng.randint(2, top), rng.randint(2, top)), reverse=True)
    story, op = rng.choice(STORIES)
    question = story.format(name=rng.choice(NAMES), things=rng.choice(THINGS), a=a, b=b)
    others = [o for o in "+-*" if o != op]
    text = f"{a} {op} {b}"
    slips = tuple(f"{a} {o} {b}" for o in others)
    return Problem(f"word/{STORIES.index((story, op))}/{a},{b}", question, text, _value(text), slips)


def _chain(rng: random.Random, level: int) -> Problem:
    """Operations to carry out one after the other: the worked answer is as long as the problem."""
    start = value = rng.randint(2, 9)
    told, text, working = [f"Start with {start}"], str(start), []
    for _ in range(rng.randint(*LINKS[level])):
        op, operand = rng.choice("+-"), rng.randint(1, 9)
        if not 0 <= value + (operand if op == "+" else -operand) <= LARGEST[level]:
            op = "-" if op == "+" else "+"
        told.append(f"{'add' if op == '+' else 'take away'} {operand}")
        text = f"{text} {op} {operand}"
        working.append(f"{value} {op} {operand} = {_value(text)}")
        value = _value(text)
    return Problem(f"chain/{text}", ", ".join(told) + ".", text, value, (text[:-4],), tuple(working))


_MAKERS: dict[str, Callable[[random.Random, int], Problem]] = {
    "arithmetic": _arithmetic,
    "compare": _compare,
    "word": _word,
    "chain": _chain,
}


def _value(text: str) -> int:
    """The value of an expression of this file's own making (numbers, + - *, max, min)."""
    return int(eval(text, {"__builtins__": {}}, {"max": max, "min": min}))


def ask(python_tool: bool) -> str:
    """What every problem ends with."""
    return "Use python or answer in \\boxed{}." if python_tool else "Answer in \\boxed{}."


class Stream:
    """Endless tasks of both splits. The train split depends on the seed; the held-out one never does."""

    def __init__(self, seed: int, families: Sequence[str], levels: Sequence[int], python_tool: bool) -> None:
        unknown = sorted(set(families) - set(FAMILIES))
        if unknown or not families:
            raise ValueError(f"world math: got families {list(families)}; available: {', '.join(FAMILIES)}")
        if not levels or not set(levels) <= set(range(len(LARGEST))):
            raise ValueError(
                f"world math: got levels {list(levels)}; available: {', '.join(map(str, range(len(LARGEST))))}"
            )
        self.seed, self.families, self.levels, self.python_tool = seed, tuple(families), tuple(levels), python_tool

    def task(self, split: Split, index: int) -> Task:
        rng = random.Random(f"math/{split}/{self.seed if split == 'train' else 0}/{index}")
        family, level = rng.choice(self.families), rng.choice(self.levels)
        problem = _MAKERS[family](rng, level)
        while heldout(problem.key) != (split == "heldout"):
            problem = _MAKERS[family](rng, level)
        return Task(
            world="math",
            key=problem.key,
            family=family,
            level=level,
            messages=({"role": "user", "content": f"{problem.question} {ask(self.python_tool)}"},),
            hidden={
                "answer": str(problem.answer),
                "expression": problem.expression,
                "slips": list(problem.slips),
                "working": list(problem.working),
            },
        )


def demonstrate(task: Task, rng: random.Random, *, err: bool, python_tool: bool) -> list[Message]:
    """The expert computes with the tool where it has one and else shows its working; when it errs it misreads the
    problem, leaves out the last line, or skips the tool.
    """
    expression, answer = task.hidden["expression"], task.hidden["answer"]
    messages = list(task.messages)
    working = task.hidden["working"]
    if working and not python_tool:
        lines = working[:-1] if err else working
        answer = lines[-1].split()[-1]
        return [*messages, {"role": "assistant", "content": "\n".join([*lines, f"\\boxed{{{answer}}}"])}]
    if err and (not python_tool or rng.random() < 0.3):
        return [*messages, {"role": "assistant", "content": f"\\boxed{{{_guess(int(answer), rng)}}}"}]
    if err:
        expression = rng.choice([s for s in task.hidden["slips"] if str(_value(s)) != answer] or [f"{expression} + 1"])
        answer = str(_value(expression))
    if python_tool:
        messages += [
            {"role": "assistant", "content": f"<tool: python>\nprint({expression})\n</tool>"},
            {"role": "tool", "name": "python", "content": answer},
        ]
    return [*messages, {"role": "assistant", "content": f"\\boxed{{{answer}}}"}]


def _guess(answer: int, rng: random.Random) -> int:
    """A number near the answer that is not the answer."""
    return answer + rng.choice((-10, -2, -1, 1, 2, 10))


def last_boxed(text: str) -> str | None:
    """Content of the last complete `\\boxed{...}`, braces balanced, else None."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth = 0
    for i in range(start + len("\\boxed"), len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[start + len("\\boxed{") : i].strip()
    return None
