"""v0: the environment's own rollout runs, with a client in the place of a model that asks the policy.

So whatever an environment does between turns happens as its author wrote it: tools, state, stops, clean-up. The history
must only grow: what was said before cannot be taken back from a policy that has read it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from types import ModuleType
from typing import Any

import verifiers as vf
from verifiers import types

from envs import Env, EnvCrashed, Facts, JudgeFailed, Message, Step, Task
from envs.adapters.verifiers_hub import merged
from envs.tools import BadCall, Call, Tool, call, prompt

SCORING_S = 600.0
_RAISED: ContextVar[list[str] | None] = ContextVar("raised", default=None)
"""What reward functions of the attempt that is being scored have raised."""


class Classic:
    """Implements `Kind`."""

    def __init__(self, module: ModuleType, environment: str, args: dict[str, Any]) -> None:
        with _signals_kept():
            self.env = module.load_environment(**args)
        if not isinstance(self.env, vf.MultiTurnEnv):
            raise ValueError(
                f"environment {environment!r} is a {type(self.env).__name__}; expected a MultiTurnEnv, as "
                "SingleTurnEnv and ToolEnv are"
            )
        self.rubric = self.env.rubric
        if self.rubric.has_group_rewards:
            raise ValueError(f"environment {environment!r} has rewards of whole groups, which no attempt has alone")
        for rubric in _rubrics(self.rubric):
            rubric.funcs = [_watched(func) for func in rubric.funcs]
        limit = self.env.max_turns
        self.max_turns = limit if limit > 0 else None

    def rows(self) -> tuple[list[Any], list[Any] | None]:
        self.env.build_eval_dataset()
        held = None if self.env.eval_dataset is None else list(self.env.get_eval_dataset())
        with contextlib.suppress(ValueError):  # there is none
            return list(self.env.get_dataset()), held
        return [], held

    def seen(self, row: Any) -> tuple[list[Message], str]:
        said = row["prompt"]
        said = [{"role": "user", "content": said}] if isinstance(said, str) else said
        info = row.get("info") or {}
        info = json.loads(info) if isinstance(info, str) else info
        tools = [_tool(tool) for tool in info.get("tool_defs") or self.env.tool_defs or []]
        answer = row.get("answer")
        return merged([_message(one, {}) for one in said], prompt(tools) if tools else ""), str(answer or "")

    def told(self, row: Any) -> Mapping[str, Any]:
        return {name: value for name, value in row.items() if name != "example_id"}

    def open(self, task: Task, row: Any, solved_at: float) -> Env:
        return Attempt(self, task, row, solved_at)


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """The package takes Ctrl-C for itself when loaded, which only a main thread may, and a run has its own way."""
    known = signal.signal
    signal.signal = lambda number, handler: signal.getsignal(number)  # type: ignore[assignment]
    try:
        yield
    finally:
        signal.signal = known


def _rubrics(rubric: Any) -> Iterator[Any]:
    """All that are in a rubric, itself included."""
    yield rubric
    for inner in getattr(rubric, "rubrics", ()):
        yield from _rubrics(inner)


def _watched(func: Callable[..., Any]) -> Callable[..., Any]:
    """A reward function whose failure is heard of: the rubric takes it for a 0."""
    name = getattr(func, "__name__", repr(func))

    def number(result: Any) -> Any:
        if not math.isfinite(float(result)):
            raise ValueError(f"got {result}; expected a finite number")
        return result

    def noted(error: Exception) -> None:
        if (raised := _RAISED.get()) is not None:
            raised.append(f"{name} raised {type(error).__name__}: {' '.join(str(error).split())[:200]}")

    async def awaited(result: Any) -> Any:
        try:
            return number(await result)
        except Exception as error:
            noted(error)
            raise

    @functools.wraps(func)
    def watched(*args: Any, **kwargs: Any) -> Any:
        try:
            result = func(*args, **kwargs)
            return awaited(result) if inspect.isawaitable(result) else number(result)
        except Exception as error:
            noted(error)
            raise

    return watched


def _tool(tool: Any) -> Tool:
    return Tool.read(tool if isinstance(tool, dict) else tool.model_dump())


def _text(content: Any) -> str:
    if isinstance(content, str) or content is None:
        return content or ""
    parts = [part if isinstance(part, dict) else part.model_dump() for part in content]
    return "\n".join(part["text"] if part.get("type") == "text" else f"[{part.get('type')} left out]" for part in parts)


def _message(said: Any, callers: Mapping[str, str]) -> Message:
    """A message of the package's as one of ours. `callers`: names of tools by the id of their call."""
    fields = said if isinstance(said, dict) else said.model_dump()
    message = {"role": str(fields["role"]), "content": _text(fields.get("content"))}
    if fields["role"] == "tool":
        message["name"] = callers.get(fields.get("tool_call_id", ""), "tool")
    return message


