"""The Docker pool against real Docker: forks, and what it does when containers, engine, disk or owners fail."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from envs.sandboxes import SandboxUnavailable, Snapshot
from envs.sandboxes.docker import DockerPool, Lease, count, engine, preflight, reap
from envs.sandboxes.docker.admission import take_place

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
        yield lambda work: runner.get_loop().run_until_complete(asyncio.wait_for(work, 60))


@asynccontextmanager
async def new_pool(**options: Any) -> AsyncIterator[DockerPool]:
    pool = DockerPool(run=f"test-{uuid.uuid4().hex[:8]}", **{"size": 1, **options})
    try:
        yield pool
    finally:
        await pool.close()
        assert await asyncio.to_thread(count, pool.run) == 0


@pytest.fixture(scope="module")
def pool(go: Go, image: None) -> Iterator[DockerPool]:
    pool = DockerPool(run=f"test-{uuid.uuid4().hex[:8]}", size=2)
    yield pool
    go(pool.close())


async def run(sandbox: Lease, command: str, **options: Any) -> str:
    result = await sandbox.exec(command, **options)
    assert result.exit_code == 0, result
    return result.stdout.decode(errors="surrogateescape")


def eventually(check: Callable[[], bool], within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while not check() and time.monotonic() < deadline:
        time.sleep(0.05)
    return check()


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


# An engine in trouble


class Between:
    """A socket between the pool and the real engine. `trouble` is none, "refuse" (cuts every request), "fail" (answers
    500 to every creation) or "cut" (the engine creates, and neither its answer nor a removal comes through)."""

    def __init__(self, folder: Path) -> None:
        self.trouble = ""
        self.creations = 0
        self.host = f"unix://{folder}/docker.sock"
        self._engine = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(f"{folder}/docker.sock")
        self._listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                there = socket.socket(socket.AF_UNIX)
                there.connect(self._engine)
                for source, sink in ((client, there), (there, client)):
                    threading.Thread(target=self._pass, args=(source, sink), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        how = socket.SHUT_WR
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if not self._passes(data, source):
                    how = socket.SHUT_RDWR
                    break
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(how)

    def _passes(self, data: bytes, source: socket.socket) -> bool:
        line = data.split(b"\r\n")[0]
        creates = line.startswith(b"POST ") and b"/containers/create" in line
        self.creations += creates
        if self.trouble == "fail" and creates:
            time.sleep(0.3)
            said = b'{"message":"no space left on device"}'
            head = b"HTTP/1.1 500 Error\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            source.sendall(head % len(said) + said)
            return False
        cuts = {"refuse": (b"GET ", b"POST ", b"DELETE "), "cut": (b"HTTP/1.1 201", b"DELETE ")}
        return not line.startswith(cuts.get(self.trouble, b"?"))

    def direct(self) -> Any:
        """A client of the engine itself."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DOCKER_HOST", f"unix://{self._engine}")
            return engine.connect()

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image: None) -> Iterator[Between]:
    if os.environ.get("DOCKER_HOST", "unix://").startswith("tcp://"):
        pytest.skip("needs an engine on a local socket")
    between = Between(tmp_path)
    monkeypatch.setenv("DOCKER_HOST", between.host)
    yield between
    monkeypatch.undo()
    between.close()


@docker
@pytest.mark.parametrize("trouble", ["fail", "refuse"])
def test_a_sick_engine_is_waited_for_and_not_hammered(go: Go, between: Between, trouble: str) -> None:
    async def scenario() -> dict[str, int]:
        async with new_pool(size=6) as pool:
            await pool.start(warm=1)
            between.trouble = trouble
            between.creations = 0
            held = [await pool.acquire()]  # the idle one: the engine is not asked
            waiting = [asyncio.create_task(pool.acquire()) for _ in range(5)]
            await asyncio.sleep(1.5)
            assert not any(task.done() for task in waiting)
            assert await run(held[0], "echo works") == "works\n"
            if trouble == "fail":
                assert 1 <= between.creations <= 7  # at most 4 at once, then one by one, with longer and longer pauses
            between.trouble = ""
            held += await asyncio.gather(*waiting)
            assert [await run(sandbox, "echo works") for sandbox in held] == ["works\n"] * 6
            await asyncio.gather(*(sandbox.close() for sandbox in held))
            return dict(pool.stats)

    assert go(scenario())["created"] == 6


