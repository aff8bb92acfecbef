"""The part of the supervisor that is a Docker container's own: another user, limits by cgroup, folders that are wiped.

Travels into the container with `supervisor.py`: standard library only, Python 3.9 or newer.
"""

# Without pathlib, for the reason given in `supervisor.py`.
# ruff: noqa: PTH101, PTH112, PTH123

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable
from typing import Any

from envs.sandboxes.shared.clock import TICK_S, Counter
from envs.sandboxes.shared.supervisor import WORK, Streams, live, main
from envs.sandboxes.shared.tree import wipe

WIPED = (WORK, "/tmp", "/dev/shm", "/dev/mqueue")
OOM_COUNTERS = ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control")
"""Of cgroup v2 and v1."""


def become(uid: int, streams: Streams) -> None:
    """In a fresh child: a session of its own, its own streams, the limits, and for good the user `uid`."""
    os.setsid()
    for target, fd in enumerate(streams):
        os.dup2(fd, target)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores
        signal.signal(number, signal.SIG_DFL)
    fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY)  # with SYS_RESOURCE: the child cannot lower it again
    os.write(fd, b"1000")
    os.close(fd)
    os.nice(10)  # among the container's own processes only; process 1 stays responsive under a fork bomb
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))
    os.umask(0o022)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


class Container:
    """Implements `Place`."""

    look_s = TICK_S

    def __init__(self) -> None:
        self._ooms = Counter(*OOM_COUNTERS)

    def start(self, work: Callable[[], None], uid: int, streams: Streams) -> int:
        pid = os.fork()
        if pid == 0:
            live(lambda: become(uid, streams), work)
        return pid

    def look(self, pid: int) -> None:
        """The container's limits need no watching."""

    def oom_kills(self) -> int | None:
        return next((int(line.split()[1]) for line in self._ooms.lines() if line.startswith(b"oom_kill ")), None)

    def reset(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            for top in WIPED:
                if os.path.isdir(top):
                    wipe(top)
                    if os.listxattr(top):
                        return {"unclean": f"{top} kept attributes {os.listxattr(top)}"}
            for kind in ("shm", "msg", "sem"):
                with open(f"/proc/sysvipc/{kind}", encoding="ascii") as file:
                    if len(file.readlines()) > 1:
                        return {"unclean": f"System V {kind} objects are left"}
            os.chown(WORK, request["uid"], request["uid"])
            os.chmod(WORK, 0o700)
        except (OSError, RecursionError) as problem:
            return {"unclean": str(problem)[:300]}
        return {}


if __name__ == "__main__":
    main(Container())
