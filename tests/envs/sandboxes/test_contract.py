"""What a command gets and how it ends, and what is read and written: the same over every backend."""

from __future__ import annotations

import asyncio
import errno
import random
import time
from typing import Any

import pytest
from backends import Backend, Go, python, small_pool

from envs.sandboxes import ExecResult, SandboxLost

# What a command gets


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["true"], (0, b"", b"")),
        ("", (0, b"", b"")),
        ("echo out; echo err >&2; exit 7", (7, b"out\n", b"err\n")),
        ("kill -9 $$", (137, b"", b"")),
        (["sh", "-c", 'echo "$1"', "sh", "a b; $x"], (0, b"a b; $x\n", b"")),
        ("[[ a == a ]] && echo bash", (0, b"bash\n", b"")),
        ("yes | head -n 1", (0, b"y\n", b"")),
        ("ulimit -f 1; exec head -c 9999 /dev/zero >f", (153, b"", b"")),
    ],
)
def test_exit_code_and_output(go: Go, sandbox: Any, argv: Any, expected: tuple[int, bytes, bytes]) -> None:
    result = go(sandbox.exec(argv))
    assert (result.exit_code, result.stdout, result.stderr) == expected
    assert not result.timed_out and not result.oom


@pytest.mark.parametrize(
    ("argv", "cwd", "exit_code", "says"),
    [
        (["no-such-program"], "/work", 127, b"No such file"),
        (["true"], "/work/nowhere", 127, b"/work/nowhere"),
        (["/etc/passwd"], "/work", 126, b"Permission denied"),
        ("echo a\0b", "/work", 126, b"null byte"),
        ("x" * 200_000, "/work", 126, b"Argument list too long"),
        ("echo \ud800", "/work", 126, b"surrogates"),
    ],
)
def test_a_command_that_cannot_start_is_a_result(
    go: Go, sandbox: Any, argv: Any, cwd: str, exit_code: int, says: bytes
) -> None:
    result = go(sandbox.exec(argv, cwd=cwd))
    assert result.exit_code == exit_code
    assert says in result.stderr


def test_large_stdin_arrives_whole_and_unread_stdin_does_not_hang(go: Go, sandbox: Any) -> None:
    data = random.Random(0).randbytes(5_000_000)
    echoed = go(sandbox.exec(["cat"], stdin=data, max_output=len(data)))
    assert echoed.stdout == data and echoed.stdout_cut == 0
    assert go(sandbox.exec(["true"], stdin=data)).exit_code == 0
    assert go(sandbox.exec("exec 0<&-; echo closed", stdin=data)).stdout == b"closed\n"
    assert go(sandbox.exec(["sleep", "9"], stdin=data, timeout_s=0.2)).timed_out
    one_bite = go(sandbox.exec("head -c 5000 >/dev/null; head -c 900000 /dev/zero; echo end", stdin=data, max_output=8))
    assert one_bite.stdout.endswith(b"end\n")


def test_environment_is_clean_and_takes_additions(go: Go, sandbox: Any) -> None:
    lines = go(sandbox.exec(["env"], env={"EXTRA": "ü=1"})).stdout.decode().splitlines()
    env = dict(line.split("=", 1) for line in lines)
    assert env.pop("PATH").startswith("/usr/local")
    assert env == {
        "HOME": "/work",
        "USER": "sandbox",
        "LOGNAME": "sandbox",
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "0",
        "EXTRA": "ü=1",
    }


def test_output_flood_keeps_head_and_tail_and_counts_the_rest(go: Go, sandbox: Any) -> None:
    program = python("import sys; sys.stdout.write('<' + 'x' * 30_000_000 + '>'); sys.stderr.write('e' * 2000)")
    result = go(sandbox.exec(program, max_output=1000))
    assert result.stdout == b"<" + b"x" * 998 + b">"
    assert result.stdout_cut == 30_000_002 - 1000
    assert (len(result.stderr), result.stderr_cut) == (1000, 1000)
    endless = go(sandbox.exec(["yes"], timeout_s=1.0, max_output=10))
    assert endless.timed_out and endless.stdout == b"y\ny\ny\ny\ny\n" and endless.stdout_cut > 1_000_000


# How commands end