@docker
def test_patience_ends_in_one_clear_sentence(go: Go, between: Between) -> None:
    async def scenario() -> list[BaseException | Lease]:
        async with new_pool(size=6, patience_s=1.0) as pool:
            await pool.start()
            between.trouble = "fail"
            began = time.monotonic()
            outcomes = await asyncio.gather(*(pool.acquire() for _ in range(6)), return_exceptions=True)
            assert 0.9 < time.monotonic() - began < 30
            between.trouble = ""
            sandbox = await pool.acquire()  # and the pool is as good as before
            assert await run(sandbox, "echo works") == "works\n"
            await sandbox.close()
            return list(outcomes)

    outcomes = go(scenario())
    assert [type(problem) for problem in outcomes] == [SandboxUnavailable] * 6
    assert "for 1 s:" in str(outcomes[0]) and "in a row failed, the last because" in str(outcomes[0])
    assert "no space left on device" in str(outcomes[0]) and "\n" not in str(outcomes[0])


@docker
@pytest.mark.parametrize("every_s", [0.1, 60])
def test_what_the_engine_made_in_secret_is_removed(
    go: Go, between: Between, monkeypatch: pytest.MonkeyPatch, every_s: float
) -> None:
    monkeypatch.setattr("envs.sandboxes.docker.REAP_EVERY_S", every_s)

    async def scenario() -> None:
        async with new_pool() as pool:
            await pool.start()
            between.trouble = "cut"
            waiting = asyncio.create_task(pool.acquire())
            while pool.stats["created"] + await asyncio.to_thread(count, pool.run, client) < 2:
                assert not waiting.done()
            between.trouble = ""
            await (await waiting).close()
            if every_s < 1:
                assert await asyncio.to_thread(eventually, lambda: count(pool.run, client) == 1, 30)
            else:  # closing the pool finds them
                assert await asyncio.to_thread(count, pool.run, client) > pool.stats["created"]

    client = between.direct()
    go(scenario())


@docker
def test_closing_does_not_wait_for_a_sick_engine(go: Go, between: Between) -> None:
    async def scenario() -> float:
        pool = DockerPool(run=f"test-{uuid.uuid4().hex[:8]}")
        await pool.start()
        between.trouble = "fail"
        waiting = [asyncio.create_task(pool.acquire()) for _ in range(9)]
        await asyncio.sleep(0.5)
        began = time.monotonic()
        await pool.close()
        refused = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(problem) for problem in refused] == [SandboxUnavailable] * 9
        return time.monotonic() - began

    assert go(scenario()) < 30  # of the two minutes for which an engine is waited for


@docker
def test_a_nearly_full_disk_is_one_clear_sentence(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with new_pool(min_free_mb=10**9, patience_s=0.2) as pool:
            await pool.acquire()

    expected = r"the disk of /\S*, which the Docker engine uses, has \d+ MB free, expected at least 1000000000 MB: make"
    with pytest.raises(SandboxUnavailable, match=expected):
        go(scenario())


@docker
@pytest.mark.parametrize(
    ("runtime", "says"),
    [("no-such-runtime", "no-such-runtime"), ("runc", "the engine's own kernel .*, expected another")],
)
def test_a_runtime_counts_only_once_a_container_runs_under_it(go: Go, runtime: str, says: str) -> None:
    async def scenario() -> None:
        async with new_pool(runtime=runtime) as pool:
            began = time.monotonic()
            with pytest.raises(
                SandboxUnavailable, match=f"no container starts under the runtime '{runtime}': .*{says}"
            ):
                await pool.acquire()
            assert time.monotonic() - began < 30

    go(scenario())


# A rate shared between processes

HOLDER = """
import sys, time
from envs.sandboxes.docker.admission import take_place
held = [take_place(4) for _ in range(4)]
print(sum(place is not None for place in held), flush=True)
time.sleep(60)
"""


@docker
def test_the_rate_of_creation_is_the_machines(go: Go) -> None:
    while (holder := subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True)) is not None:
        assert holder.stdout is not None
        if holder.stdout.readline() == "4\n":
            break
        holder.kill()  # another test run was making a container
        holder.wait()

    async def scenario() -> None:
        async with new_pool(patience_s=1.0) as pool:
            with pytest.raises(SandboxUnavailable, match="all 4 places for making containers on this machine"):
                await pool.acquire()
            pool._gate.patience_s = 60.0
            waiting = asyncio.create_task(pool.acquire())
            await asyncio.sleep(0.3)
            assert not waiting.done() and pool.stats["created"] == 0
            holder.kill()
            await (await waiting).close()

    try:
        go(scenario())
    finally:
        holder.kill()
        holder.wait()


