"""The contract of sandboxes: where untrusted code runs. Every other file here is one backend, named by its file.

A non-zero exit, a timeout or a memory kill is a result, never an exception. Only trouble of the machinery raises:

    SandboxError (a MachineryError; the episode ends as `sandbox_lost`)
    ├── SandboxLost           this sandbox died, broke its protocol or found no core to run on; take another
    └── SandboxUnavailable    the engine cannot give one now; the message says what to do

A backend is a module that exports `Pool(run=, size=, image=, memory_mb=)`, a SandboxPool; `preflight(image)`,
which raises SandboxUnavailable in one sentence; `count(run)`, how many sandboxes a run has; `reap()`, which removes
what dead runs left; and `WEAKER`, one line on what isolates less than Docker, empty where nothing does.

Setup that all members of a group share is done once, and every member forks from it:

    async with closing(await pool.acquire(Snapshot.of(files))) as sandbox:
        await sandbox.exec("make")
        built = await sandbox.snapshot()
    forks = [await pool.acquire(built) for _ in range(8)]

A pool that is told what comes next (`plan`) has it ready: the image, and the snapshot in a sandbox of it.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from types import ModuleType
from typing import Literal, Protocol

from envs import MachineryError, Outcome


class SandboxError(MachineryError):
    outcome = Outcome.SANDBOX_LOST


class SandboxLost(SandboxError):
    pass


class SandboxUnavailable(SandboxError):
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecResult:
    """What one command did. Output is bytes as the program wrote them, head and tail where it was cut."""

    exit_code: int
    """As a shell reports it; 128 + signal where a signal ended it."""
    stdout: bytes
    stderr: bytes
    stdout_cut: int = 0
    """Bytes left out of the middle of stdout."""
    stderr_cut: int = 0
    timed_out: bool = False
    oom: bool = False
    duration_s: float = 0.0
    """By the clock, less the time in which it stood ready and found no core: a busy machine makes nothing time out."""
    cpu_s: float = 0.0
    """CPU time of all its processes."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What `/work` held at one moment, to begin other sandboxes with: files, folders and links, their modes and times.

    Kept here and not in the engine, so it outlives its sandbox and needs no clean-up.
    """

    packed: bytes
    """Length of the index (32 bits, big-endian), the index as JSON, then the files' bytes one after another. An entry:
    kind (file, folder, link), path, mode, time in ns, and a file's size or a link's target."""

    @classmethod
    def of(cls, files: Mapping[str, bytes]) -> Snapshot:
        """A snapshot of these files, by path below `/work`. Raises ValueError for a path that cannot be one."""
        for path in files:
            if not PurePosixPath(path).name or path.startswith("/") or ".." in path.split("/") or "\0" in path:
                raise ValueError(f"got the path {path!r} for a snapshot; expected one below /work, relative to it")
        now = time.time_ns()
        index = json.dumps([["file", path, 0o644, now, len(data)] for path, data in files.items()]).encode()
        return cls(b"".join([struct.pack("!I", len(index)), index, *files.values()]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What an attempt will ask of a pool."""

    image: str | None = None
    """None for the pool's own."""
    snapshot: Snapshot | None = None


class Sandbox(Protocol):
    """One attempt's own machine: a writable `/work`, an empty `/tmp`, no network, no privileges, its own user.

    Nothing of an earlier attempt is left in it, and no process outlives the `exec` that started it. There is one user
    only, the attempt's: a command of any other would be of more use to an attempt than to us (decision 008).
    """

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
        """Run a command (a string runs in a shell). `max_output` bytes of each stream are kept."""
        ...

    async def write(self, path: str, data: bytes) -> None:
        """Create or replace a file as the sandbox's user, parent folders included. Raises OSError where it may not."""
        ...

    async def read(self, path: str, *, limit: int = 1024 * 1024) -> bytes:
        """A regular file's bytes. Raises FileNotFoundError, or OSError where it is over `limit` or not regular."""
        ...

    async def snapshot(self, *, limit: int = 32 * 1024 * 1024) -> Snapshot:
        """What `/work` holds now. Sockets and pipes are left out.

        64 MB at most, whatever `limit` says: packed, it passes whole through the memory that `/work` lives in as well.

        Raises OSError where that is over `limit` bytes, or holds what its own user cannot read.
        """
        ...

    async def close(self) -> None:
        """Hand the sandbox back. May be called more than once."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a service made of one question."""

    ended: Literal["answered", "spent", "late", "raised"]
    """`spent`: it took all the CPU time or memory it may have, or died of it; `late`: it found no core in time."""
    body: bytes = b""
    """The answer, or in one line what was raised."""
    cpu_s: float = 0.0


class Service(Protocol):
    """A trusted program with untrusted questions, kept running in a place of its own: no network, no host files.

    Each question is answered by a fresh fork of the loaded program, as a user of its own, with limits. Where the place
    died, the next question starts another; a question asked when it died is asked once more.
    """

    async def ask(self, question: bytes, *, cpu_s: int, timeout_s: float) -> Answer:
        """Waits for its turn; `timeout_s` counts from then. Raises SandboxLost or SandboxUnavailable."""
        ...

    async def close(self) -> None:
        """May be called more than once."""
        ...


class SandboxPool(Protocol):
    """A bounded number of sandboxes shared by the attempts of one process."""

    async def acquire(self, snapshot: Snapshot | None = None, *, image: str | None = None) -> Sandbox:
        """A clean sandbox, waiting for one where all are taken; `/work` is empty, or as the snapshot has it.

        `image` is the task's own, where it has one. Raises SandboxUnavailable, also for an image that cannot be had,
        and OSError where the snapshot does not go into `/work`.
        """
        ...

    def plan(self, needs: Sequence[Need]) -> None:
        """What will be asked for, soonest first and after what was said before.

        Images that are missing are fetched in this order, and where places are free sandboxes are made ready: right
        image, snapshot restored. Of more needs than there are places the last ones count. Never raises: who asks for
        what could not be made ready is told why.
        """
        ...

    def service(self, program: bytes, *, workers: int = 2, memory_mb: int = 512) -> Service:
        """A service that starts with its first question and ends with the pool.

        `program` is a zip of Python whose module `program` has `answer(question: bytes) -> bytes`. `workers` questions
        are answered at a time, each in at most `memory_mb`.
        """
        ...

    async def close(self) -> None:
        """Remove every container of this pool. May be called more than once."""
        ...


def available() -> list[str]:
    """Names of the backends in this package."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "shared")


def load(name: str) -> ModuleType:
    """The module of one backend. Raises ValueError (got, available) where there is none."""
    if name not in available():
        raise ValueError(f"there is no sandbox backend {name!r}; available: {', '.join(available())}")
    return importlib.import_module(f"{__name__}.{name}")


def choose(name: str, image: str) -> str:
    """The backend to use, and that works: the one named; for `auto` Docker, or bubblewrap where no engine answers.

    Clears up after runs that died. Raises SandboxUnavailable.
    """
    if name != "auto":
        load(name).preflight(image)
        load(name).reap()
        return name
    try:
        load("docker").reap()
    except SandboxUnavailable as without:
        if os.environ.get("DOCKER_HOST"):  # somebody has said which engine
            raise
        try:
            load("bubblewrap").preflight(image)
        except SandboxUnavailable as problem:
            raise SandboxUnavailable(f"{without}; and in its place: {problem}") from problem
        return "bubblewrap"
    load("docker").preflight(image)
    return "docker"
