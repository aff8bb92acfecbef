"""The part of the supervisor that is bubblewrap's own: each command in namespaces of its own, memory that is watched.

Travels into the sandbox with `supervisor.py`: standard library only, Python 3.9 or newer.

    bwrap                       host's processes, ordinary user
      └─ process 1: keeper      new user, pid, mount, net, ipc, uts: an empty machine with the host's /usr, read-only
           └─ init              per command: new user, pid, mount, ipc; holds nothing, waits, ends with its child
                └─ command      sees only itself and init; no capability; filtered system calls

An ordinary user has one user id to give, so keeper and command share it. What parts them is the inner pid namespace,
in which the keeper has no number: it can be neither signalled nor traced nor found in /proc. When init ends the kernel
ends all that is in there with it.
"""

# Without pathlib, for the reason given in `supervisor.py`.
# ruff: noqa: PTH123

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from envs.sandboxes.bubblewrap.seccomp import clone_number, program
from envs.sandboxes.shared.supervisor import Streams, live, main

NEWNS, NEWIPC, NEWUSER, NEWPID = 0x00020000, 0x08000000, 0x10000000, 0x20000000
NOSUID, NODEV, NOEXEC, PRIVATE_BELOW, DETACH = 2, 4, 8, 0x44000, 2
SET_DUMPABLE, SET_SECCOMP, DROP_BOUND, SET_NO_NEW_PRIVS = 4, 22, 24, 38
FILTER = 2
ADDRESS_SPACE = 8
"""Times the memory limit is what one process may reserve: beyond what honest programs reserve and never use."""

FOLDERS = {"/work": "0700", "/tmp": "1777", "/dev/shm": "1777"}
"""All that a command may write to, and the mode of each."""

libc = ctypes.PyDLL(None, use_errno=True)  # keeps the lock of the interpreter, which a cloned child needs to hold


def checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def own_user_namespace(uid: int, gid: int) -> None:
    """Stay who we were, in the user namespace just entered."""
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)


def mount(kind: str, folder: str, flags: int, options: str = "") -> None:
    words = (kind.encode(), folder.encode(), kind.encode())
    checked(libc.mount(*words, ctypes.c_ulong(flags), options.encode()), f"mount {folder}")


