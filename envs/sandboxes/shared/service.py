"""A trusted program kept running in a sandbox of its own, one fork for each question (`servant.py`)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

from envs.sandboxes import Answer, SandboxLost, SandboxUnavailable
from envs.sandboxes.shared.wire import Wire

SERVANT = Path(__file__).with_name("servant.py").read_bytes()
START_S = 120.0
GRACE_S = 15.0
"""How much later than asked process 1 may answer before its container counts as lost."""
LOADED_MB = 256
"""For the loaded program itself, its zip included."""
WORK_MB = 64


class Host(Protocol):
    """What a service needs of its pool."""

    run: str
    lifetime_s: float

    async def open_service(
        self, sent: bytes, workers: int, memory_mb: int
    ) -> tuple[Wire, Callable[[], Awaitable[None]], list[int]]:
        """Start `sent` as process 1 of a sandbox: its wire, what ends it, and a user for each worker, 0 for its own."""
        ...


class PoolService:
    """Implements `envs.sandboxes.Service`. Belongs to the event loop of its pool."""

    def __init__(self, pool: Host, program: bytes, workers: int, memory_mb: int) -> None:
        self.started = 0
        self._pool, self._program, self._workers, self._memory_mb = pool, program, workers, memory_mb
        self._wire: Wire | None = None
        self._end: Callable[[], Awaitable[None]] | None = None
        self._expires = 0.0
        self._starting = asyncio.Lock()
        self._turns = asyncio.Semaphore(workers)
        self._asked: set[asyncio.Task[Answer]] = set()
        self._closed = False

    @property
    def name(self) -> str:
        """Of the sandbox that runs now; empty before the first question."""
        return self._wire.name if self._wire else ""

    async def ask(self, question: bytes, *, cpu_s: int, timeout_s: float) -> Answer:
        asked = asyncio.create_task(self._ask(question, cpu_s, timeout_s))
        self._asked.add(asked)
        asked.add_done_callback(self._forget)
        return await asyncio.shield(asked)  # a cancelled caller leaves; its turn ends when its fork has

    def _forget(self, asked: asyncio.Task[Answer]) -> None:
        self._asked.discard(asked)
        if not asked.cancelled():
            asked.exception()

    async def _ask(self, question: bytes, cpu_s: int, timeout_s: float) -> Answer:
        async with self._turns:
            for last_try in (False, True):
                wire = await self._ready()
                try:
                    reply, body = await wire.call(
                        "ask", question, wait_s=timeout_s + GRACE_S, cpu_s=cpu_s, timeout_s=timeout_s
                    )
                except SandboxLost:
                    await self._drop(wire)
                    if last_try:
                        raise
                else:
                    return Answer(ended=reply["ended"], body=body, cpu_s=reply["cpu_s"])
            raise AssertionError("unreachable")

    async def _ready(self) -> Wire:
        """A running container with half of its life left."""
        async with self._starting:
            if self._closed:
                raise SandboxUnavailable(f"a service of run {self._pool.run!r} is closed")
            wire = self._wire
            if wire is not None and wire.alive and time.monotonic() < self._expires:
                return wire
            if wire is not None:
                await self._remove()
            return await self._start()

    async def _start(self) -> Wire:
        total_mb = LOADED_MB + self._workers * self._memory_mb
        wire, self._end, uids = await self._pool.open_service(SERVANT, self._workers, total_mb)
        self._wire = wire
        self._expires = time.monotonic() + self._pool.lifetime_s / 2
        try:
            hello, _ = await wire.call(
                "hello",
                self._program,
                wait_s=START_S,
                lifetime_s=self._pool.lifetime_s,
                memory_mb=self._memory_mb,
                uids=uids,
            )
        except SandboxLost as problem:
            await self._remove()
            raise SandboxUnavailable(f"a service did not start: {problem}") from problem
        if "problem" in hello:
            await self._remove()
            raise SandboxUnavailable(f"a service did not load its program: {hello['problem']}")
        self.started += 1
        return wire

    async def _drop(self, wire: Wire) -> None:
        async with self._starting:
            if self._wire is wire:
                await self._remove()

    async def _remove(self) -> None:
        self._wire, end = None, self._end
        if end is not None:
            self._end = None
            await end()

    async def close(self) -> None:
        self._closed = True
        async with self._starting:
            await self._remove()
