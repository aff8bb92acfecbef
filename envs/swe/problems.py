"""Generated packages with one wrong function each, the issue that reports it, and the scripted expert that mends it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from envs import Message, Split, Task, heldout

FUNCTIONS = tuple(
    "area balance bonus charge cost credit debt delay depth fare fee gain grade height length limit load loss mass "
    "offset pace price quota range_of rate rent reward scale share size span speed stock tax total travel value wage "
    "weight width yield_of".split()
)
PARAMETERS = (("a", "b"), ("x", "y"), ("m", "n"), ("p", "q"), ("left", "right"), ("first", "second"), ("old", "new"))
MODULES = ("bank", "farm", "game", "mill", "port", "shop", "trip", "yard")


@dataclass(frozen=True)
class Rule:
    words: str
    python: str
    value: Callable[[int, int], Any]
    likely: str
    """Name of the rule that it is most often confused with."""


RULES: dict[str, Rule] = {
    "sum": Rule("the sum of {} and {}", "{} + {}", lambda a, b: a + b, "difference"),
    "difference": Rule("the difference {} minus {}", "{} - {}", lambda a, b: a - b, "sum"),
    "product": Rule("the product of {} and {}", "{} * {}", lambda a, b: a * b, "sum"),
    "larger": Rule("the larger of {} and {}", "max({}, {})", max, "smaller"),
    "smaller": Rule("the smaller of {} and {}", "min({}, {})", min, "larger"),
    "above": Rule("whether {} is above {}", "{} > {}", lambda a, b: a > b, "below"),
    "below": Rule("whether {} is below {}", "{} < {}", lambda a, b: a < b, "above"),
    "same": Rule("whether {} equals {}", "{} == {}", lambda a, b: a == b, "other"),
    "other": Rule("whether {} differs from {}", "{} != {}", lambda a, b: a != b, "same"),
}


class Stream:
    """Endless tasks of both splits. The level is the number of healthy functions beside the wrong one."""

    def __init__(self, seed: int, levels: Sequence[int]) -> None:
        if not levels or not set(levels) <= {0, 1, 2}:
            raise ValueError(f"world swe: got levels {list(levels)}; available: 0, 1, 2")
        self.seed, self.levels = seed, tuple(levels)

    def task(self, split: Split, index: int) -> Task:
        rng = random.Random(f"swe/{split}/{self.seed if split == 'train' else 0}/{index}")
        while True:
            level, name = rng.choice(self.levels), rng.choice(FUNCTIONS)
            right, bug = rng.sample(list(RULES), 2)
            key = f"{name}/{right}/{bug}"
            if heldout(key) == (split == "heldout"):
                break
        return _task(rng, key, level, name, right, bug)


def _task(rng: random.Random, key: str, level: int, name: str, right: str, bug: str) -> Task:
    module = rng.choice(MODULES)
    names = [name, *rng.sample([f for f in FUNCTIONS if f != name], level)]
    rules = {name: right, **{other: rng.choice(list(RULES)) for other in names[1:]}}
    parameters = {f: rng.choice(PARAMETERS) for f in names}
    written = {f: source(f, parameters[f], bug if f == name else rules[f]) for f in names}
    order = rng.sample(names, len(names))
    issue = f"In {module}.py, {name} should return {RULES[right].words.format(*parameters[name])}. Please fix it."
    return Task(
        world="swe",
        key=key,
        family=right,
        level=level,
        messages=({"role": "user", "content": issue},),
        given={"files": {f"{module}.py": "\n".join(written[f] for f in order)}},
        hidden={
            "tests": _tests(rng, module, name, rules, bug),
            "module": module,
            "function": name,
            "parameters": list(parameters[name]),
            "right": right,
            "bug": bug,
        },
    )


def source(name: str, parameters: Sequence[str], rule: str) -> str:
    return f"def {name}({', '.join(parameters)}):\n    return {RULES[rule].python.format(*parameters)}\n"


def _tests(rng: random.Random, module: str, name: str, rules: dict[str, str], bug: str) -> list[dict[str, Any]]:
    """Calls with expected values: at least two that the bug gets wrong, and two for each healthy function."""
    tests: list[dict[str, Any]] = []
    for function, rule in rules.items():
        wanted = {"fail_to_pass": 3, "pass_to_pass": 1} if function == name else {"pass_to_pass": 2}
        while any(wanted.values()):
            a, b = rng.randint(0, 12), rng.randint(0, 12)
            expected = RULES[rule].value(a, b)
            wrong = function == name and (RULES[bug].value(a, b), type(RULES[bug].value(a, b))) != (expected, type(expected))
            kind = "fail_to_pass" if wrong else "pass_to_pass"
            if wanted.get(kind, 0) <= 0:
                if function == name and kind == "fail_to_pass":
                    wanted["pass_to_pass"] = 0  # the bug agrees with the rule too seldom to wait for
                continue
            wanted[kind] -= 1
            identity = f"{function}({a}, {b})"
            tests.append(
                {"id": f"{len(tests)}:{identity}", "kind": kind, "module": module, "function": function, "arguments": [a, b], "expected": expected}
            )
    return tests


def demonstrate(task: Task, rng: random.Random, *, err: bool) -> list[Message]:
    """The expert reads the file, replaces the function and submits; when it errs it writes another wrong rule."""
    hidden = task.hidden
    module, name, parameters = hidden["module"], hidden["function"], hidden["parameters"]
    written = hidden["right"]
    if err:
        likely = RULES[written].likely
        written = likely if rng.random() < 0.7 else rng.choice([r for r in RULES if r != written])
    old, new = source(name, parameters, hidden["bug"]), source(name, parameters, written)
    (text,) = task.given["files"].values()
    edit = f"{module}.py\n<<<<\n{old}====\n{new}>>>>"
    return [
        *task.messages,
        _call("bash", f"cat {module}.py"),
        {"role": "tool", "name": "bash", "content": text.rstrip("\n")},
        _call("edit", edit),
        {"role": "tool", "name": "edit", "content": "edited"},
        _call("submit", "done"),
    ]


def _call(tool: str, body: str) -> Message:
    return {"role": "assistant", "content": f"<tool: {tool}>\n{body}\n</tool>"}
