"""Process 1 of a sandbox: takes requests on its stdin, answers on its stdout, runs untrusted code out of its own reach.

Standard library only, Python 3.9 or newer. Sent over stdin together with its neighbours (`program.py`) and what is the
backend's own (`container.py` for Docker, `bubblewrap/keeper.py`), so a sandbox needs nothing but python3.

The first request is `hello`, and its token is the one of every later frame. Untrusted code has its own pipes and its
own user, so it reaches neither this process nor its streams. One request runs at a time; a request that arrives while a
command runs aborts that command. The process that does a request is forked once the one before has been answered and
nothing of the lease runs any more, so that nobody waits for the fork and its way to the lease's user. When stdin ends
(the owner died) or the lifetime is over, this process exits, and the kernel takes everything else in the container with
it.
"""

# Without pathlib, whose import would double the time that this file takes to start.
# ruff: noqa: PTH118

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import resource
import select
import signal
import struct
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn, Protocol

from envs.sandboxes.shared.clock import OwnTime
from envs.sandboxes.shared.frames import call, receive, receive_frame, send_frame
from envs.sandboxes.shared.tree import pack, read_file, unpack, write_file

SIZES = struct.Struct("!II")
CHUNK = 65536
WORK = "/work"
SHELL = next((path for path in ("/bin/bash", "/usr/bin/bash") if os.access(path, os.X_OK)), "/bin/sh")
Streams = tuple[int, int, int]
BASE_ENV = {
    "PATH": os.environ.get("PATH", "/usr/local/bin:/usr/bin:/bin"),
    "HOME": WORK,
    "USER": "sandbox",
    "LOGNAME": "sandbox",
    "LANG": "C.UTF-8",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONHASHSEED": "0",
}


class Place(Protocol):
    """What is around this process: each backend brings its own."""

    look_s: float

    def start(self, work: Callable[[], None], uid: int, streams: Streams) -> int:
        """A process that takes the lease's user, streams and limits, and then does `work`."""

    def look(self, pid: int) -> None:
        """Called at least every `look_s` while process `pid` runs."""

    def oom_kills(self) -> int | None:
        """Memory kills so far, None where no counter can be seen."""

    def reset(self, request: dict[str, Any]) -> dict[str, Any]:
        """Leave nothing of the lease that ended. `unclean` says in one line what could not be removed."""


place: Place
wake_read, wake_write = os.pipe()


# Processes of the lease


class Kept:
    """The first and the last half of a stream's `limit` bytes, and how many bytes came in all."""

    def __init__(self, limit: int) -> None:
        self.first = limit - limit // 2
        self.last = limit // 2
        self.head = bytearray()
        self.tail = bytearray()
        self.total = 0

    def feed(self, data: bytes) -> None:
        self.total += len(data)
        room = self.first - len(self.head)
        if room > 0:
            self.head += data[:room]
            data = data[room:]
        self.tail += data
        if len(self.tail) > self.last + CHUNK:
            del self.tail[: len(self.tail) - self.last]

    def bytes(self) -> bytes:
        return bytes(self.head + self.tail[max(0, len(self.tail) - self.last) :])


def kill_all(wanted: int = 0) -> int | None:
    """Kill every other process of the container and reap it. Returns the wait status of `wanted` if it was among them.

    `kill(-1)` is atomic against forks, and orphans become children of process 1, so ECHILD means that none is left.
    """
    if os.getpid() != 1:
        sys.exit(f"supervisor: got pid {os.getpid()}, expected to be process 1 of a container")
    with contextlib.suppress(ProcessLookupError):  # nobody was there
        os.kill(-1, signal.SIGKILL)
    found = None
    while True:
        try:
            pid, status = os.waitpid(-1, 0)
        except ChildProcessError:
            return found
        if pid == wanted:
            found = status


def reap(wanted: int) -> int | None:
    """Collect children that have exited by now. Returns the wait status of `wanted` once it has."""
    for _ in range(1000):  # a fork bomb may add to them as fast as they are collected
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == wanted:
            return status
        if pid == 0:
            break
    return None


class Child:
    """A process under the lease's user that reads from its stdin what it is to do."""

    def __init__(self, uid: int) -> None:
        stdin, self.feed = os.pipe()
        self.out, out = os.pipe()
        self.err, err = os.pipe()
        self.pid = place.start(obey, uid, (stdin, out, err))
        for fd in (stdin, out, err):
            os.close(fd)

    def close(self) -> None:
        for fd in (self.feed, self.out, self.err):
            os.close(fd)


class Crew:
    """Whoever does the next request: made ahead, gone before another user comes."""

    def __init__(self) -> None:
        self._uid = 0
        self._next: Child | None = None

    def prepare(self) -> None:
        if self._next is None:
            with contextlib.suppress(OSError):  # no memory for it now: made when needed, or told then
                self._next = Child(self._uid)

    def take(self) -> Child:
        """The one that waits, unless it died of what others did to the machine's memory."""
        child, self._next = self._next, None
        if child is not None and os.waitpid(child.pid, os.WNOHANG)[0] != 0:
            child.close()
            child = None
        return child or Child(self._uid)

    def end(self, uid: int) -> None:
        """Nobody is left; those to come belong to user `uid`."""
        kill_all()
        if self._next is not None:
            self._next.close()
        self._uid, self._next = uid, None


