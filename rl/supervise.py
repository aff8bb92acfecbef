"""Keeps processes at work: waits with an owner and a deadline, and starts again what died, a few times. Knows no Ray.

supervisor = Supervisor(gone=(RayActorError,), kill=ray.kill, ready=start_again, log=log_of)
group = await supervisor.ask(seat, lambda actor: actor.play.remote(...), deadline_s)    # asked again after a death
supervisor.watch(seat)                                       # notices a death or a hang that nobody waits for
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rl.firewall import ActorDied, MachineryDown, Restarts, post_mortem

PING_EVERY_S = 2.0
PING_TIMEOUT_S = 300.0
"""A process that does not answer for longer is killed and started again."""
LONGEST_LINE = 300


class Hung(Exception):
    """A deadline passed that only a process that hangs lets pass."""


@dataclass(slots=True, eq=False)
class Seat:
    """The place of one process that may be started again, and the actor that sits there now."""

    name: str
    actor: Any
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)


class Supervisor:
    """Belongs to one event loop. Once a process cannot be had again, every wait raises ActorDied: one page on it.

    `gone`: what a call to a dead process raises; `ready(seat)`: a new actor, fit to take the seat; `taken(seat)`: is
    told when it has; `log(name)`: where a process writes.
    """

    def __init__(
        self,
        *,
        gone: tuple[type[Exception], ...],
        kill: Callable[[Any], None],
        ready: Callable[[Seat], Awaitable[Any]],
        taken: Callable[[Seat], Awaitable[None]],
        log: Callable[[str], Path],
    ) -> None:
        self.say: Callable[[str], None] = logging.getLogger(__name__).warning
        self.restarts = Restarts()
        self._gone: tuple[type[Exception], ...] = (*gone, Hung)
        self._kill, self._ready, self._taken, self._log = kill, ready, taken, log
        self._down: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._down.add_done_callback(self._tell)
        self._asking: set[asyncio.Future[None]] = set()
        """One for each wait, done once a process cannot be had: to leave a set takes no time, unlike a long list of
        callbacks of one future."""
        self._watching: list[asyncio.Task[None]] = []

    async def answer(self, asked: Awaitable[Any], owner: str, deadline_s: float) -> Any:
        """What was asked for. Raises what `asked` raises, Hung after the deadline, ActorDied."""
        answer = asyncio.ensure_future(asked)
        self._asking.add(down := asyncio.get_running_loop().create_future())
        try:
            if not self._down.done():
                await asyncio.wait({answer, down}, timeout=deadline_s, return_when=asyncio.FIRST_COMPLETED)
            if self._down.done():
                self._down.result()
            if not answer.done():
                raise Hung(f"{owner} gave no answer within {deadline_s:g} s")
            return answer.result()
        finally:
            self._asking.discard(down)
            if answer.done() and not answer.cancelled():
                answer.exception()  # heard, also where nobody waits for it any more
            answer.cancel()

    def _tell(self, _: asyncio.Future[None]) -> None:
        for down in self._asking:
            if not down.done():
                down.set_result(None)

    async def ask(self, seat: Seat, call: Callable[[Any], Awaitable[Any]], deadline_s: float) -> Any:
        """The answer of whoever sits there; asked from the beginning again where that one died or hung."""
        while True:
            async with seat.changing:
                actor = seat.actor
            try:
                return await self.answer(call(actor), seat.name, deadline_s)
            except self._gone as error:
                await self.revive(seat, actor, error)

    def watch(self, seat: Seat) -> None:
        self._watching.append(asyncio.create_task(self._watch(seat)))

    async def _watch(self, seat: Seat) -> None:
        while not self._down.done():
            await asyncio.sleep(PING_EVERY_S)
            actor = seat.actor
            try:
                await self.answer(actor.ping.remote(), seat.name, PING_TIMEOUT_S)
            except MachineryDown:
                return
            except Exception as error:  # also one that lives and says of itself that it is of no use any more
                with contextlib.suppress(MachineryDown):  # everybody who waits hears of it
                    await self.revive(seat, actor, error)

    async def revive(self, seat: Seat, dead: Any, error: Exception) -> None:
        """Another actor in the seat of one that died: once, however many notice. Raises ActorDied where it is vain."""
        async with seat.changing:
            if seat.actor is not dead:
                return
            while seat.actor is dead:
                happened = how(error)
                if not self.restarts.note(seat.name):
                    happened += f" and was started again {self.restarts.most} times in vain"
                    self._give_up(post_mortem(seat.name, happened, self._log(seat.name)))
                self.say(f"{seat.name} {happened}; it is started again")
                self._kill(dead)  # where it only seemed dead
                try:
                    seat.actor = await self._ready(seat)
                except MachineryDown as down:  # everybody who waits hears of it
                    if not self._down.done():
                        self._down.set_exception(down)
                    raise
                except Exception as again:  # of the start itself: as good as another death
                    error = again
            await self._taken(seat)

    def _give_up(self, page: str) -> None:
        if not self._down.done():
            self._down.set_exception(ActorDied(page))
        self._down.result()

    async def close(self) -> None:
        for watching in self._watching:
            watching.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        if self._down.done():
            self._down.exception()


def how(error: Exception) -> str:
    return f"{'hung' if isinstance(error, Hung) else 'died'} ({first_line(error)})"


def first_line(error: Exception) -> str:
    """The cause in one line: of the many on a dead actor, the one that says how it ended."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    telling = [line for line in lines if any(word in line.lower() for word in ("exit", "kill", "error:"))]
    return (telling or lines)[-1].partition(" Some common causes")[0].rpartition("exit detail: ")[2][:LONGEST_LINE]
