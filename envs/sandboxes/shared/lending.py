"""A bounded number of sandboxes, lent to one attempt after another: who gets which, and which are made ready ahead."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from envs.sandboxes import Need, SandboxLost, SandboxUnavailable, Snapshot
from envs.sandboxes.shared.lease import GRACE_S, Lease
from envs.sandboxes.shared.wire import Wire

T = TypeVar("T")
log = logging.getLogger(__name__)
FRESH_S = 1.0
"""A sandbox that answered this lately is handed out without being asked whether it lives."""


@dataclass(slots=True, kw_only=True, eq=False)
class Held:
    """One running sandbox; it idles with an empty `/work`, or with what was put there ahead."""

    wire: Wire
    image: str
    expires: float
    """On the clock of `time.monotonic`."""
    end: Callable[[bool], Awaitable[None]]
    """Removes it; told whether it is beyond answering."""
    said: Callable[[], str] = str
    setup: Snapshot | None = None


class Lender:
    """Up to `size` sandboxes, made by `make(image)` when first needed, lent first come first served.

    Belongs to one event loop. Each lease finds at least half of `lifetime_s` left; `uid()` is whose it is. Where all
    places are taken and those that idle are of other images, the one that no need of the plan names makes room.
    """

    def __init__(
        self,
        run: str,
        size: int,
        lifetime_s: float,
        make: Callable[[str], Coroutine[Any, Any, Held]],
        uid: Callable[[], int],
    ) -> None:
        self.closed = False
        self.stats = {"created": 0, "handed_out": 0, "lost": 0, "unclean": 0, "waiting": 0, "ahead": 0}
        """`lost`: sandboxes that died or did not answer; `unclean`: ones replaced for what an attempt left behind;
        `ahead`: leases that found their setup done."""
        self._run, self._size, self._lifetime_s = run, size, lifetime_s
        self._maker, self._uid = make, uid
        self._permits = asyncio.Semaphore(size)
        self._making = 0
        self._idle: list[Held] = []
        self._all: list[Held] = []
        self._plan: list[Need] = []
        self._preparing: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    def refuse_if_closed(self) -> None:
        if self.closed:
            raise SandboxUnavailable(f"the pool of run {self._run!r} is closed")

    async def warm(self, image: str, number: int) -> None:
        ahead = await asyncio.gather(
            *(self.acquire(image, None) for _ in range(min(number, self._size))), return_exceptions=True
        )
        await asyncio.gather(*(lease.close() for lease in ahead if isinstance(lease, Lease)))
        for problem in ahead:
            if isinstance(problem, BaseException):
                raise problem

    async def acquire(self, image: str, snapshot: Snapshot | None) -> Lease:
        self.refuse_if_closed()
        self.stats["waiting"] += 1
        try:
            await self._permits.acquire()
        finally:
            self.stats["waiting"] -= 1
        self.refuse_if_closed()
        need = Need(image=image, snapshot=snapshot)
        held = await self._get(need, self._idle)
        if need in self._plan:
            self._plan.remove(need)
        self.stats["handed_out"] += 1
        self.stats["ahead"] += snapshot is not None and held.setup == snapshot
        lease = self._lease(held)
        if held.setup is None:
            await lease.begin(snapshot)
        return lease

    def _lease(self, held: Held) -> Lease:
        return Lease(held.wire, lambda lost: self._spawn(self._take_back(held, lost)), held.said)

    async def _get(self, need: Need, idle: list[Held]) -> Held:
        """For the permit held: one of these that lives, for long enough, or a new one; its setup is done or empty."""
        while (held := _fitting(need, [one for one in idle if one in self._idle])) is not None:
            self._idle.remove(held)
            if held.expires - time.monotonic() > self._lifetime_s / 2 and await self._ready(held, need):
                return held
            self._spawn(self._end(held))
        return await self._make(need.image or "")

    async def _ready(self, held: Held, need: Need) -> bool:
        """Whether it lives; emptied where it holds what this need does not ask for."""
        try:
            if held.setup is not None and held.setup != need.snapshot:
                return await self._emptied(held)
            if not held.wire.alive or time.monotonic() - held.wire.heard_at > FRESH_S:
                await held.wire.call("ping", wait_s=GRACE_S)
        except SandboxLost:
            self.stats["lost"] += 1
            return False
        except BaseException:  # cancelled: it is emptied again, since what it holds is not known
            self._spawn(self._take_back(held, False))
            raise
        return True

    async def _emptied(self, held: Held) -> bool:
        reply, _ = await held.wire.call("reset", wait_s=GRACE_S, uid=self._uid())
        held.setup = None
        self.stats["unclean"] += "unclean" in reply
        return "unclean" not in reply

    async def _make(self, image: str) -> Held:
        """A new sandbox for the permit held. Where the caller is cancelled, it is finished and kept for the next."""
        making = self._spawn(self._create(image))
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            making.add_done_callback(self._keep)
            raise
        except BaseException:
            self._permits.release()
            raise

    def _keep(self, making: asyncio.Task[Held]) -> None:
        if not making.cancelled() and making.exception() is None:
            self._idle.append(making.result())
        self._permits.release()

    async def _create(self, image: str) -> Held:
        self.refuse_if_closed()
        self._making += 1
        try:
            while self._idle and len(self._all) + self._making > self._size:
                leaves = (self._unmet()[1] or self._idle)[0]
                self._idle.remove(leaves)
                await self._end(leaves)
            held = await self._maker(image)
            self._all.append(held)
        finally:
            self._making -= 1
        self.refuse_if_closed()  # what was just made is in `_all`, where `close` finds it
        self.stats["created"] += 1
        return held

    async def _take_back(self, held: Held, lost: bool) -> None:
        try:
            clean = False
            if not lost and not self.closed:
                try:
                    clean = await self._emptied(held)
                except SandboxLost:
                    lost = True
            self.stats["lost"] += lost
            if clean and not self.closed:
                self._idle.append(held)
            else:
                self._spawn(self._end(held, lost=lost))
        finally:
            self._permits.release()
        self._prepare()

    async def _end(self, held: Held, *, lost: bool = False) -> None:
        if held in self._all:
            self._all.remove(held)
            try:
                await held.end(lost)
            except SandboxUnavailable as problem:
                log.warning("%s; tried again later and when the pool closes", problem)

    # Ahead

    def plan(self, needs: Sequence[Need]) -> None:
        """To come after what was planned before. The last ones count, as many as there are places."""
        self._plan = [*self._plan, *needs][-self._size :]
        self._prepare()

    def _prepare(self) -> None:
        if not self.closed and self._plan and (self._preparing is None or self._preparing.done()):
            self._preparing = self._spawn(self._prepare_all())

    async def _prepare_all(self) -> None:
        """One need after another, while there is room for it and nobody waits for it."""
        while not self.closed and not self._permits.locked():
            need, spare = self._unmet()
            if need is None or not (spare or len(self._all) + self._making < self._size):
                return
            await self._permits.acquire()
            try:
                held = await self._get(need, spare)
            except SandboxUnavailable as problem:  # whoever asks for it is told
                log.warning("not made ready ahead: %s", problem)
                self._plan = [other for other in self._plan if other.image != need.image]
                continue
            lease = self._lease(held)
            try:
                if held.setup is None:
                    await lease.begin(need.snapshot)
            except (SandboxLost, OSError) as problem:
                log.warning("not made ready ahead: %s", problem)
                self._plan = [other for other in self._plan if other != need]
                continue
            held.setup = need.snapshot
            self._idle.append(held)
            self._permits.release()

    def _unmet(self) -> tuple[Need | None, list[Held]]:
        """The first need for which nothing is ready, and the idle sandboxes that are ready for none."""
        first, spare = None, list(self._idle)
        for need in self._plan:
            ready = next((h for h in spare if (h.image, h.setup) == (need.image, need.snapshot)), None)
            if ready is not None:
                spare.remove(ready)
            elif first is None:
                first = need
        return first, spare

    # The end

    async def close(self) -> None:
        """Ends every sandbox; who waits for one is refused. Raises what ending one raises."""
        self.closed = True
        for _ in range(self.stats["waiting"]):
            self._permits.release()  # to be refused
        while pending := [task for task in self._tasks if not task.done()]:  # creations and hand-overs under way
            await asyncio.wait(pending)
        await asyncio.gather(*(held.end(False) for held in self._all))

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _fitting(need: Need, idle: list[Held]) -> Held | None:
    """Of its image: with its setup done, else empty, else with another's setup; the last used first."""
    found = [held for held in reversed(idle) if held.image == need.image]
    return min(found, key=lambda held: (held.setup != need.snapshot, held.setup is not None), default=None)