def test_timeout_keeps_partial_output(go: Go, sandbox: Any) -> None:
    started = time.monotonic()
    result = go(sandbox.exec("echo before; trap '' TERM; sleep 30; echo after", timeout_s=1.5))
    assert result.timed_out and result.exit_code == 137 and result.stdout == b"before\n"
    assert 1.5 <= result.duration_s <= time.monotonic() - started < 10


BUSY = "import time\nwhile time.process_time() < {}: pass\nprint('done')"


def test_a_command_without_a_core_has_time_left(go: Go, backend: Backend) -> None:
    """With a fifth of a core: what waits for it does not time out."""

    async def results(options: Any, hold: Any) -> list[ExecResult]:
        async with small_pool(backend, **options) as pool:
            sandbox = await pool.acquire()
            hold(pool)
            slow = await sandbox.exec(python(BUSY.format(0.15)), timeout_s=0.4)
            asleep = await sandbox.exec("sleep 20", timeout_s=0.5)
            endless = await sandbox.exec(python(BUSY.format(9)), timeout_s=0.2)
            return [slow, asleep, endless]

    with backend.busy_machine(0.2) as how:
        slow, asleep, endless = go(results(*how))
    assert slow.stdout == b"done\n" and slow.cpu_s >= 0.15 and slow.duration_s < 0.4
    assert asleep.timed_out and asleep.cpu_s < 0.2
    assert endless.timed_out and 0.15 < endless.cpu_s < 0.5


