"""Generated packages with one fault each, the issue that reports it, and the scripted expert that mends it.

Family `guard`: a function lacks a special case. Family `operator`: a function computes the wrong thing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from envs import Message, Split, Task, heldout

FAMILIES = ("guard", "operator")

FUNCTIONS = (
    *("area", "balance", "bonus", "charge", "cost", "credit", "debt", "delay", "depth", "fare", "fee", "gain", "grade"),
    *(
        "height",
        "length",
        "limit",
        "load",
        "loss",
        "mass",
        "offset",
        "pace",
        "price",
        "quota",
        "rate",
        "rent",
        "reward",
    ),
    *("scale", "share", "size", "span", "speed", "stock", "tax", "total", "travel", "value", "wage", "weight", "width"),
)
PARAMETERS = (("a", "b"), ("x", "y"), ("m", "n"), ("p", "q"), ("left", "right"), ("first", "second"), ("old", "new"))
MODULES = ("bank", "farm", "game", "mill", "port", "shop", "trip", "yard")


@dataclass(frozen=True)
class Rule:
    """What a function computes from its two arguments, in words and in Python."""

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
}

CASES: dict[str, tuple[str, str, Callable[[int, int], bool]]] = {
    "zero": ("is zero", "{} == 0", lambda x, k: x == 0),
    "negative": ("is negative", "{} < 0", lambda x, k: x < 0),
    "above": ("is above {k}", "{} > {k}", lambda x, k: x > k),
    "below": ("is below {k}", "{} < {k}", lambda x, k: x < k),
}
"""Special cases of one argument by name: words, Python, and the test itself, with a bound k."""


@dataclass(frozen=True)
class Fault:
    """One fault of one function: the issue's words, the healthy source, and sources that look healthy and are not."""

    key: str
    words: str
    written: str
    mended: str
    slips: tuple[str, ...]
    right: Callable[[int, int], Any]
    wrong: Callable[[int, int], Any]
    old: str
    """Text of the function that an edit has to name."""
    new: Callable[[str], str]
    """From a healthy-looking source to the text that an edit puts in place of `old`."""


class Stream:
    """Endless tasks of both splits. The level is the number of healthy functions beside the faulty one."""

    def __init__(self, seed: int, families: Sequence[str], levels: Sequence[int]) -> None:
        if not families or not set(families) <= set(FAMILIES):
            raise ValueError(f"world swe: got families {list(families)}; available: {', '.join(FAMILIES)}")
        if not levels or not set(levels) <= {0, 1, 2}:
            raise ValueError(f"world swe: got levels {list(levels)}; available: 0, 1, 2")
        self.seed, self.families, self.levels = seed, tuple(families), tuple(levels)

    def task(self, split: Split, index: int) -> Task:
        rng = random.Random(f"swe/{split}/{self.seed if split == 'train' else 0}/{index}")
        family, level = rng.choice(self.families), rng.choice(self.levels)
        make = _guard if family == "guard" else _operator
        while True:
            name, parameters = rng.choice(FUNCTIONS), rng.choice(PARAMETERS)
            fault = make(rng, name, parameters)
            if heldout(fault.key) == (split == "heldout"):
                return _task(rng, family, level, name, fault)


def source(name: str, parameters: Sequence[str], rule: str) -> str:
    return f"def {name}({', '.join(parameters)}):\n    return {RULES[rule].python.format(*parameters)}\n"


def _guard(rng: random.Random, name: str, parameters: tuple[str, str]) -> Fault:
    rule, case, position, bound, value = (
        rng.choice(list(RULES)),
        rng.choice(list(CASES)),
        rng.randrange(2),
        rng.randint(2, 9),
        rng.randint(0, 9),
    )
    words, _, holds = CASES[case]
    head, body = source(name, parameters, rule).split("\n", 1)

    def guarded(case: str, position: int, value: int) -> str:
        test = CASES[case][1].format(parameters[position], k=bound)
        return f"{head}\n    if {test}:\n        return {value}\n{body}"

    def right(a: int, b: int) -> Any:
        return value if holds((a, b)[position], bound) else RULES[rule].value(a, b)

    opposite = {"zero": "negative", "negative": "zero", "above": "below", "below": "above"}[case]
    return Fault(
        key=f"guard/{name}/{case}{bound}/{position}/{value}",
        words=f"return {value} if {parameters[position]} {words.format(k=bound)}",
        written=source(name, parameters, rule),
        mended=guarded(case, position, value),
        slips=(
            guarded(opposite, position, value),
            guarded(case, 1 - position, value),
            guarded(case, position, 9 - value),
        ),
        right=right,
        wrong=RULES[rule].value,
        old=f"{head}\n",
        new=lambda text: text.removesuffix(body),
    )


