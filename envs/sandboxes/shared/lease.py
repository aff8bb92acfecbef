"""One lease of a sandbox: the contract's calls as requests over its wire."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from envs.sandboxes import ExecResult, SandboxLost, Snapshot
from envs.sandboxes.shared.wire import MAX_BODY, Wire

GRACE_S = 15.0
"""How much later than asked a supervisor may answer before its sandbox counts as lost."""
PATIENCE = 10.0
"""A command that finds no core is waited for this many times as long as it may run; then the machine is to blame."""
FILES_S = 10.0
"""How long one file may take to write or read, and `SNAPSHOT_S` a whole folder."""
SNAPSHOT_S = 60.0


class Lease:
    """Single use; implements `envs.sandboxes.Sandbox`.

    `give_back(lost)` ends the lease; `said()` is what the sandbox complained about.
    """

    def __init__(
        self, wire: Wire, give_back: Callable[[bool], asyncio.Task[None]], said: Callable[[], str] = str
    ) -> None:
        self._wire: Wire | None = wire
        self._said = said
        self._give_back = give_back
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
        if (argv != "" and not argv) or timeout_s <= 0 or not 0 <= max_output <= MAX_BODY or len(stdin) > MAX_BODY:
            raise ValueError(
                f"exec got argv={argv!r:.80}, timeout_s={timeout_s}, max_output={max_output}, {len(stdin)} B of stdin; "
                f"expected a command, a positive time, and at most {MAX_BODY} bytes each"
            )
        command = argv if isinstance(argv, str) else list(argv)
        asked = {"argv": command, "cwd": cwd, "env": dict(env or {}), "max_output": max_output}
        reply, body = await self._call("exec", bytes(stdin), timeout_s=timeout_s, **asked)
        cut = reply["stdout"]
        told = ("exit_code", "stdout_cut", "stderr_cut", "timed_out", "oom", "duration_s", "cpu_s")
        return ExecResult(stdout=body[:cut], stderr=body[cut:], **{name: reply[name] for name in told})

    async def write(self, path: str, data: bytes) -> None:
        if len(data) > MAX_BODY:
            raise OSError(errno.EFBIG, f"got {len(data)} bytes, expected at most {MAX_BODY}", path)
        _raise_errno((await self._call("write", bytes(data), timeout_s=FILES_S, path=path))[0], path)

    async def read(self, path: str, *, limit: int = 1024 * 1024) -> bytes:
        reply, body = await self._call("read", timeout_s=FILES_S, path=path, limit=min(limit, MAX_BODY))
        _raise_errno(reply, path)
        return body

    async def snapshot(self, *, limit: int = 32 * 2**20) -> Snapshot:
        reply, body = await self._call("pack", timeout_s=SNAPSHOT_S, limit=min(limit, MAX_BODY))
        _raise_errno(reply, "/work")
        return Snapshot(body)

    async def begin(self, snapshot: Snapshot | None) -> None:
        """Put what the snapshot holds into `/work`; hands the sandbox back where that fails."""
        if snapshot is None:
            return
        try:
            if len(snapshot.packed) > MAX_BODY:
                raise OSError(errno.EFBIG, f"got a snapshot of {len(snapshot.packed)} B, expected at most {MAX_BODY}")
            _raise_errno((await self._call("unpack", snapshot.packed, timeout_s=SNAPSHOT_S))[0], "/work")
        except BaseException:
            await self.close()
            raise

    async def _call(
        self, op: str, body: bytes = b"", *, timeout_s: float, **request: Any
    ) -> tuple[dict[str, Any], bytes]:
        give_up_s = PATIENCE * timeout_s
        request |= {"timeout_s": timeout_s, "give_up_s": give_up_s}
        async with self._turn:
            if self._wire is None:
                raise SandboxLost(f"{op!r} in a sandbox that was closed or lost before")
            try:
                reply, answer = await self._wire.call(op, body, wait_s=give_up_s + GRACE_S, **request)
            except SandboxLost as problem:
                said = self._said()
                if self._wire is not None:  # not closed meanwhile
                    self._end(lost=True)
                raise SandboxLost(f"{problem}; it said: {said}" if said else str(problem)) from problem
        if reply.get("aborted"):
            raise SandboxLost(f"the sandbox was closed during {op!r}")
        if reply.get("starved"):
            raise SandboxLost(f"{op!r} found no core to run on in {give_up_s:g} s, ten times what it may take")
        return reply, answer

    def _end(self, *, lost: bool) -> None:
        self._wire = None
        self._returning = self._give_back(lost)

    async def close(self) -> None:
        if self._wire is not None:
            self._end(lost=False)
        if self._returning is not None:
            await asyncio.shield(self._returning)


def _raise_errno(reply: dict[str, Any], path: str) -> None:
    if number := reply.get("errno"):
        raise OSError(number, os.strerror(number), path)
