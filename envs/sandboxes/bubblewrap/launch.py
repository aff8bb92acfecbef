"""Every call to bubblewrap: the command line, whether it works on this machine, what of it is running."""

from __future__ import annotations

import asyncio
import functools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from envs.sandboxes import SandboxUnavailable
from envs.sandboxes.bubblewrap.seccomp import ARCHITECTURES
from envs.sandboxes.shared.program import BOOT, program

HERE = Path(__file__).parent
PROGRAM = program(HERE / "keeper.py", {f"{__package__}.seccomp": HERE / "seccomp.py"})
WEAKER = (
    "bubblewrap in place of Docker, which is weaker: memory is looked at 20 times a second and capped by nobody "
    "between, a command may use every core (at low priority), and it reads this machine's own /usr"
)
"""For people, in one line."""
OLDEST_KERNEL = (5, 14)
"""The first that counts processes by user namespace, and so by sandbox."""
OLDEST_PYTHON = (3, 9)
SYSTEM_PYTHON = "/usr/bin/python3"
SWITCHES = {
    "/proc/sys/kernel/unprivileged_userns_clone": "0",
    "/proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1",
    "/proc/sys/user/max_user_namespaces": "0",
}
"""What distributions forbid user namespaces with, and the value that forbids."""
OWNER = "TOUCHSTONE_OWNER"
"""On the command line of every sandbox: its run and the process that started it."""
ETC = {
    "passwd": "sandbox:x:1000:1000::/work:/bin/sh\n",
    "group": "sandbox:x:1000:\n",
    "hosts": "127.0.0.1 localhost\n::1 localhost\n",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one sandbox may use. The memory limit covers the processes and all three in-memory folders."""

    memory_mb: int = 512
    pids: int = 64
    work_mb: int = 128
    tmp_mb: int = 64
    shm_mb: int = 16
    inodes: int = 16384
    """Of each folder."""

    def __post_init__(self) -> None:
        folders_mb = self.work_mb + self.tmp_mb + self.shm_mb
        if folders_mb * 2 > self.memory_mb:
            raise ValueError(
                f"the folders of a sandbox live in its memory: got work_mb + tmp_mb + shm_mb = {folders_mb}, "
                f"expected at most half of memory_mb = {self.memory_mb}"
            )


def start(
    run: str, uid: int, sent: bytes, work_mb: int = 0
) -> tuple[subprocess.Popen[bytes], socket.socket, IO[bytes]]:
    """A sandbox whose process 1 waits for `sent`, a program: its process, a socket to its stdin and stdout, its stderr.

    `/work` has `work_mb`, or is the program's own to make.

    It dies with the thread that calls this. Started as root, it becomes user `uid` first: root stays root in the files
    and settings of a machine, whatever namespace it is in.
    """
    check_machine()
    ours, theirs = socket.socketpair()
    data = [_pipe_with(text) for text in ETC.values()]
    as_root = os.geteuid() == 0
    try:
        process = subprocess.Popen(
            [
                *_command(run),
                *(word for pair in zip(ETC, data, strict=True) for word in _etc(*pair)),
                *(["--perms", "0700", "--size", str(work_mb << 20), "--tmpfs", "/work"] if work_mb else []),
                *_program(sent),
            ],
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            stderr=subprocess.PIPE,
            pass_fds=data,
            cwd="/",
            env={},
            start_new_session=True,
            user=uid if as_root else None,
            group=uid if as_root else None,
            extra_groups=[] if as_root else None,
        )
    except OSError as problem:
        ours.close()
        raise SandboxUnavailable(f"bubblewrap did not start: {problem}") from problem
    finally:
        theirs.close()
        for fd in data:
            os.close(fd)
    ours.setblocking(False)
    assert process.stderr is not None
    os.set_blocking(process.stderr.fileno(), False)
    return process, ours, process.stderr


def _command(run: str) -> list[str]:
    words = ["bwrap", "--unshare-all", "--die-with-parent", "--as-pid-1", "--cap-drop", "ALL", "--hostname", "sandbox"]
    words[0] = shutil.which("bwrap") or words[0]
    words += [
        "--uid",
        "1000",
        "--gid",
        "1000",
        "--clearenv",
        "--setenv",
        OWNER,
        f"{run}/{os.getpid()}",
        "--setenv",
        "PATH",
        _python()[1],
    ]
    words += ["--ro-bind", "/usr", "/usr"]
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        place = Path("/", name)
        if place.is_symlink():
            words += ["--symlink", str(place.readlink()), str(place)]
        else:
            words += ["--ro-bind-try", str(place), str(place)]
    for name in ("alternatives", "ld.so.cache", "ld.so.conf", "ld.so.conf.d"):
        words += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    if (prefix := _python()[2]) is not None:
        words += ["--ro-bind", prefix, prefix]
    words += ["--proc", "/proc", "--dev", "/dev", "--dir", "/work", "--dir", "/tmp"]
    return words


def _etc(name: str, fd: int) -> list[str]:
    return ["--perms", "0444", "--ro-bind-data", str(fd), f"/etc/{name}"]


def _program(sent: bytes) -> list[str]:
    sealed = ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/"]
    return [*sealed, "--", _python()[0], "-I", "-S", "-c", BOOT.format(size=len(sent))]


def _pipe_with(text: str) -> int:
    readable, writable = os.pipe()
    os.write(writable, text.encode())
    os.close(writable)
    return readable


@functools.cache
def _python() -> tuple[str, str, str | None]:
    """The Python of sandboxes, the PATH that finds it, and the folder to show them where it is not the system's own."""
    path = "/usr/local/bin:/usr/bin:/bin"
    ask = [SYSTEM_PYTHON, "-I", "-S", "-c", f"import sys; sys.exit(sys.version_info < {OLDEST_PYTHON})"]
    if Path(SYSTEM_PYTHON).exists() and subprocess.run(ask, check=False).returncode == 0:
        return SYSTEM_PYTHON, path, None
    binary = Path(sys.base_prefix, "bin", f"python{sys.version_info[0]}")
    return str(binary), f"{binary.parent}:{path}", sys.base_prefix


def check_machine() -> None:
    """What can be said before anything is started. Raises SandboxUnavailable."""
    machine, kernel = os.uname().machine, os.uname().release
    if shutil.which("bwrap") is None:
        raise SandboxUnavailable(
            "there is no bwrap on this machine: type 'sudo apt-get install bubblewrap', or what your system calls it"
        )
    if machine not in ARCHITECTURES:
        raise SandboxUnavailable(
            f"bubblewrap sandboxes got a {machine} machine: expected one of {', '.join(ARCHITECTURES)}"
        )
    if tuple(map(int, re.findall(r"\d+", kernel)[:2])) < OLDEST_KERNEL:
        raise SandboxUnavailable(
            f"bubblewrap sandboxes got the kernel {kernel}: expected {OLDEST_KERNEL[0]}.{OLDEST_KERNEL[1]} or newer, "
            "which count a sandbox's processes"
        )


def explain(said: str) -> str:
    """Why a keeper did not start, with what to type where that is known."""
    for switch, forbids in SWITCHES.items():
        if Path(switch).exists() and Path(switch).read_text().strip() == forbids:
            key = switch.removeprefix("/proc/sys/").replace("/", ".")
            allows = {"0": "1", "1": "0"}[forbids] if "max" not in key else "10000"
            return (
                f"this machine lets its users make no user namespaces ({key} is {forbids}): "
                f"type 'sudo sysctl -w {key}={allows}'"
            )
    return said


def preflight(image: str | None = None) -> None:
    """Run a command in a sandbox, for real. Raises SandboxUnavailable: one sentence, with what to type.

    There are no images here: the machine itself is one.
    """
    from envs.sandboxes.bubblewrap import BubblewrapPool

    async def attempt() -> None:
        pool = BubblewrapPool(run="preflight", size=1)
        try:
            result = await (await pool.acquire()).exec(["python3", "-c", "print(6 * 7)"])
        finally:
            await pool.close()
        if result.stdout != b"42\n":
            raise SandboxUnavailable(
                f"python3 in a bubblewrap sandbox answered {(result.stdout + result.stderr)!r:.200}"
            )

    with ThreadPoolExecutor(1) as thread:  # the caller may have an event loop of its own
        thread.submit(asyncio.run, attempt()).result()


def running() -> Iterator[tuple[int, str, int]]:
    """Process id, run and owner's process id of every sandbox in our pid namespace."""
    here = Path("/proc/self/ns/pid").readlink()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if words[0].endswith("bwrap") and OWNER in words and (folder / "ns/pid").readlink() == here:
                run, _, owner = words[words.index(OWNER) + 1].rpartition("/")
                yield int(folder.name), run, int(owner)
        except OSError:  # gone meanwhile, or another user's
            continue


def count(run: str) -> int:
    """Sandboxes of a run on this machine."""
    return sum(run == found for _, found, _ in running())


def reap() -> list[str]:
    """End sandboxes that somebody else than their owner has for a parent: it is gone, and the kernel did not see to it.

    Returns their names.
    """
    removed = []
    for pid, run, owner in running():
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        if parent != owner:
            os.kill(pid, signal.SIGKILL)
            removed.append(f"bwrap-{run}-{pid}")
    return removed
