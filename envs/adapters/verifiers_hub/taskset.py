"""v1: the tasks of a `Taskset`: their prompts and tools, and what of them cannot be played here, refused by name.

What needs no container of the package's can be played: tools that it serves on this machine, set-up and rewards that
use the trace and its state, environments of one agent that answer it. The rollout is in seat.py.
"""

from __future__ import annotations

import asyncio
import dis
import inspect
import itertools
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import verifiers.v1 as vf
from verifiers.v1.utils import loaders

from envs import EnvCrashed, Message
from envs.adapters.verifiers_hub.seat import Hosted, Seat, Served, hosting
from envs.adapters.verifiers_hub.turns import Attempt, Rollout, merged, message_of
from envs.tools import Tool

MOST_TASKS = 10_000
"""Of a taskset without end, and of any other: they are held in memory."""


class Tasks:
    """Implements `Kind`."""

    def __init__(self, module: ModuleType, environment: str, args: dict[str, Any]) -> None:
        try:
            config = loaders.taskset_config_type(environment)(id=environment, **args)
            self.taskset = loaders.load_taskset(config)
            self.env = _env(environment, args)
        except (TypeError, AttributeError, ValueError) as problem:
            raise ValueError(f"environment {environment!r} cannot be loaded: {problem}") from None
        self.tasks = list(itertools.islice(self.taskset, MOST_TASKS))
        if not self.tasks:
            raise ValueError(f"environment {environment!r} has no task")
        shared = list(self.taskset.toolsets(self.taskset.config))
        toolsets = [*shared, *self.tasks[0].toolsets(self.tasks[0].config)]
        own = [f"a harness of its own, {one.__name__}" for one in _harnesses(module)]
        if wishes := [*own, *_of_containers(self.tasks), *_of_tools(toolsets)]:
            raise ValueError(
                f"environment {environment!r} asks for {', '.join(dict.fromkeys(wishes))}; expected tasks for one "
                "agent, whose tools and rewards need no container"
            )
        self.shared: Served | None = None
        self.tools = self._listed(environment) if toolsets else []
        self.max_turns: int | None = 1 if self.env is None and not toolsets else None

    def _listed(self, environment: str) -> list[Tool]:
        """The tools, as an attempt at the first task finds them: served once, on a loop of its own."""

        async def ask() -> list[Tool]:
            attempt = self.open(self.tasks[0], 1.0)
            try:
                await attempt.start()
                return list(attempt.tools.values())
            finally:
                await attempt.close()
                await self.close()

        try:
            with ThreadPoolExecutor(1) as thread:
                return thread.submit(asyncio.run, ask()).result()
        except EnvCrashed as problem:
            raise ValueError(f"environment {environment!r}: its tools cannot be listed: {problem}") from None

    def rows(self) -> tuple[list[Any], list[Any] | None]:
        return self.tasks, None

    def seen(self, row: Any) -> tuple[list[Message], str]:
        data = row.data
        said: list[Any] = [{"role": "system", "content": data.system_prompt}] if data.system_prompt else []
        said += [{"role": "user", "content": data.prompt}] if isinstance(data.prompt, str) else data.prompt
        answer = getattr(data, "answer", None)
        return merged([message_of(one, {}) for one in said], self.tools), "" if answer is None else str(answer)

    def told(self, row: Any) -> Mapping[str, Any]:
        told: dict[str, Any] = row.data.model_dump(mode="json", exclude_none=True, exclude={"idx"})
        return told

    def open(self, row: Any, solved_at: float) -> Attempt:
        rollout: Rollout = Seat(row, self._served, solved_at)
        if self.env is not None:
            rollout = Hosted(self.env, row, self._served, solved_at)
        return Attempt(rollout)

    async def _served(self) -> Served:
        """What attempts on this loop share, started by the first of them."""
        if self.shared is None or self.shared.task.done() or self.shared.loop is not asyncio.get_running_loop():
            self.shared = Served(self.taskset.toolsets(self.taskset.config), self.env)
        return await self.shared.ready()

    async def close(self) -> None:
        shared, self.shared = self.shared, None
        if shared is not None:
            await shared.close()


def _env(environment: str, args: dict[str, Any]) -> Any:
    """The package's own environment, where it has one that is more than a rollout of the task. Raises ValueError."""
    kind = loaders.environment_class(environment)
    if kind is vf.SingleAgentEnv:
        return None
    config = loaders.env_config_type(environment).model_validate({"taskset": {"id": environment, **args}})
    agents = {name: value for name, value in config if isinstance(value, vf.AgentConfig)}
    if len(agents) != 1:
        raise ValueError(f"its {kind.__name__} has the agents {', '.join(agents) or 'none'}; expected one, the policy")
    [(agent, seat)] = agents.items()
    if seat.harness is not None:
        raise ValueError(f"its {kind.__name__} asks for the harness {seat.harness.name!r}; expected one without")
    return hosting(kind, agent)(config)


def _harnesses(module: ModuleType) -> list[type]:
    named = [getattr(module, name, None) for name in getattr(module, "__all__", ())]
    return [one for one in named if isinstance(one, type) and issubclass(one, vf.Harness)]


def _of_containers(tasks: list[Any]) -> list[str]:
    task, rows = tasks[0], [one.data for one in tasks]
    wishes = {
        "a container": type(task).NEEDS_CONTAINER or any(row.image for row in rows),
        "a user who speaks first": any(row.prompt is None for row in rows),
        "artifacts": any(row.artifacts for row in rows),
        "skills": any(getattr(row, "skills", None) for row in rows),
        "another user to act as": any(getattr(row, "agent_user", None) for row in rows),
        "a runtime to set up": _uses_runtime(task.setup),
        "a runtime to finish in": _uses_runtime(task.finalize),
    }
    judging = [*task.hooks("reward"), *task.hooks("metric")]
    wishes |= {f"a runtime for {fn.__name__}": _must_have_runtime(fn) for fn in judging}
    wishes |= {f"a runtime for {one.reward_name}": _must_have_runtime(one.score) for one in task.plugged_judges()}
    return [what for what, asked in wishes.items() if asked]


def _of_tools(toolsets: list[Any]) -> list[str]:
    apart = [one for one in toolsets if not one.config.url]
    wishes = {one: f"a container ({one.config.runtime.type}) for its tools" for one in apart}
    wishes = {one: wish for one, wish in wishes.items() if one.config.runtime.type != "subprocess"}
    wishes |= {one: "the agent's container for its tools" for one in apart if getattr(one.config, "colocated", False)}
    return [f"{wish} {type(one).__name__}" for one, wish in wishes.items()]


def _uses_runtime(hook: Any) -> bool:
    """It may well name a parameter that it never reads: the package's own signature has it."""
    steps = dis.get_instructions(inspect.unwrap(getattr(hook, "__func__", hook)))
    return any(step.argval == "runtime" and step.opname.startswith("LOAD") for step in steps)


def _must_have_runtime(fn: Any) -> bool:
    wanted = inspect.signature(fn).parameters.get("runtime")
    return wanted is not None and wanted.default is inspect.Parameter.empty
