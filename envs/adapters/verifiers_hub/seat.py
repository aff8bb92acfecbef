"""v1: the package's own rollout of a task, with the policy in the seat of the agent.

The package serves the tools (MCP over HTTP, a process for each toolset of a task and each attempt), keeps the state they
share with the task, runs set-up, stops and rewards, and records the trace. In the place of its harness, a program in a
container, stands a loop in this process that lets the policy talk and calls the tools it asks for.
"""

from __future__ import annotations

import asyncio
import copy
import json
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
from verifiers.v1 import rollout, runtimes
from verifiers.v1.clients import EvalClientConfig, ModelContext
from verifiers.v1.configs.agent import AgentConfig
from verifiers.v1.configs.harness import HarnessConfig
from verifiers.v1.dialects.chat import message_to_wire
from verifiers.v1.errors import SandboxError
from verifiers.v1.harness import Harness
from verifiers.v1.interception import InterceptionServer
from verifiers.v1.mcp import serve_shared
from verifiers.v1.session import RolloutLimits

from envs import EnvCrashed, Facts, JudgeFailed, JudgeTimedOut
from envs.adapters.verifiers_hub.turns import CLOSE_S, Said, Talk, crashed

try:
    from verifiers.v1.harnesses.utils.mcp import call_mcp, connect_mcp
except ModuleNotFoundError:  # before 0.4
    from verifiers.v1.harnesses.null.program import call_mcp
    from verifiers.v1.harnesses.null.program import connect_mcp as _connect

    async def connect_mcp(config: Any, stack: Any) -> Any:
        return await _connect(config)


LISTED_S = 60.0
SCORING_S = 600.0
NOBODY = EvalClientConfig(base_url="http://127.0.0.1:9/v1", api_key_var="VERIFIERS_HUB_NO_KEY")
"""The endpoint of a model, which is never asked."""


class Policy:
    """The model as the package's server sees it. Implements the package's `Client`."""

    def __init__(self, talk: Talk) -> None:
        self.talk = talk

    async def get_response(self, dialect: Any, body: dict[str, Any], *_: Any, **__: Any) -> Any:
        raw = _completion(await self.talk.answer(body["messages"], body.get("tools")))
        response = dialect.parse_response(dialect.validate_response(raw))
        response.raw = raw
        return response


def _completion(said: Said) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": said.text}
    if said.call is not None:
        function = {"name": said.call.name, "arguments": said.arguments}
        message["tool_calls"] = [{"id": said.id, "type": "function", "function": function}]
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if said.call else "stop"}
    return {"id": said.id, "object": "chat.completion", "created": 0, "model": "policy", "choices": [choice]}


class Line:
    """The package's server for one rollout, on which the policy answers. Implements its `Interception`, as borrowed."""

    def __init__(self, server: InterceptionServer, talk: Talk) -> None:
        self.server, self.policy = server, Policy(talk)

    @asynccontextmanager
    async def acquire(self, session: Any) -> AsyncIterator[Any]:
        async with self.server.acquire(session) as slot:
            session.client = self.policy
            yield slot


