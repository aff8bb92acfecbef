"""The contract of sandboxes: where untrusted code runs. Every other file here is one backend, named by its file.

A non-zero exit, a timeout or a memory kill is a result, never an exception. Only trouble of the machinery raises:

    SandboxError (a MachineryError; the episode ends as `sandbox_lost`)
    ├── SandboxLost           this sandbox died, broke its protocol or found no core to run on; take another
    └── SandboxUnavailable    the engine cannot give one now; the message says what to do
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


class Sandbox(Protocol):
    """One attempt's own machine: an empty writable `/work`, an empty `/tmp`, no network, no privileges, its own user.

    Nothing of an earlier attempt is left in it, and no process outlives the `exec` that started it.
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

    async def acquire(self) -> Sandbox:
        """A clean sandbox, waiting for one where all are taken. Raises SandboxUnavailable."""
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
