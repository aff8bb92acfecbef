"""Runs untrusted code inside a sandbox: one forked process for each case. Standard library only, Python 3.9 or newer.

This process imports nothing of the attempt's and holds no answer: it reads one job and its cases, one after another,
and tells what became of each. A job runs a Python program (`program`: in a fork of this interpreter, which costs a
quarter of a fresh one), another command (`argv`), or a Python function (`call`), whose value comes back as tagged JSON.

A frame, both ways: length of the head, length of the body (two big-endian 32-bit), head, body; a head is a Python
literal. In: the job, then each case: its stdin as body, or its calls as head. Out: `{"ready": True}` before anything
untrusted runs, then what became of each case, its stdout or the calls' claims as body. A case finds as descriptors its
own stdin, stdout, stderr and claim: files in memory, so that stdin can be read twice, sought and mapped, and no pipe is
left open behind a stray grandchild. When a case has ended, every other process of this user is killed, so that nothing
of one case lives on in the next.

It imports little, and nothing written in Python beyond what the interpreter has loaded itself: json, signal and ctypes
would double the time that it takes to start.
"""

# ruff: noqa: PTH123, PTH208, SIM105

from __future__ import annotations

import _ctypes
import _json
import _signal
import atexit
import builtins
import gc
import os
import resource
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36
TICK_S = 0.25
STDERR_BYTES = 800
CLAIM_FD = 3


def receive() -> tuple[dict[str, Any], bytes] | None:
    """One frame of stdin, None where it ends."""
    sizes = read_exactly(8)
    if not sizes:
        return None
    head = read_exactly(int.from_bytes(sizes[:4], "big"))
    # Written by the host, before anything untrusted ran.
    return eval(head, {"inf": float("inf"), "nan": float("nan")}), read_exactly(int.from_bytes(sizes[4:], "big"))


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
    head = ascii(reply).encode()
    write_all(1, len(head).to_bytes(4, "big") + len(body).to_bytes(4, "big") + head + body)


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def file_in_memory(data: bytes = b"") -> int:
    """A file without a name. Where a sandbox allows none outside its folders, it is in one of them."""
    try:
        fd = os.memfd_create("case", os.MFD_CLOEXEC)
    except PermissionError:
        fd = os.open("/tmp", os.O_RDWR | os.O_TMPFILE | os.O_EXCL | os.O_CLOEXEC)
    write_all(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def prctl(option: int, yes: bool) -> None:
    library: Any = None  # this program itself
    _ctypes.call_function(_ctypes.dlsym(_ctypes.dlopen(library, 0), "prctl"), (option, int(yes), 0, 0, 0))


def limit_case(job: dict[str, Any]) -> None:
    seconds = job["kill_cpu_s"]
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (job["output_bytes"] + 1,) * 2)
    if job["memory_mb"]:
        resource.setrlimit(resource.RLIMIT_DATA, (job["memory_mb"] << 20,) * 2)


def fork_case(job: dict[str, Any], files: list[int]) -> int:
    """0 in the new process, which has its own session, streams and limits, and nothing else of this one's."""
    pid = os.fork()
    if pid:
        return pid
    _signal.pthread_sigmask(_signal.SIG_UNBLOCK, {_signal.SIGCHLD})
    os.setsid()
    copies = [os.dup2(fd, 20 + number) for number, fd in enumerate(files)]
    for number, fd in enumerate(copies):
        os.dup2(fd, number, inheritable=number < CLAIM_FD)
    os.closerange(CLAIM_FD + 1, 1024)
    prctl(PR_SET_DUMPABLE, True)
    limit_case(job)
    return 0


def anything_runs() -> bool:
    """True where a thread of another process uses a core or waits for one."""
    for pid in os.listdir("/proc"):
        if pid.isdigit() and pid not in ("1", str(os.getpid())):
            try:
                for thread in os.listdir(f"/proc/{pid}/task"):
                    with open(f"/proc/{pid}/task/{thread}/stat", encoding="ascii", errors="replace") as file:
                        if file.read().rpartition(")")[2].split()[0] == "R":
                            return True
            except OSError:  # it has ended
                pass
    return False


def attend(pid: int, wall_s: float) -> tuple[int, Any, bool]:
    """Wait for a case's end: status, usage, and whether its time by the clock was over.

    The clock ends only what sleeps; what runs, or waits for a core of a busy machine, is ended by its CPU limit.
    """
    deadline = time.monotonic() + wall_s
    late = False
    while True:
        found, status, usage = os.wait4(-1, os.WNOHANG)
        if found == pid:
            return status, usage, late
        left_s = deadline - time.monotonic()
        if left_s <= 0 and not anything_runs():
            late = True
            os.kill(pid, _signal.SIGKILL)
        if not found:
            _signal.sigtimedwait({_signal.SIGCHLD}, max(left_s, TICK_S))


def end_all() -> None:
    """Kill and reap every process that the case left; orphans become children of this one."""
    try:
        os.kill(-1, _signal.SIGKILL)
        while True:
            os.wait4(-1, 0)
    except (ProcessLookupError, ChildProcessError):  # nobody is left
        pass


def tell(job: dict[str, Any], pid: int, files: list[int]) -> bool:
    """Wait for a case, end what is left of it, report. True where its time was over."""
    started = time.monotonic()
    status, usage, late = attend(pid, job["wall_s"])
    end_all()
    cpu_s = usage.ru_utime + usage.ru_stime
    killed_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    late = late or killed_by == _signal.SIGXCPU or (killed_by == _signal.SIGKILL and cpu_s > job["kill_cpu_s"])
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


