"""The pool of sandboxes that a world is given: it knows what it has lent and to whom, and what is sent there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

from envs.sandboxes import ExecResult, Sandbox, SandboxPool, Snapshot

UNIT: ContextVar[tuple[Any, ...]] = ContextVar("unit", default=("", "", 0))
"""What is being played: phase, split and index. Several are at a time."""


class Pool:
    def __init__(self, pool: SandboxPool) -> None:
        self.pool = pool
        self.lent: set[Lent] = set()
        self.used = False
        self.takers: set[tuple[Any, ...]] = set()
        """Split and index of what took a sandbox."""
        self.watchers: dict[tuple[Any, ...], Callable[[bytes], None]] = {}
        """By what is being played: told of all that it sends into a sandbox."""

    async def acquire(self, snapshot: Snapshot | None = None, *, image: str | None = None) -> Sandbox:
        self.used = True
        self.takers.add(UNIT.get()[1:])
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
