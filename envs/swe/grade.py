"""Grades a mended package: its files go into a clean sandbox, its functions are called, the values compared here.

The code under test shares a process with the end of the runner that called it, and may do there what it likes: find
the descriptor of its claim, replace `json`, rewrite the runner's functions, end the process, kill the runner. What it
gains is a claim of its own choosing, and a claim passes a test only where it is the expected value of a hidden call.
The expected values are in no sandbox.

Two canaries are added under random names, and called in the process that has run the code under test: one that must
pass and one that must fail. Where one lies, something between a function and its verdict was replaced: `tampered`.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Any

from envs.sandboxes import Sandbox
from envs.verifiers import Verdict, compare, runs
from envs.verifiers.compare import Comparison
from envs.verifiers.runs import Job, Ran

CPU_S = 2.0
"""Of one process, which makes all calls where none ends it."""
ENDED_PROCESSES = 2
"""After so many that timed out, or ended before the first call did, the rest is not tried."""
LISTING_TIMEOUT_S = 10.0
MAX_FILES = 50
MAX_FILE_BYTES = 64 * 1024
TOLD = 10
_NEVER_TAKEN = {"conftest.py", "sitecustomize.py", "usercustomize.py"}
_RULE = Comparison(absolute=1e-9, relative=1e-9)


class Check(StrEnum):
    """What became of one hidden test."""

    PASSED = "passed"
    FAILED = "failed"
    RAISED = "raised"
    MISSING = "missing"
    """No function of that name, or the process ended before it returned."""
    TIMED_OUT = "timed_out"
    TAMPERED = "tampered"


_CHECKS = {
    Verdict.RIGHT: Check.PASSED,
    Verdict.WRONG: Check.FAILED,
    Verdict.MISSING: Check.MISSING,
    Verdict.UNFINISHED: Check.MISSING,
    Verdict.TIMED_OUT: Check.TIMED_OUT,
    Verdict.NOT_RUN: Check.TIMED_OUT,
    Verdict.TAMPERED: Check.TAMPERED,
}
"""Every other verdict is RAISED."""

CANARY = """\
def {stands}(a, b):
    return [a + b, sorted([a, b, 0]), {{"product": a * b, "same": a == b}}, str(a), len([a, b]), isinstance(a, int)]


def {falls}(a, b):
    if sorted([b, a]) != [a, b] or len([a, b]) != 2 or str(a) == str(b):
        return a
    raise LookupError(a)
"""


async def taken(sandbox: Sandbox, given: Sequence[str]) -> tuple[dict[str, bytes], list[str]]:
    """Python source files of an attempt by path relative to /work, those it was given first; and what was left out."""
    listing = await sandbox.exec(
        ["find", ".", "-name", "*.py", "-printf", "%y %s %P\\0"], timeout_s=LISTING_TIMEOUT_S, max_output=2**18
    )
    files: dict[str, bytes] = {}
    left_out = []
    lines = [line.split(" ", 2) for line in listing.stdout.decode(errors="replace").split("\0")]
    for kind, size, path in sorted((line for line in lines if len(line) == 3), key=lambda line: line[2] not in given):
        reason = _refusal(kind, size, path) or (f"over {MAX_FILES} files" if len(files) >= MAX_FILES else "")
        if not reason:
            try:
                files[path] = await sandbox.read(f"/work/{path}", limit=MAX_FILE_BYTES)
            except OSError as error:
                reason = error.strerror or "unreadable"
        if reason:
            left_out.append(f"{path[:80]}: {reason}")
    return files, left_out


def _refusal(kind: str, size: str, path: str) -> str:
    place = PurePosixPath(path)
    if kind != "f":
        return {"l": "a link", "d": "a folder"}.get(kind, "no regular file")
    if not size.isdigit() or int(size) > MAX_FILE_BYTES:
        return f"over {MAX_FILE_BYTES} bytes"
    if place.is_absolute() or ".." in place.parts:
        return "outside the package"
    return "a file of tests" if place.name in _NEVER_TAKEN or "tests" in place.parts else ""


async def checks(
    grader: Sandbox, files: Mapping[str, bytes], tests: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Check], list[str]]:
    """What became of each test, by id, in a clean sandbox; and the files that could not be put there."""
    refused = []
    for path, data in files.items():
        try:
            await grader.write(f"/work/{path}", data)
        except OSError as error:  # the attempt's own doing: a name too long, a folder where another file stands
            refused.append(f"{path[:80]}: {error.strerror}")
    canary, stands, falls = (f"{word}_{secrets.token_hex(6)}" for word in ("c", "s", "f"))
    await grader.write(f"/work/{canary}.py", CANARY.format(stands=stands, falls=falls).encode())
    a = secrets.randbelow(10**6)
    pair = [a, a + 1 + secrets.randbelow(10**6)]
    about = {"before": sorted({t["module"] for t in tests}), "module": canary, "arguments": pair}
    calls = [{key: t[key] for key in ("module", "function", "arguments")} for t in tests]
    calls += [about | {"function": stands}, about | {"function": falls}]
    ran = await _made(grader, calls)
    if _lies(ran[-2:], pair):
        return {t["id"]: Check.TAMPERED for t in tests}, refused
    return {t["id"]: _check(r, t["expected"]) for t, r in zip(tests, ran, strict=False)}, refused


async def _made(grader: Sandbox, calls: Sequence[dict[str, Any]]) -> list[Ran]:
    """Make the calls in one process; where it ends in one of them, the others in the next."""
    job = Job(run="call", path="/work", cpu_s=CPU_S)
    found: list[Ran] = []
    spent = 0
    while len(found) < len(calls):
        (ran,) = await runs.run(grader, job, [{"calls": calls[len(found) :]}])
        claims = ran.body.splitlines()[: len(calls) - len(found)]
        found += [replace(ran, verdict=None, body=claim) for claim in claims]
        if len(found) < len(calls):
            ended = replace(ran, verdict=ran.verdict or Verdict.UNFINISHED, body=b"")
            spent += not claims or ended.verdict is Verdict.TIMED_OUT
            given_up = ended.verdict is Verdict.TAMPERED or spent >= ENDED_PROCESSES
            found += [ended] * (len(calls) - len(found) if given_up else 1)
    return found


def _check(ran: Ran, expected: Any) -> Check:
    verdict = ran.verdict or compare.claim(ran.body, expected, _RULE)[0]
    return _CHECKS.get(verdict, Check.RAISED)


def _lies(canaries: Sequence[Ran], pair: list[int]) -> bool:
    """True where a canary that came back is not what it must be. One that never ran, beside broken code, is no lie."""
    if any(ran.verdict is Verdict.TAMPERED for ran in canaries):
        return True
    a, b = pair
    value = [a + b, [0, a, b], {"product": a * b, "same": False}, str(a), 2, True]
    stands, falls = canaries
    judged = stands.verdict is None and not _unready(stands)
    if judged and compare.claim(stands.body, value, _RULE)[0] is not Verdict.RIGHT:
        return True
    judged = falls.verdict is None and not _unready(falls)
    return judged and compare.claim(falls.body, value, _RULE) != (Verdict.CRASHED, "LookupError")


def _unready(ran: Ran) -> bool:
    return ran.body.startswith(b'{"unready"')
