"""Sandboxes in Docker: a pool of hardened containers that stay warm and host one attempt after another.

    preflight("touchstone-sandbox:bookworm")             # one clear sentence where Docker or the image is missing
    pool = DockerPool(run="quickstart-ab12", size=16)
    sandbox = await pool.acquire()                       # waits for its turn where all are taken
    result = await sandbox.exec("python3 solve.py", timeout_s=5, stdin=b"3 4")
    await sandbox.close()                                # kills, wipes, next user: about 1 ms; then the next attempt's
    await pool.close()

A container runs `supervisor.py` as its process 1 and is spoken to over one attached socket (`wire.py`). It ends by
itself when this process dies; `reap` removes what could not. Calls to the engine are in `engine.py`; when one may be
made, in `admission.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from envs.sandboxes import SandboxLost, SandboxUnavailable, Snapshot
from envs.sandboxes.docker import engine
from envs.sandboxes.docker.admission import MIN_FREE_MB, EngineSick, Gate
from envs.sandboxes.docker.engine import Limits, count, preflight, reap
from envs.sandboxes.shared.lease import GRACE_S, Lease
from envs.sandboxes.shared.service import WORK_MB, PoolService
from envs.sandboxes.shared.wire import Wire

__all__ = ["DockerPool", "Lease", "Limits", "count", "preflight", "reap"]

T = TypeVar("T")
log = logging.getLogger(__name__)
START_S = 60.0
FRESH_S = 1.0
"""A container that answered this lately is handed out without being asked whether it lives."""
REAP_EVERY_S = 120.0


@dataclass(slots=True, kw_only=True)
class _Container:
    name: str
    wire: Wire
    expires: float
    """On the clock of `time.monotonic`."""


class DockerPool:
    """Up to `size` containers, made when first needed, each lent to one attempt at a time, first come first served.

    Belongs to one event loop. `lifetime_s` bounds a container's life; each lease finds at least half of it left.
    `creating` containers are made at once on this machine; where none can be made, `acquire` waits `patience_s` before
    it gives up. A `runtime` other than the engine's own (runsc, kata) counts only once a container runs under it.
    """

    def __init__(
        self,
        *,
        run: str,
        size: int = 16,
        image: str = "touchstone-sandbox:bookworm",
        lifetime_s: float = 7200.0,
        creating: int = 4,
        patience_s: float = 120.0,
        min_free_mb: int = MIN_FREE_MB,
        runtime: str | None = None,
        **limits: Any,
    ) -> None:
        if size < 1 or creating < 1:
            raise ValueError(f"a pool of sandboxes got size={size}, creating={creating}; expected at least 1 each")
        self.run = re.sub(r"[^A-Za-z0-9_.-]", "-", run)
        self.size = size
        self.image = image
        self.runtime = runtime
        self.limits = Limits(**limits)
        self.lifetime_s = lifetime_s
        self.stats = {"created": 0, "handed_out": 0, "lost": 0, "unclean": 0, "waiting": 0}
        """`lost`: containers that died or did not answer; `unclean`: ones replaced for what an attempt left behind."""
        self._client: Any = None
        self._kernel = ""
        self._connecting = asyncio.Lock()
        self._threads = ThreadPoolExecutor(max_workers=creating + 2, thread_name_prefix="docker")
        self._gate = Gate(at_once=creating, patience_s=patience_s, min_free_mb=min_free_mb)
        self._creating = asyncio.Semaphore(creating)
        self._permits = asyncio.Semaphore(size)
        self._prefix = f"touchstone-{self.run}-{os.getpid()}-{secrets.token_hex(4)}"
        self._names = (f"{self._prefix}-{number}" for number in itertools.count())
        self._idle: list[_Container] = []
        self._made: dict[str, _Container] = {}
        self._starting: set[str] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._reaping: asyncio.Task[None] | None = None
        self._services: list[PoolService] = []
        self._closing: asyncio.Task[None] | None = None
        # A kernel counts some resources by user, across containers: no two pools or leases share one.
        self._next_uid = 1_000_000 * (1 + secrets.randbelow(1000))

    async def start(self, warm: int = 0) -> None:
        """Connect, check the image, make `warm` containers ahead. Raises SandboxUnavailable. `acquire` needs none."""
        await self._connect()
        ahead = await asyncio.gather(*(self.acquire() for _ in range(min(warm, self.size))), return_exceptions=True)
        await asyncio.gather(*(sandbox.close() for sandbox in ahead if isinstance(sandbox, Lease)))
        for problem in ahead:
            if isinstance(problem, BaseException):
                raise problem

    async def _connect(self) -> None:
        self._refuse_if_closed()
        async with self._connecting:
            if self._client is None:
                client = await self._in_thread(engine.connect)
                await self._in_thread(engine.check_image, client, self.image)
                about = await self._in_thread(engine.info, client)
                self._gate.disks, self._kernel = engine.disks(client, about), about["KernelVersion"]
                self._client = client
                self._reaping = asyncio.create_task(self._reap())

    def _refuse_if_closed(self) -> None:
        if self._closing is not None:
            raise SandboxUnavailable(f"the pool of run {self.run!r} is closed")

    async def acquire(self, snapshot: Snapshot | None = None) -> Lease:
        if self._client is None or self._closing is not None:
            await self._connect()
        self.stats["waiting"] += 1
        try:
            await self._permits.acquire()
        finally:
            self.stats["waiting"] -= 1
        container = await self._pick() or await self._make()
        self.stats["handed_out"] += 1
        sandbox = Lease(container.wire, lambda lost: self._spawn(self._take_back(container, lost)))
        await sandbox.begin(snapshot)
        return sandbox

    def service(self, program: bytes, *, workers: int = 2, memory_mb: int = 512) -> PoolService:
        self._services.append(PoolService(self, program, workers, memory_mb))
        return self._services[-1]

    async def open_service(
        self, sent: bytes, workers: int, memory_mb: int
    ) -> tuple[Wire, Callable[[], Coroutine[Any, Any, None]], list[int]]:
        await self._connect()
        cpus = float(min(workers, os.cpu_count() or 1))
        limits = Limits(memory_mb=memory_mb, pids=workers + 8, cpus=cpus, work_mb=WORK_MB, tmp_mb=1, shm_mb=1)
        asked = (self._client, self.image, self.run, limits, self.lifetime_s, sent)
        name, sock = await self._in_thread(engine.create, *asked)
        wire = await Wire.open(name, sock, sent)

        async def end() -> None:
            wire.close()
            await self._in_thread(engine.remove, self._client, name)

        return wire, end, [self._uid() for _ in range(workers)]

    async def _pick(self) -> _Container | None:
        """For the permit held: an idle container that lives, for long enough, the last used first. Discards others."""
        while self._idle:
            container = self._idle.pop()
            if container.expires - time.monotonic() > self.lifetime_s / 2 and await self._lives(container):
                return container
            self._spawn(self._discard(container))
        return None

    async def _lives(self, container: _Container) -> bool:
        try:
            if not container.wire.alive or time.monotonic() - container.wire.heard_at > FRESH_S:
                await container.wire.call("ping", wait_s=GRACE_S)
        except SandboxLost:
            self.stats["lost"] += 1
            return False
        except BaseException:  # cancelled
            self._idle.append(container)
            self._permits.release()
            raise
        return True

    async def _make(self) -> _Container:
        """A new container for the permit held. Where the caller is cancelled, it is finished and kept for the next."""
        making = self._spawn(self._create())
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            making.add_done_callback(self._keep)
            raise
        except BaseException:
            self._permits.release()
            raise

    def _keep(self, making: asyncio.Task[_Container]) -> None:
        if not making.cancelled() and making.exception() is None:
            self._idle.append(making.result())
        self._permits.release()

    async def _create(self) -> _Container:
        deadline = time.monotonic() + self._gate.patience_s
        while True:
            try:
                async with self._creating, self._gate.turn(deadline, self._refuse_if_closed):
                    container = await self._start_one()
            except SandboxUnavailable as problem:
                if self.runtime and not self.stats["created"]:
                    message = f"no container starts under the runtime {self.runtime!r}: {problem}"
                    raise SandboxUnavailable(message) from problem
                if not isinstance(problem, EngineSick):
                    raise
                log.warning("%s", problem)
                continue  # the gate says when, and when to give up
            self._refuse_if_closed()  # what was just made is in `_made`, where `_close` finds it
            self.stats["created"] += 1
            return container

    async def _start_one(self) -> _Container:
        name = next(self._names)
        self._starting.add(name)
        try:
            expires = time.monotonic() + self.lifetime_s
            asked = (self._client, self.image, self.run, self.limits, self.lifetime_s)
            create = partial(engine.create, name=name, runtime=self.runtime)
            _, sock = await self._in_thread(create, *asked)
            wire = await Wire.open(name, sock, engine.SUPERVISOR)
            self._made[name] = container = _Container(name=name, wire=wire, expires=expires)
        finally:
            self._starting.discard(name)
        try:
            hello, _ = await wire.call("hello", wait_s=START_S, uid=self._uid(), lifetime_s=self.lifetime_s)
        except SandboxLost as problem:
            await self._discard(container)
            raise EngineSick(f"a container of {self.image!r} did not start: {problem}") from problem
        unfit = hello.get("unclean")
        if self.runtime is not None and hello["kernel"] == self._kernel:
            unfit = f"it got the engine's own kernel {self._kernel}, expected another one"
        if unfit is not None:
            await self._discard(container)
            raise SandboxUnavailable(f"a new container of {self.image!r} is not fit for attempts: {unfit}")
        return container

    async def _take_back(self, container: _Container, lost: bool) -> None:
        try:
            reply: dict[str, Any] = {}
            if not lost and self._closing is None:
                try:
                    reply, _ = await container.wire.call("reset", wait_s=GRACE_S, uid=self._uid())
                except SandboxLost:
                    lost = True
            self.stats["lost"] += lost
            self.stats["unclean"] += "unclean" in reply
            if lost or "unclean" in reply or self._closing is not None:
                self._spawn(self._discard(container))
            else:
                self._idle.append(container)
        finally:
            self._permits.release()

    async def _discard(self, container: _Container) -> None:
        try:
            await self._remove(container)
        except SandboxUnavailable as problem:
            log.warning("%s; tried again in %g s and when the pool closes", problem, REAP_EVERY_S)

    async def _remove(self, container: _Container) -> None:
        if self._made.pop(container.name, None) is not None:
            container.wire.close()  # ends its supervisor, and the engine removes it; asking for it makes it sure
            await self._in_thread(engine.remove, self._client, container.name)

    async def _reap(self) -> None:
        """Now and then: what dead runs left, and containers of this pool's that it does not know of."""
        while True:
            await asyncio.sleep(REAP_EVERY_S)
            with contextlib.suppress(SandboxUnavailable):  # a sick engine is told by `acquire`
                await self._in_thread(engine.reap, self._client)
                await self._remove_strays()

    async def _remove_strays(self) -> None:
        """An engine in trouble may finish what it was asked for after it said, or seemed, to have failed."""
        for name in await self._in_thread(engine.names, self.run, self._client):
            if name.startswith(f"{self._prefix}-") and name not in self._made and name not in self._starting:
                await self._in_thread(engine.remove, self._client, name)

    async def close(self) -> None:
        if self._closing is None:
            self._closing = asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        for _ in range(self.stats["waiting"]):
            self._permits.release()  # to be refused
        if self._reaping is not None:
            self._reaping.cancel()
        await asyncio.gather(*(service.close() for service in self._services))
        while pending := [task for task in self._tasks if not task.done()]:  # creations and hand-overs under way
            await asyncio.wait(pending)
        try:
            await asyncio.gather(*(self._remove(container) for container in list(self._made.values())))
            if self._client is not None:
                await self._remove_strays()
        finally:
            self._threads.shutdown(wait=False)
            if self._client is not None:
                self._client.close()

    def _uid(self) -> int:
        self._next_uid += 1
        return self._next_uid

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _in_thread(self, call: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(call, *arguments))


Pool = DockerPool
WEAKER = ""
