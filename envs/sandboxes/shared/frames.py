"""The supervisor's end of the wire: requests and replies as frames on stdin and stdout, or on a socket in their place.

A frame, both ways: token (16 bytes), length of the JSON, length of the body (two big-endian 32-bit), JSON, body.
Travels into the container with `supervisor.py`: standard library only, Python 3.9 or newer.
"""

from __future__ import annotations

import json
import os
import struct
from typing import Any

from envs.sandboxes.shared.tree import write_all

HEADER = struct.Struct("!16sII")


def receive(size: int) -> bytearray:
    """Exactly `size` bytes of stdin. Exits where stdin ends: the owner is gone."""
    data = bytearray()
    while len(data) < size:
        chunk = os.read(0, min(size - len(data), 1 << 20))
        if not chunk:
            os._exit(0)
        data += chunk
    return data


def receive_frame() -> tuple[bytes, bytes, bytearray]:
    token, json_size, body_size = HEADER.unpack(receive(HEADER.size))
    return token, bytes(receive(json_size)), receive(body_size)


def send_frame(token: bytes, reply: dict[str, Any], body: bytes = b"") -> None:
    text = json.dumps(reply).encode()
    write_all(1, HEADER.pack(token, len(text), len(body)) + text + body)


def call(path: str) -> int:
    """A connection to the socket there, to be used in place of stdin and stdout; -1 where none can be had."""
    try:
        import _socket  # without what `socket` adds, whose import takes longer than all the rest

        connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        connection.connect(path)
        return connection.detach()
    except (ImportError, OSError):
        return -1
