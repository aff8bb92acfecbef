"""What a pool has ready before it is asked: sandboxes of several images, setups restored, images fetched in order."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import json
import tarfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from backends import IMAGE, Backend, Bubblewrap, Docker, Go, small_pool

from envs.sandboxes import Need, SandboxUnavailable, Snapshot
from envs.sandboxes.docker import engine

FILES = Snapshot.of({"a": b"1\n"})


async def ready(pool: Any, number: int) -> None:
    while sum(held.setup == FILES for held in pool._lender._idle) < number:
        await asyncio.sleep(0.01)


def test_a_planned_setup_is_done_before_it_is_asked_for(go: Go, backend: Backend) -> None:
    async def scenario() -> tuple[bytes, bytes, dict[str, int]]:
        async with small_pool(backend, size=2) as pool:
            pool.plan([Need(snapshot=FILES)])
            await ready(pool, 1)
            assert pool.stats["created"] == 1 and pool.stats["handed_out"] == 0
            sandbox = await pool.acquire(FILES)
            seen = await sandbox.exec("cat a; stat -c %U a; echo 2 >a")
            await sandbox.close()
            again = await pool.acquire(FILES)
            return seen.stdout, (await again.exec("cat a")).stdout, dict(pool.stats)

    seen, again, stats = go(scenario())
    assert seen.split()[0] == again.strip() == b"1"
    assert stats["ahead"] == stats["created"] == 1 and stats["handed_out"] == 2


def test_a_setup_that_nobody_asks_for_is_gone_for_others_and_makes_room(go: Go, backend: Backend) -> None:
    async def scenario() -> tuple[bytes, dict[str, int]]:
        async with small_pool(backend) as pool:
            pool.plan([Need(snapshot=FILES)])
            await ready(pool, 1)
            sandbox = await pool.acquire()
            return (await sandbox.exec("ls -A")).stdout, dict(pool.stats)

    seen, stats = go(scenario())
    assert seen == b"" and stats["created"] == 1 and stats["ahead"] == 0


def test_more_is_planned_than_there_are_places(go: Go, backend: Backend) -> None:
    async def scenario() -> tuple[int, dict[str, int]]:
        async with small_pool(backend, size=2) as pool:
            pool.plan([Need(snapshot=Snapshot.of({str(n): b""})) for n in range(9)])
            while pool.stats["created"] < 2:
                await asyncio.sleep(0.01)
            pool.plan([Need(snapshot=FILES)] * 9)
            await ready(pool, 2)
            held = [await pool.acquire(FILES) for _ in range(2)]
            assert [(await sandbox.exec("ls")).stdout for sandbox in held] == [b"a\n"] * 2
            return await asyncio.to_thread(backend.module().count, pool.run), dict(pool.stats)

    live, stats = go(scenario())
    assert live == stats["created"] == stats["ahead"] == 2


def test_a_plan_that_cannot_be_kept_is_told_to_who_asks(go: Go, backend: Backend) -> None:
    bad = Snapshot(b"none at all")

    async def scenario() -> bytes:
        async with small_pool(backend) as pool:
            pool.plan([Need(snapshot=bad), Need(image=f"localhost:1/none-{uuid.uuid4().hex}:x")])
            while pool.stats["created"] < 1:
                await asyncio.sleep(0.01)
            with pytest.raises(OSError):
                await pool.acquire(bad)
            sandbox = await pool.acquire()
            return (await sandbox.exec("echo fine")).stdout

    assert go(scenario()) == b"fine\n"


@pytest.mark.bubblewrap
def test_without_images_one_clear_sentence(go: Go, bubblewrap: Bubblewrap) -> None:
    async def scenario() -> None:
        async with small_pool(bubblewrap) as pool:
            await pool.acquire(image="touchstone-x:y")

    with pytest.raises(
        SandboxUnavailable, match=r"image 'touchstone-x:y', and sandboxes by bubblewrap have none but th"
    ):
        go(scenario())


# Images of tasks


@pytest.fixture
def other(docker: Docker) -> Iterator[str]:
    """An image like the usual one, with a file that tells it."""
    client, name = engine.connect(), f"touchstone-other-{uuid.uuid4().hex[:8]}"
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("etc/other"))
    made = client.create_container(IMAGE, ["true"])["Id"]
    client.put_archive(made, "/", archive.getvalue())
    client.commit(made, name)
    engine.remove(client, made)
    yield name
    client.remove_image(name, force=True)


@pytest.mark.docker
def test_sandboxes_of_two_images_share_the_places(go: Go, docker: Docker, other: str) -> None:
    async def scenario() -> tuple[list[bytes], dict[str, int]]:
        seen = []
        async with small_pool(docker) as pool:
            for image in (None, other, other, IMAGE):
                sandbox = await pool.acquire(FILES, image=image)
                assert await asyncio.to_thread(docker.module().count, pool.run) == 1
                seen.append((await sandbox.exec("cat a; ls /etc/other 2>/dev/null")).stdout)
                await sandbox.close()
            pool.plan([Need(image=other)])
            while pool.stats["created"] < 4:
                await asyncio.sleep(0.01)
            sandbox = await pool.acquire(image=other)
            await sandbox.close()
            return seen, dict(pool.stats)

    seen, stats = go(scenario())
    assert seen == [b"1\n", b"1\n/etc/other\n", b"1\n/etc/other\n", b"1\n"]
    assert stats["created"] == 4 and stats["lost"] == stats["unclean"] == 0  # and the last was made ahead


@pytest.mark.docker
def test_an_image_that_cannot_be_had_is_one_clear_sentence(go: Go, docker: Docker) -> None:
    absent = f"localhost:1/none-{uuid.uuid4().hex}:x"

    async def scenario() -> bytes:
        async with small_pool(docker) as pool:
            for _ in range(2):
                with pytest.raises(
                    SandboxUnavailable, match="is not on the Docker engine and cannot be pulled"
                ) as told:
                    await pool.acquire(image=absent)
                assert absent in str(told.value) and "\n" not in str(told.value)
            return (await (await pool.acquire()).exec("echo fine")).stdout

    assert go(scenario()) == b"fine\n"


@pytest.mark.docker
def test_a_nearly_full_disk_takes_no_image(go: Go, docker: Docker) -> None:
    async def scenario() -> None:
        async with small_pool(docker, min_free_mb=10**9) as pool:
            await pool.acquire(image=f"localhost:1/none-{uuid.uuid4().hex}:x")

    with pytest.raises(SandboxUnavailable, match=r"is not pulled: the disk of /\S*, which the Docker engine uses, has"):
        go(scenario())


class Registry(ThreadingHTTPServer):
    """A registry on this machine: every name has the same small image. Answers nothing until it is let."""

    daemon_threads = True

    def __init__(self) -> None:
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            tar.addfile(tarfile.TarInfo(f"file-{uuid.uuid4().hex}"))
        layer = gzip.compress(archive.getvalue())
        rootfs = {"type": "layers", "diff_ids": [digest(archive.getvalue())]}
        config = json.dumps({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}).encode()
        kind = "application/vnd.docker.distribution.manifest.v2+json"
        parts = [("container.image.v1", config), ("image.rootfs.diff.tar.gzip", layer)]
        described = [
            {"mediaType": f"application/vnd.docker.{name}", "size": len(data), "digest": digest(data)}
            for name, data in parts
        ]
        described[0]["mediaType"] += "+json"
        manifest = {"schemaVersion": 2, "mediaType": kind, "config": described[0], "layers": described[1:]}
        self.manifest = json.dumps(manifest).encode()
        self.kind = kind
        self.blobs = {digest(data): data for data in (config, layer, self.manifest)}
        self.asked: list[str] = []
        self.let = threading.Event()
        super().__init__(("127.0.0.1", 0), Answers)
        self.place = f"127.0.0.1:{self.server_port}"


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Answers(BaseHTTPRequestHandler):
    server: Registry

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        name, _, last = self.path.removeprefix("/v2/").rpartition("/")
        data, kind = self.server.blobs.get(last, b"{}"), "application/octet-stream"
        if name.endswith("/manifests"):
            data, kind = self.server.manifest, self.server.kind
            if name not in self.server.asked:
                self.server.asked.append(name)
            self.server.let.wait(30)
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Docker-Content-Digest", digest(data))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def registry() -> Iterator[Registry]:
    server = Registry()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.let.set()
        server.shutdown()
        server.server_close()


@pytest.mark.docker
def test_missing_images_are_pulled_in_the_order_of_need_two_at_a_time(go: Go, docker: Docker) -> None:
    client = engine.connect()
    if not client.base_url.startswith("http+docker://localhost"):
        pytest.skip("the engine must reach a registry of this machine")
    with registry() as server:
        names = [f"{server.place}/task-{letter}:1" for letter in "dacb"]

        async def scenario() -> None:
            async with small_pool(docker, size=4) as pool:
                pool.plan([Need(image=name) for name in (names[0], names[0], *names[1:])])
                while len(server.asked) < 2:
                    await asyncio.sleep(0.01)
                assert set(server.asked) == {"task-d/manifests", "task-a/manifests"}  # the first two, and no other
                server.let.set()
                while not all(map(pool._images.has, names)):
                    await asyncio.sleep(0.01)

        try:
            go(scenario())
            assert all(client.inspect_image(name) for name in names)
            assert sorted(server.asked[2:]) == ["task-b/manifests", "task-c/manifests"]
        finally:
            for name in names:
                client.remove_image(name, force=True)
