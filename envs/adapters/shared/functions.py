"""Reward functions as TRL calls them, in a process of their own (serve.py): one that hangs or dies ends no worker."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import queue
import select
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from envs import JudgeFailed, JudgeTimedOut, MachineryError
from envs.adapters.shared import serve
from envs.adapters.shared.reference import resolve

Spoken = tuple[Any, Any, Mapping[str, Any]]
"""A prompt, a completion, and the columns beside them."""
START_S, LOOK_S = 600.0, 0.05
"""What the imports of the functions may take; how often it is looked whether one is late."""
GIVEN = ("prompts", "completions", "log_extra", "log_metric")


@dataclass(frozen=True, slots=True)
class Judged:
    """What the functions said of one completion."""

    parts: dict[str, float]
    """By the function's name, without those that do not apply."""
    metrics: dict[str, float] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    def total(self, weights: Mapping[str, float]) -> float:
        return sum(weights[name] * value for name, value in self.parts.items())


class Functions:
    """Functions by reference. Raises ValueError where one cannot be found, or wants what there is not."""

    def __init__(self, references: Sequence[str], columns: Collection[str] | None, timeout_s: float) -> None:
        """`columns`: names of what can be given beside prompts and completions; None where it is not known yet."""
        if isinstance(references, str) or not references:
            raise ValueError(f"got functions={references!r}; expected a list of `module:name` or `file.py:name`")
        if timeout_s <= 0:
            raise ValueError(f"got timeout_s={timeout_s}; expected more than 0")
        self.references, self.timeout_s = [str(reference) for reference in references], timeout_s
        self.names: list[str] = []
        for reference in self.references:
            _check(reference, columns)
            name = reference.rpartition(":")[2]
            self.names.append(name if name not in self.names else f"{name}#{len(self.names) + 1}")
        self._lock = threading.Lock()
        self._process: _Process | None = None

    def weights(self, weights: Sequence[float] | None) -> dict[str, float]:
        """By name; 1 each where there are none. Raises ValueError where there are too many or too few."""
        if weights is not None and len(weights) != len(self.names):
            raise ValueError(f"got {len(weights)} weights for {len(self.names)} functions; expected one for each")
        return {
            name: float(weight) for name, weight in zip(self.names, weights or [1.0] * len(self.names), strict=True)
        }

    async def judge(
        self, prompt: Any, completion: Any, columns: Mapping[str, Any], timeout_s: float | None = None
    ) -> Judged:
        """`timeout_s`: of this call, where it is another than that of all."""
        while True:
            try:
                said = await asyncio.wrap_future(self._ask([(prompt, completion, columns)], timeout_s))
                return self._judged(said, 0, 1)
            except _Again:
                continue

    def judge_all(self, spoken: Sequence[Spoken]) -> list[Judged]:
        """Several completions in one call, for a caller that cannot wait otherwise."""
        while True:
            try:
                said = self._ask(spoken).result()
                return [self._judged(said, at, len(spoken)) for at in range(len(spoken))]
            except _Again:
                continue

    def _ask(self, spoken: Sequence[Spoken], timeout_s: float | None = None) -> Future[dict[str, Any]]:
        with self._lock:
            if self._process is None or self._process.ended:
                self._process = _Process(self.references)
            process = self._process
        names = dict.fromkeys(name for _, _, columns in spoken for name in columns if name not in GIVEN)
        request = {
            "prompts": [prompt for prompt, _, _ in spoken],
            "completions": [completion for _, completion, _ in spoken],
            "columns": {name: [columns.get(name) for _, _, columns in spoken] for name in names},
        }
        return process.ask(request, timeout_s or self.timeout_s)

    def _judged(self, said: dict[str, Any], at: int, count: int) -> Judged:
        if "error" in said:
            raise JudgeFailed(said["error"])
        values = {name: value[at] for name, value in zip(self.names, said["values"], strict=True)}
        parts = {name: value for name, value in values.items() if value is not None}
        extra = {name: values[at] if len(values) == count else values for name, values in said["extra"].items()}
        return Judged(parts, said["metrics"], extra)

    def close(self) -> None:
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            process.end("the reward functions were closed")


