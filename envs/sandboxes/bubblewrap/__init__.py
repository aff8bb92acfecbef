"""Sandboxes without a daemon and without root: namespaces that bubblewrap makes, for machines that have no Docker.

    preflight()                                          # one clear sentence where this machine does not allow it
    pool = BubblewrapPool(run="quickstart-ab12", size=16)
    sandbox = await pool.acquire()
    result = await sandbox.exec("python3 solve.py", timeout_s=5, stdin=b"3 4")
    await sandbox.close()                                # new folders in place of the old: then the next attempt's
    await pool.close()

A sandbox shows the machine's own `/usr`, read-only, and nothing else of it. Its process 1, `keeper.py`, runs each
command in namespaces of its own; it is spoken to as Docker's supervisor is. Nothing of it is on a disk, and it dies
with this process: there is nothing to be left behind. What isolates less than Docker is said by `WEAKER`.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import subprocess
import time
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass
from typing import IO, Any, TypeVar

from envs.sandboxes import SandboxLost, SandboxUnavailable, Snapshot
from envs.sandboxes.bubblewrap import launch
from envs.sandboxes.bubblewrap.launch import WEAKER, Limits, count, preflight, reap
from envs.sandboxes.shared.lease import GRACE_S, Lease
from envs.sandboxes.shared.service import WORK_MB, PoolService
from envs.sandboxes.shared.wire import Wire

__all__ = ["WEAKER", "BubblewrapPool", "Lease", "Limits", "Pool", "count", "preflight", "reap"]

T = TypeVar("T")
START_S = 30.0
END_S = 5.0
"""How long a keeper whose stream has ended may take to end, before it is killed."""
STDERR_KEPT = 2000


@dataclass(slots=True, kw_only=True)
class Keeper:
    """One running sandbox, lent to one attempt after another."""

    process: subprocess.Popen[bytes]
    wire: Wire
    stderr: IO[bytes]
    expires: float
    """On the clock of `time.monotonic`."""

    def said(self) -> str:
        with contextlib.suppress(OSError, ValueError):  # nothing said; ended and closed before
            return (self.stderr.read() or b"")[-STDERR_KEPT:].decode("utf-8", "replace").strip()
        return ""


class BubblewrapPool:
    """Up to `size` sandboxes, started when first needed, each lent to one attempt at a time, first come first served.

    Belongs to one event loop, whose thread the sandboxes die with. `lifetime_s` bounds a sandbox's life; each lease
    finds at least half of it left. `image` is taken so that backends are made alike: the machine itself is the image.
    """

    def __init__(
        self, *, run: str, size: int = 16, image: str | None = None, lifetime_s: float = 7200.0, **limits: Any
    ) -> None:
        if size < 1:
            raise ValueError(f"a pool of sandboxes got size={size}, expected at least 1")
        self.run = re.sub(r"[^A-Za-z0-9_.-]", "-", run)
        self.size = size
        self.limits = Limits(**limits)
        self.lifetime_s = lifetime_s
        self.stats = {"created": 0, "handed_out": 0, "lost": 0, "unclean": 0, "waiting": 0}
        """`lost`: sandboxes that died or did not answer; nothing can be `unclean` here."""
        self._permits = asyncio.Semaphore(size)
        self._idle: list[Keeper] = []
        self._made: list[Keeper] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._services: list[PoolService] = []
        self._closing: asyncio.Task[None] | None = None
        self._next_uid = 1_000_000 * (1 + secrets.randbelow(1000))

    async def start(self, warm: int = 0) -> None:
        """Make `warm` sandboxes ahead. Raises SandboxUnavailable. `acquire` needs none."""
        ahead = await asyncio.gather(*(self.acquire() for _ in range(min(warm, self.size))), return_exceptions=True)
        await asyncio.gather(*(sandbox.close() for sandbox in ahead if isinstance(sandbox, Lease)))
        for problem in ahead:
            if isinstance(problem, BaseException):
                raise problem

    def _refuse_if_closed(self) -> None:
        if self._closing is not None:
            raise SandboxUnavailable(f"the pool of run {self.run!r} is closed")

    async def acquire(self, snapshot: Snapshot | None = None) -> Lease:
        self._refuse_if_closed()
        self.stats["waiting"] += 1
        try:
            await self._permits.acquire()
        finally:
            self.stats["waiting"] -= 1
        keeper = self._pick() or await self._make()
        self.stats["handed_out"] += 1
        sandbox = Lease(keeper.wire, lambda lost: self._spawn(self._take_back(keeper, lost)), keeper.said)
        await sandbox.begin(snapshot)
        return sandbox

    def service(self, program: bytes, *, workers: int = 2, memory_mb: int = 512) -> PoolService:
        self._services.append(PoolService(self, program, workers, memory_mb))
        return self._services[-1]

    async def open_service(
        self, sent: bytes, workers: int, memory_mb: int
    ) -> tuple[Wire, Callable[[], Coroutine[Any, Any, None]], list[int]]:
        """Its memory is limited fork by fork only."""
        self._next_uid += 1
        process, sock, stderr = launch.start(self.run, self._next_uid, sent, WORK_MB)
        wire = await Wire.open(f"bwrap-{self.run}-{process.pid}", sock, sent, multiplexed=False)
        keeper = Keeper(process=process, wire=wire, stderr=stderr, expires=time.monotonic() + self.lifetime_s)
        self._made.append(keeper)
        return wire, lambda: self._end(keeper), [0] * workers

    def _pick(self) -> Keeper | None:
        """An idle keeper with enough life left, the last used first; others are discarded."""
        while self._idle:
            keeper = self._idle.pop()
            if keeper.wire.alive and keeper.expires - time.monotonic() > self.lifetime_s / 2:
                return keeper
            self.stats["lost"] += not keeper.wire.alive
            self._spawn(self._end(keeper))
        return None

    async def _make(self) -> Keeper:
        """A new keeper for the permit held. Where the caller is cancelled, it is finished and kept for the next."""
        making = self._spawn(self._create())
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            making.add_done_callback(self._keep)
            raise
        except BaseException:
            self._permits.release()
            raise

    def _keep(self, making: asyncio.Task[Keeper]) -> None:
        if not making.cancelled() and making.exception() is None:
            self._idle.append(making.result())
        self._permits.release()

    async def _create(self) -> Keeper:
        self._refuse_if_closed()
        self._next_uid += 1
        expires = time.monotonic() + self.lifetime_s
        process, sock, stderr = launch.start(self.run, self._next_uid, launch.PROGRAM)
        wire = await Wire.open(f"bwrap-{self.run}-{process.pid}", sock, launch.PROGRAM, multiplexed=False)
        keeper = Keeper(process=process, wire=wire, stderr=stderr, expires=expires)
        self._made.append(keeper)
        try:
            await wire.call("hello", wait_s=START_S, uid=0, lifetime_s=self.lifetime_s, limits=asdict(self.limits))
        except SandboxLost as problem:
            said = launch.explain(keeper.said() or str(problem))
            await self._end(keeper)
            raise SandboxUnavailable(f"a bubblewrap sandbox did not start: {said}") from problem
        self._refuse_if_closed()  # what was just made is in `_made`, where `_close` finds it
        self.stats["created"] += 1
        return keeper

    async def _take_back(self, keeper: Keeper, lost: bool) -> None:
        try:
            if not lost and self._closing is None:
                try:
                    await keeper.wire.call("reset", wait_s=GRACE_S, uid=0)
                except SandboxLost:
                    lost = True
            self.stats["lost"] += lost
            if lost:
                keeper.process.kill()
            if lost or self._closing is not None:
                self._spawn(self._end(keeper))
            else:
                self._idle.append(keeper)
        finally:
            self._permits.release()

    async def _end(self, keeper: Keeper) -> None:
        """End a sandbox and wait until no process of it is left."""
        if keeper not in self._made:
            return
        keeper.wire.close()  # ends its supervisor, and with that everything in it
        try:
            await asyncio.to_thread(keeper.process.wait, END_S)
        except subprocess.TimeoutExpired:
            keeper.process.kill()
            await asyncio.to_thread(keeper.process.wait)
        if keeper in self._made:
            self._made.remove(keeper)
            keeper.stderr.close()

    async def close(self) -> None:
        if self._closing is None:
            self._closing = asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        for _ in range(self.stats["waiting"]):
            self._permits.release()  # to be refused
        await asyncio.gather(*(service.close() for service in self._services))
        while pending := [task for task in self._tasks if not task.done()]:  # creations and hand-overs under way
            await asyncio.wait(pending)
        await asyncio.gather(*(self._end(keeper) for keeper in list(self._made)))

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


Pool = BubblewrapPool
