"""Problems as tasks of a world, and the stream of them: both splits, each in an order of its own.

What an attempt may see is in `messages` and `given`; answers, tests and programs are in `hidden` only.
"""

from __future__ import annotations

import ast
import logging
import random
from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from envs import JudgeFailed, Message, Split, Task
from envs.rows import Loaded, Problem, load
from envs.rows.deck import Deck
from envs.rows.records import CodeProblem, MathProblem, Refused, SweProblem

log = logging.getLogger(__name__)
LITERAL_CHARS = 2000
UNLIKELY = "987654321"
"""What the expert answers where it errs and the right answer is no integer."""


class Stream:
    """Endless tasks out of a file, in the order of a `Deck`."""

    def __init__(self, world: str, tasks: str, seed: int, **settings: Any) -> None:
        """`settings` go to the function that makes tasks: see `math_task` and `code_task`."""
        loaded, made = _made(world, str(tasks), _stamp(Path(tasks)), tuple(sorted(settings.items())))
        self.report = loaded.report
        self.deck = Deck(world, str(tasks), made, seed, loaded.report)
        self.tasks = self.deck.tasks

    def size(self, split: Split) -> int:
        return self.deck.size(split)

    def task(self, split: Split, index: int) -> Task:
        return self.deck.task(split, index)


def refuse_unused(world: str, **settings: tuple[Any, Any]) -> None:
    """Beside a file of tasks, settings of generated ones would do nothing. Each comes with its default."""
    for name, (got, default) in settings.items():
        if (tuple(got) if isinstance(got, list) else got) != default:
            raise ValueError(
                f"world {world}: {name} has no effect where tasks come from a file; leave one of the two out"
            )


def _stamp(path: Path) -> tuple[int, int]:
    """Changes where the file does."""
    return (path.stat().st_mtime_ns, path.stat().st_size) if path.is_file() else (0, 0)


@lru_cache(maxsize=8)
def _made(
    world: str, tasks: str, _: tuple[int, int], settings: tuple[tuple[str, Any], ...]
) -> tuple[Loaded, list[Task]]:
    """The tasks of a file, read once in a process. What was left out is logged, and a file without any task refused."""
    loaded = load(tasks)
    made = []
    for problem in loaded.problems:
        try:
            made.append(_MAKERS[world](problem, **dict(settings)))
        except Refused as refusal:
            loaded.report.refuse(f"{Path(tasks).name}, {problem.key}", refusal)
    loaded.report.taken = len(made)
    if not made:
        raise ValueError(f"world {world} can take no problem of {loaded.report}")
    if loaded.report.refused or loaded.report.duplicates:
        log.warning("world %s: %s", world, loaded.report)
    return loaded, made


def math_task(problem: Problem, ask: str) -> Task:
    if not isinstance(problem, MathProblem):
        raise Refused("no problem of mathematics", type(problem).__name__)
    hidden: dict[str, Any] = {"answer": problem.golds[0], "answers": list(problem.golds), "kind": problem.kind}
    if problem.tolerance is not None:
        hidden["tolerance"] = problem.tolerance
    return Task(
        world="math",
        key=problem.key,
        family=problem.family,
        level=problem.level,
        messages=({"role": "user", "content": f"{problem.question}\n\n{ask}"},),
        hidden=hidden,
    )


def code_task(problem: Problem, kinds: Collection[str] = ("stdin", "function")) -> Task:
    """`kinds`: the kinds of tests that the world can run."""
    if not isinstance(problem, CodeProblem):
        raise Refused("no problem of programming", type(problem).__name__)
    if problem.kind not in kinds:
        raise Refused("the world does not run such tests", f"they are of kind {problem.kind}")
    if problem.kind == "stdin":
        how = "Answer with one Python program in a ```python block; it reads stdin and prints to stdout."
        tests: dict[str, Any] = {}
    else:
        where = f"in the class `{problem.owner}`, " if problem.owner else ""
        how = f"Answer with Python in a ```python block that defines, {where}the function `{problem.name}`."
        function = f"{problem.owner}.{problem.name}" if problem.owner else problem.name
        tests = {"function": function, "prelude": problem.prelude}
    tests |= {"inputs": [case.given for case in problem.cases], "outputs": [case.expected for case in problem.cases]}
    if problem.unordered:
        tests["compare"] = {"kind": "unordered"}
    elif problem.tolerance is not None:
        tests["compare"] = {"absolute": problem.tolerance, "relative": 0.0}
    starter = problem.starter.strip()
    shown = f"\n\n```python\n{starter}\n```" if starter and starter != problem.statement else ""
    return Task(
        world="code",
        key=problem.key,
        family=problem.family,
        level=problem.level,
        messages=({"role": "user", "content": f"{problem.statement}{shown}\n\n{how}"},),
        hidden={
            "kind": problem.kind,
            **tests,
            "time_limit_s": problem.time_limit_s,
            "memory_limit_mb": problem.memory_limit_mb,
            "programs": list(problem.solutions),
            "wrong_programs": list(problem.wrong),
        },
    )