def serve() -> tuple[dict[str, Any], dict[str, Any]]:
    """Fork a process for each case and report it. Returns in each of those processes, with the job and the case."""
    if os.getppid() != 1:
        sys.exit("runner: expected to be started by process 1 of a sandbox, since it kills every process of its user")
    prctl(PR_SET_DUMPABLE, False)  # no process of the same user may trace this one and open its descriptors
    prctl(PR_SET_CHILD_SUBREAPER, True)
    _signal.pthread_sigmask(_signal.SIG_BLOCK, {_signal.SIGCHLD})
    received = receive()
    if received is None:
        sys.exit("runner: no job")
    job, _ = received
    try:
        __import__("a_module_that_is_not_there")  # lists the folders of Python's own modules, once for all cases
    except ImportError:
        pass
    os.close(file_in_memory(b"what a case needs must be there before any runs"))
    gc.freeze()  # no collection in a case touches, and so copies, what is here
    send({"ready": True})
    timeouts = 0
    while timeouts < job["timeouts"] and (case := receive()) is not None:
        files = [file_in_memory(case[1]), *(file_in_memory() for _ in range(3))]
        pid = fork_case(job, files)
        if pid == 0:
            return job, case[0]
        timeouts += tell(job, pid, files)
        for fd in files:
            os.close(fd)
    os._exit(0)


def call(job: dict[str, Any], case: dict[str, Any]) -> None:
    """Make a case's calls, one after another, and leave a line of claim for each that came to its end."""
    for wanted in case["calls"]:
        try:
            claim = f'{{"value": {encoded(called(job, wanted))}}}'
        except Missing as problem:
            claim = f'{{"missing": {encoded(str(problem)[:200])}}}'
        except Unready as problem:
            claim = f'{{"unready": {encoded(str(problem)[:100])}}}'
        except BaseException as problem:
            claim = f'{{"raised": {encoded(type(problem).__name__[:100])}}}'
        write_all(CLAIM_FD, claim.encode() + b"\n")
    os._exit(0)


class Missing(Exception):
    """The function, or the module that should have it, is not there."""


class Unready(Exception):
    """A module that a call asks to be imported first could not be."""


def called(job: dict[str, Any], wanted: dict[str, Any]) -> Any:
    if job["path"] and job["path"] not in sys.path:
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
            found = sys.modules.get("solution") or loaded(job)
        for name in wanted["function"].split("."):
            found = getattr(found() if isinstance(found, type) else found, name)
    except (AttributeError, ModuleNotFoundError) as problem:
        raise Missing(str(problem)) from None
    return found(*wanted["arguments"], **wanted.get("keywords", {}))


def loaded(job: dict[str, Any]) -> Any:
    """The program as a module that is not the main one."""
    module = type(sys)("solution")
    sys.modules["solution"] = module
    exec(compile(job["prelude"], "prelude", "exec", dont_inherit=True), module.__dict__)
    with open(job["file"], "rb") as file:
        exec(compile(file.read(), job["file"], "exec", dont_inherit=True), module.__dict__)
    return module


def encoded(value: Any) -> str:
    """The value as JSON that loses no type: whole numbers in base 16, tuples as lists, sets and dicts as items."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return str(_json.encode_basestring_ascii(value))
    if isinstance(value, int):
        return f'{{"int": "{int.__format__(value, "#x")}"}}'
    if isinstance(value, float):
        return {"inf": "Infinity", "-inf": "-Infinity", "nan": "NaN"}.get(float.__repr__(value)) or float.__repr__(
            value
        )
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(encoded, value))}]"
    if isinstance(value, (set, frozenset)):
        return f'{{"set": [{", ".join(map(encoded, value))}]}}'
    if isinstance(value, dict):
        items = (f"[{encoded(key)}, {encoded(item)}]" for key, item in value.items())
        return f'{{"dict": [{", ".join(items)}]}}'
    return f'{{"other": {encoded(type(value).__name__)}}}'


def command(job: dict[str, Any]) -> None:
    for number in (_signal.SIGPIPE, _signal.SIGXFSZ):  # which Python ignores
        _signal.signal(number, _signal.SIG_DFL)
    try:
        os.execvp(job["argv"][0], job["argv"])
    except OSError as problem:
        os.write(2, str(problem).encode())
        os._exit(126)


def program(job: dict[str, Any]) -> None:
    """Become the program: its own main module, its own stdin, and the interpreter's usual end after it."""
    main = type(sys)("__main__")
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
    try:
        exec(code, main.__dict__)
    except SystemExit as ended:
        if ended.code not in (None, 0):
            raise
    end(main.__dict__)


def end(names: dict[str, Any]) -> None:
    """What an interpreter does when a program is over, less the taking apart of its own modules, which costs more."""
    if "threading" in sys.modules:
        sys.modules["threading"]._shutdown()
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        names.clear()
        gc.collect()
        sys.stdout.flush()
        sys.stderr.flush()
    except Exception:
        os._exit(120)
    os._exit(0)


if __name__ == "__main__":
    keep = sys.modules["__main__"]  # its names live as long as its functions run
    the_job, the_case = serve()
    {"call": lambda: call(the_job, the_case), "argv": lambda: command(the_job), "program": lambda: program(the_job)}[
        the_job["run"]
    ]()
