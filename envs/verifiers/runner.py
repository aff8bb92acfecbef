"""Runs untrusted code inside a sandbox: one forked process for each case. Standard library only, Python 3.9 or newer.

This process imports nothing of the attempt's and holds no answer: it reads one job and its cases, one after another,
and tells what became of each. A job runs a Python program (`program`: in a fork of this interpreter, cheaper than a
fresh one), another command (`argv`), or a Python function (`call`), whose value comes back as tagged JSON.

A frame, both ways: length of the JSON, length of the body (two big-endian 32-bit), JSON, body. In: the job, then for
each case its body: stdin, or the call. Out: `{"ready": true}` before anything untrusted runs, then what became of each
case, its stdout or the call's claim as body. A case finds as descriptors its own stdin, stdout, stderr and claim: files
in memory, so that stdin can be read twice, sought and mapped, and no pipe is left open behind a stray grandchild. When
a case has ended, every other process of this user is killed, so that nothing of one case lives on in the next.
"""

# ruff: noqa: PTH123, PTH208

from __future__ import annotations

import builtins
import contextlib
import ctypes
import json
import os
import resource
import signal
import struct
import sys
import time
import types
from typing import Any

FRAME = struct.Struct("!II")
PR_SET_DUMPABLE = 4
TICK_S = 0.25
STDERR_BYTES = 800
CLAIM_FD = 3


def receive() -> tuple[dict[str, Any], bytes] | None:
    """One frame of stdin, None where it ends."""
    head = read_exactly(FRAME.size)
    if not head:
        return None
    text_size, body_size = FRAME.unpack(head)
    return json.loads(read_exactly(text_size)), read_exactly(body_size)


def read_exactly(size: int) -> bytes:
    """`size` bytes of descriptor 0 and not one more: a case's process must not find the next one's in a buffer."""
    parts = []
    while size:
        part = os.read(0, min(size, 1 << 20))
        if not part:
            return b""
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def send(reply: dict[str, Any], body: bytes = b"") -> None:
    text = json.dumps(reply).encode()
    write_all(1, FRAME.pack(len(text), len(body)) + text + body)


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def file_in_memory(data: bytes = b"") -> int:
    fd = os.memfd_create("case", os.MFD_CLOEXEC)
    write_all(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def limit_case(job: dict[str, Any]) -> None:
    seconds = job["kill_cpu_s"]
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (job["output_bytes"] + 1,) * 2)
    if job["memory_mb"]:
        resource.setrlimit(resource.RLIMIT_DATA, (job["memory_mb"] << 20,) * 2)


def fork_case(job: dict[str, Any], files: list[int], libc: Any) -> int:
    """0 in the new process, which has its own session, streams and limits, and nothing else of this one's."""
    pid = os.fork()
    if pid:
        return pid
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    os.setsid()
    copies = [os.dup2(fd, 20 + number) for number, fd in enumerate(files)]
    for number, fd in enumerate(copies):
        os.dup2(fd, number, inheritable=number < CLAIM_FD)
    os.closerange(CLAIM_FD + 1, 1024)
    libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # an ordinary process again: /dev/stdin, debuggers
    limit_case(job)
    return 0


def anything_runs() -> bool:
    """True where a thread of another process uses a core or waits for one."""
    for pid in os.listdir("/proc"):
        if pid.isdigit() and pid not in ("1", str(os.getpid())):
            with contextlib.suppress(OSError):
                for thread in os.listdir(f"/proc/{pid}/task"):
                    with open(f"/proc/{pid}/task/{thread}/stat", encoding="ascii", errors="replace") as file:
                        if file.read().rpartition(")")[2].split()[0] == "R":
                            return True
    return False


def attend(pid: int, wall_s: float) -> tuple[int, Any, bool]:
    """Wait for a case's end: status, usage, and whether its time by the clock was over.

    The clock ends only what sleeps; what runs, or waits for a core of a busy machine, is ended by its CPU limit.
    """
    deadline = time.monotonic() + wall_s
    late = False
    while True:
        found, status, usage = os.wait4(pid, os.WNOHANG)
        if found:
            return status, usage, late
        left_s = deadline - time.monotonic()
        if left_s <= 0 and not anything_runs():
            late = True
            os.kill(pid, signal.SIGKILL)
        signal.sigtimedwait({signal.SIGCHLD}, max(left_s, TICK_S))


def tell(job: dict[str, Any], pid: int, files: list[int]) -> bool:
    """Wait for a case, end what is left of it, report. True where its time was over."""
    started = time.monotonic()
    status, usage, late = attend(pid, job["wall_s"])
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)
    cpu_s = usage.ru_utime + usage.ru_stime
    killed_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    late = late or killed_by == signal.SIGXCPU or (killed_by == signal.SIGKILL and cpu_s > job["kill_cpu_s"])
    answer = files[CLAIM_FD] if job["run"] == "call" else files[1]
    size = os.fstat(answer).st_size
    errors = os.fstat(files[2]).st_size
    send(
        {
            "exit_code": 0 if killed_by else os.WEXITSTATUS(status),
            "signal": killed_by,
            "timed_out": late,
            "too_long": size > job["output_bytes"],
            "cpu_s": round(cpu_s, 4),
            "wall_s": round(time.monotonic() - started, 4),
            "peak_mb": usage.ru_maxrss // 1024,
            "claim": os.pread(files[CLAIM_FD], 100, 0).decode("ascii", "replace"),
            "stderr": os.pread(files[2], STDERR_BYTES, max(0, errors - STDERR_BYTES)).decode("utf-8", "replace"),
        },
        os.pread(answer, min(size, job["output_bytes"]), 0),
    )
    return late


