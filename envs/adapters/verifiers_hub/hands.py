"""v1: in the place of an agent, a loop in this process that lets the policy talk and calls the tools it asks for.

The package's own harness is a program in a container. Of its parts this needs the server that records the turns, which
is asked as by any program, the client that calls tools over MCP, and a runtime, of which there is none.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
from verifiers.v1 import runtimes
from verifiers.v1.configs.harness import HarnessConfig
from verifiers.v1.dialects.chat import message_to_wire
from verifiers.v1.errors import SandboxError
from verifiers.v1.harness import Harness
from verifiers.v1.interception import InterceptionServer

from envs.adapters.verifiers_hub.turns import Said, Talk

try:
    from verifiers.v1.harnesses.utils.mcp import call_mcp, connect_mcp
except ModuleNotFoundError:  # before 0.4
    from verifiers.v1.harnesses.null.program import call_mcp
    from verifiers.v1.harnesses.null.program import connect_mcp as _connect

    async def connect_mcp(config: Any, stack: Any) -> Any:
        return await _connect(config)


LISTED_S = 60.0


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

    APPENDS_SYSTEM_PROMPT = SUPPORTS_MCP = SUPPORTS_RESUME = True
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
            http = await stack.enter_async_context(httpx.AsyncClient(timeout=None, headers=headers, trust_env=False))
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
