"""The Docker pool against real Docker: forks, and a container that hangs."""

from __future__ import annotations

import asyncio
import errno
import json
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from backends import Go
from pools import docker, new_pool, run

from envs.sandboxes import Snapshot
from envs.sandboxes.docker import DockerPool, engine


@pytest.fixture(scope="module")
def pool(go: Go, image: None) -> Iterator[DockerPool]:
    pool = DockerPool(run=f"test-{uuid.uuid4().hex[:8]}", size=2)
    yield pool
    go(pool.close())


def python(code: str) -> str:
    return f"python3 -I - <<'END'\nimport os, socket\n{code}\nEND"


@docker
def test_a_program_is_looked_up_along_the_path_given(go: Go, pool: DockerPool) -> None:
    async def scenario() -> list[tuple[int, bytes]]:
        sandbox = await pool.acquire(Snapshot.of({"a/tool": b"", "b/tool": b"#!/bin/sh\necho $0", "file": b""}))
        await run(sandbox, "chmod 755 b/tool")
        found = []
        for path in ("/work/file:/nowhere:/work/a:/work/b", "/work/b", "/work/a", "/nowhere"):
            result = await sandbox.exec(["tool"], env={"PATH": path})
            found.append((result.exit_code, result.stdout))
        await sandbox.close()
        return found

    assert go(scenario()) == [(0, b"/work/b/tool\n"), (0, b"/work/b/tool\n"), (126, b""), (127, b"")]


# Snapshots and forks

LISTING = r"""
find . -mindepth 1 '(' -type l -printf '%P>%l\0' -o -printf '%P %y %m %T@\0' ')' | sort -z | tr '\0' '\n'
find . -type f -print0 | sort -z | xargs -0 md5sum"""


@docker
def test_forks_begin_alike_and_stay_apart(go: Go, pool: DockerPool) -> None:
    async def scenario() -> None:
        setup = await pool.acquire(Snapshot.of({"src/main.py": b"print(1)\n", "data": bytes(range(256)) * 9}))
        await run(
            setup, "chmod 755 src/main.py; chmod 444 data; mkdir -p empty locked; touch locked/x; chmod 555 locked"
        )
        await run(setup, "ln -s src/main.py near; ln -s nowhere dangling; ln data hard; touch -d 2001-02-03 src")
        await run(setup, python("open(b'new\\nline \\xff', 'w').write('odd'); open('l' * 250, 'w').write('long')"))
        await run(setup, "echo left >/tmp/left")
        snapshot = await setup.snapshot()
        before = await run(setup, LISTING)
        await run(setup, "rm -rf src; echo later >later")
        await setup.close()

        first, second = await pool.acquire(snapshot), await pool.acquire(snapshot)
        for fork in (first, second):
            assert await run(fork, LISTING) == before
            assert await run(fork, "id -u") == await run(fork, "stat -c %u src/main.py")
            assert await run(fork, "ls -A /tmp") == ""
        await run(first, "echo mine >>src/main.py; rm data; echo mine >new")
        assert await run(second, "cat src/main.py; ls -d new data; true") == "print(1)\ndata\n"
        await first.close()
        again = await pool.acquire()
        assert await run(again, "ls -A") == ""
        await again.close()
        third = await pool.acquire(snapshot)
        assert await run(third, "cat src/main.py") == "print(1)\n"
        await third.close()
        await second.close()

    go(scenario())


@docker
def test_a_snapshot_holds_nothing_from_outside_work(go: Go, pool: DockerPool) -> None:
    async def scenario() -> bytes:
        sandbox = await pool.acquire()
        await run(
            sandbox, "ln -s /etc/passwd a; ln -s /etc b; ln -s / c; mkfifo pipe; ln -s pipe d; ln -s /proc/1/mem e"
        )
        await run(sandbox, python("socket.socket(socket.AF_UNIX).bind('socket')"))
        snapshot = await sandbox.snapshot()
        await sandbox.close()
        return snapshot.packed

    packed = go(scenario())
    size = 4 + int.from_bytes(packed[:4], "big")
    entries = [(kind, path, *more) for kind, path, _, _, *more in json.loads(packed[4:size])]
    links = {"a": "/etc/passwd", "b": "/etc", "c": "/", "d": "pipe", "e": "/proc/1/mem"}
    assert entries == [("link", path, target) for path, target in links.items()]
    assert len(packed) == size


