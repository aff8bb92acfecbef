"""Compares an answer with the gold one: the same text first, then Math-Verify in a child process that can be killed.

The policy's text is parsed only in the child, which has a memory limit, no secrets in its environment, and sees only
text of a few hundred characters from an allow-list without quotes, underscores or brackets that Python could evaluate.
Run as a program this file is that child: one JSON line in, one word out.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from typing import Literal

from envs import JudgeFailed, JudgeTimedOut

Verdict = Literal["right", "wrong"]

MAX_CHARS = 300
MEMORY_MB = 1536
START_TIMEOUT_S = 60.0
_ALLOWED = re.compile(r"[0-9A-Za-z\\{}^+\-*/=().,:;|<>!% \[\]$]*")
_PLAIN_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")


class Judge:
    """One child, started at first need and again whenever it was killed. Safe to share among the attempts of a loop."""

    def __init__(self, timeout_s: float = 10.0) -> None:
        self.timeout_s = timeout_s
        self._child: asyncio.subprocess.Process | None = None
        self._lock: asyncio.Lock | None = None

    async def verdict(self, answer: str, gold: str) -> Verdict:
        """Raises JudgeTimedOut or JudgeFailed, never guesses. Two plain integers never reach the child."""
        if answer == gold:
            return "right"
        if len(answer) > MAX_CHARS or "__" in answer or not _ALLOWED.fullmatch(answer):
            return "wrong"
        if _PLAIN_NUMBER.fullmatch(answer) and _PLAIN_NUMBER.fullmatch(gold):
            return "right" if float(answer) == float(gold) else "wrong"
        self._lock = self._lock or asyncio.Lock()
        async with self._lock:
            return await self._ask(answer, gold)

    async def _ask(self, answer: str, gold: str) -> Verdict:
        child = self._child or await self._start()
        assert child.stdin and child.stdout
        try:
            child.stdin.write(json.dumps([answer, gold]).encode() + b"\n")
            line = await asyncio.wait_for(child.stdout.readline(), self.timeout_s)
        except TimeoutError:
            await self.close()
            raise JudgeTimedOut(f"Math-Verify gave no verdict within {self.timeout_s:g} s and was killed") from None
        except asyncio.CancelledError:
            await self.close()  # a late reply must never answer the next question
            raise
        except OSError as error:
            await self.close()
            raise JudgeFailed(f"the Math-Verify process was lost: {error}") from None
        match line.strip():
            case b"right":
                return "right"
            case b"wrong":
                return "wrong"
        await self.close()
        raise JudgeFailed(f"Math-Verify answered {line[:200]!r}; expected right or wrong")

    async def _start(self) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        command = [sys.executable, "-m", "envs.math.judge"]
        env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
        self._child = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, env=env)
        assert self._child.stdout
        try:
            ready = await asyncio.wait_for(self._child.stdout.readline(), START_TIMEOUT_S)
        except TimeoutError:
            ready = b""
        if ready.strip() != b"ready":
            await self.close()
            raise JudgeFailed("the Math-Verify process did not start")
        return self._child

    async def close(self) -> None:
        child, self._child = self._child, None
        if child is not None and child.returncode is None:
            child.kill()
            await child.wait()


def serve() -> None:
    """The child's loop."""
    import resource

    from math_verify import LatexExtractionConfig, parse, verify

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_MB * 2**20, MEMORY_MB * 2**20))
    config = [LatexExtractionConfig()]
    print("ready", flush=True)
    for line in sys.stdin:
        answer, gold = json.loads(line)
        try:
            parsed = [parse(f"${text}$", extraction_config=config) for text in (gold, answer)]
            word = "right" if parsed[0] and verify(parsed[0], parsed[1]) else "wrong"
            if not parsed[0]:
                word = f"unparsable gold {gold!r}"
        except Exception as error:  # the parent turns any other word than a verdict into JudgeFailed
            word = f"{type(error).__name__}"
        print(word, flush=True)


if __name__ == "__main__":
    serve()
