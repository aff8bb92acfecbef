"""What the contract's tests know of each backend: how to harm it, and what it answers differently."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import envs.sandboxes.bubblewrap as bubblewrap_backend
import envs.sandboxes.docker as docker_backend
from envs.sandboxes.bubblewrap import launch
from envs.sandboxes.docker import engine

IMAGE = "touchstone-sandbox:bookworm"
Go = Callable[[Awaitable[Any]], Any]


class Docker:
    name = "docker"
    patience = "envs.sandboxes.shared.lease"
    folders = ("/dev/mqueue", "/dev/shm", "/tmp", "/work")
    """All that a lease may leave something in."""
    files: ClassVar[dict[str, int]] = {}

    def module(self) -> ModuleType:
        return docker_backend

    def pool(self, **options: Any) -> Any:
        return docker_backend.DockerPool(run=f"test-{uuid.uuid4().hex[:8]}", **options)

    def kill_all(self, pool: Any) -> None:
        for name in engine.names(pool.run):
            engine.remove(engine.connect(), name)

    def freeze(self, pool: Any) -> None:
        (name,) = engine.names(pool.run)
        engine.connect().pause(name)

    @contextmanager
    def busy_machine(self, share: float) -> Iterator[tuple[dict[str, Any], Callable[[Any], None]]]:
        yield {"cpus": share}, lambda pool: None


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class Bubblewrap:
    name = "bubblewrap"
    patience = "envs.sandboxes.shared.lease"
    folders = ("/dev/shm", "/tmp", "/work")
    files: ClassVar[dict[str, int]] = {
        "/etc/shadow": errno.ENOENT,  # there is none
        "r/x": errno.ENOENT,
    }
    """Where a path is refused with another number than Docker's."""

    def module(self) -> ModuleType:
        return bubblewrap_backend

    def pool(self, **options: Any) -> Any:
        return bubblewrap_backend.BubblewrapPool(run=f"test-{uuid.uuid4().hex[:8]}", **options)

    def keepers(self, pool: Any) -> list[int]:
        """Process 1 of each sandbox, as this machine numbers it."""
        return [child for pid, run, _ in launch.running() if run == pool.run for child in children(pid)]

    def kill_all(self, pool: Any) -> None:
        for pid in self.keepers(pool):
            os.kill(pid, signal.SIGKILL)

    def freeze(self, pool: Any) -> None:
        (pid,) = self.keepers(pool)
        os.kill(pid, signal.SIGSTOP)

    @contextmanager
    def busy_machine(self, share: float) -> Iterator[tuple[dict[str, Any], Callable[[Any], None]]]:
        """The sandbox gets one core and shares it with as many endless programs as leave it its share."""
        core = {max(os.sched_getaffinity(0))}

        def pin(pool: Any) -> None:
            family = self.keepers(pool)
            for pid in family:  # which grows: the next command's process waits already
                os.sched_setaffinity(pid, core)
                family += children(pid)

        rivals = [
            subprocess.Popen(["sh", "-c", "while :; do :; done"], start_new_session=True)
            for _ in range(round(1 / share) - 1)
        ]
        try:
            for rival in rivals:
                os.sched_setaffinity(rival.pid, core)
                os.setpriority(os.PRIO_PROCESS, rival.pid, min(19, os.nice(0) + 10))  # a command's
            yield {}, pin
        finally:
            for rival in rivals:
                rival.kill()
                rival.wait()


BACKENDS = {"docker": Docker(), "bubblewrap": Bubblewrap()}
Backend = Docker | Bubblewrap


@asynccontextmanager
async def small_pool(backend: Backend, **options: Any) -> AsyncIterator[Any]:
    pool = backend.pool(**{"size": 1, **options})
    try:
        yield pool
    finally:
        await pool.close()


def python(code: str) -> list[str]:
    return ["python3", "-I", "-c", code]


def eventually(check: Callable[[], bool], within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while not check():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
