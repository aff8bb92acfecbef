"""Docker sandboxes against real Docker: what a command may do, what it may not, and that nothing of it is ever left."""

from __future__ import annotations

import asyncio
import errno
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from envs.sandboxes import ExecResult, SandboxLost, SandboxUnavailable
from envs.sandboxes.docker import DockerPool, DockerSandbox, Limits, count, engine, preflight, reap
from envs.sandboxes.docker.wire import DOCKER_HEADER, FRAME_HEADER, Frames

IMAGE = "touchstone-sandbox:bookworm"
Go = Callable[[Awaitable[Any]], Any]


def docker(test: Any) -> Any:
    """Marks a test that needs an engine and the image; skipped where they are absent."""
    return pytest.mark.docker(pytest.mark.usefixtures("image")(test))


@pytest.fixture(scope="module")
def image() -> None:
    try:
        preflight(IMAGE)
    except SandboxUnavailable as problem:
        pytest.skip(str(problem))


@pytest.fixture(scope="module")
def go() -> Iterator[Go]:
    """Runs a coroutine on the module's one event loop."""
    with asyncio.Runner() as runner:
        yield lambda work: runner.get_loop().run_until_complete(asyncio.wait_for(work, 30))


@pytest.fixture(scope="module")
def pool(go: Go, image: None) -> Iterator[DockerPool]:
    pool = DockerPool(run=f"test-{uuid.uuid4().hex[:8]}", size=2)
    yield pool
    go(pool.close())
    assert count(pool.run) == 0


@pytest.fixture
def sandbox(go: Go, pool: DockerPool) -> Iterator[DockerSandbox]:
    async def acquire() -> DockerSandbox:
        return await pool.acquire()

    sandbox = go(acquire())
    yield sandbox
    go(sandbox.close())


@asynccontextmanager
async def small_pool(**options: Any) -> AsyncIterator[DockerPool]:
    pool = DockerPool(run=f"test-{uuid.uuid4().hex[:8]}", **{"size": 1, **options})
    try:
        yield pool
    finally:
        await pool.close()


def python(code: str) -> list[str]:
    return ["python3", "-I", "-c", code]


def eventually(check: Callable[[], bool], within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while not check():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


# What a command gets


@docker
@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["true"], (0, b"", b"")),
        ("echo out; echo err >&2; exit 7", (7, b"out\n", b"err\n")),
        ("kill -9 $$", (137, b"", b"")),
        (["sh", "-c", 'echo "$1"', "sh", "a b; $x"], (0, b"a b; $x\n", b"")),
        ("[[ a == a ]] && echo bash", (0, b"bash\n", b"")),
        ("yes | head -n 1", (0, b"y\n", b"")),
        ("ulimit -f 1; exec head -c 9999 /dev/zero >f", (153, b"", b"")),
    ],
)
def test_exit_code_and_output(go: Go, sandbox: DockerSandbox, argv: Any, expected: tuple[int, bytes, bytes]) -> None:
    result = go(sandbox.exec(argv))
    assert (result.exit_code, result.stdout, result.stderr) == expected
    assert not result.timed_out and not result.oom


@docker
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
    go: Go, sandbox: DockerSandbox, argv: Any, cwd: str, exit_code: int, says: bytes
) -> None:
    result = go(sandbox.exec(argv, cwd=cwd))
    assert result.exit_code == exit_code
    assert says in result.stderr


@docker
def test_large_stdin_arrives_whole_and_unread_stdin_does_not_hang(go: Go, sandbox: DockerSandbox) -> None:
    data = random.Random(0).randbytes(5_000_000)
    echoed = go(sandbox.exec(["cat"], stdin=data, max_output=len(data)))
    assert echoed.stdout == data and echoed.stdout_cut == 0
    assert go(sandbox.exec(["true"], stdin=data)).exit_code == 0
    assert go(sandbox.exec("exec 0<&-; echo closed", stdin=data)).stdout == b"closed\n"
    assert go(sandbox.exec(["sleep", "9"], stdin=data, timeout_s=0.2)).timed_out
    one_bite = go(sandbox.exec("head -c 5000 >/dev/null; head -c 900000 /dev/zero; echo end", stdin=data, max_output=8))
    assert one_bite.stdout.endswith(b"end\n")