def test_places_are_this_users_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"touchstone-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SandboxUnavailable, match="is not a folder of this user's"):
        take_place(1)


# Owners that die

OWNER = """
import asyncio, sys
from envs.sandboxes.docker import DockerPool
async def main():
    pool = DockerPool(run=sys.argv[1], size=4)
    await pool.start(warm=2)
    print("ready", flush=True)
    await asyncio.gather(*(pool.acquire() for _ in range(4)))
    await asyncio.sleep(60)
asyncio.run(main())
"""


@docker
def test_nothing_is_left_after_a_kill_of_everything_and_a_next_start() -> None:
    name = f"test-{uuid.uuid4().hex[:8]}"
    owners = [subprocess.Popen([sys.executable, "-c", OWNER, name], stdout=subprocess.PIPE) for _ in range(2)]
    client = engine.connect()
    labels = {
        "touchstone.run": name,
        "touchstone.owner": engine.owner(owners[0].pid),
        "touchstone.deadline": "9999999999",
    }
    for owner in owners:
        assert owner.stdout is not None and owner.stdout.readline() == b"ready\n"
    client.create_volume(f"{name}-volume", labels=labels)
    client.create_volume(f"{name}-living", labels={**labels, "touchstone.owner": engine.owner()})
    warm = {made for made in engine.names(name, client) if made.endswith(("-0", "-1"))}
    first = next(made for made in warm if made.endswith("-0"))
    client.pause(first)  # it will not see that its owner is gone
    for owner in owners:  # while each makes two more
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    assert eventually(lambda: warm & set(engine.names(name, client)) == {first}, 30)  # others ended by themselves
    removed = reap()
    assert eventually(lambda: removed.extend(reap()) or not count(name), 30)  # one may just have been in the making
    assert f"{name}-volume" in removed and f"{name}-living" not in removed
    left = [volume["Name"] for volume in client.volumes(filters={"label": f"touchstone.run={name}"})["Volumes"]]
    client.remove_volume(f"{name}-living")
    assert left == [f"{name}-living"]


@docker
def test_a_pool_clears_up_after_others_while_it_runs(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("envs.sandboxes.docker.REAP_EVERY_S", 0.1)
    dead = subprocess.Popen(["sleep", "60"])
    name = f"test-{uuid.uuid4().hex[:8]}"
    labels = {"touchstone.run": name, "touchstone.owner": engine.owner(dead.pid), "touchstone.deadline": "9999999999"}
    client = engine.connect()

    async def scenario() -> None:
        async with new_pool() as pool:
            sandbox = await pool.acquire()
            client.create_container(IMAGE, ["sleep", "60"], name=f"{name}-left", labels=labels, network_disabled=True)
            await asyncio.sleep(0.5)
            assert engine.names(name, client) == [f"{name}-left"]
            dead.kill()
            dead.wait()
            assert await asyncio.to_thread(eventually, lambda: count(name) == 0, 30)
            assert await run(sandbox, "echo mine") == "mine\n"
            await sandbox.close()

    go(scenario())
