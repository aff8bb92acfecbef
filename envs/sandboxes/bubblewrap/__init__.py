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
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import asdict
from typing import IO, Any

from envs.sandboxes import Need, SandboxLost, SandboxUnavailable, Snapshot
from envs.sandboxes.bubblewrap import launch
from envs.sandboxes.bubblewrap.launch import WEAKER, Limits, count, preflight, reap
from envs.sandboxes.shared.lease import Lease
from envs.sandboxes.shared.lending import Held, Lender
from envs.sandboxes.shared.service import WORK_MB, PoolService
from envs.sandboxes.shared.wire import Wire

__all__ = ["WEAKER", "BubblewrapPool", "Lease", "Limits", "Pool", "count", "preflight", "reap"]

START_S = 30.0
END_S = 5.0
"""How long a keeper whose stream has ended may take to end, before it is killed."""
STDERR_KEPT = 2000


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
        self._lender = Lender(self.run, size, lifetime_s, self._create, lambda: 0)
        self.stats = self._lender.stats
        self._services: list[PoolService] = []
        self._closing: asyncio.Task[None] | None = None
        self._next_uid = 1_000_000 * (1 + secrets.randbelow(1000))

    async def start(self, warm: int = 0) -> None:
        """Make `warm` sandboxes ahead. Raises SandboxUnavailable. `acquire` needs none."""
        await self._lender.warm("", warm)

    async def acquire(self, snapshot: Snapshot | None = None, *, image: str | None = None) -> Lease:
        if image is not None:
            raise SandboxUnavailable(
                f"a task asks for the image {image!r}, and sandboxes by bubblewrap have none but this machine: "
                "such tasks need Docker"
            )
        return await self._lender.acquire("", snapshot)

    def plan(self, needs: Sequence[Need]) -> None:
        """Those with an image are left out: `acquire` tells why."""
        self._lender.plan([Need(image="", snapshot=need.snapshot) for need in needs if need.image is None])

    def service(self, program: bytes, *, workers: int = 2, memory_mb: int = 512) -> PoolService:
        self._services.append(PoolService(self, program, workers, memory_mb))
        return self._services[-1]

    async def open_service(
        self, sent: bytes, workers: int, memory_mb: int
    ) -> tuple[Wire, Callable[[], Coroutine[Any, Any, None]], list[int]]:
        """Its memory is limited fork by fork only."""
        process, wire, stderr = await self._start(sent, WORK_MB)
        return wire, lambda: _end(process, wire, stderr), [0] * workers

    async def _start(self, sent: bytes, work_mb: int = 0) -> tuple[subprocess.Popen[bytes], Wire, IO[bytes]]:
        self._next_uid += 1
        process, sock, stderr = launch.start(self.run, self._next_uid, sent, work_mb)
        wire = await Wire.open(f"bwrap-{self.run}-{process.pid}", sock, sent, multiplexed=False)
        return process, wire, stderr

    async def _create(self, image: str) -> Held:
        expires = time.monotonic() + self.lifetime_s
        process, wire, stderr = await self._start(launch.PROGRAM)

        def said() -> str:
            with contextlib.suppress(OSError, ValueError):  # nothing said; ended and closed before
                return (stderr.read() or b"")[-STDERR_KEPT:].decode("utf-8", "replace").strip()
            return ""

        async def end(lost: bool) -> None:
            if lost:
                process.kill()
            await _end(process, wire, stderr)

        try:
            await wire.call("hello", wait_s=START_S, uid=0, lifetime_s=self.lifetime_s, limits=asdict(self.limits))
        except SandboxLost as problem:
            why = launch.explain(said() or str(problem))
            await end(False)
            raise SandboxUnavailable(f"a bubblewrap sandbox did not start: {why}") from problem
        return Held(wire=wire, image=image, expires=expires, end=end, said=said)

    async def close(self) -> None:
        if self._closing is None:
            self._closing = asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        self._lender.closed = True
        await asyncio.gather(*(service.close() for service in self._services))
        await self._lender.close()


async def _end(process: subprocess.Popen[bytes], wire: Wire, stderr: IO[bytes]) -> None:
    """End a sandbox and wait until no process of it is left."""
    wire.close()  # ends its supervisor, and with that everything in it
    try:
        await asyncio.to_thread(process.wait, END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        await asyncio.to_thread(process.wait)
    stderr.close()


Pool = BubblewrapPool