@docker
def test_environment_is_clean_and_takes_additions(go: Go, sandbox: DockerSandbox) -> None:
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


@docker
def test_output_flood_keeps_head_and_tail_and_counts_the_rest(go: Go, sandbox: DockerSandbox) -> None:
    program = python("import sys; sys.stdout.write('<' + 'x' * 30_000_000 + '>'); sys.stderr.write('e' * 2000)")
    result = go(sandbox.exec(program, max_output=1000))
    assert result.stdout == b"<" + b"x" * 998 + b">"
    assert result.stdout_cut == 30_000_002 - 1000
    assert (len(result.stderr), result.stderr_cut) == (1000, 1000)
    endless = go(sandbox.exec(["yes"], timeout_s=1.0, max_output=10))
    assert endless.timed_out and endless.stdout == b"y\ny\ny\ny\ny\n" and endless.stdout_cut > 1_000_000


# How commands end


@docker
def test_timeout_keeps_partial_output(go: Go, sandbox: DockerSandbox) -> None:
    started = time.monotonic()
    result = go(sandbox.exec("echo before; trap '' TERM; sleep 30; echo after", timeout_s=1.5))
    assert result.timed_out and result.exit_code == 137 and result.stdout == b"before\n"
    assert 1.5 <= result.duration_s <= time.monotonic() - started < 10


BUSY = "import time\nwhile time.process_time() < {}: pass\nprint('done')"


@docker
def test_a_command_without_a_core_has_time_left(go: Go, image: None) -> None:
    """A container with a fifth of a core stands in for a busy machine: what waits for it does not time out."""

    async def results() -> list[ExecResult]:
        async with small_pool(cpus=0.2) as pool:
            sandbox = await pool.acquire()
            slow = await sandbox.exec(python(BUSY.format(0.15)), timeout_s=0.4)
            asleep = await sandbox.exec("sleep 20", timeout_s=0.5)
            endless = await sandbox.exec(python(BUSY.format(9)), timeout_s=0.2)
            return [slow, asleep, endless]

    slow, asleep, endless = go(results())
    assert slow.stdout == b"done\n" and slow.cpu_s >= 0.15 and slow.duration_s < 0.4
    assert asleep.timed_out and asleep.cpu_s < 0.2
    assert endless.timed_out and 0.15 < endless.cpu_s < 0.5


@docker
def test_a_machine_without_a_core_to_spare_is_to_blame(go: Go, image: None) -> None:
    async def hopeless() -> None:
        async with small_pool(cpus=0.02) as pool:
            sandbox = await pool.acquire()
            await sandbox.exec(python(BUSY.format(9)), timeout_s=0.3)

    with pytest.raises(SandboxLost, match="found no core"):
        go(hopeless())


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


@docker
@pytest.mark.parametrize(("ending", "timeout_s"), [("", 20.0), ("time.sleep(30)", 1.5)], ids=["exit", "timeout"])
def test_no_process_outlives_its_command(go: Go, sandbox: DockerSandbox, ending: str, timeout_s: float) -> None:
    result = go(sandbox.exec(python(DAEMON + ending), timeout_s=timeout_s))
    assert result.timed_out is bool(ending)  # the daemon's copies of the pipes are not waited for
    pids = go(sandbox.exec("echo /proc/[0-9]*; stat -c %Y.%y /work/alive; sleep 0.1; stat -c %Y.%y /work/alive"))
    processes, before, after = pids.stdout.decode().splitlines()
    assert before == after
    assert len(processes.split()) == 2  # the supervisor and the shell


