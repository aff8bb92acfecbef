"""An attempt at an environment that plays by itself and asks: its questions and the policy's answers cross here.

The history must only grow: what was said before cannot be taken back from a policy that has read it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from envs import EnvCrashed, Facts, Message, Step
from envs.tools import BadCall, Call, Tool, call, prompt

CLOSE_S = 60.0


@dataclass(frozen=True, slots=True)
class Said:
    """What the policy said, and the call of a tool that is in it."""

    text: str
    call: Call | None
    id: str
    """Of the call."""

    @property
    def arguments(self) -> str:
        """JSON."""
        return "" if self.call is None else json.dumps(dict(self.call.arguments))


class Talk:
    def __init__(self) -> None:
        self.asked: asyncio.Queue[tuple[list[Any], list[Any]]] = asyncio.Queue()
        self.answers: asyncio.Queue[Said] = asyncio.Queue()

    async def answer(self, messages: Sequence[Any], tools: Sequence[Any] | None) -> Said:
        """What the policy says to a conversation, as OpenAI's dicts or the package's own classes of them."""
        self.asked.put_nowait((list(messages), list(tools or [])))
        return await self.answers.get()


class Rollout(Protocol):
    """The environment's own, of one problem: classic.py, seat.py."""

    async def play(self, talk: Talk) -> None:
        """Until it asks no more. Raises EnvCrashed."""
        ...

    async def judge(self) -> Facts:
        """Raises JudgeFailed, JudgeTimedOut."""
        ...

    async def close(self) -> None: ...


class Attempt:
    """Implements `Env`."""

    def __init__(self, rollout: Rollout) -> None:
        self.rollout, self.talk = rollout, Talk()
        self.tools: dict[str, Tool] = {}
        self.read: list[Message] = []
        """All that has been said, as the environment tells it."""
        self.callers: dict[str, str] = {}
        """Names of tools by the id of their call."""
        self.turns = 0
        self.playing: asyncio.Task[None] | None = None

    async def start(self) -> Sequence[Message]:
        self.playing = asyncio.create_task(self.rollout.play(self.talk))
        asked = await self._asked()
        if asked is None:
            raise EnvCrashed("the environment ended before the policy could say anything")
        said, tools = asked
        self.tools = {tool.name: tool for tool in map(tool_of, tools)}
        self.read = [message_of(one, self.callers) for one in said]
        return merged(self.read, list(self.tools.values()))

    async def _asked(self) -> tuple[list[Any], list[Any]] | None:
        """What the policy is asked next; None where the environment is done."""
        assert self.playing is not None
        question = asyncio.create_task(self.talk.asked.get())
        try:
            await asyncio.wait({question, self.playing}, return_when=asyncio.FIRST_COMPLETED)
            if question.done():
                return question.result()
        finally:
            question.cancel()
        if self.playing.cancelled():  # by a library that it uses: nobody here has
            raise EnvCrashed("the environment raised CancelledError")
        self.playing.result()
        return None

    async def step(self, action: str) -> Step:
        try:
            asked = self._called(action)
        except BadCall:
            return Step(done=True, invalid=True)
        self.turns += 1
        said = Said(action, asked, f"call_{self.turns}")
        if asked is not None:
            self.callers[said.id] = asked.name
        self.talk.answers.put_nowait(said)
        began = time.monotonic()
        question = await self._asked()
        seconds = time.monotonic() - began
        if question is None:
            return Step(done=True, seconds=seconds)
        told = [message_of(one, self.callers) for one in question[0]]
        known = len(self.read)
        if told[:known] != self.read or len(told) <= known or told[known]["role"] != "assistant":
            raise EnvCrashed("the environment changed what was said before; expected a conversation that only grows")
        self.read = told
        return Step(messages=tuple(told[known + 1 :]), seconds=seconds)

    def _called(self, action: str) -> Call | None:
        """The tool call in an action; arguments that do not fit are the environment's to complain of."""
        if not self.tools:
            return None
        try:
            return call(action, self.tools)
        except BadCall as wrong:
            if wrong.tool not in self.tools:
                raise
            return call(action, {name: Tool(name, "", {"type": "object"}) for name in self.tools})

    async def measure(self) -> Facts:
        if self.playing is None or not self.playing.done():
            return {"solved": False}
        return {**await self.rollout.judge(), "turns": self.turns}

    async def close(self) -> None:
        playing, self.playing = self.playing, None
        if playing is not None and not playing.done():
            playing.cancel()
            await asyncio.wait({playing}, timeout=CLOSE_S)
        await self.rollout.close()


def crashed(error: BaseException) -> EnvCrashed:
    cause = error.__cause__ or error
    return EnvCrashed(f"the environment raised {type(cause).__name__}: {' '.join(str(cause).split())[:200]}")


def merged(said: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
    """Messages with what tells of the tools in the one system message before them."""
    if not tools:
        return list(said)
    if said and said[0]["role"] == "system":
        return [{"role": "system", "content": f"{said[0]['content']}\n\n{prompt(tools)}"}, *said[1:]]
    return [{"role": "system", "content": prompt(tools)}, *said]


def tool_of(tool: Any) -> Tool:
    return Tool.read(tool if isinstance(tool, dict) else tool.model_dump())


def message_of(said: Any, callers: Mapping[str, str]) -> Message:
    """A message of the package's as one of ours. `callers`: names of tools by the id of their call."""
    fields = said if isinstance(said, dict) else said.model_dump()
    message = {"role": str(fields["role"]), "content": _text(fields.get("content"))}
    if fields["role"] == "tool":
        message["name"] = callers.get(fields.get("tool_call_id", ""), "tool")
    return message


def _text(content: Any) -> str:
    if isinstance(content, str) or content is None:
        return content or ""
    parts = [part if isinstance(part, dict) else part.model_dump() for part in content]
    return "\n".join(part["text"] if part.get("type") == "text" else f"[{part.get('type')} left out]" for part in parts)
