"""The client's end of a supervisor's stdin and stdout: one socket, on which Docker multiplexes stdout and stderr."""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import struct
import time
from typing import Any, cast

from envs.sandboxes import SandboxLost

DOCKER_HEADER = struct.Struct(">BxxxI")
FRAME_HEADER = struct.Struct("!16sII")
MAX_BODY = 64 * 2**20
STDERR_KEPT = 2000


class Frames:
    """Takes the bytes of an attached socket, gives out the supervisor's frames."""

    def __init__(self, token: bytes, *, multiplexed: bool = True) -> None:
        self.stderr = b""
        """The end of what the supervisor itself complained about."""
        self._token = token
        self._multiplexed = multiplexed
        self._socket = bytearray()
        self._stdout = bytearray()

    def feed(self, data: bytes) -> list[tuple[dict[str, Any], bytes]]:
        """The frames that `data` completes. Raises ValueError where it is none of this container's."""
        if self._multiplexed:
            self._unwrap(data)
        else:
            self._stdout += data
        frames = []
        while (frame := self._take()) is not None:
            frames.append(frame)
        return frames

    def _unwrap(self, data: bytes) -> None:
        self._socket += data
        while len(self._socket) >= DOCKER_HEADER.size:
            stream, size = DOCKER_HEADER.unpack_from(self._socket)
            end = DOCKER_HEADER.size + size
            if len(self._socket) < end:
                break
            payload = self._socket[DOCKER_HEADER.size : end]
            del self._socket[:end]
            if stream == 1:
                self._stdout += payload
            else:
                self.stderr = (self.stderr + payload)[-STDERR_KEPT:]

    def _take(self) -> tuple[dict[str, Any], bytes] | None:
        if len(self._stdout) < FRAME_HEADER.size:
            return None
        token, text_size, body_size = FRAME_HEADER.unpack_from(self._stdout)
        if token != self._token or text_size > MAX_BODY or body_size > 2 * MAX_BODY:
            raise ValueError("got a frame that is not the supervisor's")
        body_at = FRAME_HEADER.size + text_size
        end = body_at + body_size
        if len(self._stdout) < end:
            return None
        reply = json.loads(self._stdout[FRAME_HEADER.size : body_at])
        body = bytes(self._stdout[body_at:end])
        del self._stdout[:end]
        return reply, body


class Wire(asyncio.Protocol):
    """Requests and replies over one attached socket. A request sent while a command runs aborts that command."""

    def __init__(self, name: str, program: bytes, *, multiplexed: bool = True) -> None:
        self.name = name
        self.alive = True
        self.heard_at = 0.0
        """When it last said something, on the clock of `time.monotonic`."""
        self._program = program
        self._token = secrets.token_bytes(16)
        self._frames = Frames(self._token, multiplexed=multiplexed)
        self._last_id = 0
        self._attached: asyncio.Transport | None = None
        self._awaited: dict[int, asyncio.Future[tuple[dict[str, Any], bytes]]] = {}

    @classmethod
    async def open(cls, name: str, sock: socket.socket, program: bytes, *, multiplexed: bool = True) -> Wire:
        """Over a connected socket. `program` is sent ahead of the first frame."""
        loop = asyncio.get_running_loop()
        _, wire = await loop.create_connection(lambda: cls(name, program, multiplexed=multiplexed), sock=sock)
        return wire

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._program)

    async def move(self, sock: socket.socket) -> None:
        """From now on over this socket. The one before stays open for what the supervisor may complain about."""
        loop = asyncio.get_running_loop()
        self._attached = self._transport
        frames = Frames(self._token, multiplexed=False)
        transport, _ = await loop.create_connection(lambda: Second(self, frames), sock=sock)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self.hear(self._frames, data)

    def hear(self, frames: Frames, data: bytes) -> None:
        self.heard_at = time.monotonic()
        try:
            for reply, body in frames.feed(data):
                awaited = self._awaited.pop(reply["id"], None)
                if awaited is not None and not awaited.done():
                    awaited.set_result((reply, body))
        except ValueError as problem:
            self.connection_lost(problem)
            self._transport.abort()

    def connection_lost(self, problem: Exception | None) -> None:
        self.alive = False
        said = self._frames.stderr.decode("utf-8", "replace").strip()
        for awaited in self._awaited.values():
            if not awaited.done():
                awaited.set_exception(
                    SandboxLost(
                        f"{self.name} is gone: {problem or 'its stream ended'}" + (f"; it said: {said}" if said else "")
                    )
                )
        self._awaited.clear()

    async def call(self, op: str, body: bytes = b"", *, wait_s: float, **request: Any) -> tuple[dict[str, Any], bytes]:
        """One request and its reply. Raises SandboxLost where none comes within `wait_s`."""
        if not self.alive:
            raise SandboxLost(f"{self.name} is gone: its stream had ended before {op!r}")
        self._last_id += 1
        number = self._last_id
        text = json.dumps({"id": number, "op": op, **request}).encode()
        self._transport.write(FRAME_HEADER.pack(self._token, len(text), len(body)) + text + body)
        awaited: asyncio.Future[tuple[dict[str, Any], bytes]] = asyncio.get_running_loop().create_future()
        self._awaited[number] = awaited
        try:
            async with asyncio.timeout(wait_s):
                return await awaited
        except TimeoutError as problem:
            raise SandboxLost(f"{self.name} did not answer {op!r} within {wait_s:.1f} s") from problem
        finally:
            self._awaited.pop(number, None)

    def close(self) -> None:
        self._transport.close()
        if self._attached is not None:
            self._attached.close()


class Second(asyncio.Protocol):
    """The socket that a wire has moved to."""

    def __init__(self, wire: Wire, frames: Frames) -> None:
        self._wire, self._frames = wire, frames

    def data_received(self, data: bytes) -> None:
        self._wire.hear(self._frames, data)

    def connection_lost(self, problem: Exception | None) -> None:
        self._wire.connection_lost(problem)
