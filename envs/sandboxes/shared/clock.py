"""How long a command has been running, and what it has spent, from the kernel's counters.

Travels into the container with `supervisor.py`: standard library only, Python 3.9 or newer.
"""

# Without pathlib, for the reason given in `supervisor.py`.
# ruff: noqa: PTH208, PTH123

from __future__ import annotations

import contextlib
import os
import resource
import time

CHUNK = 65536
CPU_COUNTERS = {"/sys/fs/cgroup/cpu.stat": 1e-6, "/sys/fs/cgroup/cpuacct/cpuacct.usage": 1e-9}
"""Where the container's CPU time stands, cgroup v2 and v1, and the unit in seconds."""
TICK_S = 0.25


class Counter:
    """A file of the kernel's that is read again and again; the first that there is."""

    def __init__(self, *paths: str) -> None:
        self.path = next(filter(os.path.exists, paths), "")
        self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC) if self.path else -1

    def lines(self) -> list[bytes]:
        return os.pread(self._fd, CHUNK, 0).splitlines() if self.path else []


cpu_counter = Counter(*CPU_COUNTERS)


def cpu_seconds() -> float:
    """CPU time of this container so far; where no counter can be seen, that of its processes, reaped or living."""
    if lines := cpu_counter.lines():
        return int(lines[0].split()[-1]) * CPU_COUNTERS[cpu_counter.path]
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime + sum(seconds for _, seconds in living())


def living() -> list[tuple[str, float]]:
    """State letter, and CPU time in s with that of its reaped children, of every other process of the container."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and name != "1":
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", encoding="ascii", errors="replace") as file:
                fields = file.read().rpartition(")")[2].split()
                found.append((fields[0], sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")))
    return found


class OwnTime:
    """How long a command has been running: the clock's time, less that in which it was ready and found no core.

    So a busy machine makes nothing time out. Sampled every TICK_S; what ends earlier is counted by the clock.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._at, self._cpu = time.monotonic(), cpu_seconds()
        self._first = self._at, self._cpu

    @property
    def clock_s(self) -> float:
        return time.monotonic() - self._first[0]

    @property
    def total_s(self) -> float:
        return self.seconds + time.monotonic() - self._at

    @property
    def cpu_s(self) -> float:
        return cpu_seconds() - self._first[1]

    def until(self, limit_s: float) -> float:
        """Seconds to wait before the next look."""
        return max(0.0, min(limit_s - self.seconds, TICK_S) - (time.monotonic() - self._at))

    def look(self) -> None:
        now, cpu = time.monotonic(), cpu_seconds()
        passed, worked = now - self._at, max(0.0, cpu - self._cpu)
        starved = worked < passed / 2 and any(state == "R" for state, _ in living())
        self.seconds += worked if starved else passed
        self._at, self._cpu = now, cpu