@docker
def test_memory_bomb_is_told_and_the_sandbox_lives_on(go: Go, sandbox: DockerSandbox) -> None:
    bomb = go(sandbox.exec(python("x = bytearray(2 * 10**9)"), timeout_s=25))
    assert (bomb.exit_code, bomb.oom, bomb.timed_out) == (137, True, False)
    by_child = go(sandbox.exec("python3 -c 'x = bytearray(2 * 10**9)'; echo went on", timeout_s=25))
    assert by_child.oom and by_child.exit_code == 0 and by_child.stdout == b"went on\n"
    assert not go(sandbox.exec("kill -9 $$")).oom
    ranks = go(sandbox.exec("cat /proc/self/oom_score_adj; echo 0 >/proc/self/oom_score_adj")).stdout
    assert ranks == b"1000\n"  # the first to go, not the supervisor
    assert go(sandbox.exec(["true"])).exit_code == 0


@docker
def test_fork_bomb_is_contained(go: Go, sandbox: DockerSandbox) -> None:
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


@docker
def test_a_cancelled_command_is_aborted_and_the_sandbox_lives_on(go: Go, sandbox: DockerSandbox) -> None:
    async def cancel() -> tuple[ExecResult, float]:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(sandbox.exec("touch started; sleep 20; touch ended"), 1.0)
        started = time.monotonic()
        return await sandbox.exec(["ls"]), time.monotonic() - started

    result, seconds = go(cancel())
    assert result.stdout == b"started\n" and seconds < 10


@docker
def test_closing_under_a_running_command_aborts_it(go: Go) -> None:
    async def scenario() -> tuple[float, bytes, dict[str, int]]:
        async with small_pool() as pool:
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


# What a command must not reach


