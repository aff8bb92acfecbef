"""One attempt with given actions, as a rollout would play it: every call timed, all that comes back checked."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from envs import Env, Facts, JudgeFailed, JudgeTimedOut, MachineryError, Step, Task, World
from envs.sandboxes import ExecResult, Sandbox, SandboxError, SandboxPool, Snapshot

UNIT: ContextVar[tuple[Any, ...]] = ContextVar("unit", default=("", "", 0))
"""What is being played: phase, split and index. Several are at a time."""
MOST_CHARS = 200_000
"""Largest message or facts that a world may answer with."""
CANCEL_S = 1.0


class Fault(Exception):
    """Something wrong with a world: its kind (see `rl.check.KINDS`) and the plain words for this case."""

    def __init__(self, kind: str, words: str) -> None:
        super().__init__(words)
        self.kind, self.words = kind, words


@dataclass(slots=True)
class Played:
    solved: bool = False
    """False as well where the attempt ended before it was measured."""
    ended: str = ""
    """`measured`, `invalid`, or `turns` where the actions or the turns ran out."""
    heard: list[str] = field(default_factory=list)
    """What the world said, without the actions."""
    facts: Facts = field(default_factory=dict)


@dataclass(slots=True)
class Calls:
    """Calls into a world: announced before each, ended after `deadline_s`, their exceptions turned into faults."""

    announce: Callable[[str], None]
    deadline_s: float

    async def __call__(self, name: str, call: Callable[[], Awaitable[Any]]) -> Any:
        self.announce(name)
        task = asyncio.ensure_future(_awaited(call))
        done, _ = await asyncio.wait({task}, timeout=self.deadline_s)
        if not done:
            task.cancel()
            await asyncio.wait({task}, timeout=CANCEL_S)
            raise Fault("never-ends", f"{name} did not end within {self.deadline_s:g} s")
        return _result(name, task)

    def plain(self, name: str, call: Callable[[], Any]) -> Any:
        """A call that waits for nothing: where it never ends, the process that watches this one ends it."""
        self.announce(name)
        try:
            return call()
        except (Fault, SandboxError):
            raise
        except Exception as error:
            raise Fault("raises", f"{name} raised {_named(error)}") from None


async def _awaited(call: Callable[[], Awaitable[Any]]) -> Any:
    return await call()


def _result(name: str, task: asyncio.Future[Any]) -> Any:
    try:
        return task.result()
    except SandboxError:
        raise
    except (JudgeFailed, JudgeTimedOut) as error:
        kind = "data-error" if re.search(r"gold|problem's data", _named(error).lower()) else "judge-fails"
        raise Fault(kind, f"{name}: {_named(error)}") from None
    except asyncio.CancelledError:
        raise Fault("raises", f"{name} cancelled itself") from None
    except Exception as error:
        raise Fault("raises", f"{name} raised {_named(error)}") from None


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


class Attempt:
    """An env, opened, started and closed with care. `act` plays one action, `measured` ends it."""

    def __init__(self, calls: Calls, world: World, task: Task, pool: Pool) -> None:
        self.calls, self.pool, self.task = calls, pool, task
        self.turns = world.max_turns
        self.env: Env = calls.plain("open", lambda: world.open(task))
        self.played = Played()

    async def start(self) -> None:
        messages = await self.calls("start", self.env.start)
        self.played.heard += _messages("start", messages)

    async def act(self, action: str) -> bool:
        """True where the attempt goes on."""
        step = await self.calls("step", lambda: self.env.step(action))
        if not isinstance(step, Step):
            raise Fault("wrong-type", f"step answered with {type(step).__name__}; expected envs.Step")
        if type(step.done) is not bool or type(step.invalid) is not bool:
            raise Fault(
                "wrong-type", f"step answered done={step.done!r:.40}, invalid={step.invalid!r:.40}; expected bools"
            )
        self.played.heard += _messages("step", step.messages)
        self.turns -= 1
        if step.invalid:
            self.played.ended = "invalid"
        elif not step.done and self.turns <= 0:
            self.played.ended = "turns"
        return not step.done and not self.played.ended

    async def measured(self) -> None:
        facts = await self.calls("measure", self.env.measure)
        self.played.facts = _facts(facts)
        self.played.solved, self.played.ended = facts["solved"], "measured"

    async def close(self) -> None:
        for _ in range(2):  # it may be called more than once
            await self.calls("close", self.env.close)
        if kept := len(self.pool.own()):
            await self.pool.take_back()
            raise Fault("sandbox-kept", f"close kept {kept} sandbox{'es' * (kept > 1)} that the attempt had taken")


async def play(
    calls: Calls,
    world: World,
    task: Task,
    pool: Pool,
    actions: Sequence[str],
    repeat: bool = False,
    look: Callable[[], Awaitable[None]] | None = None,
) -> Played:
    """The actions in turn, the last again and again where `repeat`, until the world is done or the turns are spent.
    Before the last one, `look` is called: the attempt still has what it works in.
    """
    attempt = Attempt(calls, world, task, pool)
    try:
        await attempt.start()
        at, goes_on = 0, True
        while goes_on and (at < len(actions) or repeat):
            if look is not None and at == len(actions) - 1:
                await look()
            goes_on = await attempt.act(actions[min(at, len(actions) - 1)])
            at += 1
        if goes_on:
            attempt.played.ended = "turns"
        if not attempt.played.ended:
            await attempt.measured()
    except BaseException:
        await _quietly(attempt)
        raise
    await attempt.close()
    return attempt.played


async def _quietly(attempt: Attempt) -> None:
    """Close after a fault, which is what is told."""
    with contextlib.suppress(Fault, MachineryError):
        await attempt.close()


def _messages(call: str, messages: Any) -> list[str]:
    if not isinstance(messages, list | tuple):
        raise Fault("wrong-type", f"{call} answered with {type(messages).__name__} as messages; expected a sequence")
    for message in messages:
        whole = isinstance(message, Mapping) and all(isinstance(message.get(k), str) for k in ("role", "content"))
        if not whole:
            raise Fault("wrong-type", f"{call} gave the message {message!r:.80}; expected role and content as texts")
        if len(message["content"]) > MOST_CHARS:
            size = len(message["content"])
            raise Fault("huge-output", f"{call} gave a message of {size} characters; expected at most {MOST_CHARS}")
    return [message["content"] for message in messages]


def _facts(facts: Any) -> Facts:
    if not isinstance(facts, Mapping):
        raise Fault("wrong-type", f"measure answered with {type(facts).__name__}; expected a dict of facts")
    if type(facts.get("solved")) is not bool:
        raise Fault("wrong-type", f"measure says solved={facts.get('solved', 'nothing')!r:.40}; expected True or False")
    try:
        size = len(json.dumps(facts, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise Fault("not-json", f"the facts are no JSON: {' '.join(str(error).split())[:120]}") from None
    if size > MOST_CHARS:
        raise Fault("huge-output", f"measure gave facts of {size} characters; expected at most {MOST_CHARS}")
    return dict(facts)


class Pool:
    """A pool that knows what it has lent and to whom, and what worlds send there."""

    def __init__(self, pool: SandboxPool) -> None:
        self.pool = pool
        self.lent: set[Lent] = set()
        self.used = False
        self.watchers: dict[tuple[Any, ...], Callable[[bytes], None]] = {}
        """By what is being played: told of all that it sends into a sandbox."""

    async def acquire(self, snapshot: Snapshot | None = None, *, image: str | None = None) -> Sandbox:
        self.used = True
        if snapshot is not None:
            self.saw(snapshot.packed)
        lent = Lent(await self.pool.acquire(snapshot, image=image), self)
        self.lent.add(lent)
        return lent

    def __getattr__(self, name: str) -> Any:
        self.used = True
        return getattr(self.pool, name)

    def saw(self, data: bytes) -> None:
        if watcher := self.watchers.get(UNIT.get()):
            watcher(data)

    def own(self) -> list[Lent]:
        """Sandboxes lent to what is being played."""
        return [lent for lent in self.lent if lent.holder == UNIT.get()]

    async def take_back(self) -> None:
        for lent in self.own():
            await lent.close()

    async def close(self) -> None:
        await self.pool.close()


class Lent:
    """A sandbox of the pool, watched."""

    def __init__(self, sandbox: Sandbox, pool: Pool) -> None:
        self.sandbox, self.pool, self.holder = sandbox, pool, UNIT.get()

    async def exec(self, argv: Sequence[str] | str, **settings: Any) -> ExecResult:
        words = [argv] if isinstance(argv, str) else argv
        words = [*words, *(settings.get("env") or {}).values()]
        self.pool.saw("\n".join(words).encode(errors="replace"))
        self.pool.saw(settings.get("stdin", b""))
        return await self.sandbox.exec(argv, **settings)

    async def write(self, path: str, data: bytes) -> None:
        self.pool.saw(data)
        await self.sandbox.write(path, data)

    async def read(self, path: str, *, limit: int = 1024 * 1024) -> bytes:
        return await self.sandbox.read(path, limit=limit)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sandbox, name)

    async def close(self) -> None:
        self.pool.lent.discard(self)
        await self.sandbox.close()
