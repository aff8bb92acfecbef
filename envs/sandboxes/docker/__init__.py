"""Sandboxes in Docker: a pool of hardened containers that stay warm and host one attempt after another.

    preflight("touchstone-sandbox:bookworm")             # one clear sentence where Docker or the image is missing
    pool = DockerPool(run="quickstart-ab12", size=16)
    sandbox = await pool.acquire()                       # waits for its turn where all are taken
    result = await sandbox.exec("python3 solve.py", timeout_s=5, stdin=b"3 4")
    await sandbox.close()                                # kills, wipes, next user: about 1 ms; then the next attempt's
    await pool.close()

A container runs `supervisor.py` as its process 1 and is spoken to over one attached socket (`wire.py`). It ends by
itself when this process dies; `reap` removes what could not. Calls to the engine are in `engine.py`.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from envs.sandboxes import ExecResult, SandboxError, SandboxLost, SandboxUnavailable
from envs.sandboxes.docker import engine
from envs.sandboxes.docker.engine import Limits, count, preflight, reap
from envs.sandboxes.docker.service import DockerService
from envs.sandboxes.docker.wire import MAX_BODY, Wire

__all__ = ["DockerPool", "DockerSandbox", "Limits", "count", "preflight", "reap"]

T = TypeVar("T")
log = logging.getLogger(__name__)
GRACE_S = 15.0
"""How much later than asked the supervisor may answer before its container counts as lost."""
START_S = 60.0
PATIENCE = 10.0
"""A command that finds no core is waited for this many times as long as it may run; then the machine is to blame."""


@dataclass(slots=True, kw_only=True)
class _Container:
    name: str
    wire: Wire
    expires: float
    """On the clock of `time.monotonic`."""


class DockerSandbox:
    """One lease of a pool's container. Single use; implements `envs.sandboxes.Sandbox`."""

    def __init__(self, pool: DockerPool, container: _Container) -> None:
        self._pool = pool
        self._container: _Container | None = container
        self._returning: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()

    async def exec(
        self,
        argv: Sequence[str] | str,
        *,
        timeout_s: float = 10.0,
        stdin: bytes = b"",
        cwd: str = "/work",
        env: Mapping[str, str] | None = None,
        max_output: int = 64 * 1024,
    ) -> ExecResult:
        if not argv or timeout_s <= 0 or not 0 <= max_output <= MAX_BODY or len(stdin) > MAX_BODY:
            raise ValueError(
                f"exec got argv={argv!r:.80}, timeout_s={timeout_s}, max_output={max_output}, {len(stdin)} B of stdin; "
                f"expected a command, a positive time, and at most {MAX_BODY} bytes each"
            )
        reply, body = await self._call(
            "exec",
            bytes(stdin),
            timeout_s=timeout_s,
            argv=argv if isinstance(argv, str) else list(argv),
            cwd=cwd,
            env=dict(env or {}),
            max_output=max_output,
        )
        cut = reply["stdout"]
        return ExecResult(
            exit_code=reply["exit_code"],
            stdout=body[:cut],
            stderr=body[cut:],
            stdout_cut=reply["stdout_cut"],
            stderr_cut=reply["stderr_cut"],
            timed_out=reply["timed_out"],
            oom=reply["oom"],
            duration_s=reply["duration_s"],
            cpu_s=reply["cpu_s"],
        )

    async def write(self, path: str, data: bytes) -> None:
        if len(data) > MAX_BODY:
            raise OSError(errno.EFBIG, f"got {len(data)} bytes, expected at most {MAX_BODY}", path)
        _raise_errno((await self._call("write", bytes(data), timeout_s=10.0, path=path))[0], path)

    async def read(self, path: str, *, limit: int = 1024 * 1024) -> bytes:
        reply, body = await self._call("read", timeout_s=10.0, path=path, limit=min(limit, MAX_BODY))
        _raise_errno(reply, path)
        return body

    async def _call(
        self, op: str, body: bytes = b"", *, timeout_s: float, **request: Any
    ) -> tuple[dict[str, Any], bytes]:
        give_up_s = PATIENCE * timeout_s
        request |= {"timeout_s": timeout_s, "give_up_s": give_up_s}
        async with self._turn:
            if self._container is None:
                raise SandboxLost(f"{op!r} in a sandbox that was closed or lost before")
            try:
                reply, answer = await self._container.wire.call(op, body, wait_s=give_up_s + GRACE_S, **request)
            except SandboxLost:
                if self._container is not None:  # not closed meanwhile
                    self._returning = self._pool._give_back(self._container, lost=True)
                    self._container = None
                raise
        if reply.get("aborted"):
            raise SandboxLost(f"the sandbox was closed during {op!r}")
        if reply.get("starved"):
            raise SandboxLost(f"{op!r} found no core to run on in {give_up_s:g} s, ten times what it may take")
        return reply, answer

    async def close(self) -> None:
        if self._container is not None:
            self._returning = self._pool._give_back(self._container, lost=False)
            self._container = None
        if self._returning is not None:
            await asyncio.shield(self._returning)