@docker
def test_no_privileges(go: Go, sandbox: DockerSandbox) -> None:
    status = go(sandbox.exec(["cat", "/proc/self/status"])).stdout.decode()
    fields = dict(line.split(":", 1) for line in status.splitlines())
    assert int(fields["Uid"].split()[0]) >= 1_000_000
    assert len(set(fields["Uid"].split() + fields["Gid"].split() + fields["Groups"].split())) == 1
    assert [int(fields[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")] == [0, 0, 0, 0]
    assert go(sandbox.exec(python("import os; print(os.getsid(0) == os.getpid())"))).stdout == b"True\n"
    assert fields["NoNewPrivs"].strip() == "1" and fields["Seccomp"].strip() == "2"


@docker
def test_no_network(go: Go, sandbox: DockerSandbox) -> None:
    connect = "import socket; s = socket.socket(); s.settimeout(3); print(s.connect_ex(('{}', 53)))"
    assert int(go(sandbox.exec(python(connect.format("1.1.1.1")))).stdout) == errno.ENETUNREACH
    assert go(sandbox.exec("ls /sys/class/net")).stdout == b"lo\n"


@docker
def test_only_the_wiped_folders_are_writable(go: Go, sandbox: DockerSandbox) -> None:
    assert b"Read-only file system" in go(sandbox.exec("mkdir -m 777 /x; touch /usr/x")).stderr
    writable = go(sandbox.exec("find / -path /proc -prune -o -type d -writable -print 2>/dev/null", timeout_s=20))
    assert sorted(writable.stdout.decode().split()) == ["/dev/mqueue", "/dev/shm", "/tmp", "/work"]


@docker
def test_the_supervisor_cannot_be_read_or_signalled(go: Go, sandbox: DockerSandbox) -> None:
    attack = """
import os
def attempt(name, work):
    try:
        work()
        print(name, 'DONE')
    except OSError as problem:
        print(name, type(problem).__name__)
for name in ('environ', 'mem', 'maps', 'fd/0', 'fd/1', 'auxv', 'root', 'cwd'):
    attempt(name, lambda: os.open('/proc/1/' + name, os.O_RDONLY))
attempt('write', lambda: os.open('/proc/1/fd/1', os.O_WRONLY))
attempt('list', lambda: os.listdir('/proc/1/fd'))
attempt('kill', lambda: os.kill(1, 9))
attempt('nice', lambda: os.setpriority(os.PRIO_PROCESS, 1, 19))
attempt('oom', lambda: open('/proc/1/oom_score_adj', 'w'))
attempt('setuid', lambda: os.setuid(0))
attempt('unprivileged', lambda: os.setgroups([0]))
"""
    lines = go(sandbox.exec(python(attack))).stdout.decode().splitlines()
    assert len(lines) == 15
    assert [line for line in lines if not line.endswith("PermissionError")] == []


@docker
def test_printed_frames_are_only_output(go: Go, sandbox: DockerSandbox) -> None:
    fake = FRAME_HEADER.pack(b"\0" * 16, 9, 0) + b'{"id": 1}'
    result = go(sandbox.exec(["cat"], stdin=fake))
    assert result.stdout == fake and result.exit_code == 0


@docker
def test_kernel_objects_that_outlive_processes_cannot_be_made(go: Go, sandbox: DockerSandbox) -> None:
    make = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
print(libc.shmget(1, 4096, 0o1666), libc.msgget(1, 0o1666), libc.semget(1, 1, 0o1666))
print(ctypes.CDLL('librt.so.1', use_errno=True).mq_open(b'/q', 0o102, 0o666, None))
"""
    assert go(sandbox.exec(python(make))).stdout.split() == [b"-1"] * 4


@docker
def test_disk_filler_is_bounded(go: Go, sandbox: DockerSandbox) -> None:
    filled = go(sandbox.exec("head -c 1G /dev/zero >big; stat -c %s big"))
    assert int(filled.stdout) == 128 * 2**20 and b"No space left" in filled.stderr
    with pytest.raises(OSError) as full:
        go(sandbox.write("more", b"x" * 100_000))
    assert full.value.errno == errno.ENOSPC
    many = go(sandbox.exec(python("for n in range(10**6): open(f'/tmp/{n}', 'w').close()"), timeout_s=20))
    assert many.exit_code == 1 and b"No space left" in many.stderr
    assert go(sandbox.exec("rm big; echo fine >more; cat more")).stdout == b"fine\n"


# Files


@docker
def test_write_and_read_back(go: Go, sandbox: DockerSandbox) -> None:
    data = random.Random(1).randbytes(1_000_000)
    go(sandbox.write("/work/a/b/data.bin", data))
    assert go(sandbox.read("a/b/data.bin")) == data
    go(sandbox.write("a/b/data.bin", b"shorter"))
    assert go(sandbox.read("/work/a/b/data.bin")) == b"shorter"
    go(sandbox.write("empty", b""))
    assert go(sandbox.read("empty")) == b""
    assert go(sandbox.exec("stat -c %U:%a a/b/data.bin; id -un 2>&1 | head -c 0")).stdout == b"UNKNOWN:644\n"


@docker
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
def test_read_refuses(go: Go, sandbox: DockerSandbox, setup: str, path: str, number: int) -> None:
    assert go(sandbox.exec(setup)).exit_code == 0
    with pytest.raises(OSError) as refused:
        go(sandbox.read(path))
    assert refused.value.errno == number
    assert isinstance(refused.value, FileNotFoundError) is (number == errno.ENOENT)


@docker
def test_read_is_limited_where_no_size_is_known(go: Go, sandbox: DockerSandbox) -> None:
    with pytest.raises(OSError) as refused:
        go(sandbox.read("/proc/meminfo", limit=100))
    assert refused.value.errno == errno.EFBIG
    assert go(sandbox.read("/proc/meminfo")).startswith(b"MemTotal")


@docker
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
def test_write_refuses(go: Go, sandbox: DockerSandbox, setup: str, path: str, number: int) -> None:
    assert go(sandbox.exec(setup)).exit_code == 0
    with pytest.raises(OSError) as refused:
        go(sandbox.write(path, b"x"))
    assert refused.value.errno == number


# The pool

LITTER = """
mkdir -p /work/a/b /tmp/c /dev/shm/d; echo x | tee /work/.x /work/a/b/x /tmp/c/x /dev/shm/d/x
ln -s /etc /work/link; mkfifo /tmp/fifo; touch "/tmp/new
line"; mkdir /work/locked; touch /work/locked/x; chmod 000 /work/locked /work/a; chmod 777 /work
id -u; (setsid sleep 60 &)
"""
LOOK = "id -u; find /work /tmp /dev/shm /dev/mqueue; stat -c %a:%u /work; echo /proc/[0-9]*"


@docker
def test_hand_over_leaves_nothing(go: Go) -> None:
    async def two_leases() -> tuple[str, str, dict[str, int]]:
        async with small_pool() as pool:
            first = await pool.acquire()
            littered = await first.exec(LITTER)
            await first.close()
            second = await pool.acquire()
            seen = await second.exec(LOOK)
            return littered.stdout.decode(), seen.stdout.decode(), dict(pool.stats)

    littered, seen, stats = go(two_leases())
    uid, *rest = seen.split()
    assert uid.isdigit() and uid != littered.split()[-1]
    assert rest[:-2] == ["/work", "/tmp", "/dev/shm", "/dev/mqueue", f"700:{uid}"]
    assert stats["created"] == 1 and stats["unclean"] == 0  # so it was the same container


@docker
@pytest.mark.parametrize(
    "leave",
    [
        "import os\nfor _ in range(3000):\n os.mkdir('deeper'); os.chdir('deeper')",
        "import os; os.setxattr('/work', 'user.note', b'for the next one')",
    ],
    ids=["too deep", "attribute"],
)
def test_what_cannot_be_wiped_costs_the_container(go: Go, leave: str) -> None:
    async def two_leases() -> tuple[bytes, dict[str, int]]:
        async with small_pool() as pool:
            first = await pool.acquire()
            assert (await first.exec(python(leave))).exit_code == 0
            await first.close()
            second = await pool.acquire()
            return (await second.exec("ls -A /work | wc -l")).stdout, dict(pool.stats)

    left, stats = go(two_leases())
    assert left == b"0\n"
    assert stats["created"] == 2 and stats["unclean"] == 1


@docker
def test_acquire_is_bounded_and_first_come_first_served(go: Go) -> None:
    async def five() -> tuple[list[int], int, dict[str, int]]:
        order: list[int] = []
        live = []
        async with small_pool(size=2) as pool:

            async def attempt(number: int) -> None:
                sandbox = await pool.acquire()
                order.append(number)
                live.append(await asyncio.to_thread(count, pool.run))
                await sandbox.exec(["sleep", "0.05"])
                await sandbox.close()
                await sandbox.close()

            await pool.start(warm=2)
            await asyncio.gather(*(attempt(number) for number in range(6)))
            return order, max(live), dict(pool.stats)

    order, most, stats = go(five())
    assert order == list(range(6)) and most == 2
    assert stats == {"created": 2, "handed_out": 8, "lost": 0, "unclean": 0, "waiting": 0}


@docker
def test_a_cancelled_acquire_loses_no_place(go: Go) -> None:
    async def scenario() -> dict[str, int]:
        async with small_pool() as pool:
            await pool.start()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(pool.acquire(), 0.02)  # while its container starts
            sandbox = await pool.acquire()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(pool.acquire(), 0.02)  # while it waits
            await sandbox.close()
            await (await pool.acquire()).close()
            return dict(pool.stats)

    stats = go(scenario())
    assert stats == {"created": 1, "handed_out": 2, "lost": 0, "unclean": 0, "waiting": 0}


@docker
def test_a_dead_container_is_lost_and_replaced(go: Go) -> None:
    async def scenario() -> tuple[bytes, dict[str, int]]:
        async with small_pool() as pool:
            for idle in (False, True):
                sandbox = await pool.acquire()
                if idle:
                    await sandbox.close()
                for name in await asyncio.to_thread(engine.names, pool.run):
                    await asyncio.to_thread(engine.remove, engine.connect(), name)
                await asyncio.sleep(0.2)
                if not idle:
                    with pytest.raises(SandboxLost, match="is gone"):
                        await sandbox.exec(["true"])
                    with pytest.raises(SandboxLost, match="closed or lost"):
                        await sandbox.exec(["true"])
                    await sandbox.close()
            last = await pool.acquire()
            return (await last.exec("echo fine")).stdout, dict(pool.stats)

    output, stats = go(scenario())
    assert output == b"fine\n"
    assert stats["created"] == 3 and stats["lost"] == 2


@docker
def test_a_supervisor_that_does_not_answer_is_lost(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("envs.sandboxes.docker.GRACE_S", 0.3)
    monkeypatch.setattr("envs.sandboxes.docker.PATIENCE", 1.0)

    async def scenario() -> dict[str, int]:
        async with small_pool() as pool:
            sandbox = await pool.acquire()
            client = engine.connect()
            (name,) = engine.names(pool.run, client)
            await asyncio.to_thread(client.pause, name)
            with pytest.raises(SandboxLost, match=r"did not answer 'exec' within 0.8 s"):
                await sandbox.exec(["true"], timeout_s=0.5)
            await sandbox.close()
            assert (await (await pool.acquire()).exec(["true"])).exit_code == 0
            assert name not in engine.names(pool.run, client)
            return dict(pool.stats)

    assert go(scenario())["lost"] == 1


@docker
def test_close_ends_everything_even_what_is_under_way(go: Go) -> None:
    async def scenario() -> str:
        pool = DockerPool(run=f"test-{uuid.uuid4().hex[:8]}", size=2)
        busy = await pool.acquire()
        running = asyncio.create_task(busy.exec(["sleep", "20"]))
        starting = asyncio.create_task(pool.acquire())
        await asyncio.sleep(0.02)
        waiting = asyncio.create_task(pool.acquire())
        await asyncio.sleep(0.02)
        await asyncio.gather(pool.close(), pool.close())
        outcomes = await asyncio.wait_for(asyncio.gather(running, starting, waiting, return_exceptions=True), 10)
        assert [type(o) for o in outcomes] == [SandboxLost, SandboxUnavailable, SandboxUnavailable]
        await busy.close()
        await pool.close()
        with pytest.raises(SandboxUnavailable, match="closed"):
            await pool.acquire()
        return pool.run

    assert count(go(scenario())) == 0


@docker
def test_close_refuses_those_who_wait_while_a_lease_is_held(go: Go) -> None:
    async def scenario() -> None:
        async with small_pool() as pool:
            held = await pool.acquire()
            waiting = [asyncio.create_task(pool.acquire()) for _ in range(3)]
            await asyncio.sleep(0.02)
            await pool.close()
            refused = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 10)
            assert [type(problem) for problem in refused] == [SandboxUnavailable] * 3
            with pytest.raises(SandboxLost):
                await held.exec(["true"])
            await held.close()

    go(scenario())


@docker
def test_an_old_container_is_replaced_at_hand_out_and_ends_by_itself(go: Go) -> None:
    async def scenario() -> tuple[dict[str, int], SandboxLost]:
        async with small_pool(lifetime_s=2.0) as pool:
            await (await pool.acquire()).close()
            await asyncio.sleep(1.1)
            sandbox = await pool.acquire()
            await asyncio.sleep(2.2)
            with pytest.raises(SandboxLost) as over:
                await sandbox.exec(["true"])
            return dict(pool.stats), over.value

    stats, _ = go(scenario())
    assert stats["created"] == 2


# Owners that die

OWNER = """
import asyncio, sys
from envs.sandboxes.docker import DockerPool
async def main():
    pool = DockerPool(run=sys.argv[1], size=2)
    first, second = await pool.acquire(), await pool.acquire()
    print("ready", flush=True)
    await first.exec("setsid sleep 300 & sleep 300", timeout_s=300)
asyncio.run(main())
"""


@docker
def test_a_killed_owner_leaves_no_container(pool: DockerPool) -> None:
    run = f"test-{uuid.uuid4().hex[:8]}"
    owner = subprocess.Popen([sys.executable, "-c", OWNER, run], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None and owner.stdout.readline() == "ready\n"
    assert count(run) == 2
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    assert eventually(lambda: count(run) == 0, within_s=20)  # by themselves: nobody called reap


@docker
@pytest.mark.parametrize("sent", [0, 100], ids=["unsaid", "half said"])
def test_an_owner_that_dies_while_starting_leaves_no_container(pool: DockerPool, sent: int) -> None:
    run = pool.run + "-start"
    _, sock = engine.create(engine.connect(), IMAGE, run, Limits(), 600)
    sock.send(engine.SUPERVISOR[:sent])
    assert count(run) == 1
    sock.close()
    assert eventually(lambda: count(run) == 0, within_s=20)


@docker
def test_reap_removes_what_a_dead_owner_left(go: Go, pool: DockerPool, sandbox: DockerSandbox) -> None:
    client = engine.connect()
    dead = subprocess.Popen(["sleep", "60"])
    labels = {"touchstone.run": pool.run + "-old", "touchstone.deadline": str(int(time.time() + 999))}
    overdue = labels | {"touchstone.owner": engine.owner(), "touchstone.deadline": str(int(time.time() - 1))}
    reused_pid = labels | {"touchstone.owner": engine.owner().rsplit("/", 1)[0] + "/17"}
    elsewhere = labels | {"touchstone.owner": "another-boot/pid:[1]/17/17"}
    living = labels | {"touchstone.owner": engine.owner()}
    orphan = labels | {"touchstone.owner": engine.owner(dead.pid)}
    dead.kill()
    dead.wait()
    made = {}
    kinds = {"overdue": overdue, "reused": reused_pid, "elsewhere": elsewhere, "living": living, "orphan": orphan}
    for name, these in kinds.items():
        made[name] = f"{pool.run}-{name}"
        client.create_container(IMAGE, ["sleep", "60"], name=made[name], labels=these, network_disabled=True)
    client.start(made["orphan"])
    try:
        assert {made["overdue"], made["reused"], made["orphan"]} <= set(reap(client))
        assert count(pool.run + "-old", client) == 2
        assert go(sandbox.exec(["true"])).exit_code == 0
    finally:
        for name in made.values():
            engine.remove(client, name)


# Without an engine


def test_absent_engine_is_one_clear_sentence(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")

    async def acquire() -> None:
        pool = DockerPool(run="none", size=1)
        try:
            await pool.acquire()
        finally:
            await pool.close()

    for attempt in (lambda: preflight(IMAGE), lambda: go(acquire())):
        with pytest.raises(SandboxUnavailable) as problem:
            attempt()
        assert str(problem.value) == (
            "no Docker engine answers at unix:///nowhere/docker.sock (No such file or directory): "
            "run `make setup`, or set DOCKER_HOST to one that runs"
        )


@docker
def test_absent_image_is_one_clear_sentence(pool: DockerPool) -> None:
    with pytest.raises(SandboxUnavailable, match="no image 'touchstone-none:x': run `make setup`"):
        preflight("touchstone-none:x")


def test_limits_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got work_mb .* = 300, expected at most half of memory_mb = 512"):
        Limits(work_mb=220)
    with pytest.raises(TypeError, match="memory"):
        DockerPool(run="x", memory=5)


def test_the_supervisor_refuses_to_run_outside_a_container() -> None:
    command = [sys.executable, "-I", "-c", engine.SUPERVISOR]
    outside = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    assert outside.returncode == 1 and "expected to be process 1 of a container" in outside.stderr


def test_frames_survive_any_cut_and_refuse_a_foreign_token() -> None:
    token = b"t" * 16
    frames = [FRAME_HEADER.pack(token, 9, n) + b'{"id": %d}' % n + b"x" * n for n in range(8)]
    stdout = b"".join(frames)
    rng = random.Random(0)
    attached = b""
    for start in range(0, len(stdout), 7):
        piece = stdout[start : start + 7]
        attached += DOCKER_HEADER.pack(1, len(piece)) + piece + DOCKER_HEADER.pack(2, 3) + b"err"
    for _ in range(50):
        reader = Frames(token)
        taken, at = [], 0
        while at < len(attached):
            size = rng.randint(1, 40)
            taken += reader.feed(attached[at : at + size])
            at += size
        assert taken == [({"id": n}, b"x" * n) for n in range(8)]
        assert reader.stderr.endswith(b"errerr")
    with pytest.raises(ValueError):
        Frames(b"u" * 16).feed(attached)
