"""The client's end of a supervisor's stdin and stdout, as Docker multiplexes them over one attached socket."""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import struct
from typing import Any

from envs.sandboxes import SandboxLost

DOCKER_HEADER = struct.Struct(">BxxxI")
FRAME_HEADER = struct.Struct("!16sII")
MAX_BODY = 64 * 2**20
STDERR_KEPT = 2000


class Frames:
    """Takes the bytes of an attached socket, gives out the supervisor's frames. Holds no more than one of them unread."""

    def __init__(self, token: bytes) -> None:
        self.stderr = b""
        """The end of what the supervisor itself complained about."""
        self._token = token
        self._socket = bytearray()
        self._stdout = bytearray()

    def feed(self, data: bytes) -> list[tuple[dict[str, Any], bytes]]:
        """The frames that `data` completes. Raises ValueError where it is none of this container's."""
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
        frames = []
        while (frame := self._take()) is not None:
            frames.append(frame)
        return frames

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


class Wire:
    """Requests and replies, one at a time. A call that is cancelled aborts its command with the next request."""

    def __init__(self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.name = name
        self._reader = reader
        self._writer = writer
        self._token = secrets.token_bytes(16)
        self._frames = Frames(self._token)
        self._last_id = 0
        self._turn = asyncio.Lock()

    @classmethod
    async def open(cls, name: str, sock: socket.socket, program: bytes) -> Wire:
        """Over a connected socket. `program` is sent ahead of the first frame."""
        reader, writer = await asyncio.open_connection(sock=sock, limit=2**20)
        writer.write(program)
        return cls(name, reader, writer)

    @property
    def alive(self) -> bool:
        return not self._reader.at_eof() and not self._writer.is_closing()

    async def call(self, op: str, body: bytes = b"", *, wait_s: float, **request: Any) -> tuple[dict[str, Any], bytes]:
        """One request and its reply. Raises SandboxLost where none comes in time."""
        async with self._turn:
            self._last_id += 1
            text = json.dumps({"id": self._last_id, "op": op, **request}).encode()
            try:
                async with asyncio.timeout(wait_s):
                    self._writer.write(FRAME_HEADER.pack(self._token, len(text), len(body)) + text + body)
                    await self._writer.drain()
                    return await self._reply(self._last_id)
            except TimeoutError as problem:
                raise SandboxLost(f"{self.name} did not answer {op!r} within {wait_s:.0f} s") from problem
            except (OSError, ValueError) as problem:
                raise SandboxLost(f"{self.name} broke off during {op!r}: {problem}{self._complaint()}") from problem

    async def _reply(self, wanted: int) -> tuple[dict[str, Any], bytes]:
        while data := await self._reader.read(2**20):
            for reply, body in self._frames.feed(data):
                if reply["id"] == wanted:  # else of a call that was cancelled
                    return reply, body
        raise ConnectionResetError("the container is gone")

    def _complaint(self) -> str:
        text = self._frames.stderr.decode("utf-8", "replace").strip()
        return f"; it said: {text}" if text else ""

    def close(self) -> None:
        self._writer.close()