def swe_task(problem: Problem) -> Task:
    """The work happens in a container of the problem's own image; the world that runs those takes it from here."""
    if not isinstance(problem, SweProblem):
        raise Refused("no problem of software engineering", type(problem).__name__)
    given = {"image": problem.image, "repo": problem.repo, "base_commit": problem.base_commit}
    return Task(
        world="swe",
        key=problem.key,
        family=problem.repo,
        level=0,
        messages=({"role": "user", "content": problem.problem_statement.strip()},),
        given={**given, "workdir": problem.workdir, "language": problem.language},
        hidden={
            "patch": problem.patch,
            "bug_patch": problem.bug_patch,
            "test_patch": problem.test_patch,
            "fail_to_pass": list(problem.fail_to_pass),
            "pass_to_pass": list(problem.pass_to_pass),
            "statuses": dict(problem.statuses),
            "hints": problem.hints,
            "running": dict(problem.running),
            "version": problem.version,
        },
    )


_MAKERS: Mapping[str, Any] = {"math": math_task, "code": code_task, "swe": swe_task}


def demonstrate_math(task: Task, rng: random.Random, *, err: bool) -> list[Message]:
    """The answer in a box, or a number that is not it."""
    answer = str(task.hidden["answer"])
    if err:
        answer = str(int(answer) + rng.choice((-2, -1, 1, 2))) if answer.lstrip("+-").isdecimal() else UNLIKELY
    return [*task.messages, {"role": "assistant", "content": f"\\boxed{{{answer}}}"}]


def demonstrate_code(task: Task, rng: random.Random, *, err: bool) -> list[Message]:
    """A program that the data set says is right, or one that it says is wrong, or does nothing."""
    hidden = task.hidden
    if err:
        program = rng.choice(hidden["wrong_programs"] or ["pass"])
    elif hidden["programs"]:
        program = hidden["programs"][0]
    else:
        raise ValueError(f"the data set has no Python program for {task.key}, so there is no right demonstration")
    return [*task.messages, {"role": "assistant", "content": f"```python\n{program.rstrip()}\n```"}]


class Judge(Protocol):
    async def verdict(self, answer: str, gold: str) -> Any: ...


def judging(judge: Judge, task: Task) -> Judge:
    """The judge for a task: as it is, or as a file's answer wants to be compared."""
    return Golds(judge, task.hidden) if "answers" in task.hidden else judge


class Golds:
    """A judge for one task of a file: any of several answers, a tolerance, a Python value; else as the judge says."""

    def __init__(self, judge: Judge, hidden: Mapping[str, Any]) -> None:
        self.judge, self.hidden = judge, hidden

    async def verdict(self, answer: str, gold: str) -> Any:
        if self.hidden["kind"] == "literal":
            return "right" if same_literal(answer, gold) else "wrong"
        if (tolerance := self.hidden.get("tolerance")) is not None and _near(answer, gold, tolerance):
            return "right"
        verdict = "wrong"
        for one in self.hidden["answers"]:
            verdict = await self.judge.verdict(answer, one)
            if verdict == "right":
                break
        return verdict


def _near(answer: str, gold: str, tolerance: float) -> bool:
    try:
        return abs(float(answer) - float(gold)) <= tolerance
    except ValueError:
        return False


def same_literal(answer: str, gold: str) -> bool:
    """Equal Python values, types included. Raises JudgeFailed where the gold one is none."""
    try:
        wanted = ast.literal_eval(gold.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        raise JudgeFailed(f"unparsable gold {gold[:60]!r}: expected a Python value") from None
    if len(answer) > LITERAL_CHARS:
        return False
    try:
        got = ast.literal_eval(answer.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return False
    return _same(got, wanted)


def _same(a: Any, b: Any) -> bool:
    """Python's equality, which alone would take True for 1 and 1.0."""
    if type(a) is not type(b):
        return False
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return bool(a == b)
