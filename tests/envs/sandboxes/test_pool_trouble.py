"""The Docker pool against real Docker: what it does when engine, disk or owners fail."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from backends import IMAGE, Go, eventually
from pools import docker, new_pool, run

from envs.sandboxes import SandboxUnavailable
from envs.sandboxes.docker import DockerPool, Lease, count, engine, reap
from envs.sandboxes.docker.admission import take_place

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