def drop_privileges(filter_code: bytes) -> None:
    """For good: no capability, none to be had by executing anything, filtered system calls."""
    capability = 0
    while libc.prctl(DROP_BOUND, capability, 0, 0, 0) == 0:
        capability += 1
    nothing = (ctypes.c_uint32 * 6)()
    checked(libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), nothing), "capset")
    checked(libc.prctl(SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no new privileges")

    class Code(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))

    checked(libc.prctl(SET_SECCOMP, FILTER, ctypes.byref(Code(len(filter_code) // 8, filter_code)), 0, 0), "seccomp")


class Namespaces:
    """Implements `supervisor.Place`."""

    look_s = 0.05

    def __init__(self) -> None:
        self.filter_code = program(os.uname().machine)
        self.clone = clone_number(os.uname().machine)
        self.ids = os.getuid(), os.getgid()
        self.limits: dict[str, int] = {}
        self.kills = 0
        self._next_look = 0.0
        self._mounted = False

    def reset(self, request: dict[str, Any]) -> dict[str, Any]:
        """New folders in place of the old ones, whatever is in them. The first request brings the limits."""
        self.limits = request.get("limits", self.limits)
        if not self._mounted:
            checked(libc.unshare(NEWUSER | NEWNS), "a user namespace within bubblewrap's")
            own_user_namespace(*self.ids)
        for folder, mode in FOLDERS.items():
            if self._mounted:
                checked(libc.umount2(folder.encode(), DETACH), f"unmount {folder}")
            size_mb = self.limits[folder.rpartition("/")[2] + "_mb"]
            options = f"size={size_mb}m,nr_inodes={self.limits['inodes']},mode={mode}"
            mount("tmpfs", folder, NOSUID | NODEV, options)
        self._mounted = True
        return {}

    def start(self, work: Callable[[], None], uid: int, streams: Streams) -> int:
        ready, told = os.pipe()
        flags = NEWUSER | NEWPID | NEWNS | NEWIPC | signal.SIGCHLD
        pid = checked(libc.syscall(self.clone, ctypes.c_ulong(flags), None, None, None, None), "clone")
        if pid == 0:
            try:
                self._init(work, streams, told)
            except BaseException as problem:
                os.write(2, f"keeper: {problem}\n".encode("utf-8", "replace"))
            finally:
                os._exit(70)
        os.close(told)
        if not os.read(ready, 1):
            sys.exit("keeper: a command's namespaces could not be made")
        os.close(ready)
        return pid

    def _init(self, work: Callable[[], None], streams: Streams, told: int) -> None:
        """Process 1 of a command's namespaces. Ends as the command ends."""
        signal.set_wakeup_fd(-1)
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_DFL)  # process 1 ignores what it has no handler for
        own_user_namespace(*self.ids)
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("1000")
        mount("", "/", PRIVATE_BELOW)
        mount("proc", "/proc", NOSUID | NODEV | NOEXEC)
        checked(libc.prctl(SET_DUMPABLE, 0, 0, 0, 0), "not to be traced")  # it is a copy of the keeper
        os.nice(10)
        os.umask(0o022)
        drop_privileges(self.filter_code)
        os.write(told, b"1")
        for target, fd in enumerate(streams):
            os.dup2(fd, target)
        os.closerange(3, 256)
        command = os.fork()
        if command == 0:
            live(os.setsid, self._limit, work)
        null = os.open("/dev/null", os.O_RDWR)
        for target in (0, 1, 2):
            os.dup2(null, target)
        ended = 0
        while ended != command:
            ended, status = os.waitpid(-1, 0)
        os._exit(128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status))

    def _limit(self) -> None:
        address_space = ADDRESS_SPACE * self.limits["memory_mb"] * 2**20
        for kind, most in (
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_NOFILE, 1024),
            (resource.RLIMIT_FSIZE, 1 << 30),
            (resource.RLIMIT_AS, address_space),
            (resource.RLIMIT_NPROC, self.limits["pids"] + 1),  # and init; counted within its user namespace
        ):
            resource.setrlimit(kind, (most, most))

    def oom_kills(self) -> int:
        return self.kills

    def look(self, pid: int) -> None:
        """Kill the largest processes while all of them, with what lies in the folders, have more than the limit."""
        if time.monotonic() < self._next_look:
            return
        limit = self.limits["memory_mb"] * 2**20
        files = sum(used(folder) for folder in FOLDERS)
        sizes = {other: own_memory(other) for other in others(pid)}
        if files + sum(sizes.values()) > limit:
            sizes = {other: own_memory(other, exact=True) for other in sizes}  # pages shared after a fork count once
            kept = files + sum(sizes.values())
            for other, size in sorted(sizes.items(), key=lambda pair: -pair[1]):
                if kept <= limit:
                    break
                with contextlib.suppress(ProcessLookupError):
                    os.kill(other, signal.SIGKILL)
                    self.kills += 1
                kept -= size
        self._next_look = time.monotonic() + self.look_s


def others(init: int) -> list[int]:
    """Processes of the command: all that there are, but this one and init."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) not in (1, init)]  # noqa: PTH208


def used(folder: str) -> int:
    found = os.statvfs(folder)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def own_memory(pid: int, *, exact: bool = False) -> int:
    """Bytes of a process that are no file's. `exact` takes longer, and counts what it shares in equal parts."""
    wanted = ("Pss_Anon:", "Pss_Shmem:", "SwapPss:") if exact else ("RssAnon:", "RssShmem:", "VmSwap:")
    path = f"/proc/{pid}/{'smaps_rollup' if exact else 'status'}"
    total = 0
    with contextlib.suppress(OSError), open(path, encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith(wanted):
                total += int(line.split()[1]) * 1024
    return total


if __name__ == "__main__":
    main(Namespaces())