def _raise_errno(reply: dict[str, Any], path: str) -> None:
    if number := reply.get("errno"):
        raise OSError(number, os.strerror(number), path)


class DockerPool:
    """Up to `size` containers, made when first needed, each lent to one attempt at a time, first come first served.

    Belongs to one event loop. `lifetime_s` bounds a container's life; each lease finds at least half of it left.
    """

    def __init__(
        self,
        *,
        run: str,
        size: int = 16,
        image: str = "touchstone-sandbox:bookworm",
        lifetime_s: float = 7200.0,
        creating: int = 4,
        **limits: Any,
    ) -> None:
        if size < 1:
            raise ValueError(f"a pool of sandboxes got size={size}, expected at least 1")
        self.run = re.sub(r"[^A-Za-z0-9_.-]", "-", run)
        self.size = size
        self.image = image
        self.limits = Limits(**limits)
        self.lifetime_s = lifetime_s
        self.stats = {"created": 0, "handed_out": 0, "lost": 0, "unclean": 0, "waiting": 0}
        """`lost`: containers that died or did not answer; `unclean`: ones replaced for what an attempt left behind."""
        self._client: Any = None
        self._connecting = asyncio.Lock()
        self._threads = ThreadPoolExecutor(max_workers=creating, thread_name_prefix="docker")
        self._permits = asyncio.Semaphore(size)
        self._idle: list[_Container] = []
        self._made: dict[str, _Container] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._services: list[DockerService] = []
        self._closing: asyncio.Task[None] | None = None
        # A kernel counts some resources by user, across containers: no two pools or leases share one.
        self._next_uid = 1_000_000 * (1 + secrets.randbelow(1000))

    async def start(self, warm: int = 0) -> None:
        """Connect, check the image, make `warm` containers ahead. Raises SandboxUnavailable. `acquire` needs none."""
        await self._connect()
        ahead = await asyncio.gather(*(self.acquire() for _ in range(min(warm, self.size))), return_exceptions=True)
        await asyncio.gather(*(sandbox.close() for sandbox in ahead if isinstance(sandbox, DockerSandbox)))
        for problem in ahead:
            if isinstance(problem, BaseException):
                raise problem

    async def _connect(self) -> None:
        self._refuse_if_closed()
        async with self._connecting:
            if self._client is None:
                client = await self._in_thread(engine.connect)
                await self._in_thread(engine.check_image, client, self.image)
                self._client = client

    def _refuse_if_closed(self) -> None:
        if self._closing is not None:
            raise SandboxUnavailable(f"the pool of run {self.run!r} is closed")

    async def acquire(self) -> DockerSandbox:
        if self._client is None or self._closing is not None:
            await self._connect()
        self.stats["waiting"] += 1
        try:
            await self._permits.acquire()
        finally:
            self.stats["waiting"] -= 1
        container = self._pick() or await self._make()
        self.stats["handed_out"] += 1
        return DockerSandbox(self, container)

    def service(self, program: bytes, *, workers: int = 2, memory_mb: int = 512) -> DockerService:
        self._services.append(DockerService(self, program, workers, memory_mb))
        return self._services[-1]

    def _pick(self) -> _Container | None:
        """An idle container with enough life left, the last used first; others are discarded."""
        while self._idle:
            container = self._idle.pop()
            if container.wire.alive and container.expires - time.monotonic() > self.lifetime_s / 2:
                return container
            self.stats["lost"] += not container.wire.alive
            self._spawn(self._discard(container))
        return None

    async def _make(self) -> _Container:
        """A new container for the permit held. Where the caller is cancelled, it is finished and kept for the next."""
        making = self._spawn(self._create())
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            making.add_done_callback(self._keep)
            raise
        except BaseException:
            self._permits.release()
            raise

    def _keep(self, making: asyncio.Task[_Container]) -> None:
        if not making.cancelled() and making.exception() is None:
            self._idle.append(making.result())
        self._permits.release()

    async def _create(self) -> _Container:
        self._refuse_if_closed()
        expires = time.monotonic() + self.lifetime_s
        asked = (self._client, self.image, self.run, self.limits, self.lifetime_s)
        name, sock = await self._in_thread(engine.create, *asked)
        wire = await Wire.open(name, sock, engine.SUPERVISOR)
        container = _Container(name=name, wire=wire, expires=expires)
        self._made[name] = container
        try:
            hello, _ = await wire.call("hello", wait_s=START_S, uid=self._uid(), lifetime_s=self.lifetime_s)
            if problem := hello.get("unclean"):
                raise SandboxUnavailable(f"a new container of {self.image!r} is not fit for attempts: {problem}")
        except SandboxError as problem:
            await self._discard(container)
            raise SandboxUnavailable(f"a container of {self.image!r} did not start: {problem}") from problem
        self._refuse_if_closed()  # what was just made is in `_made`, where `_close` finds it
        self.stats["created"] += 1
        return container

    def _give_back(self, container: _Container, *, lost: bool) -> asyncio.Task[None]:
        """Take a container back from its lease, in a task that outlives a cancelled caller."""
        return self._spawn(self._take_back(container, lost))

    async def _take_back(self, container: _Container, lost: bool) -> None:
        try:
            reply: dict[str, Any] = {}
            if not lost and self._closing is None:
                try:
                    reply, _ = await container.wire.call("reset", wait_s=GRACE_S, uid=self._uid())
                except SandboxLost:
                    lost = True
            self.stats["lost"] += lost
            self.stats["unclean"] += "unclean" in reply
            if lost or "unclean" in reply or self._closing is not None:
                self._spawn(self._discard(container))
            else:
                self._idle.append(container)
        finally:
            self._permits.release()

    async def _discard(self, container: _Container) -> None:
        try:
            await self._remove(container)
        except SandboxUnavailable as problem:
            log.warning("%s; closing the pool tries again, `reap` later", problem)

    async def _remove(self, container: _Container) -> None:
        if container.name in self._made:
            container.wire.close()  # ends its supervisor, and the engine removes it; asking for it makes it sure
            await self._in_thread(engine.remove, self._client, container.name)
            self._made.pop(container.name, None)

    async def close(self) -> None:
        if self._closing is None:
            self._closing = asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        for _ in range(self.stats["waiting"]):
            self._permits.release()  # to be refused
        await asyncio.gather(*(service.close() for service in self._services))
        while pending := [task for task in self._tasks if not task.done()]:  # creations and hand-overs under way
            await asyncio.wait(pending)
        try:
            await asyncio.gather(*(self._remove(container) for container in self._made.values()))
        finally:
            self._threads.shutdown(wait=False)
            if self._client is not None:
                self._client.close()

    def _uid(self) -> int:
        self._next_uid += 1
        return self._next_uid

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _in_thread(self, call: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(call, *arguments))
