"""A socket that a container's process 1 calls back on, so that what is said passes through no process in between."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket

from envs.sandboxes.docker.admission import own_folder

INSIDE = "/run/touchstone.sock"


class Door:
    """Open for one caller, in a folder that only this user may enter; nothing of it is left once it is closed.

    Attempts find a socket there that is not theirs and that nobody listens to any more.
    """

    def __init__(self) -> None:
        self.path = own_folder() / f"{os.getpid()}-{secrets.token_hex(8)}.sock"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.setblocking(False)
        try:
            self._listener.bind(str(self.path))
        except OSError:
            self._listener.close()
            raise
        os.chmod(self.path, 0o600)  # noqa: PTH101
        self._listener.listen(1)

    async def caller(self, wait_s: float) -> socket.socket:
        """Raises TimeoutError where nobody calls."""
        async with asyncio.timeout(wait_s):
            sock, _ = await asyncio.get_running_loop().sock_accept(self._listener)
        return sock

    def close(self) -> None:
        self._listener.close()
        self.path.unlink(missing_ok=True)


def sweep() -> None:
    """Remove the doors of processes that died before they closed them."""
    for path in own_folder().glob("*.sock"):
        try:
            os.kill(int(path.name.partition("-")[0]), 0)
        except (ProcessLookupError, PermissionError):  # gone, or somebody else's by now: ours may be signalled
            path.unlink(missing_ok=True)
