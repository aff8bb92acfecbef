"""Tools of an MCP server over stdio, for questions with known answers out of a file of rows (envs/rows).

    worlds:
      warehouse:
        world: mcp
        args: {server: "python warehouse.py", tasks: questions.jsonl}

The server is the user's own, trusted program: it runs on this machine with their rights, not in a sandbox, and what the
policy says reaches it as arguments. Every attempt starts one of its own at its first call, so that no state is shared.
One that dies is the machinery's failure. The tools' schemas stand before each question; the answer goes into
`\\boxed{...}` and is compared as text, or as in envs/math.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shlex
import tempfile
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Literal

from mcp import Client, MCPError, StdioServerParameters, stdio_client
from mcp_types import CONNECTION_CLOSED

from envs import Env, EnvCrashed, Facts, Message, Split, Step, Task
from envs.math.judge import Judge
from envs.math.text import MAX_CHARS, extract
from envs.rows import tasks as rows
from envs.sandboxes import SandboxPool
from envs.tools import BadCall, Call, Tool, call, prompt

START_S = 60.0
"""For a server to start and say which tools it has; and for it to end."""
ASK = "Use the tools, one call at a time, then answer in \\boxed{}."


class World:
    """`server`: a command line, without a shell. `tools`: the names of those that are offered, all by default.
    `compare`: how an answer is compared with those of its row: `exact`, as text without spaces around it, or `math`.
    """

    name = "mcp"

    def __init__(
        self,
        sandboxes: SandboxPool,
        *,
        server: str,
        tasks: str,
        seed: int = 0,
        tools: Sequence[str] | None = None,
        env: Mapping[str, str] | None = None,
        compare: Literal["exact", "math"] = "exact",
        answer_marker: str = "",
        max_turns: int = 8,
        call_timeout_s: float = 30.0,
        observation_chars: int = 2000,
    ) -> None:
        if compare not in ("exact", "math"):
            raise ValueError(f"world mcp: got compare={compare!r}; available: exact, math")
        if max_turns < 1 or call_timeout_s <= 0 or observation_chars < 1:
            got = f"max_turns={max_turns}, call_timeout_s={call_timeout_s}, observation_chars={observation_chars}"
            raise ValueError(f"world mcp: got {got}; expected more than 0 of each")
        command = shlex.split(server)
        if not command:
            raise ValueError("world mcp: got an empty `server`; expected the command line of an MCP server")
        self.server = StdioServerParameters(command=command[0], args=command[1:], env=dict(env or {}))
        self.tools = _chosen(_listed(self.server), tools)
        self.stream = rows.Stream("math", tasks, seed, ask=ASK)
        self.judge = Judge(sandboxes) if compare == "math" else None
        self.answer_marker, self.max_turns = answer_marker, max_turns
        self.call_timeout_s, self.observation_chars = call_timeout_s, observation_chars

    def task(self, split: Split, index: int) -> Task:
        task = self.stream.task(split, index)
        told = {"role": "system", "content": prompt(list(self.tools.values()))}
        return replace(task, world=self.name, messages=(told, *task.messages))

    def size(self, split: Split) -> int:
        return self.stream.size(split)

    def open(self, task: Task) -> Env:
        return McpEnv(task, self)

    def demonstrate(self, task: Task, rng: random.Random, *, err: bool) -> list[Message]:
        """The answer, or another one, without a call: nobody wrote down which calls lead to it."""
        return rows.demonstrate_math(task, rng, err=err)

    async def verdict(self, task: Task, answer: str) -> str:
        if self.judge is not None:
            return str(await rows.judging(self.judge, task).verdict(answer, task.hidden["answer"]))
        return "right" if answer.strip() in map(str.strip, task.hidden["answers"]) else "wrong"

    async def close(self) -> None:
        if self.judge is not None:
            await self.judge.close()


def _listed(server: StdioServerParameters) -> list[Tool]:
    """The server's tools: it is started and ended once, on a loop of its own, for there may be one here already."""

    async def ask() -> list[Tool]:
        running = Server(server)
        try:
            return await running.tools(START_S)
        finally:
            await running.close()

    try:
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, ask()).result()
    except EnvCrashed as problem:
        raise ValueError(f"world mcp: {problem}") from None


def _chosen(found: Sequence[Tool], names: Sequence[str] | None) -> dict[str, Tool]:
    tools = {tool.name: tool for tool in found}
    if unknown := set(names or ()) - tools.keys():
        raise ValueError(f"world mcp: got tools {sorted(unknown)}; available: {', '.join(tools) or 'none'}")
    return {name: tools[name] for name in (tools if names is None else names)}


