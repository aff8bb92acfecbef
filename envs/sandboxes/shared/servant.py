"""Process 1 of a service's container: loads a trusted program once, answers each question in a fork of its own.

Standard library only, Python 3.9 or newer; sent over stdin, and speaks the frames of `supervisor.py`. The body of the
first request, `hello`, is the program: a zip whose module `program` has `answer(question: bytes) -> bytes`. A fork runs
as a user of its own (or, where there is only one, as one whom nobody may trace) with limits on CPU time, memory,
processes and files, holds nothing but the pipe to its parent, and finds no folder that it may write to. Requests may
overlap; replies come in the order in which they are ready.
"""

# Without pathlib, as in supervisor.py.
# ruff: noqa: PTH101, PTH112, PTH123

from __future__ import annotations

import gc
import importlib
import json
import os
import resource
import select
import signal
import struct
import sys
import time
from typing import Any

HEADER = struct.Struct("!16sII")
PROGRAM = "/work/program.zip"
MAX_ANSWER = 1 << 20
FOLDERS = ("/work", "/tmp", "/dev/shm", "/dev/mqueue")
OUT_OF_MEMORY = 3
FILES = 64
PR_SET_DUMPABLE = 4


def receive(size: int) -> bytes:
    """Exactly `size` bytes of stdin. Exits where stdin ends: the owner is gone."""
    data = bytearray()
    while len(data) < size:
        chunk = os.read(0, min(size - len(data), 1 << 20))
        if not chunk:
            os._exit(0)
        data += chunk
    return bytes(data)


def receive_frame() -> tuple[bytes, dict[str, Any], bytes]:
    token, json_size, body_size = HEADER.unpack(receive(HEADER.size))
    return token, json.loads(receive(json_size)), receive(body_size)


def send(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def send_frame(token: bytes, reply: dict[str, Any], body: bytes = b"") -> None:
    text = json.dumps(reply).encode()
    send(1, HEADER.pack(token, len(text), len(body)) + text + body)


def load(program: bytes) -> Any:
    """The module, from a zip that only process 1 may write. Afterwards nobody else may write anywhere."""
    for folder in FOLDERS:
        if os.path.isdir(folder) and os.access(folder, os.W_OK):
            os.chmod(folder, 0o755)
    with open(PROGRAM, "wb") as file:
        file.write(program)
    sys.path.insert(0, PROGRAM)
    module = importlib.import_module("program")
    gc.collect()
    gc.freeze()  # forks share these pages until they write to them
    return module


class Fork:
    """One question under way."""

    def __init__(self, module: Any, request: dict[str, Any], question: bytes, uid: int, memory_mb: int) -> None:
        self.number = request["id"]
        self.uid = uid
        self.deadline = time.monotonic() + request["timeout_s"]
        self.late = False
        self.said = bytearray()
        self.fd, write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                confine(write, uid, request["cpu_s"], memory_mb)
                send(write, module.answer(question))
            except MemoryError:
                os._exit(OUT_OF_MEMORY)
            except BaseException as problem:
                send(write, f"{type(problem).__name__}: {problem}"[:300].encode("utf-8", "replace"))
                os._exit(1)
            os._exit(0)
        os.close(write)

    def listen(self) -> bool:
        """Take what it says. False where it has ended or says too much."""
        data = os.read(self.fd, 1 << 16)
        self.said += data
        return len(data) > 0 and len(self.said) <= MAX_ANSWER

    def end(self) -> tuple[dict[str, Any], bytes]:
        """Make sure that it is gone; the reply to its question."""
        os.close(self.fd)
        if self.late or len(self.said) > MAX_ANSWER:
            os.kill(self.pid, signal.SIGKILL)
        _, status, used = os.wait4(self.pid, 0)
        if self.late:
            ended = "late"
        elif os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == OUT_OF_MEMORY:
            ended = "spent"
        else:
            ended = "raised" if os.WEXITSTATUS(status) else "answered"
        reply = {"id": self.number, "ended": ended, "cpu_s": used.ru_utime + used.ru_stime}
        return reply, bytes(self.said) if ended in ("answered", "raised") else b""


def confine(keep: int, uid: int, cpu_s: int, memory_mb: int) -> None:
    """In a fresh fork: nothing open but `keep`, the limits, and for good the user `uid`."""
    os.setsid()
    null = os.open("/dev/null", os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    os.closerange(3, keep)
    os.closerange(keep + 1, FILES)
    for number, limit in (
        (resource.RLIMIT_AS, memory_mb << 20),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, FILES),
    ):
        resource.setrlimit(number, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
    if uid:
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
        os.write(fd, b"1000")
        os.close(fd)
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)


def serve(module: Any, token: bytes, uids: list[int], memory_mb: int, ends: float) -> None:
    """Answer until stdin ends or this container's life is over."""
    waiting: list[tuple[dict[str, Any], bytes]] = []
    forks: dict[int, Fork] = {}
    poller = select.poll()
    poller.register(0, select.POLLIN)
    while time.monotonic() < ends:
        until = min([ends, *(fork.deadline for fork in forks.values())])
        for fd, _ in poller.poll(max(0.0, until - time.monotonic()) * 1000 + 1):
            if fd == 0:
                token_now, request, question = receive_frame()
                if token_now != token:
                    sys.exit("servant: a frame without this container's token")
                waiting.append((request, question))
            elif not forks[fd].listen():
                _finish(forks, fd, poller, uids, token)
        for fd, fork in list(forks.items()):
            if time.monotonic() >= fork.deadline:
                fork.late = True
                _finish(forks, fd, poller, uids, token)
        while waiting and uids:
            fork = Fork(module, *waiting.pop(0), uids.pop(0), memory_mb)
            forks[fork.fd] = fork
            poller.register(fork.fd, select.POLLIN)


def _finish(forks: dict[int, Fork], fd: int, poller: select.poll, uids: list[int], token: bytes) -> None:
    poller.unregister(fd)
    fork = forks.pop(fd)
    send_frame(token, *fork.end())
    uids.append(fork.uid)


def main() -> None:
    if os.getpid() != 1:
        sys.exit(f"servant: got pid {os.getpid()}, expected to be process 1 of a container")
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))
    token, hello, program = receive_frame()
    ends = time.monotonic() + hello["lifetime_s"]
    try:
        module = load(program)
    except Exception as problem:
        send_frame(token, {"id": hello["id"], "problem": f"{type(problem).__name__}: {problem}"[:300]})
        return
    if not all(hello["uids"]):
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    send_frame(token, {"id": hello["id"]})
    serve(module, token, hello["uids"], hello["memory_mb"], ends)


if __name__ == "__main__":
    main()