def _check(reference: str, columns: Collection[str] | None) -> None:
    function = resolve(reference, "reward function")
    if not callable(function):
        raise ValueError(f"reward function {reference!r} is a {type(function).__name__}; expected a callable")
    try:
        needed, _, _ = serve.accepted(function)
    except (TypeError, ValueError):  # a builtin without a signature
        return
    for name in sorted(needed - set(GIVEN)):
        if name in serve.NOT_OURS:
            raise ValueError(
                f"reward function {reference!r} demands {name!r}, which there is not: rewards see no tokens and no "
                "trainer; expected a function of prompts, completions and columns"
            )
        if columns is not None and name not in columns:
            raise ValueError(
                f"reward function {reference!r} demands the column {name!r}; available: {', '.join(columns) or 'none'}"
            )


class _Again(Exception):
    """The process ended, and not for this question, which may be asked of another."""


@dataclass(slots=True)
class _Question:
    answer: Future[dict[str, Any]]
    timeout_s: float
    began: float | None = None
    """When the functions were called for it; until then it waits in line, which is not their time."""


class _Process:
    """One process, its open questions, and threads: one asks, one hears answers and ends it where one is late."""

    def __init__(self, references: Sequence[str]) -> None:
        hear, say = os.pipe()
        paths = os.pathsep.join(path for path in sys.path if path)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", serve.__name__, str(say), *references],
                stdin=subprocess.PIPE,
                stdout=2,
                pass_fds=(say,),
                env={**os.environ, "PYTHONPATH": paths},
                text=True,
            )
        except BaseException:
            os.close(hear)
            raise
        finally:
            os.close(say)
        self.ended = False
        self._why: MachineryError | None = None
        self._made = time.monotonic()
        self._used = False
        """Whether the functions were ever called: what ends before that would end so again."""
        self._open: dict[int, _Question] = {}
        self._count = 0
        self._lock = threading.Lock()
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._hear, args=(hear,), daemon=True).start()
        threading.Thread(target=self._tell, daemon=True).start()

    def ask(self, request: dict[str, Any], timeout_s: float) -> Future[dict[str, Any]]:
        answer: Future[dict[str, Any]] = Future()
        answer.set_running_or_notify_cancel()  # who gives up waiting does not cancel it
        with self._lock:
            if self.ended:
                answer.set_exception(_Again())
                return answer
            self._count += 1
            self._open[self._count] = _Question(answer, timeout_s)
            self._lines.put(json.dumps({"id": self._count, **request}) + "\n")
        return answer

    def _tell(self) -> None:
        """Writes what is asked, for a function may keep its process from reading until it is ended."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError), self._process.stdin:  # the process is gone, which is heard too
            while (line := self._lines.get()) is not None:
                self._process.stdin.write(line)
                self._process.stdin.flush()

    def end(self, why: str) -> None:
        self._why = self._why or JudgeFailed(why)
        self.ended = True
        self._process.kill()
        self._process.wait()

    def _hear(self, hear: int) -> None:
        heard = b""
        while True:
            if select.select([hear], [], [], LOOK_S)[0]:
                if not (some := os.read(hear, 2**16)):
                    break
                *lines, heard = (heard + some).split(b"\n")
                for line in lines:
                    self._take(json.loads(line))
            if self._late():
                break
        os.close(hear)
        self._settle()

    def _take(self, said: dict[str, Any]) -> None:
        with self._lock:
            if said.get("began"):
                self._used = True
                self._open[said["id"]].began = time.monotonic()
                return
            question = self._open.pop(said["id"])
        question.answer.set_result(said)

    def _late(self) -> bool:
        """Whether the process was ended, since the functions took too long over a question, which has failed now."""
        now, late = time.monotonic(), []
        with self._lock:
            for number, question in list(self._open.items()):
                if question.began is not None and now - question.began > question.timeout_s:
                    late.append(self._open.pop(number))
        if not self._used and self._open and now - self._made > START_S:
            self.end(f"the process of the reward functions did not start within {START_S:g} s")
            return True
        if late:
            self.ended = True
            self._process.kill()
        for question in late:
            words = f"the reward functions did not answer within {question.timeout_s:g} s"
            question.answer.set_exception(JudgeTimedOut(words))
        return bool(late)

    def _settle(self) -> None:
        """What is open when the process has ended: asked again, but for what it ended over."""
        killed = self.ended
        self.ended = True
        self._lines.put(None)
        code = self._process.wait()
        over = JudgeFailed(f"the process of the reward functions ended with code {code}")
        with self._lock:
            lost, self._open = list(self._open.values()), {}
        for question in lost:
            blamed = not killed and (question.began is not None or not self._used)
            question.answer.set_exception(self._why or (over if blamed else _Again()))
