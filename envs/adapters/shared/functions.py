"""Reward functions as TRL calls them, in a process of their own (serve.py): one that hangs or dies ends no worker."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as Late
from dataclasses import dataclass, field
from typing import Any

from envs import JudgeFailed, JudgeTimedOut, MachineryError
from envs.adapters.shared import serve
from envs.adapters.shared.reference import resolve

Spoken = tuple[Any, Any, Mapping[str, Any]]
"""A prompt, a completion, and the columns beside them."""
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

    async def judge(self, prompt: Any, completion: Any, columns: Mapping[str, Any]) -> Judged:
        process, answer = self._ask([(prompt, completion, columns)])
        try:
            return self._judged(await asyncio.wait_for(asyncio.wrap_future(answer), self.timeout_s), 0, 1)
        except TimeoutError:
            raise self._late(process) from None

    def judge_all(self, spoken: Sequence[Spoken]) -> list[Judged]:
        """Several completions in one call, for a caller that cannot wait otherwise."""
        process, answer = self._ask(spoken)
        try:
            said = answer.result(self.timeout_s)
        except Late:
            raise self._late(process) from None
        return [self._judged(said, at, len(spoken)) for at in range(len(spoken))]

    def _ask(self, spoken: Sequence[Spoken]) -> tuple[_Process, Future[dict[str, Any]]]:
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
        return process, process.ask(request)

    def _judged(self, said: dict[str, Any], at: int, count: int) -> Judged:
        if "error" in said:
            raise JudgeFailed(said["error"])
        values = {name: value[at] for name, value in zip(self.names, said["values"], strict=True)}
        parts = {name: value for name, value in values.items() if value is not None}
        extra = {name: values[at] if len(values) == count else values for name, values in said["extra"].items()}
        return Judged(parts, said["metrics"], extra)

    def _late(self, process: _Process) -> MachineryError:
        process.end("the process of the reward functions was ended, since another call in it took too long")
        return JudgeTimedOut(f"the reward functions did not answer within {self.timeout_s:g} s")

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


class _Process:
    """One process, its open questions, and a thread that hears its answers."""

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
        self._why = ""
        self._open: dict[int, Future[dict[str, Any]]] = {}
        self._count = 0
        self._lock = threading.Lock()
        threading.Thread(target=self._hear, args=(hear,), daemon=True).start()

    def ask(self, request: dict[str, Any]) -> Future[dict[str, Any]]:
        answer: Future[dict[str, Any]] = Future()
        answer.set_running_or_notify_cancel()  # who gives up waiting does not cancel it
        assert self._process.stdin is not None
        with self._lock:
            self._count += 1
            self._open[self._count] = answer
            try:
                self._process.stdin.write(json.dumps({"id": self._count, **request}) + "\n")
                self._process.stdin.flush()
            except OSError:
                self.ended = True
        if self.ended:
            self._fail()
        return answer

    def end(self, why: str) -> None:
        self._why = self._why or why
        self.ended = True
        self._process.kill()
        self._process.wait()

    def _hear(self, hear: int) -> None:
        with os.fdopen(hear) as answers:
            for line in answers:
                said = json.loads(line)
                with self._lock:
                    answer = self._open.pop(said["id"], None)
                if answer is not None:
                    answer.set_result(said)
        self.ended = True
        code = self._process.wait()
        self._why = self._why or f"the process of the reward functions ended with code {code}"
        self._fail()

    def _fail(self) -> None:
        with self._lock:
            lost, self._open = list(self._open.values()), {}
        for answer in lost:
            if not answer.done():
                answer.set_exception(JudgeFailed(self._why or "the process of the reward functions ended"))