def test_a_machine_without_a_core_to_spare_is_to_blame(
    go: Go, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{backend.patience}.PATIENCE", 4.0)

    async def hopeless(options: Any, hold: Any) -> None:
        async with small_pool(backend, **options) as pool:
            sandbox = await pool.acquire()
            hold(pool)
            await sandbox.exec(python(BUSY.format(9)), timeout_s=0.3)

    with backend.busy_machine(0.04) as how, pytest.raises(SandboxLost, match="found no core"):
        go(hopeless(*how))


DAEMON = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open('/work/alive', 'w').close()
        while True:
            os.utime('/work/alive')
            time.sleep(0.01)
    os._exit(0)
while not os.path.exists('/work/alive'): time.sleep(0.01)
"""


@pytest.mark.parametrize(("ending", "timeout_s"), [("", 20.0), ("time.sleep(30)", 1.5)], ids=["exit", "timeout"])
def test_no_process_outlives_its_command(go: Go, sandbox: Any, ending: str, timeout_s: float) -> None:
    result = go(sandbox.exec(python(DAEMON + ending), timeout_s=timeout_s))
    assert result.timed_out is bool(ending)  # the daemon's copies of the pipes are not waited for
    pids = go(sandbox.exec("echo /proc/[0-9]*; stat -c %Y.%y /work/alive; sleep 0.1; stat -c %Y.%y /work/alive"))
    processes, before, after = pids.stdout.decode().splitlines()
    assert before == after
    assert len(processes.split()) == 2  # process 1 and the shell


def test_memory_bomb_is_told_and_the_sandbox_lives_on(go: Go, sandbox: Any) -> None:
    bomb = go(sandbox.exec(python("x = bytearray(2 * 10**9)"), timeout_s=25))
    assert (bomb.exit_code, bomb.oom, bomb.timed_out) == (137, True, False)
    by_child = go(sandbox.exec("python3 -c 'x = bytearray(2 * 10**9)'; echo went on", timeout_s=25))
    assert by_child.oom and by_child.exit_code == 0 and by_child.stdout == b"went on\n"
    assert not go(sandbox.exec("kill -9 $$")).oom
    ranks = go(sandbox.exec("cat /proc/self/oom_score_adj; echo 0 >/proc/self/oom_score_adj")).stdout
    assert ranks == b"1000\n"  # the first to go, not the supervisor
    assert go(sandbox.exec(["true"])).exit_code == 0


def test_fork_bomb_is_contained(go: Go, sandbox: Any) -> None:
    counting = """
import os, time
n = 0
try:
    while os.fork(): n += 1
    time.sleep(9)
except BlockingIOError:
    print(n)
"""
    assert int(go(sandbox.exec(python(counting))).stdout) == 63  # 64 with itself
    bomb = go(sandbox.exec("b() { b | b & }; b; sleep 9", timeout_s=1.0))
    assert bomb.duration_s < 10
    assert go(sandbox.exec("echo still here")).stdout == b"still here\n"


def test_a_cancelled_command_is_aborted_and_the_sandbox_lives_on(go: Go, sandbox: Any) -> None:
    async def cancel() -> tuple[ExecResult, float]:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(sandbox.exec("touch started; sleep 20; touch ended"), 1.0)
        started = time.monotonic()
        return await sandbox.exec(["ls"]), time.monotonic() - started

    result, seconds = go(cancel())
    assert result.stdout in (b"started\n", b"") and seconds < 15  # of 20


def test_closing_under_a_running_command_aborts_it(go: Go, backend: Backend) -> None:
    async def scenario() -> tuple[float, bytes, dict[str, int]]:
        async with small_pool(backend) as pool:
            sandbox = await pool.acquire()
            running = asyncio.create_task(sandbox.exec(["sleep", "20"]))
            queued = asyncio.create_task(sandbox.exec(["true"]))
            await asyncio.sleep(0.1)
            started = time.monotonic()
            await sandbox.close()
            seconds = time.monotonic() - started
            with pytest.raises(SandboxLost, match="closed during 'exec'"):
                await running
            with pytest.raises(SandboxLost, match="closed or lost before"):
                await queued
            after = await (await pool.acquire()).exec("echo fine; ls /proc | grep -c '[0-9]'")
            return seconds, after.stdout, dict(pool.stats)

    seconds, output, stats = go(scenario())
    assert seconds < 10 and output.split()[0] == b"fine"
    assert stats["created"] == 1 and stats["lost"] == 0


# Files


def test_write_and_read_back(go: Go, sandbox: Any) -> None:
    data = random.Random(1).randbytes(1_000_000)
    go(sandbox.write("/work/a/b/data.bin", data))
    assert go(sandbox.read("a/b/data.bin")) == data
    go(sandbox.write("a/b/data.bin", b"shorter"))
    assert go(sandbox.read("/work/a/b/data.bin")) == b"shorter"
    go(sandbox.write("empty", b""))
    assert go(sandbox.read("empty")) == b""
    assert go(sandbox.exec("stat -c %a a/b/data.bin")).stdout == b"644\n"


@pytest.mark.parametrize(
    ("setup", "path", "number"),
    [
        ("true", "missing", errno.ENOENT),
        ("mkdir d", "d", errno.EISDIR),
        ("mkfifo f", "f", errno.EINVAL),
        ("ln -s /etc/shadow x", "x", errno.ELOOP),
        ("ln -s /proc/1 p", "p/environ", errno.EACCES),
        ("ln -s /root r", "r/x", errno.EACCES),
        ("echo s >secret; chmod 000 secret", "secret", errno.EACCES),
        ("head -c 2000000 /dev/zero >long", "long", errno.EFBIG),
        ("true", "/dev/zero", errno.EINVAL),
        ("true", "/etc/shadow", errno.EACCES),
        ("true", "a\0b", errno.EINVAL),
    ],
)
def test_read_refuses(go: Go, backend: Backend, sandbox: Any, setup: str, path: str, number: int) -> None:
    assert go(sandbox.exec(setup)).exit_code == 0
    with pytest.raises(OSError) as refused:
        go(sandbox.read(path))
    assert refused.value.errno == backend.files.get(path, number)
    assert isinstance(refused.value, FileNotFoundError) is (refused.value.errno == errno.ENOENT)


def test_read_is_limited_where_no_size_is_known(go: Go, sandbox: Any) -> None:
    with pytest.raises(OSError) as refused:
        go(sandbox.read("/proc/meminfo", limit=100))
    assert refused.value.errno == errno.EFBIG
    assert go(sandbox.read("/proc/meminfo")).startswith(b"MemTotal")


@pytest.mark.parametrize(
    ("setup", "path", "number"),
    [
        ("true", "/etc/passwd", errno.EACCES),
        ("true", "/new/file", errno.EROFS),
        ("ln -s /tmp/victim x", "x", errno.ELOOP),
        ("mkfifo f", "f", errno.ENXIO),
        ("touch file", "file/below", errno.EEXIST),
        ("mkdir d", "d", errno.EISDIR),
        ("true", "/proc/1/oom_score_adj", errno.EACCES),
    ],
)
def test_write_refuses(go: Go, backend: Backend, sandbox: Any, setup: str, path: str, number: int) -> None:
    assert go(sandbox.exec(setup)).exit_code == 0
    with pytest.raises(OSError) as refused:
        go(sandbox.write(path, b"x"))
    assert refused.value.errno == backend.files.get(path, number)