@docker
@pytest.mark.parametrize(
    ("planted", "number"),
    [
        ("truncate -s 1G sparse", errno.EFBIG),
        ("for i in $(seq 99); do truncate -s 1G sparse$i; done", errno.EFBIG),
        ("head -c 40M /dev/zero >big", errno.EFBIG),
        ("head -c 20M /dev/zero >big; ln big more", errno.EFBIG),
        ("echo >f; chmod 0 f", errno.EACCES),
        ("mkdir d; chmod 0 d", errno.EACCES),
        ("chmod 0 .", errno.EACCES),
        (python("for i in range(30): os.mkdir('x' * 250); os.chdir('x' * 250)"), errno.ENAMETOOLONG),
    ],
    ids=["sparse", "sparse-99", "big", "hard-links", "unreadable", "closed-folder", "closed-work", "deep"],
)
def test_what_cannot_be_taken_is_an_os_error(go: Go, pool: DockerPool, planted: str, number: int) -> None:
    async def scenario() -> int | None:
        sandbox = await pool.acquire()
        await run(sandbox, planted)
        began = time.monotonic()
        with pytest.raises(OSError) as refused:
            await sandbox.snapshot()
        assert time.monotonic() - began < 30
        assert (await sandbox.exec(["true"], cwd="/tmp")).exit_code == 0
        await sandbox.close()
        return refused.value.errno

    assert go(scenario()) == number


@docker
def test_as_many_files_as_fit_go_into_a_snapshot(go: Go, pool: DockerPool) -> None:
    async def scenario() -> str:
        sandbox = await pool.acquire()
        await run(sandbox, python("for i in range(16000): open(f'{i}', 'w').write(str(i))"), timeout_s=30)
        snapshot = await sandbox.snapshot()
        await sandbox.close()
        fork = await pool.acquire(snapshot)
        sums = await run(fork, "ls | wc -l; cat $(seq 15990 15999)", timeout_s=30)
        await fork.close()
        return sums

    assert go(scenario()) == "16000\n" + "".join(str(i) for i in range(15990, 16000))


def packed(*entries: list[Any]) -> Snapshot:
    index = json.dumps([[kind, path, 0o6777, 0, *more] for kind, path, *more in entries]).encode()
    return Snapshot(len(index).to_bytes(4, "big") + index)


@docker
@pytest.mark.parametrize(
    ("snapshot", "number"),
    [
        (Snapshot.of({"big": bytes(40 << 20), "bigger": bytes(20 << 20)}), errno.ENOSPC),
        (Snapshot.of({"a": b"", "a/b": b""}), errno.EEXIST),
        (packed(["file", "/etc/planted", 0]), errno.EROFS),
        (packed(["link", "out", "/etc"], ["file", "out/planted", 0]), errno.EROFS),
        (packed(["link", "a", "/tmp/x"], ["file", "a", 0]), errno.EEXIST),
        (Snapshot(b"none at all"), errno.EINVAL),
        (Snapshot(bytes(65 << 20)), errno.EFBIG),
    ],
    ids=["no-room", "file-as-folder", "absolute", "through-a-link", "onto-a-link", "no-snapshot", "too-large"],
)
def test_what_cannot_be_restored_is_an_os_error_and_costs_no_place(go: Go, snapshot: Snapshot, number: int) -> None:
    async def scenario() -> tuple[int | None, dict[str, int]]:
        async with new_pool(work_mb=48) as pool:
            with pytest.raises(OSError) as refused:
                await pool.acquire(snapshot)
            sandbox = await pool.acquire()
            assert await run(sandbox, "ls -A") == ""
            return refused.value.errno, pool.stats

    found, stats = go(scenario())
    assert found == number
    assert stats["created"] == 1 and stats["lost"] == 0


@docker
def test_a_restored_file_has_no_special_rights(go: Go, pool: DockerPool) -> None:
    async def scenario() -> str:
        sandbox = await pool.acquire(packed(["file", "s", 0], ["folder", "d"]))
        listing = await run(sandbox, "find . -mindepth 1 -printf '%P %y %m\\n' | sort")
        await sandbox.close()
        return listing

    assert go(scenario()) == "d d 777\ns f 777\n"


@pytest.mark.parametrize("path", ["", "/etc/x", "../x", "a/../../x", "a\0b", "."])
def test_a_snapshot_of_files_refuses_paths_outside(path: str) -> None:
    with pytest.raises(ValueError, match="expected one below /work"):
        Snapshot.of({path: b""})


# Containers that stop answering


@docker
def test_a_container_that_hangs_is_found_at_hand_out(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("envs.sandboxes.shared.lending.GRACE_S", 1.0)
    monkeypatch.setattr("envs.sandboxes.shared.lending.FRESH_S", 0.0)

    async def scenario() -> dict[str, int]:
        async with new_pool() as pool:
            await pool.start(warm=1)
            client = engine.connect()
            (name,) = engine.names(pool.run, client)
            await asyncio.to_thread(client.pause, name)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(pool.acquire(), 0.05)  # cancelled while it is asked: no place is lost
            sandbox = await pool.acquire()
            assert await run(sandbox, "echo fine") == "fine\n"
            await sandbox.close()
            assert name not in await asyncio.to_thread(engine.names, pool.run)
            return dict(pool.stats)

    stats = go(scenario())
    assert stats["created"] == 2 and stats["lost"] == 1