def _operator(rng: random.Random, name: str, parameters: tuple[str, str]) -> Fault:
    rule, bug = rng.sample(list(RULES), 2)
    mended = source(name, parameters, rule)
    others = [r for r in RULES if r not in (rule, RULES[rule].likely)]
    return Fault(
        key=f"operator/{name}/{rule}/{bug}",
        words=f"return {RULES[rule].words.format(*parameters)}",
        written=source(name, parameters, bug),
        mended=mended,
        slips=tuple(source(name, parameters, r) for r in (RULES[rule].likely, rng.choice(others))),
        right=RULES[rule].value,
        wrong=RULES[bug].value,
        old=source(name, parameters, bug),
        new=lambda text: text,
    )


def _task(rng: random.Random, family: str, level: int, name: str, fault: Fault) -> Task:
    module = rng.choice(MODULES)
    healthy = {other: rng.choice(list(RULES)) for other in rng.sample([f for f in FUNCTIONS if f != name], level)}
    texts = [fault.written, *(source(other, rng.choice(PARAMETERS), rule) for other, rule in healthy.items())]
    rng.shuffle(texts)
    tests = _tests(rng, name, fault)
    for other, rule in healthy.items():
        tests += [_test(other, "pass_to_pass", _pair(rng), RULES[rule].value) for _ in range(2)]
    return Task(
        world="swe",
        key=fault.key,
        family=family,
        level=level,
        messages=({"role": "user", "content": f"In {module}.py, {name} should {fault.words}. Please fix it."},),
        given={"files": {f"{module}.py": "\n".join(texts)}},
        hidden={
            "tests": [{"id": f"{i}:{t['function']}", "module": module, **t} for i, t in enumerate(tests)],
            "module": module,
            "old": fault.old,
            "new": fault.new(fault.mended),
            "slips": [fault.new(slip) for slip in fault.slips],
        },
    )


def _tests(rng: random.Random, name: str, fault: Fault) -> list[dict[str, Any]]:
    """Calls of the faulty function: four that it gets wrong, and up to four that it gets right and must keep right."""
    kinds: dict[str, list[dict[str, Any]]] = {"fail_to_pass": [], "pass_to_pass": []}
    for _ in range(400):
        pair = _pair(rng)
        right, wrong = fault.right(*pair), fault.wrong(*pair)
        kind = "pass_to_pass" if (right, type(right)) == (wrong, type(wrong)) else "fail_to_pass"
        if len(kinds[kind]) < 4:
            kinds[kind].append(_test(name, kind, pair, fault.right))
    return kinds["fail_to_pass"] + kinds["pass_to_pass"]


def _pair(rng: random.Random) -> tuple[int, int]:
    """Arguments, with zeros often enough for the special cases."""
    return tuple(rng.choice((0, rng.randint(-12, 12), rng.randint(-12, 12))) for _ in range(2))  # type: ignore[return-value]


def _test(function: str, kind: str, pair: tuple[int, int], value: Callable[[int, int], Any]) -> dict[str, Any]:
    return {"kind": kind, "function": function, "arguments": list(pair), "expected": value(*pair)}


def demonstrate(task: Task, rng: random.Random, *, err: bool) -> list[Message]:
    """The expert reads the file, edits the function and submits; where it errs it writes something else."""
    hidden = task.hidden
    path, new = f"{hidden['module']}.py", rng.choice(hidden["slips"]) if err else hidden["new"]
    (text,) = task.given["files"].values()
    return [
        *task.messages,
        _call("bash", f"cat {path}"),
        {"role": "tool", "name": "bash", "content": text.rstrip("\n")},
        _call("edit", f"{path}\n<<<<\n{hidden['old']}====\n{new}>>>>"),
        {"role": "tool", "name": "edit", "content": "edited"},
        _call("submit", "done"),
    ]


def _call(tool: str, body: str) -> Message:
    return {"role": "assistant", "content": f"<tool: {tool}>\n{body}\n</tool>"}
