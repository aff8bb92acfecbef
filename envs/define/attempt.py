"""One attempt in a world made by `envs.define`: an object of the author's class, and what its methods are handed."""

from __future__ import annotations

import copy
import inspect
import json
import math
import random
from collections.abc import Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from envs import EnvCrashed, Facts, Message, Step, Task
from envs.sandboxes import ExecResult, Sandbox
from envs.tools import BadCall, call

if TYPE_CHECKING:
    from envs.define import Defined

RESULT_CHARS = 10_000
"""Of a tool's result, what the policy hears."""


class Attempt:
    def __init__(self, world: Defined, task: Task, alone: bool = False) -> None:
        """`alone`: without sandboxes, for a demonstration. The task is copied, so that it may be changed."""
        self.world, self.made, self.task, self.alone = world, world.made, copy.deepcopy(task), alone
        self.author = world.made.author()
        self.rng = random.Random(f"{world.name}/{task.key}")
        self.messages: list[Message] = list(task.messages)
        self.answer = ""
        self.calls = self.errors = 0
        self.held: dict[str, Timed] = {}

    async def start(self) -> Sequence[Message]:
        if "start" in self.made.asked:
            await self._run("start", await self._places("start"))
        return self.task.messages

    async def step(self, action: str) -> Step:
        self.answer = action
        self.messages.append({"role": "assistant", "content": action})
        if not self.made.tools:
            return Step(done=True)
        before_s = self._worked_s()
        try:
            found = call(action, self.made.tools)
            if found is None:
                return Step(done=True)
            self.calls += 1
            name, said = found.name, await self._used(found.name, found.arguments)
        except BadCall as wrong:
            self.errors += 1
            if self.made.strict or not wrong.tool:
                return Step(done=True, invalid=True)
            name, said = wrong.tool, str(wrong)
        if vars(self.author).get("done", False):
            return Step(done=True)
        self.messages.append({"role": "tool", "name": name, "content": said})
        return Step(messages=(self.messages[-1],), seconds=self._worked_s() - before_s)

    async def _used(self, name: str, arguments: Mapping[str, Any]) -> str:
        try:
            return _text(name, await self._run(name, {**await self._places(name), **arguments}))
        except BadCall as wrong:
            raise BadCall(str(wrong), name) from None

    async def measure(self) -> Facts:
        if "clean_sandbox" in self.made.asked["grade"] and (own := self.held.pop("sandbox", None)):
            await own.close()  # who waits for one while holding another may be waited for in turn
        said = {"answer": self.answer, "messages": list(self.messages)}
        facts = _facts(self.world.name, await self._run("grade", {**await self._places("grade"), **said}))
        counted = {"tool_calls": self.calls, "tool_errors": self.errors} if self.made.tools else {}
        return {**counted, **facts}

    async def close(self) -> None:
        held, self.held = self.held, {}
        try:
            if "close" in self.made.asked:
                await self._run("close", {})
        finally:
            for sandbox in held.values():
                await sandbox.close()

    async def _run(self, name: str, offered: Mapping[str, Any]) -> Any:
        result = getattr(self.author, name)(**self.world.given(name, self.task, offered))
        return await result if inspect.isawaitable(result) else result

    async def _places(self, name: str) -> dict[str, Any]:
        offered: dict[str, Any] = {"task": self.task, "rng": self.rng}
        for asked in ("sandbox", "clean_sandbox"):
            if asked in self.made.asked[name]:
                offered[asked] = await self._sandbox(asked)
        return offered

    async def _sandbox(self, name: str) -> Timed:
        if self.alone:
            raise ValueError(
                f"world {self.world.name} works in a sandbox; expected what it says as messages in the demonstrations"
            )
        if name not in self.held:
            self.held[name] = Timed(await self.world.sandboxes.acquire())
        return self.held[name]

    def _worked_s(self) -> float:
        return sum(sandbox.seconds for sandbox in self.held.values())


class Timed:
    """A sandbox that adds up how long its commands ran, without queues: what counts in an attempt's time."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox, self.seconds = sandbox, 0.0

    async def exec(self, *command: Any, **how: Any) -> ExecResult:
        result = await self.sandbox.exec(*command, **how)
        self.seconds += result.duration_s
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sandbox, name)


def _text(tool: str, result: Any) -> str:
    """What the policy hears of a tool's result."""
    try:
        text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise EnvCrashed(f"tool {tool} answered with {str(result)[:80]!r}, which is no JSON: {error}") from None
    cut = len(text) - RESULT_CHARS
    return text if cut <= 0 else f"{text[:RESULT_CHARS]}… ({cut} characters left out)"


def _facts(world: str, verdict: Any) -> Facts:
    """What a grader said, as facts. What is no verdict is nobody's zero."""
    if isinstance(verdict, bool):
        return {"solved": verdict}
    if isinstance(verdict, int | float) and math.isfinite(verdict):
        return {"solved": verdict >= 1, "reward": float(verdict)}
    if isinstance(verdict, Mapping) and isinstance(verdict.get("solved"), bool):
        return dict(verdict)
    if isinstance(verdict, Mapping) and "solved" not in verdict and isinstance(verdict.get("reward"), int | float):
        return {**verdict, **_facts(world, float(verdict["reward"]))}
    raise TypeError(
        f"world {world}: grade answered with {str(verdict)[:80]!r}; expected True, False, a number, or a dict of facts "
        "with `solved` or `reward`"
    )


def at_once(running: Coroutine[Any, Any, Any], world: str) -> Any:
    """The result of what is async and waits for nothing."""
    try:
        running.send(None)
    except StopIteration as ended:
        return ended.value
    running.close()
    raise ValueError(f"world {world} waits for something; expected what it says as messages in the demonstrations")
