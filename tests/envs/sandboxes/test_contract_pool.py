"""How sandboxes are lent: nothing passes from one lease to the next, none is lost, none is left. Every backend."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import uuid

import pytest
from backends import Backend, Go, eventually, python, small_pool

from envs.sandboxes import SandboxLost, SandboxUnavailable, Snapshot

LITTER = """
mkdir -p /work/a/b /tmp/c /dev/shm/d; echo x | tee /work/.x /work/a/b/x /tmp/c/x /dev/shm/d/x
ln -s /etc /work/link; mkfifo /tmp/fifo; touch "/tmp/new
line"; mkdir /work/locked; touch /work/locked/x; chmod 000 /work/locked /work/a; chmod 777 /work
id -u; (setsid sleep 60 &)
"""
LOOK = "id -u; find {} | sort; stat -c %a:%u /work; echo /proc/[0-9]*"


def test_hand_over_leaves_nothing(go: Go, backend: Backend) -> None:
    async def two_leases() -> tuple[str, str, dict[str, int]]:
        async with small_pool(backend) as pool:
            first = await pool.acquire()
            littered = await first.exec(LITTER)
            await first.close()
            second = await pool.acquire()
            seen = await second.exec(LOOK.format(" ".join(backend.folders)))
            return littered.stdout.decode(), seen.stdout.decode(), dict(pool.stats)

    littered, seen, stats = go(two_leases())
    uid, *rest = seen.split()
    assert (uid == littered.split()[-1]) is (backend.name == "bubblewrap")  # whose user namespace is another
    assert rest[:-2] == [*backend.folders, f"700:{uid}"]
    assert stats["created"] == 1 and stats["unclean"] == 0  # so it was the same container


def test_forks_begin_where_a_snapshot_was_taken(go: Go, backend: Backend) -> None:
    async def scenario() -> tuple[list[bytes], bytes]:
        async with small_pool(backend, size=2) as pool:
            first = await pool.acquire(Snapshot.of({"a/x": b"1"}))
            await first.exec("echo 2 >b; ln -s b c; chmod 700 b")
            built = await first.snapshot()
            forks = [first, await pool.acquire(built)]
            await first.exec("echo 3 >d")
            seen = [(await fork.exec("cat a/x c; ls; stat -c %a b")).stdout for fork in forks]
            await asyncio.gather(*(fork.close() for fork in forks))
            empty = await pool.acquire()
            return seen, (await empty.exec("ls -A")).stdout

    seen, left = go(scenario())
    assert seen == [b"12\na\nb\nc\nd\n700\n", b"12\na\nb\nc\n700\n"]
    assert left == b""


@pytest.mark.parametrize(
    "leave",
    [
        "import os\nfor _ in range(3000):\n os.mkdir('deeper'); os.chdir('deeper')",
        "import os; os.setxattr('/work', 'user.note', b'for the next one')",
    ],
    ids=["too deep", "attribute"],
)
def test_what_no_wiping_removes_is_gone_too(go: Go, backend: Backend, leave: str) -> None:
    async def two_leases() -> tuple[bytes, dict[str, int]]:
        async with small_pool(backend) as pool:
            first = await pool.acquire()
            assert (await first.exec(python(leave))).exit_code == 0
            await first.close()
            second = await pool.acquire()
            left = (await second.exec("ls -A /work | wc -l; getfattr /work 2>/dev/null")).stdout
            return left, dict(pool.stats)

    left, stats = go(two_leases())
    assert left == b"0\n"
    replaced = backend.name == "docker"  # bubblewrap's folders are never wiped, but new
    assert (stats["created"], stats["unclean"]) == ((2, 1) if replaced else (1, 0))


def test_acquire_is_bounded_and_first_come_first_served(go: Go, backend: Backend) -> None:
    async def five() -> tuple[list[int], int, dict[str, int]]:
        order: list[int] = []
        live = []
        async with small_pool(backend, size=2) as pool:

            async def attempt(number: int) -> None:
                sandbox = await pool.acquire()
                order.append(number)
                live.append(await asyncio.to_thread(backend.module().count, pool.run))
                await sandbox.exec(["sleep", "0.05"])
                await sandbox.close()
                await sandbox.close()

            await pool.start(warm=2)
            await asyncio.gather(*(attempt(number) for number in range(6)))
            return order, max(live), dict(pool.stats)

    order, most, stats = go(five())
    assert order == list(range(6)) and most == 2
    assert stats == {"created": 2, "handed_out": 8, "lost": 0, "unclean": 0, "waiting": 0, "ahead": 0}


def test_a_cancelled_acquire_loses_no_place(go: Go, backend: Backend) -> None:
    async def scenario() -> dict[str, int]:
        async with small_pool(backend) as pool:
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
    assert stats == {"created": 1, "handed_out": 2, "lost": 0, "unclean": 0, "waiting": 0, "ahead": 0}


def test_a_dead_sandbox_is_lost_and_replaced(go: Go, backend: Backend) -> None:
    async def scenario() -> tuple[bytes, dict[str, int]]:
        async with small_pool(backend) as pool:
            for idle in (False, True):
                sandbox = await pool.acquire()
                if idle:
                    await sandbox.close()
                await asyncio.to_thread(backend.kill_all, pool)
                await asyncio.sleep(0.5)
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


def test_a_supervisor_that_does_not_answer_is_lost(go: Go, backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{backend.patience}.GRACE_S", 0.3)
    monkeypatch.setattr(f"{backend.patience}.PATIENCE", 1.0)

    async def scenario() -> dict[str, int]:
        async with small_pool(backend) as pool:
            sandbox = await pool.acquire()
            await asyncio.to_thread(backend.freeze, pool)
            with pytest.raises(SandboxLost, match=r"did not answer 'exec' within 0.8 s"):
                await sandbox.exec(["true"], timeout_s=0.5)
            await sandbox.close()
            assert (await (await pool.acquire()).exec(["true"])).exit_code == 0
            assert await asyncio.to_thread(eventually, lambda: backend.module().count(pool.run) == 1, 30)
            return dict(pool.stats)

    assert go(scenario())["lost"] == 1


def test_close_ends_everything_even_what_is_under_way(go: Go, backend: Backend) -> None:
    async def scenario() -> str:
        pool = backend.pool(size=2)
        busy = await pool.acquire()
        running = asyncio.create_task(busy.exec(["sleep", "20"]))
        starting = asyncio.create_task(pool.acquire())
        await asyncio.sleep(0)  # long enough to begin, too short for a sandbox to be there
        waiting = asyncio.create_task(pool.acquire())
        await asyncio.sleep(0)
        await asyncio.gather(pool.close(), pool.close())
        outcomes = await asyncio.wait_for(asyncio.gather(running, starting, waiting, return_exceptions=True), 30)
        assert [type(o) for o in outcomes] == [SandboxLost, SandboxUnavailable, SandboxUnavailable]
        await busy.close()
        await pool.close()
        with pytest.raises(SandboxUnavailable, match="closed"):
            await pool.acquire()
        return str(pool.run)

    assert backend.module().count(go(scenario())) == 0


def test_close_refuses_those_who_wait_while_a_lease_is_held(go: Go, backend: Backend) -> None:
    async def scenario() -> None:
        async with small_pool(backend) as pool:
            held = await pool.acquire()
            waiting = [asyncio.create_task(pool.acquire()) for _ in range(3)]
            await asyncio.sleep(0.02)
            await pool.close()
            refused = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 30)
            assert [type(problem) for problem in refused] == [SandboxUnavailable] * 3
            with pytest.raises(SandboxLost):
                await held.exec(["true"])
            await held.close()

    go(scenario())


def test_an_old_sandbox_is_replaced_at_hand_out_and_ends_by_itself(go: Go, backend: Backend) -> None:
    async def scenario() -> tuple[dict[str, int], SandboxLost]:
        async with small_pool(backend, lifetime_s=2.0) as pool:
            await (await pool.acquire()).close()
            await asyncio.sleep(1.1)
            sandbox = await pool.acquire()
            await asyncio.sleep(2.2)
            with pytest.raises(SandboxLost) as over:
                await sandbox.exec(["true"])
            return dict(pool.stats), over.value

    stats, _ = go(scenario())
    assert stats["created"] == 2


OWNER = """
import asyncio, sys
from importlib import import_module
async def main():
    pool = import_module("envs.sandboxes." + sys.argv[1]).Pool(run=sys.argv[2], size=2)
    first, second = await pool.acquire(), await pool.acquire()
    print("ready", flush=True)
    await first.exec("setsid sleep 300 & sleep 300", timeout_s=300)
asyncio.run(main())
"""


def test_a_killed_owner_leaves_nothing(backend: Backend) -> None:
    run, count = f"test-{uuid.uuid4().hex[:8]}", backend.module().count
    owner = subprocess.Popen([sys.executable, "-c", OWNER, backend.name, run], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None and owner.stdout.readline() == "ready\n"
    assert count(run) == 2
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    assert eventually(lambda: count(run) == 0, within_s=30)  # by themselves: nobody called reap
