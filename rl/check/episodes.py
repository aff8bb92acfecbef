"""One attempt with given actions, as a rollout would play it: every call timed, all that comes back checked."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import inspect
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from envs import Env, Facts, JudgeFailed, JudgeTimedOut, MachineryError, Message, Task, World, find
from envs.sandboxes import SandboxError
from rl.check import answers
from rl.check.kinds import Fault
from rl.check.lent import Pool

CANCEL_S = 1.0


@dataclass(slots=True)
class Played:
    solved: bool = False
    """False as well where the attempt ended before it was measured."""
    ended: str = ""
    """`measured`, `invalid`, or `turns` where the actions or the turns ran out."""
    heard: list[str] = field(default_factory=list)
    """What the world said before the last action, so that it could be used; without the actions."""
    after: list[str] = field(default_factory=list)
    """What it said at the end."""
    opening: list[Message] = field(default_factory=list)
    facts: Facts = field(default_factory=dict)


@dataclass(slots=True)
class Calls:
    """Calls into a world: announced before each, ended after `deadline_s`, their exceptions turned into faults."""

    announce: Callable[[str], None]
    deadline_s: float
    names: Mapping[str, str] = field(default_factory=dict)
    """What the world's author calls a call, where that is another name."""

    async def __call__(self, name: str, call: Callable[[], Awaitable[Any]]) -> Any:
        name = self.names.get(name, name)
        self.announce(name)
        task = asyncio.ensure_future(_awaited(name, call))
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
            raise Fault("raises", f"{name} raised {named(error)}") from None


async def _awaited(name: str, call: Callable[[], Awaitable[Any]]) -> Any:
    answer = call()
    if not inspect.isawaitable(answer):
        raise Fault("wrong-type", f"{name} is a plain function; expected `async def`")
    return await answer


def _result(name: str, task: asyncio.Future[Any]) -> Any:
    try:
        return task.result()
    except (Fault, SandboxError):
        raise
    except (JudgeFailed, JudgeTimedOut) as error:
        kind = "data-error" if re.search(r"gold|problem's data", named(error).lower()) else "judge-fails"
        raise Fault(kind, f"{name}: {named(error)}") from None
    except asyncio.CancelledError:
        raise Fault("raises", f"{name} cancelled itself") from None
    except Exception as error:
        raise Fault("raises", f"{name} raised {named(error)}") from None


def named(error: BaseException) -> str:
    """In one line, with the line of the world's own code that it came from."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}{find.place(error)}"


class Attempt:
    """An env, opened, started and closed with care. `act` plays one action, `measured` ends it."""

    def __init__(self, calls: Calls, world: World, task: Task, pool: Pool) -> None:
        self.calls, self.pool, self.task, self.own = calls, pool, task, copy.deepcopy(task)
        self.turns = world.max_turns
        self.env: Env = calls.plain("open", lambda: world.open(self.own))
        answers.attempt(self.env)
        self.played = Played()
        self.odd = False
        """Whether it has said half a character."""

    async def start(self) -> None:
        messages = await self.calls("start", self.env.start)
        self.played.heard += answers.messages("start", messages)
        if not messages:
            raise Fault("wrong-type", "start gave no message; expected what the policy reads first")
        self.played.opening = [dict(message) for message in messages]

    async def act(self, action: str) -> bool:
        """True where the attempt goes on."""
        self.odd = self.odd or any("\ud800" <= char <= "\udfff" for char in action)
        step = answers.step(await self.calls("step", lambda: self.env.step(action)))
        said = answers.messages("step", step.messages, self.odd)
        self.turns -= 1
        if step.invalid:
            self.played.ended = "invalid"
        elif not step.done and self.turns <= 0:
            self.played.ended = "turns"
        goes_on = not step.done and not self.played.ended
        (self.played.heard if goes_on else self.played.after).extend(said)
        return goes_on

    async def measured(self) -> None:
        self.played.facts = answers.facts(await self.calls("measure", self.env.measure), self.odd)
        self.played.solved, self.played.ended = self.played.facts["solved"], "measured"

    async def close(self) -> None:
        for _ in range(2):  # it may be called more than once
            await self.calls("close", self.env.close)
        if kept := len(self.pool.own()):
            await self.pool.take_back()
            raise Fault("sandbox-kept", f"close kept {kept} sandbox{'es' * (kept > 1)} that the attempt had taken")
        changed = [
            part for part in ("messages", "given", "hidden") if getattr(self.own, part) != getattr(self.task, part)
        ]
        if changed:
            raise Fault(
                "state-shared", f"an attempt changed its task's `{', '.join(changed)}`, which the next one gets"
            )


async def play(
    calls: Calls,
    world: World,
    task: Task,
    pool: Pool,
    actions: Sequence[str],
    repeat: bool = False,
    look: Callable[[], Awaitable[None]] | None = None,
    look_first: bool = False,
) -> Played:
    """The actions in turn, the last again and again where `repeat`, until the world is done or the turns are spent.
    Before the last one, `look` is called: the attempt still has what it works in; `look_first`: before the first.
    """
    attempt = Attempt(calls, world, task, pool)
    try:
        await attempt.start()
        at, goes_on = 0, True
        while goes_on and (at < len(actions) or repeat):
            if look is not None and at == (0 if look_first else len(actions) - 1):
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
