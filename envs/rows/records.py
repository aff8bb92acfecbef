"""What a row becomes: one typed problem, or a refusal with its reason; and the report that counts both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

EXAMPLES = 3
"""Rows named in full for each reason of refusal."""


class Refused(ValueError):
    """One row cannot be taken. `reason` is the same for all rows with that trouble; `detail` is this row's own."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


class BadSource(ValueError):
    """Nothing can be taken from a file, folder or object: one sentence that says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MathProblem:
    key: str
    """As the data set names it, else empty."""
    question: str
    golds: tuple[str, ...]
    """Texts of right answers, each sufficient by itself."""
    kind: Literal["answer", "literal"] = "answer"
    """`literal`: the answer is a Python value and is compared as one."""
    tolerance: float | None = None
    """Largest absolute difference of a number that is still right."""
    family: str = "math"
    level: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One test: text for stdin and stdout, or a list of arguments and a JSON value."""

    given: Any
    expected: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeProblem:
    key: str
    statement: str
    kind: Literal["stdin", "function"]
    cases: tuple[Case, ...]
    name: str = ""
    """Of the function that the cases call."""
    owner: str = ""
    """Class whose method it is, e.g. `Solution`."""
    starter: str = ""
    prelude: str = ""
    """Python that an answer may take for granted: the imports that come with the problem."""
    tolerance: float | None = None
    unordered: bool = False
    solutions: tuple[str, ...] = ()
    """Programs said to be right."""
    wrong: tuple[str, ...] = ()
    """Programs said to be wrong."""
    language: str = "python"
    time_limit_s: float | None = None
    memory_limit_mb: int | None = None
    family: str = "code"
    level: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SweProblem:
    key: str
    repo: str
    image: str
    image_column: str
    """Where the image's name was found; empty where it was made by SWE-bench's rule."""
    problem_statement: str
    base_commit: str = ""
    patch: str = ""
    """The source change that solves it."""
    bug_patch: str = ""
    """The change that made the fault and is in the image: undoing it solves the task."""
    test_patch: str = ""
    fail_to_pass: tuple[str, ...] = ()
    pass_to_pass: tuple[str, ...] = ()
    statuses: Mapping[str, str] = field(default_factory=dict)
    """By test the status after the fix, where the data set gives a whole map instead of two lists."""
    hints: str = ""
    language: str = "python"
    workdir: str = "/testbed"
    running: Mapping[str, Any] = field(default_factory=dict)
    """How the data set runs the tests, as it says: test_cmd, log_parser, install, eval_script, …"""
    version: str = ""


Problem = MathProblem | CodeProblem | SweProblem


@dataclass(slots=True)
class Report:
    """Counts in, out, and why. Every row read is taken, a duplicate, or refused for one reason."""

    source: str
    read: int = 0
    taken: int = 0
    duplicates: int = 0
    renamed: int = 0
    """Taken under a longer key, since another problem had the same."""
    shapes: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def refuse(self, where: str, problem: Refused) -> None:
        self.refused[problem.reason] = self.refused.get(problem.reason, 0) + 1
        shown = self.examples.setdefault(problem.reason, [])
        if len(shown) < EXAMPLES:
            shown.append(f"{where}: {problem.detail}" if problem.detail else where)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        """One line: what came in, what went out, and why the rest did not."""
        parts = [f"{self.source}: {self.read} rows read, {self.taken} taken"]
        if self.duplicates:
            parts.append(f"{self.duplicates} duplicates left out")
        for reason, count in sorted(self.refused.items(), key=lambda item: -item[1]):
            parts.append(f"{count} refused, {reason} ({'; '.join(self.examples[reason])[:300]})")
        return ", ".join(parts)
