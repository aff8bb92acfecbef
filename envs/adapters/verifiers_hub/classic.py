"""v0: the environment's own rollout runs, with a client in the place of a model that asks the policy.

So whatever an environment does between turns happens as its author wrote it: tools, state, stops, clean-up.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import json
import math
import signal
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from types import ModuleType
from typing import Any

import verifiers as vf
from verifiers import types

from envs import Facts, JudgeFailed, Message
from envs.adapters.verifiers_hub.turns import Attempt, Said, Talk, crashed, merged, message_of, tool_of

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
        tools = [tool_of(tool) for tool in info.get("tool_defs") or self.env.tool_defs or []]
        return merged([message_of(one, {}) for one in said], tools), str(row.get("answer") or "")

    def told(self, row: Any) -> Mapping[str, Any]:
        return {name: value for name, value in row.items() if name != "example_id"}

    def open(self, row: Any, solved_at: float) -> Attempt:
        return Attempt(Rollout(self, row, solved_at))

    async def close(self) -> None:
        return None


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


class Policy(vf.Client):
    """The model as the environment sees it: a question goes out, and the answer is waited for."""

    def __init__(self, talk: Talk) -> None:
        super().__init__(None)
        self.talk = talk

    async def get_response(self, prompt: Any, model: str, sampling_args: Any, tools: Any = None, **_: Any) -> Any:
        said = await self.talk.answer(prompt, tools)
        return types.Response(id=said.id, created=0, model="policy", message=_response(said))

    def setup_client(self, config: Any) -> None:
        return None

    async def close(self) -> None:
        return None

    async def _unused(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("the policy's answers come ready from get_response")

    to_native_tool = to_native_prompt = get_native_response = _unused
    raise_from_native_response = from_native_response = _unused


def _response(said: Said) -> Any:
    calls = said.call and [types.ToolCall(id=said.id, name=said.call.name, arguments=said.arguments)]
    return types.ResponseMessage(
        content=said.text, tool_calls=calls, finish_reason="tool_calls" if calls else "stop", is_truncated=False
    )


class Rollout:
    def __init__(self, kind: Classic, row: Any, solved_at: float) -> None:
        self.kind, self.row, self.solved_at = kind, row, solved_at
        self.state: Any = None

    async def play(self, talk: Talk) -> None:
        try:
            self.state = await self.kind.env.rollout(dict(self.row), Policy(talk), "policy", {})
        except Exception as error:  # of code that we did not write: it may be anything
            raise crashed(error) from error
        if self.state.get("error") is not None:
            raise crashed(self.state["error"])

    async def judge(self) -> Facts:
        raised: list[str] = []
        kept = _RAISED.set(raised)
        try:
            async with asyncio.timeout(SCORING_S):
                await self.kind.rubric.score_rollout(self.state)
                await self.kind.rubric.cleanup(self.state)
        except Exception as error:
            raise JudgeFailed(f"the rubric raised {type(error).__name__}: {error}") from error
        finally:
            _RAISED.reset(kept)
        if raised:
            raise JudgeFailed("; ".join(raised))
        reward = float(self.state["reward"])
        parts = {name: float(value) for name, value in (self.state["metrics"] or {}).items()}
        return {"solved": reward >= self.solved_at, "reward": reward, "parts": parts}

    async def close(self) -> None:
        return None
