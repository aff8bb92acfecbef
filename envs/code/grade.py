"""Grades one program on the hidden cases of its problem: runs it where no answer is, compares here.

A problem is data, in `Task.hidden`:
  inputs, outputs     per case: text for stdin and the expected text; where there is a `function`, its list of arguments
                      (or an object of keyword arguments) and the expected value, as JSON says them
  function, prelude   for calls: `f` or `Solution.f`, and Python that an answer may take for granted (imports)
  compare             the rule of comparison, see envs/verifiers/compare.py; `exact` where there is none
  checker             {language, source, files: {name: text}, time_limit_s}: a program like those of testlib, which is
                      called with the names of three files (input, output, answer) and exits with 0 for right, 1 for
                      wrong, 2 (and testlib's 4 and 8) for bad presentation; anything else is a failure of the judge
  time_limit_s        CPU seconds for each case, times the language's factor; memory_limit_mb
  groups              [{cases: [0, 1], points: 30}, ...]: points are earned where every case of a group is right
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from envs import Facts, JudgeFailed, JudgeTimedOut
from envs.code.languages import LANGUAGES, Language
from envs.sandboxes import Sandbox, SandboxPool
from envs.verifiers import Verdict, compare, runs
from envs.verifiers.compare import Comparison
from envs.verifiers.runs import Case, Job, Ran

COMPILE_TIMEOUT_S = 30.0
CHECKER_TIMEOUT_S = 10.0
OUTPUT_BYTES = 4 * 2**20
"""A program may print this much, or four times what is expected where that is more."""
ERROR_CHARS = 400
_CHECKED = {
    0: Verdict.RIGHT,
    1: Verdict.WRONG,
    2: Verdict.PRESENTATION,
    4: Verdict.PRESENTATION,
    8: Verdict.PRESENTATION,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    cases: list[Case]
    expected: list[Any]
    function: str
    prelude: str
    rule: Comparison
    checker: Mapping[str, Any] | None
    time_limit_s: float
    memory_limit_mb: int
    groups: Sequence[Mapping[str, Any]]

    @classmethod
    def of(cls, hidden: Mapping[str, Any], time_limit_s: float) -> Problem:
        """From a task. Raises JudgeFailed where its data make no problem: nobody's attempt can be judged by them."""
        try:
            function = hidden.get("function", "")
            problem = cls(
                cases=[_call(function, given) if function else given.encode() for given in hidden["inputs"]],
                expected=list(hidden["outputs"]),
                function=function,
                prelude=hidden.get("prelude", ""),
                rule=Comparison.of_task(hidden.get("compare") or ("checker" if hidden.get("checker") else None)),
                checker=hidden.get("checker"),
                time_limit_s=float(hidden.get("time_limit_s") or time_limit_s),
                memory_limit_mb=int(hidden.get("memory_limit_mb") or 0),
                groups=hidden.get("groups", ()),
            )
            problem._check()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise JudgeFailed(
                f"a code problem's data are not fit to judge by: {type(error).__name__}: {error}"
            ) from None
        return problem

    def _check(self) -> None:
        cases, expected = len(self.cases), len(self.expected)
        if cases != expected or not cases:
            raise ValueError(f"got {cases} inputs and {expected} outputs; expected equally many, at least one")
        if (self.rule.kind == "checker") != (self.checker is not None) or (self.checker and self.function):
            raise ValueError("expected a checker where the comparison is `checker`, for programs that read stdin")
        if self.checker and self.checker["language"] not in LANGUAGES:
            raise ValueError(f"got a checker in {self.checker['language']!r}; available: {', '.join(LANGUAGES)}")
        if not self.function and not all(isinstance(text, str) for text in self.expected):
            raise ValueError("expected outputs as text for programs that read stdin")
        for group in self.groups:
            if not group["cases"] or not all(0 <= case < cases for case in group["cases"]) or group["points"] < 0:
                raise ValueError(f"got a group {dict(group)}; expected numbers of cases below {cases}, and points")


def _call(function: str, given: Any) -> Case:
    named = {"keywords": given, "arguments": []} if isinstance(given, Mapping) else {"arguments": list(given)}
    return {"calls": [{"function": function, **named}]}


async def grade(
    source: str, language: Language, problem: Problem, sandboxes: SandboxPool, alone: asyncio.Lock, timeouts: int
) -> Facts:
    """Facts about a program: a verdict per case, the share that is right, groups. Raises a MachineryError."""
    count = len(problem.cases)
    sandbox = await sandboxes.acquire()
    try:
        await sandbox.write(f"/work/{language.file}", source.encode(errors="replace"))
        error = await _compile(sandbox, language)
        if error is not None:
            return facts([Verdict.COMPILE_ERROR] * count, [], problem, error=error)
        job = _job(language, problem, timeouts)
        ran = await runs.run(sandbox, job, problem.cases)
        ran = await _again(sandbox, job, problem.cases, ran, alone)
    finally:
        await sandbox.close()
    if problem.checker is None:
        verdicts = [_verdict(r, expected, problem) for r, expected in zip(ran, problem.expected, strict=True)]
    else:
        verdicts = await _checked(ran, problem, sandboxes)
    return facts(verdicts, ran, problem)