crew = Crew()


class Run:
    """One request done by a child, until nobody of it is left."""

    def __init__(self, request: dict[str, Any], text: bytes, body: bytearray, *, limit: int) -> None:
        timeout_s = request["timeout_s"]
        self.out = Kept(limit)
        self.err = Kept(limit)
        self.timed_out = False
        self.starved = False
        self.aborted = False
        self._told = memoryview(SIZES.pack(len(text), len(body)) + text + body[:CHUNK])
        self._rest = memoryview(body)[CHUNK:]
        ooms = place.oom_kills()
        child = crew.take()
        self._feed = child.feed
        self._kept = {child.out: self.out, child.err: self.err}
        own = OwnTime()  # what it took to start is not the command's
        ended = self._attend(child.pid, own, timeout_s, request["give_up_s"])
        self.duration_s, spent = own.total_s, own.cpu_s if ended is None else 0.0
        killed = kill_all(child.pid)
        self._drain()
        status = ended if ended is not None else killed
        assert status is not None, f"process {child.pid} was never reaped"
        self.exit_code = 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        self.oom = self.exit_code == 137 and not self.timed_out if ooms is None else place.oom_kills() != ooms
        self.cpu_s = max(spent, own.cpu_s)  # a kernel may forget that of processes killed with their namespace

    def _attend(self, pid: int, own: OwnTime, timeout_s: float, give_up_s: float) -> int | None:
        """Feed and drain the pipes until the child exits (its status), its time is over or another request arrives."""
        poller = select.poll()
        for fd in (0, wake_read, *self._kept):
            poller.register(fd, select.POLLIN)
        os.set_blocking(self._feed, False)
        if self._serve(self._feed):
            poller.register(self._feed, select.POLLOUT)
        status = None
        while status is None and not self.aborted and not self.timed_out and not self.starved:
            for fd, _ in poller.poll(min(own.until(timeout_s), place.look_s) * 1000 + 1):
                if not self._serve(fd):
                    poller.unregister(fd)
            place.look(pid)
            status = reap(pid)
            if status is None and own.until(timeout_s) == 0:
                own.look()
                self.timed_out = own.seconds >= timeout_s
                self.starved = not self.timed_out and own.clock_s >= give_up_s
        return status

    def _serve(self, fd: int) -> bool:
        """Do what a ready descriptor asks for. False where it is at its end."""
        if fd in self._kept:
            data = os.read(fd, CHUNK)
            self._kept[fd].feed(data)
            return len(data) > 0
        if fd == self._feed:
            if self._feed_some():
                return True
            os.close(fd)
            self._feed = -1
            return False
        if fd == wake_read:
            os.read(wake_read, CHUNK)
        else:  # stdin: another request, or the end of it
            self.aborted = True
        return True

    def _feed_some(self) -> bool:
        """Write what the stdin pipe takes now. False when done, or when nobody reads it any more."""
        try:
            self._told = self._told[os.write(self._feed, self._told[:CHUNK]) :]
        except BlockingIOError:
            return True
        except BrokenPipeError:
            return False
        if not self._told:
            self._told, self._rest = self._rest, self._rest[:0]
        return len(self._told) > 0

    def _drain(self) -> None:
        """Take what the dead left in the pipes, then close them."""
        if self._feed >= 0:
            os.close(self._feed)
        for fd, kept in self._kept.items():
            os.set_blocking(fd, False)
            with contextlib.suppress(
                BlockingIOError
            ):  # where a write end is still being torn down: nobody writes to it
                while data := os.read(fd, CHUNK):
                    kept.feed(data)
            os.close(fd)


# Requests


def replace_by(words: list[bytes], env: dict[str, str]) -> None:
    """As `os.execvpe`, which spends longer on finding a program than the kernel on starting it."""
    folders = [b""] if b"/" in words[0] else [os.fsencode(folder) for folder in env["PATH"].split(":")]
    problem: OSError = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    for folder in folders:
        try:
            os.execve(os.path.join(folder, words[0]), words, env)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError as error:  # a later folder may have one that may be run
            problem = error
    raise problem


def start_program(request: dict[str, Any], body_size: int) -> None:
    """Become the program, whose stdin is what follows the request."""
    if not body_size:
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    argv = [SHELL, "-c", request["argv"]] if isinstance(request["argv"], str) else request["argv"]
    words = [word.encode("utf-8", "surrogateescape") for word in argv]
    os.chdir(os.path.join(WORK, request["cwd"]))
    replace_by(words, {**BASE_ENV, **request["env"]})


