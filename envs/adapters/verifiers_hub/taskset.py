"""v1: the tasks of a `Taskset`, answered in one turn and graded by their own rewards over a trace of it.

A task that wants tools, a container or a runtime of the package's cannot be played so, and is refused by name.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import itertools
import math
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from envs import Env, Facts, JudgeFailed, JudgeTimedOut, Message, Step, Task

SCORING_S = 600.0
MOST_TASKS = 10_000
"""Of a taskset without end, and of any other: they are held in memory."""


class Single:
    """Implements `Kind`."""

    def __init__(self, module: ModuleType, environment: str, args: dict[str, Any]) -> None:
        try:
            self.v1 = importlib.import_module("verifiers.v1")
        except ModuleNotFoundError:
            raise ValueError(
                f"environment {environment!r} has no load_environment, and the installed verifiers knows no v1: "
                "expected verifiers 0.3 or newer"
            ) from None
        loaders = importlib.import_module("verifiers.v1.utils.loaders")
        try:
            taskset = loaders.load_taskset(loaders.taskset_config_type(environment)(id=environment, **args))
        except (TypeError, AttributeError, ValueError) as problem:
            raise ValueError(f"environment {environment!r} cannot be loaded: {problem}") from None
        self.system = taskset.system_prompt
        self.tasks = list(itertools.islice(taskset, MOST_TASKS))
        self.max_turns: int | None = 1
        if not self.tasks:
            raise ValueError(f"environment {environment!r} has no task")
        self._refuse(environment, taskset, self.tasks[0])

    def _refuse(self, environment: str, taskset: Any, task: Any) -> None:
        wishes = {
            "tools": type(taskset).toolsets(taskset.config) or type(task).toolsets(task.config),
            "a container": type(task).NEEDS_CONTAINER or task.data.image,
            "a runtime to set up": type(task).setup is not self.v1.Task.setup,
            "a runtime to finish in": type(task).finalize is not self.v1.Task.finalize,
        }
        judging = [*task.hooks("reward"), *task.hooks("metric")]
        wishes |= {f"a runtime for {fn.__name__}": fn for fn in judging if _needs_runtime(fn)}
        if asked := [what for what, is_asked in wishes.items() if is_asked]:
            raise ValueError(
                f"environment {environment!r} asks for {', '.join(asked)}; expected tasks with one answer, which their "
                "own rewards grade from the trace alone"
            )

    def rows(self) -> tuple[list[Any], list[Any] | None]:
        return self.tasks, None

    def seen(self, row: Any) -> tuple[list[Message], str]:
        data = row.data
        said = [{"role": "system", "content": data.system_prompt}] if data.system_prompt else []
        if isinstance(data.prompt, str) or data.prompt is None:
            said.append({"role": "user", "content": data.prompt or ""})
        else:
            said += [{"role": one.role, "content": _text(one.content)} for one in data.prompt]
        answer = getattr(data, "answer", None)
        return said, "" if answer is None else str(answer)

    def told(self, row: Any) -> Mapping[str, Any]:
        told: dict[str, Any] = row.data.model_dump(mode="json", exclude_none=True, exclude={"idx"})
        return told

    def open(self, task: Task, row: Any, solved_at: float) -> Env:
        return Attempt(self, task, row, solved_at)

    def trace(self, row: Any, messages: Sequence[Message], answer: str) -> Any:
        """What the package would have recorded of one answer."""
        graph, trace = (importlib.import_module(f"verifiers.v1.{name}") for name in ("graph", "trace"))
        agent = importlib.import_module("verifiers.v1.configs.agent").AgentConfig()
        types = importlib.import_module("verifiers.v1.types")
        kinds = {"system": types.SystemMessage, "user": types.UserMessage, "assistant": types.AssistantMessage}
        said = [kinds[one["role"]](content=one["content"]) for one in messages]
        nodes = [graph.MessageNode(message=one, parent=at - 1 if at else None) for at, one in enumerate(said)]
        last = graph.MessageNode(
            message=types.AssistantMessage(content=answer), parent=len(nodes) - 1 if nodes else None, sampled=True
        )
        info = trace.TraceTask(type=type(row).__name__, data=row.data, key=row.key, hash=row.hash)
        return trace.Trace(
            task=info, agent=trace.AgentInfo(config=agent), nodes=[*nodes, last], is_completed=True, ok=True
        )


def _needs_runtime(fn: Any) -> bool:
    wanted = inspect.signature(fn).parameters.get("runtime")
    return wanted is not None and wanted.default is inspect.Parameter.empty


def _text(content: Any) -> str:
    return str(importlib.import_module("verifiers.v1.types").content_text(content))


class Attempt:
    def __init__(self, kind: Single, task: Task, row: Any, solved_at: float) -> None:
        self.kind, self.task, self.row, self.solved_at = kind, task, row, solved_at
        self.answer: str | None = None

    async def start(self) -> Sequence[Message]:
        return self.task.messages

    async def step(self, action: str) -> Step:
        self.answer = action
        return Step(done=True)

    async def measure(self) -> Facts:
        if self.answer is None:
            return {"solved": False}
        trace = self.kind.trace(self.row, self.task.messages, self.answer)
        try:
            async with asyncio.timeout(SCORING_S) as deadline:
                await self.row.score(trace)
        except Exception as error:  # the rewards are the task's own code: whatever they raise is no verdict
            if deadline.expired():
                raise JudgeTimedOut(f"the task's rewards did not end within {SCORING_S:g} s") from None
            raise JudgeFailed(f"the task's rewards raised {type(error).__name__}: {error}") from error
        parts = {name: None if one is None else float(one.score) for name, one in trace.rewards.items()}
        parts |= {name: None if value is None else float(value) for name, value in trace.metrics.items()}
        if wrong := [name for name, value in parts.items() if value is None or not math.isfinite(value)]:
            raise JudgeFailed(f"{', '.join(wrong)} gave no finite number")
        return {"solved": trace.reward >= self.solved_at, "reward": float(trace.reward), "parts": parts}

    async def close(self) -> None:
        return None