class Server:
    """One running server. A task of its own holds the connection: whoever calls may come from any task of the loop."""

    def __init__(self, server: StdioServerParameters) -> None:
        self._asked: asyncio.Queue[tuple[Callable[[Client], Coroutine[Any, Any, Any]], asyncio.Future[Any]]] = (
            asyncio.Queue()
        )
        self._command = " ".join([server.command, *server.args])
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._ended = ""
        self._task = asyncio.create_task(self._run(server))

    async def _run(self, server: StdioServerParameters) -> None:
        try:
            async with Client(stdio_client(server, errlog=self._said)) as client:
                while True:
                    work, answer = await self._asked.get()
                    try:
                        result = await work(client)
                    except Exception as problem:  # the asker's to deal with
                        if not answer.done():
                            answer.set_exception(problem)
                    else:
                        if not answer.done():
                            answer.set_result(result)
        except (Exception, BaseExceptionGroup) as problem:  # of a program that we did not write: it may be anything
            self._ended = _innermost(problem)

    async def _ask(self, work: Callable[[Client], Coroutine[Any, Any, Any]], within_s: float) -> Any:
        """Raises EnvCrashed where the server is gone, TimeoutError where it is silent, MCPError where it refuses."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked.put_nowait((work, answer))
        done, _ = await asyncio.wait({answer, self._task}, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
        if answer not in done:
            answer.cancel()
            if self._task in done:
                raise EnvCrashed(f"the MCP server `{self._command}` ended ({self._ended}); it said: {self._last()}")
            raise TimeoutError
        try:
            return answer.result()
        except MCPError as problem:
            if problem.code == CONNECTION_CLOSED:
                raise EnvCrashed(f"the MCP server `{self._command}` ended; it said: {self._last()}") from problem
            raise

    def _last(self) -> str:
        """The last line on its stderr, whose place in the file stays where the server has it."""
        size = os.fstat(self._said.fileno()).st_size
        data = os.pread(self._said.fileno(), 4000, max(0, size - 4000))
        lines = data.decode(errors="replace").strip().splitlines()
        return lines[-1][:200] if lines else "nothing"

    async def tools(self, within_s: float) -> list[Tool]:
        """Raises EnvCrashed."""

        async def ask(client: Client) -> list[Tool]:
            found: list[Tool] = []
            page = await client.list_tools()
            while True:
                found += [Tool(tool.name, tool.description or "", tool.input_schema) for tool in page.tools]
                if not page.next_cursor:
                    return found
                page = await client.list_tools(cursor=page.next_cursor)

        try:
            tools: list[Tool] = await self._ask(ask, within_s)
        except TimeoutError:
            raise EnvCrashed(
                f"the MCP server `{self._command}` did not say within {within_s:g} s what it has"
            ) from None
        except MCPError as problem:
            raise EnvCrashed(f"the MCP server `{self._command}` does not list its tools: {problem}") from problem
        return tools

    async def call(self, asked: Call, within_s: float) -> tuple[str, float]:
        """What a tool answers, or why it does not, and the seconds it took. Raises EnvCrashed if the server ended."""
        began = 0.0

        async def ask(client: Client) -> Any:
            nonlocal began
            began = time.monotonic()
            return await client.call_tool(asked.name, dict(asked.arguments), read_timeout_seconds=within_s)

        try:
            result = await self._ask(ask, START_S + within_s)  # the first call finds it starting
            text = _told(result)
        except MCPError as problem:
            text = f"error: {problem}"
        return text, time.monotonic() - began

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait({self._task}, timeout=START_S)
        self._said.close()


def _told(result: Any) -> str:
    text = "\n".join(part.text if part.type == "text" else f"[{part.type} left out]" for part in result.content)
    if not text and result.structured_content is not None:
        text = json.dumps(result.structured_content, ensure_ascii=False)
    return f"error: {text}" if result.is_error else text or "no output"


def _innermost(problem: BaseException) -> str:
    while isinstance(problem, BaseExceptionGroup):
        problem = problem.exceptions[0]
    return f"{type(problem).__name__}: {' '.join(str(problem).split())[:200]}"


class McpEnv:
    def __init__(self, task: Task, world: World) -> None:
        self.task, self.world = task, world
        self.server: Server | None = None
        self.last_action = ""
        self.calls = self.refused = 0

    async def start(self) -> Sequence[Message]:
        return self.task.messages

    async def step(self, action: str) -> Step:
        self.last_action = action
        try:
            asked = call(action, self.world.tools)
        except BadCall as wrong:
            self.refused += 1
            if not wrong.tool:
                return Step(done=True, invalid=True)
            return Step(messages=({"role": "tool", "name": wrong.tool, "content": f"error: {wrong}"},))
        if asked is None:
            return Step(done=True)
        self.calls += 1
        self.server = self.server or Server(self.world.server)
        try:
            text, seconds = await self.server.call(asked, self.world.call_timeout_s)
        except TimeoutError:
            raise EnvCrashed(f"the MCP server did not answer a call of {asked.name}, not even too late") from None
        limit = self.world.observation_chars
        if cut := max(0, len(text) - limit):
            text = f"{text[: limit - limit // 2]}\n[{cut} characters left out]\n{text[len(text) - limit // 2 :]}"
        said = {"role": "tool", "name": asked.name, "content": text}
        return Step(messages=(said,), seconds=seconds)

    async def measure(self) -> Facts:
        answer = extract(self.last_action, self.world.answer_marker)
        verdict = "no_answer" if answer is None else await self.world.verdict(self.task, answer)
        counts = {"tool_uses": self.calls, "refused_calls": self.refused}
        kept = answer and answer[: 2 * MAX_CHARS]
        return {"solved": verdict == "right", "verdict": verdict, "answer": kept, **counts}

    async def close(self) -> None:
        server, self.server = self.server, None
        if server is not None:
            await server.close()
