"""v1: the package's own rollout of a task, or episode of its environment, with the policy in the agent's place.

The package serves the tools (MCP over HTTP, a process for each toolset of a task and each attempt), keeps the state
they share with the task, runs set-up, stops and rewards, and records the trace.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import math
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from contextvars import ContextVar
from typing import Any

from verifiers.v1 import rollout, runtimes
from verifiers.v1.clients import EvalClientConfig, ModelContext
from verifiers.v1.configs.agent import AgentConfig
from verifiers.v1.configs.harness import HarnessConfig
from verifiers.v1.interception import InterceptionServer
from verifiers.v1.mcp import serve_shared
from verifiers.v1.session import RolloutLimits

from envs import EnvCrashed, Facts, JudgeFailed, JudgeTimedOut
from envs.adapters.verifiers_hub.hands import Line, Loop, NoBox
from envs.adapters.verifiers_hub.turns import CLOSE_S, Talk, crashed

SCORING_S = 600.0
NOBODY = ModelContext(
    model="policy", client=EvalClientConfig(base_url="http://127.0.0.1:9/v1", api_key_var="VERIFIERS_HUB_NO_KEY")
)
"""A model, which is never asked."""


class Served:
    """What the attempts of one event loop share: the package's server, and the tools of the whole taskset.

    A task of its own holds them, and gives them up when it or the loop ends.
    """

    def __init__(self, toolsets: Sequence[Any], env: Any = None) -> None:
        self.loop = asyncio.get_running_loop()
        self.server: Any = None
        self.tools: dict[str, Any] = {}
        self._ready = asyncio.Event()
        self.task = asyncio.create_task(self._hold(list(toolsets), env))

    async def _hold(self, toolsets: list[Any], env: Any) -> None:
        async with AsyncExitStack() as stack:
            self.tools = await stack.enter_async_context(serve_shared(toolsets))
            secrets = tuple(tool.state_secret for tool in self.tools.values() if tool.state_secret)
            self.server = await stack.enter_async_context(InterceptionServer(state_service_secrets=secrets))
            if env is not None:
                stack.push_async_callback(env.stop)
                await env.start()
            self._ready.set()
            await asyncio.Event().wait()

    async def ready(self) -> Served:
        """Raises what kept it from starting."""
        waiting = asyncio.create_task(self._ready.wait())
        try:
            await asyncio.wait({waiting, self.task}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if self.task.done():
            self.task.result()
        return self

    async def close(self) -> None:
        if self.loop is asyncio.get_running_loop():
            self.task.cancel()
            await asyncio.wait({self.task}, timeout=CLOSE_S)


Sharing = Callable[[], Any]
"""Awaited, gives what is served on this loop."""


class Seat:
    """One rollout of a task. Implements `Rollout`."""

    def __init__(self, task: Any, served: Sharing, solved_at: float) -> None:
        self.task, self.served, self.solved_at = alone(task), served, solved_at
        self.rollout: rollout.Rollout | None = None

    async def play(self, talk: Talk) -> None:
        try:
            served = await self.served()
            self.rollout = rollout.Rollout(
                task=self.task,
                agent_config=AgentConfig(runtime=runtimes.SubprocessConfig()),
                harness=Loop(HarnessConfig(id="policy")),
                ctx=NOBODY,
                runtime_config=runtimes.SubprocessConfig(),
                timeouts=rollout.RolloutTimeouts(),
                limits=RolloutLimits(),
                shared_tools=served.tools,
                interception=Line(served.server, talk),
                runtime=NoBox(),
            )
            if await self.rollout.open():
                await self.rollout.step()
        except Exception as error:  # of code that we did not write: it may be anything
            raise crashed(error) from error
        if self.rollout.failure is not None:
            raise crashed(self.rollout.failure)

    async def judge(self) -> Facts:
        if self.rollout is None:
            raise EnvCrashed("the rollout has not begun")
        try:
            async with asyncio.timeout(SCORING_S):
                trace = await self.rollout.close()
        except TimeoutError:
            raise JudgeTimedOut(f"the task's rewards did not end within {SCORING_S:g} s") from None
        if (failure := self.rollout.failure) is not None:
            raise JudgeFailed(f"the task's rewards raised {type(failure).__name__}: {failure}") from failure
        return _facts(trace, self.solved_at)

    async def close(self) -> None:
        if self.rollout is not None and not self.rollout.closed:
            await self.rollout.abort()


class Hosted:
    """One episode of the package's own environment, whose only agent is the policy. Implements `Rollout`.

    It scores before it ends, so that what a reward raises ends the attempt as what the environment raises.
    """

    def __init__(self, env: Any, task: Any, served: Sharing, solved_at: float) -> None:
        self.env, self.task, self.served, self.solved_at = env, alone(task), served, solved_at
        self.trace: Any = None

    async def play(self, talk: Talk) -> None:
        try:
            served = await self.served()
            _HOST.set((Line(served.server, talk), served.tools))
            episode = await self.env.run_episode(self.task, NOBODY)
        except Exception as error:  # of code that we did not write: it may be anything
            raise crashed(error) from error
        errors = [*episode.errors, *(error for trace in episode.traces if not trace.ok for error in trace.errors)]
        if errors:
            raise EnvCrashed(f"the environment failed, {errors[0].type}: {' '.join(errors[0].message.split())[:200]}")
        if len(episode.traces) != 1:
            raise EnvCrashed(f"the environment had {len(episode.traces)} rollouts in one episode; expected one")
        self.trace = episode.traces[0]

    async def judge(self) -> Facts:
        return _facts(self.trace, self.solved_at)

    async def close(self) -> None:
        return None


_HOST: ContextVar[tuple[Line, Any]] = ContextVar("host")
"""Of the episode that is being played."""


def hosting(kind: type, agent: str) -> type:
    """An environment's class, whose agent of this name is played by the policy."""

    async def setup(self: Any, agents: Any) -> None:
        seat = getattr(agents, agent)
        seat.interception, tools = _HOST.get()
        seat.harness, seat.runtime_config = Loop(HarnessConfig(id="policy")), runtimes.SubprocessConfig()
        seat.run = functools.partial(seat.run, runtime=(box := NoBox()), tools=tools)
        seat.interaction = functools.partial(seat.interaction, runtime=box, tools=tools)
        await kind.setup(self, agents)  # type: ignore[attr-defined]

    return type(kind.__name__, (kind,), {"setup": setup, "__module__": kind.__module__})


def alone(task: Any) -> Any:
    """The task for one attempt, which may keep things on it. Its rewards are told that there is no runtime."""
    own = copy.copy(task)
    kind: Any = type(task)
    own.__class__ = _unboxed(kind)
    return own


@functools.cache
def _unboxed(kind: Any) -> Any:
    async def score(self: Any, trace: Any, runtime: Any = None) -> None:
        await kind.score(self, trace)

    return type(kind.__name__, (kind,), {"score": score, "__module__": kind.__module__})


def _facts(trace: Any, solved_at: float) -> Facts:
    parts = {name: None if one is None else float(one.score) for name, one in trace.rewards.items()}
    parts |= {name: None if value is None else float(value) for name, value in trace.metrics.items()}
    if wrong := [name for name, value in parts.items() if value is None or not math.isfinite(value)]:
        raise JudgeFailed(f"{', '.join(wrong)} gave no finite number")
    return {"solved": trace.reward >= solved_at, "reward": float(trace.reward), "parts": parts}
