"""Generated programming problems: an aggregate, of filtered integers, perhaps transformed; and the scripted expert."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from envs import Message, Split, Task, heldout

AGGREGATES: dict[str, tuple[str, str, Callable[[list[int]], int]]] = {
    "sum": ("sum", "sum({})", sum),
    "count": ("number", "len({})", len),
    "largest": ("largest", "max({}, default=0)", lambda a: max(a, default=0)),
    "smallest": ("smallest", "min({}, default=0)", lambda a: min(a, default=0)),
}
"""By name: its word in the statement, Python for it, and the function itself."""

CHANGES: dict[str, tuple[str, str, Callable[[int], int]]] = {
    "none": ("", "x", lambda x: x),
    "double": (" after doubling", "x * 2", lambda x: x * 2),
    "square": (" after squaring", "x * x", lambda x: x * x),
    "negate": (" after negating", "-x", lambda x: -x),
}


@dataclass(frozen=True)
class Filter:
    words: str
    python: str
    keep: Callable[[int], bool]


def _above(k: int) -> Callable[[int], bool]:
    return lambda x: x > k


def _below(k: int) -> Callable[[int], bool]:
    return lambda x: x < k


def _multiple(k: int) -> Callable[[int], bool]:
    return lambda x: x % k == 0


def _filters(level: int) -> list[Filter]:
    plain = [
        Filter("even", "x % 2 == 0", lambda x: x % 2 == 0),
        Filter("odd", "x % 2 == 1", lambda x: x % 2 == 1),
        Filter("positive", "x > 0", lambda x: x > 0),
        Filter("negative", "x < 0", lambda x: x < 0),
    ]
    if level == 0:
        return plain
    bounds = [Filter(f"above {k}", f"x > {k}", _above(k)) for k in range(1, 21)]
    bounds += [Filter(f"below {k}", f"x < {k}", _below(k)) for k in range(1, 21)]
    return bounds + [Filter(f"multiples of {k}", f"x % {k} == 0", _multiple(k)) for k in range(3, 10)]


OPENINGS = ("Read integers from one line.", "The input is one line of integers.", "One line holds integers.")


class Stream:
    """Endless tasks of both splits. Level 0: plain filters; 1: filters with a number; 2: with a change as well."""

    def __init__(self, seed: int, aggregates: Sequence[str], levels: Sequence[int], cases: int) -> None:
        if not aggregates or not set(aggregates) <= set(AGGREGATES):
            raise ValueError(f"world code: got aggregates {list(aggregates)}; available: {', '.join(AGGREGATES)}")
        if not levels or not set(levels) <= {0, 1, 2}:
            raise ValueError(f"world code: got levels {list(levels)}; available: 0, 1, 2")
        if cases < 1:
            raise ValueError(f"world code: got cases={cases}; expected at least 1")
        self.seed, self.aggregates, self.levels, self.cases = seed, tuple(aggregates), tuple(levels), cases

    def task(self, split: Split, index: int) -> Task:
        rng = random.Random(f"code/{split}/{self.seed if split == 'train' else 0}/{index}")
        while True:
            level, aggregate = rng.choice(self.levels), rng.choice(self.aggregates)
            kept = rng.choice(_filters(level))
            change = rng.choice(list(CHANGES)) if level == 2 else "none"
            key = f"{aggregate}/{kept.words}/{change}"
            if heldout(key) == (split == "heldout"):
                break
        word, python, _ = AGGREGATES[aggregate]
        changed, expression, _ = CHANGES[change]
        noun = (
            kept.words if "multiples" in kept.words else f"integers {kept.words}" if level else f"{kept.words} integers"
        )
        statement = f"{rng.choice(OPENINGS)} Print the {word} of the {noun}{changed}, 0 if there are none."
        lists, outputs = _cases(rng, self.cases, aggregate, kept, change)
        return Task(
            world="code",
            key=key,
            family=aggregate,
            level=level,
            messages=({"role": "user", "content": statement},),
            hidden={
                "inputs": [" ".join(map(str, numbers)) + "\n" for numbers in lists],
                "outputs": [str(value) for value in outputs],
                "program": _program(python, expression, kept.python),
            },
        )


def _cases(
    rng: random.Random, count: int, aggregate: str, kept: Filter, change: str
) -> tuple[list[list[int]], list[int]]:
    """Inputs and outputs, drawn until they tell the right program from any with another aggregate, change or filter."""

    def solve(lists: list[list[int]], aggregate: str, keep: Callable[[int], bool], change: str) -> list[int]:
        function, apply = AGGREGATES[aggregate][2], CHANGES[change][2]
        return [function([apply(x) for x in numbers if keep(x)]) for numbers in lists]

    wrong = [(other, kept.keep, change) for other in AGGREGATES if other != aggregate]
    wrong += [(aggregate, kept.keep, other) for other in CHANGES if other != change and aggregate != "count"]
    wrong += [(aggregate, lambda x: not kept.keep(x), change)]
    for spread in (30, 30, 30, 60, 60, 60, 120, 240):
        lists = [[rng.randint(-spread, spread) for _ in range(rng.randint(8, 16))] for _ in range(count)]
        outputs = solve(lists, aggregate, kept.keep, change)
        if all(solve(lists, *program) != outputs for program in wrong):
            break
    return lists, outputs


def _program(aggregate: str, expression: str, condition: str) -> str:
    kept = f"[{expression} for x in a if {condition}]"
    return f"a = [int(x) for x in input().split()]\nprint({aggregate.format(kept)})\n"


_SLIPS = (
    ("x % 2 == 0", "x % 2 == 1"),
    ("x % 2 == 1", "x % 2 == 0"),
    (" > ", " < "),
    (" < ", " > "),
    ("sum(", "len("),
    ("len(", "sum("),
    ("max(", "min("),
    ("min(", "max("),
    ("== 0", "!= 0"),
    ("x * 2", "x * x"),
    ("x * x", "x * 2"),
    ("[-x", "[x"),
)


def demonstrate(task: Task, rng: random.Random, *, err: bool) -> list[Message]:
    """The expert's one answer; when it errs it confuses the filter, the aggregate or the change."""
    program = task.hidden["program"]
    if err:
        harmless = ("x * 2", "x * x", "[-x") if task.family == "count" else ()
        right, wrong = rng.choice([slip for slip in _SLIPS if slip[0] in program and slip[0] not in harmless])
        program = program.replace(right, wrong)
    return [*task.messages, {"role": "assistant", "content": f"```python\n{program}```"}]