def on_files(work: Callable[[dict[str, Any], int], None]) -> Callable[[dict[str, Any], int], None]:
    """In the working folder. An OSError is told as its number, on stderr."""

    def do(request: dict[str, Any], body_size: int) -> None:
        try:
            os.chdir(WORK)
            work(request, body_size)
        except OSError as problem:
            os.write(2, str(problem.errno).encode())
            os._exit(1)
        except ValueError:  # a NUL or a lone surrogate in the path
            os.write(2, str(errno.EINVAL).encode())
            os._exit(1)

    return do


REHEARSAL = json.dumps({"id": 1, "op": "exec", "argv": [""], "cwd": "", "env": {}, "timeout_s": 1.0})
WORKS: dict[str, Callable[[dict[str, Any], int], None]] = {
    "exec": start_program,
    "write": on_files(lambda asked, size: write_file(asked["path"], receive(size))),
    "read": on_files(lambda asked, _: read_file(asked["path"])),
    "pack": on_files(lambda asked, _: pack(asked["limit"])),
    "unpack": on_files(lambda asked, size: unpack(receive(size))),
}
"""What a child does, under the lease's user; it is told the size of what follows the request on its stdin."""


def obey() -> None:
    """Wait for a request and do it. A rehearsal goes before, since a fork copies each page when it is first used."""
    gc.disable()
    json.loads(REHEARSAL)
    with contextlib.suppress(OSError):
        replace_by([b"/"], {**BASE_ENV})
    text_size, body_size = SIZES.unpack(receive(SIZES.size))
    request = json.loads(receive(text_size))
    cpu_s = int(request["timeout_s"] * (os.cpu_count() or 1)) + 10
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
    WORKS[request["op"]](request, body_size)


def live(*works: Callable[[], None]) -> NoReturn:
    """What a child of ours does: its works, one after another. A command that cannot start is told as a shell would."""
    try:
        for work in works:
            work()
    except BaseException as problem:
        os.write(2, f"sandbox: {problem}\n".encode("utf-8", "replace"))
        os._exit(127 if isinstance(problem, FileNotFoundError) else 126)
    os._exit(0)


def do_exec(request: dict[str, Any], text: bytes, body: bytearray) -> tuple[dict[str, Any], bytes]:
    run = Run(request, text, body, limit=request["max_output"])
    out, err = run.out.bytes(), run.err.bytes()
    reply = {
        "exit_code": run.exit_code,
        "stdout": len(out),
        "stdout_cut": run.out.total - len(out),
        "stderr_cut": run.err.total - len(err),
        "timed_out": run.timed_out,
        "oom": run.oom,
        "aborted": run.aborted,
        "starved": run.starved,
        "duration_s": run.duration_s,
        "cpu_s": run.cpu_s,
    }
    return reply, out + err


def do_files(request: dict[str, Any], text: bytes, body: bytearray) -> tuple[dict[str, Any], bytes]:
    """Its child's OSError travels back as a number, its stdout as the body."""
    limit = request.get("limit", 0)
    run = Run(request, text, body, limit=max(limit, 64))
    if run.out.total > limit:
        return {"errno": errno.EFBIG}, b""
    if run.exit_code == 0:
        return {}, run.out.bytes()
    number = int(run.err.bytes()) if run.exit_code == 1 else errno.EIO
    return {"errno": number, "aborted": run.aborted, "starved": run.starved}, b""


def do_reset(request: dict[str, Any], _text: bytes, _body: bytearray) -> tuple[dict[str, Any], bytes]:
    """End a lease and begin the next as user `uid`."""
    crew.end(request["uid"])
    return place.reset(request), b""


REQUESTS: dict[str, Callable[[dict[str, Any], bytes, bytearray], tuple[dict[str, Any], bytes]]] = {
    "exec": do_exec,
    **dict.fromkeys(("write", "read", "pack", "unpack"), do_files),
    "reset": do_reset,
    "ping": lambda request, text, body: ({}, b""),
}


def main(around: Place) -> None:
    global place
    place = around
    if os.getpid() != 1:
        sys.exit(f"supervisor: got pid {os.getpid()}, expected to be process 1 of a container")
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))
    gc.collect()
    gc.freeze()  # forks share these pages until they write to them
    token, text, _ = receive_frame()
    hello = json.loads(text)
    deadline = time.monotonic() + hello["lifetime_s"]
    reply, _ = do_reset(hello, text, bytearray())
    called = call(hello["door"]) if hello.get("door") else -1
    send_frame(token, {"id": hello["id"], "kernel": os.uname().release, "moved": called >= 0, **reply})
    if called >= 0:
        for fd in (0, 1):
            os.dup2(called, fd)
        os.close(called)
    poller = select.poll()
    poller.register(0, select.POLLIN)
    while True:
        crew.prepare()
        if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
            os._exit(0)
        token_now, text, body = receive_frame()
        if token_now != token:
            sys.exit("supervisor: a frame without this container's token")
        request = json.loads(text)
        reply, answer = REQUESTS[request["op"]](request, text, body)
        send_frame(token, {"id": request["id"], **reply}, answer)