def serve() -> tuple[dict[str, Any], bytes]:
    """Fork a process for each case and report it. Returns in each of those processes, with the job and the case."""
    if os.getppid() != 1:
        sys.exit("runner: expected to be started by process 1 of a sandbox, since it kills every process of its user")
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # no case can trace this process or open its descriptors
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    received = receive()
    if received is None:
        sys.exit("runner: no job")
    job, _ = received
    send({"ready": True})
    timeouts = 0
    while timeouts < job["timeouts"] and (case := receive()) is not None:
        files = [file_in_memory(b"" if job["run"] == "call" else case[1]), *(file_in_memory() for _ in range(3))]
        pid = fork_case(job, files, libc)
        if pid == 0:
            return job, case[1]
        timeouts += tell(job, pid, files)
        for fd in files:
            os.close(fd)
    os._exit(0)


def call(job: dict[str, Any], text: bytes) -> None:
    """Call a function and leave its value as the claim. A process that ends before has claimed nothing."""
    try:
        claim = {"value": encoded(called(job, json.loads(text)))}
        data = json.dumps(claim).encode()
    except Missing as problem:
        data = json.dumps({"missing": str(problem)[:200]}).encode()
    except Unready as problem:
        data = json.dumps({"unready": str(problem)[:100]}).encode()
    except BaseException as problem:
        data = json.dumps({"raised": type(problem).__name__[:100]}).encode()
    write_all(CLAIM_FD, data)
    os._exit(0)


class Missing(Exception):
    """The function, or the module that should have it, is not there."""


class Unready(Exception):
    """A module that a call asks to be imported first could not be."""


def called(job: dict[str, Any], wanted: dict[str, Any]) -> Any:
    if job["path"]:
        sys.path.append(job["path"])  # last: a file of the attempt's stands in for no module of Python's
    for name in wanted.get("before", ()):
        try:
            __import__(name)
        except BaseException as problem:
            raise Unready(type(problem).__name__) from None
    try:
        if wanted.get("module"):
            found: Any = sys.modules.get(wanted["module"]) or __import__(wanted["module"], fromlist=["*"])
        else:
            found = loaded(job)
        for name in wanted["function"].split("."):
            found = getattr(found() if isinstance(found, type) else found, name)
    except (AttributeError, ModuleNotFoundError) as problem:
        raise Missing(str(problem)) from None
    return found(*wanted["arguments"], **wanted.get("keywords", {}))


def loaded(job: dict[str, Any]) -> types.ModuleType:
    """The program as a module that is not the main one."""
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    exec(compile(job["prelude"], "prelude", "exec", dont_inherit=True), module.__dict__)
    with open(job["file"], "rb") as file:
        exec(compile(file.read(), job["file"], "exec", dont_inherit=True), module.__dict__)
    return module


def encoded(value: Any) -> Any:
    """The value as JSON that loses no type: whole numbers in base 16, tuples as lists, sets and dicts as items."""
    if value is None or isinstance(value, (bool, str, float)):
        return value
    if isinstance(value, int):
        return {"int": hex(value)}
    if isinstance(value, (list, tuple)):
        return [encoded(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return {"set": [encoded(item) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[encoded(key), encoded(item)] for key, item in value.items()]}
    return {"other": type(value).__name__}


def command(job: dict[str, Any]) -> None:
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(job["argv"][0], job["argv"])
    except OSError as problem:
        os.write(2, str(problem).encode())
        os._exit(126)


def program(job: dict[str, Any]) -> None:
    """Become the program: its own main module, its own stdin, and the interpreter's usual end after it."""
    main = types.ModuleType("__main__")
    main.__dict__.update(__file__=job["file"], __builtins__=builtins)
    sys.modules["__main__"] = main
    sys.argv[:] = [job["file"]]
    sys.stdin = open(  # noqa: SIM115
        0, encoding=sys.stdin.encoding, errors=sys.stdin.errors, closefd=False
    )
    with open(job["file"], "rb") as file:
        source = file.read()
    try:
        code = compile(source, job["file"], "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        os.write(CLAIM_FD, b"compile_error")
        raise
    os.close(CLAIM_FD)
    exec(code, main.__dict__)


if __name__ == "__main__":
    keep = sys.modules["__main__"]  # its names live as long as its functions run
    the_job, the_case = serve()
    {"call": lambda: call(the_job, the_case), "argv": lambda: command(the_job), "program": lambda: program(the_job)}[
        the_job["run"]
    ]()