def _job(language: Language, problem: Problem, timeouts: int) -> Job:
    longest = max((len(text) for text in problem.expected if isinstance(text, str)), default=0)
    return Job(
        run="call" if problem.function else "argv" if language.run else "program",
        file=language.file,
        argv=language.run,
        prelude=problem.prelude,
        cpu_s=problem.time_limit_s * language.time_factor,
        memory_mb=problem.memory_limit_mb,
        output_bytes=min(max(OUTPUT_BYTES, 4 * longest), runs.VISIT_BYTES // 3),
        timeouts=timeouts,
    )


async def _compile(sandbox: Sandbox, language: Language) -> str | None:
    """None where it went well, else what the compiler said."""
    if not language.compile:
        return None
    result = await sandbox.exec(language.compile, timeout_s=COMPILE_TIMEOUT_S)
    if result.exit_code == 0 and not result.timed_out:
        return None
    if result.exit_code == 127:
        raise JudgeFailed(f"the sandboxes have no {language.needs!r} to compile an answer with")
    reason = "the compiler timed out" if result.timed_out else "the compiler ran out of memory" if result.oom else ""
    return reason or result.stderr.decode(errors="replace")[:ERROR_CHARS]


async def _again(sandbox: Sandbox, job: Job, cases: Sequence[Case], ran: list[Ran], alone: asyncio.Lock) -> list[Ran]:
    """Near misses get a second run, one at a time among all attempts of this process; the better one counts."""
    better = list(ran)
    for number, first in enumerate(ran):
        if first.near_miss:
            async with alone:
                (second,) = await runs.run(sandbox, job, [cases[number]])
            better[number] = first if second.verdict is Verdict.TIMED_OUT else second
    return better


def _verdict(ran: Ran, expected: Any, problem: Problem) -> Verdict:
    if ran.verdict is not None:
        return ran.verdict
    if problem.function:
        return compare.claim(ran.body, expected, problem.rule)[0]
    return compare.output(ran.body, expected, problem.rule)


async def _checked(ran: list[Ran], problem: Problem, sandboxes: SandboxPool) -> list[Verdict]:
    """Let the problem's checker judge what was printed, in a clean sandbox that has never seen the program."""
    assert problem.checker is not None
    if all(r.verdict is not None for r in ran):
        return [r.verdict for r in ran if r.verdict is not None]
    language = LANGUAGES[problem.checker["language"]]
    sandbox = await sandboxes.acquire()
    try:
        for name, text in {**problem.checker.get("files", {}), language.file: problem.checker["source"]}.items():
            await sandbox.write(f"/work/{name}", text.encode())
        if (error := await _compile(sandbox, language)) is not None:
            raise JudgeFailed(f"a problem's checker does not compile: {error}")
        return [
            r.verdict or await _ask(sandbox, language, given, r.body, expected, problem.checker)
            for r, given, expected in zip(ran, problem.cases, problem.expected, strict=True)
        ]
    finally:
        await sandbox.close()


async def _ask(
    sandbox: Sandbox, language: Language, given: Case, got: bytes, expected: str, checker: Mapping[str, Any]
) -> Verdict:
    assert isinstance(given, bytes), "a checker judges what programs print"
    for name, data in {"input.txt": given, "output.txt": got, "answer.txt": expected.encode()}.items():
        await sandbox.write(f"/work/{name}", data)
    argv = language.run or ("python3", "-I", language.file)
    result = await sandbox.exec(
        [*argv, "input.txt", "output.txt", "answer.txt"], timeout_s=checker.get("time_limit_s", CHECKER_TIMEOUT_S)
    )
    if result.timed_out:
        raise JudgeTimedOut("a problem's checker ran out of time")
    if result.exit_code not in _CHECKED:
        said = (result.stderr or result.stdout).decode(errors="replace").strip()[-200:]
        raise JudgeFailed(f"a problem's checker ended with exit code {result.exit_code}: {said}")
    return _CHECKED[result.exit_code]


def facts(verdicts: Sequence[Verdict], ran: Sequence[Ran], problem: Problem, *, error: str = "") -> Facts:
    right = [verdict is Verdict.RIGHT for verdict in verdicts]
    first_wrong = next((case for case, ok in enumerate(right) if not ok), None)
    groups = [{"points": g["points"], "right": all(right[case] for case in g["cases"])} for g in problem.groups]
    total = sum(g["points"] for g in groups)
    return {
        "solved": first_wrong is None,
        "verdict": str(Verdict.RIGHT if first_wrong is None else verdicts[first_wrong]),
        "verdicts": [str(verdict) for verdict in verdicts],
        "passed": sum(right) / len(right),
        "groups": groups,
        "points": sum(g["points"] for g in groups if g["right"]) / total if total else sum(right) / len(right),
        "ended": {str(case): r.ended for case, r in enumerate(ran) if r.ended},
        "cpu_s": max((r.cpu_s for r in ran), default=0.0),
        "peak_mb": max((r.peak_mb for r in ran), default=0),
        "error": error or (ran[first_wrong].stderr[-ERROR_CHARS:] if ran and first_wrong is not None else ""),
    }


def no_code(problem: Problem, error: str) -> Facts:
    return facts([Verdict.NO_CODE] * len(problem.cases), [], problem, error=error)
