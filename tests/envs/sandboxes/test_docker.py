"""What is Docker's own: containers whose owner died, an absent engine or image, frames on an attached socket."""

from __future__ import annotations

import random
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from backends import IMAGE, Backend, Go, eventually, small_pool

from envs.sandboxes import SandboxUnavailable
from envs.sandboxes.docker import DockerPool, Lease, Limits, count, door, engine, preflight, reap
from envs.sandboxes.docker.admission import own_folder
from envs.sandboxes.shared.wire import DOCKER_HEADER, FRAME_HEADER, Frames

RUN = f"test-{uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="module")
def backend(docker: Backend) -> Backend:
    return docker


# Owners that die


@pytest.mark.docker
@pytest.mark.parametrize("sent", [0, 100], ids=["unsaid", "half said"])
def test_an_owner_that_dies_while_starting_leaves_no_container(docker: Backend, sent: int) -> None:
    run = RUN + "-start"
    _, sock = engine.create(engine.connect(), IMAGE, run, Limits(), 600)
    sock.send(engine.SUPERVISOR[:sent])
    assert count(run) == 1
    sock.close()
    assert eventually(lambda: count(run) == 0, within_s=30)


@pytest.mark.docker
def test_reap_removes_what_a_dead_owner_left(go: Go, docker: Backend, pool: DockerPool, sandbox: Lease) -> None:
    client = engine.connect()
    dead = subprocess.Popen(["sleep", "60"])
    labels = {"touchstone.run": RUN + "-old", "touchstone.deadline": str(int(time.time() + 999))}
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
        made[name] = f"{RUN}-{name}"
        client.create_container(IMAGE, ["sleep", "60"], name=made[name], labels=these, network_disabled=True)
    client.start(made["orphan"])
    try:
        assert {made["overdue"], made["reused"], made["orphan"]} <= set(reap(client))
        assert count(RUN + "-old", client) == 2
        assert go(sandbox.exec(["true"])).exit_code == 0
    finally:
        for name in made.values():
            engine.remove(client, name)


# The socket that a container calls back on


@pytest.mark.docker
def test_the_engine_is_not_spoken_through_and_nothing_of_the_way_round_it_is_left(
    go: Go, pool: DockerPool, sandbox: Lease
) -> None:
    call = "import socket; socket.socket(socket.AF_UNIX).connect('/run/touchstone.sock')"
    refused = go(sandbox.exec(["python3", "-c", call])).stderr
    assert b"PermissionError" in refused
    mounted = go(sandbox.exec(["grep", "touchstone.sock", "/proc/self/mountinfo"])).stdout.decode()
    assert "deleted" in mounted and " ro," in mounted
    left = [path.name for path in own_folder().glob("*.sock") if path.name in mounted]
    assert ".sock" in mounted and not left


@pytest.mark.docker
@pytest.mark.parametrize("broken", ["cannot call", "cannot mount"])
def test_where_it_cannot_be_called_back_on_the_engine_carries(
    go: Go, docker: Backend, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    if broken == "cannot call":
        monkeypatch.setattr("envs.sandboxes.docker.INSIDE", "/run/nothing")
    else:
        monkeypatch.setattr(door.Door, "path", Path("/nowhere/x"), raising=False)
        monkeypatch.setattr(door.Door, "__init__", lambda self: setattr(self, "_listener", socket.socket()))

    async def scenario() -> tuple[bytes, dict[str, int]]:
        async with small_pool(docker) as pool:
            sandbox = await pool.acquire()
            return (await sandbox.exec("echo fine")).stdout, pool.stats

    said, stats = go(scenario())
    assert said == b"fine\n" and stats["created"] == 1 and stats["lost"] == 0


@pytest.mark.docker
def test_doors_of_the_dead_are_removed(docker: Backend) -> None:
    living = door.Door()
    ended = subprocess.Popen(["true"])
    ended.wait()
    dead = living.path.with_name(f"{ended.pid}-dead.sock")
    dead.touch()
    reap()
    assert living.path.exists() and not dead.exists()
    living.close()
    assert not living.path.exists()


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


@pytest.mark.docker
def test_absent_image_is_one_clear_sentence(docker: Backend) -> None:
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
