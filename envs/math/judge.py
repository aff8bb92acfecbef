"""Compares an answer with the gold one. Untrusted text is parsed only in a service of the sandboxes.

What text and exact arithmetic decide is decided here (envs/math/ladder.py). The rest is asked of `algebra.py`, which
runs where there is no network and no file of this machine: one fork for each pair, with limits of its own.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import io
import json
import zipfile
from functools import cache
from pathlib import Path
from typing import Literal

from envs import JudgeFailed, JudgeTimedOut
from envs.math.ladder import Ladder, NeedsAlgebra, Unreadable
from envs.math.rationals import TooLarge
from envs.sandboxes import Answer, SandboxError, SandboxPool, Service

Verdict = Literal["right", "wrong", "too_hard"]
"""`too_hard`: the answer is none that can be worked out in CPU_S seconds and MEMORY_MB. The policy's doing."""

CPU_S = 3
MEMORY_MB = 768
WORKERS = 2
REMEMBERED = 4096
DISTRIBUTIONS = ("math-verify", "latex2sympy2_extended", "antlr4-python3-runtime", "sympy", "mpmath")
MODULES = ("algebra", "ladder", "rationals", "text", "units")
UNCHECKED = importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little") + bytes(8)
"""The head of compiled code that is taken as it is; another version of Python passes over it and reads the source."""


class UnreadableGold(JudgeFailed):
    """The gold answer is none that can be compared with another: an error in the data, nobody's zero."""


class Judge:
    """Safe to share among the attempts of a loop. Without `sandboxes` it decides only what needs no parser."""

    def __init__(self, sandboxes: SandboxPool | None, timeout_s: float = 10.0) -> None:
        self.timeout_s = timeout_s
        self.asked = 0
        """Pairs that needed the service."""
        self._sandboxes = sandboxes
        self._service: Service | None = None
        self._sound: set[str] = set()
        self._decided: dict[tuple[str, str], Verdict] = {}

    async def verdict(self, answer: str, gold: str) -> Verdict:
        """Raises UnreadableGold, JudgeTimedOut or JudgeFailed, never guesses."""
        try:
            return "right" if Ladder(_needs_algebra).same(gold, answer) else "wrong"
        except Unreadable as problem:
            raise UnreadableGold(str(problem)) from None
        except TooLarge:
            await self.check(gold)
            return "too_hard"
        except NeedsAlgebra:
            pass
        if (gold, answer) in self._decided:  # the attempts of one group often answer the same
            return self._decided[gold, answer]
        verdict = await self._ask(gold, answer)
        if verdict == "too_hard":
            await self.check(gold)
        if len(self._decided) >= REMEMBERED:
            self._decided.clear()
        self._decided[gold, answer] = verdict
        return verdict

    async def check(self, gold: str) -> None:
        """Raises UnreadableGold where a gold answer does not even equal itself when it is worked out."""
        if gold in self._sound:
            return
        try:
            sound = Ladder(_needs_algebra, by_text=False).same(gold, gold)
        except Unreadable as problem:
            raise UnreadableGold(str(problem)) from None
        except TooLarge:
            sound = False
        except NeedsAlgebra:
            sound = await self._ask(gold, None) == "right"
        if not sound:
            raise UnreadableGold(f"the gold answer {gold[:80]!r} cannot be worked out, or does not equal itself")
        self._sound.add(gold)

    async def _ask(self, gold: str, answer: str | None) -> Verdict:
        if self._sandboxes is None:
            raise JudgeFailed(f"the gold answer {gold[:80]!r} needs a parser, which runs in a sandbox: there is none")
        self._service = self._service or self._sandboxes.service(program(), workers=WORKERS, memory_mb=MEMORY_MB)
        self.asked += 1
        question = json.dumps([gold, answer]).encode()
        try:
            reply = await self._service.ask(question, cpu_s=CPU_S, timeout_s=self.timeout_s)
        except SandboxError as problem:
            raise JudgeFailed(f"the place where answers are parsed was lost: {problem}") from problem
        return self._word(reply)

    def _word(self, reply: Answer) -> Verdict:
        match reply.ended:
            case "spent":
                return "too_hard"
            case "late":
                raise JudgeTimedOut(f"no verdict within {self.timeout_s:g} s, of which {reply.cpu_s:.1f} s were work")
            case "raised":
                raise JudgeFailed(f"the ladder failed: {reply.body.decode(errors='replace')}")
        word, problem = json.loads(reply.body)
        match word:
            case "unreadable":
                raise UnreadableGold(problem)
            case "too large":
                return "too_hard"
            case "right" | "wrong":
                return word
        raise JudgeFailed(f"got the verdict {reply.body[:80]!r}, expected right, wrong, unreadable or too large")

    async def close(self) -> None:
        service, self._service = self._service, None
        if service is not None:
            await service.close()


def _needs_algebra(gold: str, answer: str, how: str) -> bool:
    raise NeedsAlgebra


@cache
def program() -> bytes:
    """The zip that the service loads: this package's pure modules and Math-Verify with what it needs."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("program.py", "from envs.math.algebra import answer")
        for package in ("envs/__init__.py", "envs/math/__init__.py"):
            archive.writestr(package, "")
        for name in MODULES:
            archive.writestr(f"envs/math/{name}.py", Path(__file__).with_name(f"{name}.py").read_bytes())
        for distribution in DISTRIBUTIONS:
            _add(archive, distribution)
    return buffer.getvalue()


def _add(archive: zipfile.ZipFile, distribution: str) -> None:
    for file in importlib.metadata.files(distribution) or ():
        path = Path(str(file.locate()))
        if file.name == "METADATA":
            archive.writestr(str(file), path.read_bytes())
        if file.suffix != ".py" or {"tests", "benchmarks"} & set(file.parts) or not path.exists():
            continue
        archive.writestr(str(file), path.read_bytes())
        compiled = Path(importlib.util.cache_from_source(str(path)))
        if compiled.exists():
            archive.writestr(str(file) + "c", UNCHECKED + compiled.read_bytes()[16:])
