"""Whether a container may be made now: a rate that all processes share, a pause for a sick engine or a full disk.

    async with gate.turn(deadline, refuse_if_closed):    # waits; SandboxUnavailable once the deadline has passed
        ...                                              # an EngineSick raised in here makes the others wait

After a failure one creation at a time is tried, each twice as long after the last; the first that works lets all go on.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from envs.sandboxes import SandboxUnavailable

FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 15.0
LOOK_S = 0.02
"""How often those who wait look again."""
MIN_FREE_MB = 1024


class EngineSick(SandboxUnavailable):
    """The engine did not answer, or failed by its own fault: the same request may work later."""


class Gate:
    """Belongs to one pool; the places for creations under way are the machine's, one locked file each."""

    def __init__(self, *, at_once: int, patience_s: float, min_free_mb: int = MIN_FREE_MB) -> None:
        self.patience_s = patience_s
        self.disks: tuple[Path, ...] = ()
        """Where the engine keeps its data, as far as this machine can see it."""
        self._at_once = at_once
        self._min_free_mb = min_free_mb
        self._failures = 0
        self._cause = ""
        self._pause_ends = 0.0
        self._probing = False
        self._worked_at = 0.0

    @asynccontextmanager
    async def turn(self, deadline: float, refuse: Callable[[], None]) -> AsyncIterator[None]:
        """A place to make one container in. Deadline on the clock of `time.monotonic`; `refuse` may raise meanwhile."""
        place = await self._wait(deadline, refuse)
        probing = self._probing = self._failures > 0
        try:
            yield
        except EngineSick as problem:
            self._failures += probing or self._failures == 0  # those that began before the first failure add nothing
            self._cause = str(problem)
            pause_s = min(FIRST_PAUSE_S * 2 ** (self._failures - 1), LONGEST_PAUSE_S)
            self._pause_ends = time.monotonic() + pause_s
            raise
        except SandboxUnavailable:  # a clear no: the engine is well
            self._failures = 0
            raise
        else:
            self._failures = 0
            self._worked_at = time.monotonic()
        finally:
            self._probing = self._probing and not probing
            os.close(place)

    async def _wait(self, deadline: float, refuse: Callable[[], None]) -> int:
        while True:
            refuse()
            why = self._why_not()
            if why is None:
                place = take_place(self._at_once)
                if place is not None:
                    return place
                why = f"all {self._at_once} places for making containers on this machine stayed taken"
            if time.monotonic() > max(deadline, self._worked_at + self.patience_s):
                raise SandboxUnavailable(f"no sandbox could be made for {self.patience_s:g} s: {why}")
            await asyncio.sleep(LOOK_S)

    def _why_not(self) -> str | None:
        if self._failures and (self._probing or time.monotonic() < self._pause_ends):
            return f"{self._failures} creations in a row failed, the last because {self._cause}"
        return self.short_of_disk()

    def short_of_disk(self) -> str | None:
        return short_of_disk(self.disks, self._min_free_mb)


def short_of_disk(disks: tuple[Path, ...], min_free_mb: int = MIN_FREE_MB) -> str | None:
    """One sentence where one of the file systems is nearly full: an engine without disk fails in ways hard to read."""
    for disk in disks:
        free_mb = shutil.disk_usage(disk).free >> 20
        if free_mb < min_free_mb:
            return (
                f"the disk of {disk}, which the Docker engine uses, has {free_mb} MB free, expected at least "
                f"{min_free_mb} MB: make room there, e.g. with `docker system prune`"
            )
    return None


def own_folder() -> Path:
    """This user's on this machine, which nobody else may enter."""
    folder = Path(tempfile.gettempdir()) / f"touchstone-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise SandboxUnavailable(
            f"{folder} is not a folder of this user's, which the locks of sandboxes need: remove it"
        )
    return folder


def take_place(places: int) -> int | None:
    """An open, locked file: one of this user's on this machine, free again when closed or when this process dies."""
    folder = own_folder()
    for number in range(places):
        fd = os.open(folder / f"creating-{number}", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except BlockingIOError:
            os.close(fd)
    return None