class Policy(vf.Client):
    """The model as the environment sees it: a question goes out, and the answer is waited for."""

    def __init__(self) -> None:
        super().__init__(None)
        self.asked: asyncio.Queue[tuple[list[Any], list[Any]]] = asyncio.Queue()
        self.answers: asyncio.Queue[Any] = asyncio.Queue()

    async def get_response(self, prompt: Any, model: str, sampling_args: Any, tools: Any = None, **_: Any) -> Any:
        self.asked.put_nowait((list(prompt), list(tools or [])))
        return await self.answers.get()

    def setup_client(self, config: Any) -> None:
        return None

    async def close(self) -> None:
        return None

    async def _unused(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("the policy's answers come ready from get_response")

    to_native_tool = to_native_prompt = get_native_response = _unused
    raise_from_native_response = from_native_response = _unused


class Attempt:
    def __init__(self, kind: Classic, task: Task, row: Any, solved_at: float) -> None:
        self.kind, self.task, self.row, self.solved_at = kind, task, row, solved_at
        self.policy = Policy()
        self.tools: dict[str, Tool] = {}
        self.read: list[Message] = []
        """All that has been said, as the environment tells it."""
        self.callers: dict[str, str] = {}
        self.turns = 0
        self.playing: asyncio.Task[Any] | None = None

    async def start(self) -> Sequence[Message]:
        self.playing = asyncio.create_task(self.kind.env.rollout(dict(self.row), self.policy, "policy", {}))
        asked = await self._asked()
        if asked is None:
            raise EnvCrashed("the environment ended before the policy could say anything")
        said, tools = asked
        self.tools = {tool.name: tool for tool in map(_tool, tools)}
        self.read = [_message(one, self.callers) for one in said]
        return merged(self.read, prompt(list(self.tools.values())) if self.tools else "")

    async def _asked(self) -> tuple[list[Any], list[Any]] | None:
        """What the policy is asked next; None where the environment is done."""
        assert self.playing is not None
        question = asyncio.create_task(self.policy.asked.get())
        try:
            await asyncio.wait({question, self.playing}, return_when=asyncio.FIRST_COMPLETED)
            if question.done():
                return question.result()
        finally:
            question.cancel()
        error = self.playing.exception() or self.playing.result().get("error")
        if error is not None:
            cause = error.__cause__ or error
            raise EnvCrashed(f"the environment raised {type(cause).__name__}: {' '.join(str(cause).split())[:200]}")
        return None

    async def step(self, action: str) -> Step:
        try:
            asked = self._called(action)
        except BadCall:
            return Step(done=True, invalid=True)
        self.turns += 1
        self.policy.answers.put_nowait(self._response(action, asked))
        began = time.monotonic()
        question = await self._asked()
        seconds = time.monotonic() - began
        if question is None:
            return Step(done=True, seconds=seconds)
        said = [_message(one, self.callers) for one in question[0]]
        known = len(self.read)
        if said[:known] != self.read or len(said) <= known or said[known]["role"] != "assistant":
            raise EnvCrashed("the environment changed what was said before; expected a conversation that only grows")
        self.read = said
        return Step(messages=tuple(said[known + 1 :]), seconds=seconds)

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

    def _response(self, action: str, asked: Call | None) -> Any:
        calls = None
        if asked is not None:
            number = f"call_{self.turns}"
            self.callers[number] = asked.name
            calls = [types.ToolCall(id=number, name=asked.name, arguments=json.dumps(dict(asked.arguments)))]
        message = types.ResponseMessage(
            content=action, tool_calls=calls, finish_reason="tool_calls" if calls else "stop", is_truncated=False
        )
        return types.Response(id=f"turn_{self.turns}", created=0, model="policy", message=message)

    async def measure(self) -> Facts:
        if self.playing is None or not self.playing.done():
            return {"solved": False}
        state = self.playing.result()
        raised: list[str] = []
        kept = _RAISED.set(raised)
        try:
            async with asyncio.timeout(SCORING_S):
                await self.kind.rubric.score_rollout(state)
                await self.kind.rubric.cleanup(state)
        except Exception as error:
            raise JudgeFailed(f"the rubric raised {type(error).__name__}: {error}") from error
        finally:
            _RAISED.reset(kept)
        if raised:
            raise JudgeFailed("; ".join(raised))
        reward = float(state["reward"])
        parts = {name: float(value) for name, value in (state["metrics"] or {}).items()}
        return {"solved": reward >= self.solved_at, "reward": reward, "parts": parts, "turns": self.turns}

    async def close(self) -> None:
        playing, self.playing = self.playing, None
        if playing is not None and not playing.done():
            playing.cancel()
            await asyncio.wait({playing}, timeout=60)
