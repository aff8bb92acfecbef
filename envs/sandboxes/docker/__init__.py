"""Sandboxes in Docker: a pool of hardened containers that stay warm and host one attempt after another.

    preflight("touchstone-sandbox:bookworm")             # one clear sentence where Docker or the image is missing
    pool = DockerPool(run="quickstart-ab12", size=16)
    sandbox = await pool.acquire()                       # waits for its turn where all are taken
    result = await sandbox.exec("python3 solve.py", timeout_s=5, stdin=b"3 4")
    await sandbox.close()                                # kills, wipes, next user: about 1 ms; then the next attempt's
    await pool.close()

A container runs `supervisor.py` as its process 1 and is spoken to over one attached socket (`wire.py`), or over one
that it calls back on (`door.py`) where the engine is on this machine. It ends by itself when this process dies; `reap`
removes what could not. Calls to the engine are in `engine.py`; when one may be made, in `admission.py`; which images
it has, in `images.py`.
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
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from envs.sandboxes import Need, SandboxLost, SandboxUnavailable, Snapshot
from envs.sandboxes.docker import engine
from envs.sandboxes.docker.admission import MIN_FREE_MB, EngineSick, Gate
from envs.sandboxes.docker.door import INSIDE, Door
from envs.sandboxes.docker.engine import Limits, count, preflight, reap
from envs.sandboxes.docker.images import PULLING, Images
from envs.sandboxes.shared.lease import Lease
from envs.sandboxes.shared.lending import Held, Lender
from envs.sandboxes.shared.service import WORK_MB, PoolService
from envs.sandboxes.shared.wire import Wire

__all__ = ["DockerPool", "Lease", "Limits", "count", "preflight", "reap"]

T = TypeVar("T")
log = logging.getLogger(__name__)
START_S = 60.0
REAP_EVERY_S = 120.0


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
        self._lender = Lender(self.run, size, lifetime_s, self._create, self._uid)
        self.stats = self._lender.stats
        self._client: Any = None
        self._kernel = ""
        self._doors = False
        """Whether containers call back on a socket of their own, and do not speak through the engine."""
        self._connecting = asyncio.Lock()
        self._threads = ThreadPoolExecutor(max_workers=creating + 2 + PULLING, thread_name_prefix="docker")
        self._gate = Gate(at_once=creating, patience_s=patience_s, min_free_mb=min_free_mb)
        self._images = Images(self._gate, self._threads)
        self._creating = asyncio.Semaphore(creating)
        self._prefix = f"touchstone-{self.run}-{os.getpid()}-{secrets.token_hex(4)}"
        self._names = (f"{self._prefix}-{number}" for number in itertools.count())
        self._known: set[str] = set()
        """Containers of this pool, from before they are made until they are removed."""
        self._background: set[asyncio.Task[None]] = set()
        self._services: list[PoolService] = []
        self._closing: asyncio.Task[None] | None = None
        # A kernel counts some resources by user, across containers: no two pools or leases share one.
        self._next_uid = 1_000_000 * (1 + secrets.randbelow(1000))

    async def start(self, warm: int = 0) -> None:
        """Connect, check the image, make `warm` containers ahead. Raises SandboxUnavailable. `acquire` needs none."""
        await self._connect()
        await self._lender.warm(self.image, warm)

    async def _connect(self) -> None:
        self._lender.refuse_if_closed()
        async with self._connecting:
            if self._client is None:
                client = await self._in_thread(engine.connect)
                await self._in_thread(engine.check_image, client, self.image)
                about = await self._in_thread(engine.info, client)
                self._gate.disks, self._kernel = engine.disks(client, about), about["KernelVersion"]
                self._doors = engine.is_local(client)
                self._client = client
                self._keep_going(self._reap())

    async def acquire(self, snapshot: Snapshot | None = None, *, image: str | None = None) -> Lease:
        if self._client is None or self._lender.closed:
            await self._connect()
        if image is not None and image != self.image:
            await self._images.get(self._client, image)
        return await self._lender.acquire(image or self.image, snapshot)

    def plan(self, needs: Sequence[Need]) -> None:
        self._keep_going(self._follow([Need(image=n.image or self.image, snapshot=n.snapshot) for n in needs]))

    async def _follow(self, needs: Sequence[Need]) -> None:
        """Ask for all images at once, in the order of the first need of each; make ready what needs those that came."""
        try:
            await self._connect()
        except SandboxUnavailable:  # `acquire` tells
            return
        self._lender.plan([need for need in needs if need.image == self.image])
        wanted = dict.fromkeys(need.image for need in needs if need.image and need.image != self.image)
        for image, fetching in [(image, self._images.fetch(self._client, image)) for image in wanted]:
            await asyncio.wait([fetching])
            if self._images.has(image):
                self._lender.plan([need for need in needs if need.image == image])

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

    async def _create(self, image: str) -> Held:
        deadline = time.monotonic() + self._gate.patience_s
        while True:
            try:
                async with self._creating, self._gate.turn(deadline, self._lender.refuse_if_closed):
                    return await self._start_one(image)
            except SandboxUnavailable as problem:
                if self.runtime and not self.stats["created"]:
                    message = f"no container starts under the runtime {self.runtime!r}: {problem}"
                    raise SandboxUnavailable(message) from problem
                if "no such image" in str(problem).lower():
                    self._images.forget(image)
                if not isinstance(problem, EngineSick):
                    raise
                log.warning("%s", problem)  # the gate says when, and when to give up

    def _door(self) -> Door | None:
        """None on a machine whose temporary folder takes no sockets: the engine's stream does as well, slower."""
        if self._doors:
            try:
                return Door()
            except OSError:
                self._doors = False
        return None

    async def _start_one(self, image: str) -> Held:
        name = next(self._names)
        self._known.add(name)
        expires = time.monotonic() + self.lifetime_s
        asked = (self._client, image, self.run, self.limits, self.lifetime_s)
        create = partial(engine.create, name=name, runtime=self.runtime)
        door = self._door()
        try:
            _, sock = await self._in_thread(partial(create, door=door and door.path), *asked)
        except BaseException as problem:
            self._known.discard(name)
            if door is not None:
                door.close()
                if isinstance(problem, SandboxUnavailable) and "mount" in str(problem).lower():
                    self._doors = False  # an engine that does not see this machine's files
                    return await self._start_one(image)
            raise
        wire = await Wire.open(name, sock, engine.SUPERVISOR)

        async def end(lost: bool) -> None:
            wire.close()  # ends its supervisor, and the engine removes it; asking for it makes it sure
            self._known.discard(name)
            await self._in_thread(engine.remove, self._client, name)

        try:
            hello, _ = await wire.call(
                "hello", wait_s=START_S, uid=self._uid(), lifetime_s=self.lifetime_s, door=INSIDE if door else ""
            )
            if door is not None and hello["moved"]:
                await wire.move(await door.caller(START_S))
        except (SandboxLost, TimeoutError) as problem:
            with contextlib.suppress(SandboxUnavailable):  # looked for again
                await end(True)
            raise EngineSick(f"a container of {image!r} did not start: {problem}") from problem
        finally:
            if door is not None:
                door.close()
        unfit = hello.get("unclean")
        if self.runtime is not None and hello["kernel"] == self._kernel:
            unfit = f"it got the engine's own kernel {self._kernel}, expected another one"
        if unfit is not None:
            await end(False)
            raise SandboxUnavailable(f"a new container of {image!r} is not fit for attempts: {unfit}")
        return Held(wire=wire, image=image, expires=expires, end=end)

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
            if name.startswith(f"{self._prefix}-") and name not in self._known:
                await self._in_thread(engine.remove, self._client, name)

    async def close(self) -> None:
        if self._closing is None:
            self._closing = asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        self._lender.closed = True
        for task in self._background:
            task.cancel()
        self._images.close()
        await asyncio.gather(*(service.close() for service in self._services))
        try:
            await self._lender.close()
            if self._client is not None:
                await self._remove_strays()
        finally:
            self._threads.shutdown(wait=False)
            if self._client is not None:
                self._client.close()

    def _uid(self) -> int:
        self._next_uid += 1
        return self._next_uid

    def _keep_going(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _in_thread(self, call: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(call, *arguments))


Pool = DockerPool
WEAKER = ""