class NoBox(runtimes.Runtime):
    """In the place of a container: nothing runs in it, and nothing is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.config, self.info = runtimes.SubprocessConfig(), runtimes.SubprocessRuntimeInfo()

    async def start(self) -> None:
        return None

    async def run(self, argv: list[str], env: dict[str, str]) -> Any:
        raise SandboxError(f"the task's code runs {argv[:1]} in a container; expected it to need none")

    async def _read(self, path: str, *_: Any, **__: Any) -> bytes:
        raise SandboxError(f"the task's code reads {path!r} from a container; expected it to need none")

    async def write(self, path: str, data: bytes) -> None:
        raise SandboxError(f"the task's code writes {path!r} into a container; expected it to need none")


class Loop(Harness[HarnessConfig]):
    """Asks the policy and calls the tools it asks for, until it says something without a call."""

    APPENDS_SYSTEM_PROMPT = SUPPORTS_MCP = True
    EXECUTES_CODE = NEEDS_CONTAINER = False

    async def launch(
        self,
        ctx: Any,
        trace: Any,
        runtime: Any,
        endpoint: str,
        secret: str,
        mcp_urls: Mapping[str, str],
        data: Any,
        **_: Any,
    ) -> Any:
        system, prompt = self.resolve_prompt(data)
        said = [] if system is None else [{"role": "system", "content": system}]
        opening = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else map(message_to_wire, prompt)
        said += opening
        servers = {name: {"url": url, "timeout": self.config.tool_timeout} for name, url in mcp_urls.items()}
        headers = {"Authorization": f"Bearer {secret}"}
        async with AsyncExitStack() as stack:
            http = await stack.enter_async_context(httpx.AsyncClient(timeout=None, headers=headers))
            async with asyncio.timeout(LISTED_S):
                tools, known, connected = await connect_mcp({"mcpServers": servers}, stack)
            while True:
                question = {"model": "policy", "messages": said, **({"tools": tools} if tools else {})}
                answer = await http.post(f"{endpoint}/chat/completions", json=question)
                if answer.is_error:
                    raise RuntimeError(f"the rollout takes no further turn: {answer.text[:200]}")
                message = answer.json()["choices"][0]["message"]
                said.append(message)
                if not message.get("tool_calls"):
                    return runtimes.ProgramResult(exit_code=0, stdout="", stderr="")
                said += [await self._result(one, known, connected) for one in message["tool_calls"]]

    async def _result(self, asked: Mapping[str, Any], known: Any, connected: Any) -> dict[str, Any]:
        name, arguments = asked["function"]["name"], asked["function"]["arguments"]
        try:
            async with asyncio.timeout(self.config.tool_timeout):
                content = await call_mcp(connected, known, name, json.loads(arguments))
        except TimeoutError:
            raise RuntimeError(f"the tool {name} gave no answer within {self.config.tool_timeout:g} s") from None
        return {"role": "tool", "tool_call_id": asked["id"], "content": content}


class Served:
    """What the attempts of one event loop share: the package's server, and the tools of the whole taskset.

    A task of its own holds them, and gives them up when it or the loop ends.
    """

    def __init__(self, toolsets: Sequence[Any]) -> None:
        self.loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[tuple[Any, Any]] = self.loop.create_future()
        self.task = asyncio.create_task(self._hold(toolsets))

    async def _hold(self, toolsets: Sequence[Any]) -> None:
        async with serve_shared(list(toolsets)) as tools:
            secrets = tuple(tool.state_secret for tool in tools.values() if tool.state_secret)
            async with InterceptionServer(state_service_secrets=secrets) as server:
                self.ready.set_result((server, tools))
                await asyncio.Event().wait()

    async def parts(self) -> tuple[Any, Any]:
        await asyncio.wait({self.ready, self.task}, return_when=asyncio.FIRST_COMPLETED)
        if not self.ready.done():
            self.task.result()
        return self.ready.result()

    async def close(self) -> None:
        if self.loop is asyncio.get_running_loop():
            self.task.cancel()
            await asyncio.wait({self.task}, timeout=CLOSE_S)


class Seat:
    """One rollout. Implements `Rollout`."""

    def __init__(self, kind: Any, task: Any, solved_at: float) -> None:
        self.kind, self.solved_at = kind, solved_at
        self.task = _alone(task)
        self.rollout: rollout.Rollout | None = None

    async def play(self, talk: Talk) -> None:
        try:
            server, tools = await self.kind.served()
            self.rollout = rollout.Rollout(
                task=self.task,
                agent_config=AgentConfig(runtime=runtimes.SubprocessConfig()),
                harness=Loop(HarnessConfig(id="policy")),
                ctx=ModelContext(model="policy", client=NOBODY),
                runtime_config=runtimes.SubprocessConfig(),
                timeouts=rollout.RolloutTimeouts(),
                limits=RolloutLimits(),
                shared_tools=tools,
                interception=Line(server, talk),
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
        parts = {name: None if one is None else float(one.score) for name, one in trace.rewards.items()}
        parts |= {name: None if value is None else float(value) for name, value in trace.metrics.items()}
        if wrong := [name for name, value in parts.items() if value is None or not math.isfinite(value)]:
            raise JudgeFailed(f"{', '.join(wrong)} gave no finite number")
        return {"solved": trace.reward >= self.solved_at, "reward": float(trace.reward), "parts": parts}

    async def close(self) -> None:
        if self.rollout is not None and not self.rollout.closed:
            await self.rollout.abort()


def _alone(task: Any) -> Any:
    """The task for one attempt, which may keep things on it. Its rewards are told that there is no runtime."""
    own = copy.copy(task)

    async def score(trace: Any, runtime: Any = None) -> None:
        await type(own).score(own, trace)

    own.score = score
    return own
