"""The images that tasks bring: which of them the engine has, and pulling those it has not, in the order of need."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from envs.sandboxes import SandboxUnavailable
from envs.sandboxes.docker import engine
from envs.sandboxes.docker.admission import Gate

PULLING = 2
"""Images pulled at a time by one pool."""
AGAIN_S = 60.0
"""How long an image that could not be had is not asked for again."""


class Images:
    """Belongs to one event loop. Each image is looked for once; one that is missing is pulled if the disk has room."""

    def __init__(self, gate: Gate, threads: ThreadPoolExecutor) -> None:
        self._gate, self._threads = gate, threads
        self._turns = asyncio.Semaphore(PULLING)
        self._asked: dict[str, tuple[asyncio.Task[None], float]] = {}

    def has(self, image: str) -> bool:
        task, _ = self._asked.get(image, (None, 0.0))
        return task is not None and task.done() and not task.cancelled() and task.exception() is None

    async def get(self, client: Any, image: str) -> None:
        """Returns once the engine has it, fit for attempts. Raises SandboxUnavailable."""
        await asyncio.shield(self.fetch(client, image))

    def fetch(self, client: Any, image: str) -> asyncio.Task[None]:
        """What `get` waits for. Those asked for first have their turn first."""
        task, at = self._asked.get(image, (None, 0.0))
        if task is None or (task.done() and not self.has(image) and time.monotonic() - at > AGAIN_S):
            task = asyncio.create_task(self._fetch(client, image))
            task.add_done_callback(lambda done: self._ended(image, done))
            self._asked[image] = task, 0.0
        return task

    def _ended(self, image: str, task: asyncio.Task[None]) -> None:
        self._asked[image] = task, time.monotonic()
        if not task.cancelled():
            task.exception()  # is told by `get`, or nobody asks

    def forget(self, image: str) -> None:
        """It is gone again."""
        self._asked.pop(image, None)

    def close(self) -> None:
        for task, _ in self._asked.values():
            task.cancel()

    async def _fetch(self, client: Any, image: str) -> None:
        call = asyncio.get_running_loop().run_in_executor
        async with self._turns:
            try:
                await call(self._threads, engine.check_image, client, image)
            except engine.ImageMissing:
                if problem := self._gate.short_of_disk():
                    raise SandboxUnavailable(f"a task's image {image!r} is not pulled: {problem}") from None
                await call(self._threads, engine.pull, client, image)
                await call(self._threads, engine.check_image, client, image)
