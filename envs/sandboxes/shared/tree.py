"""What the supervisor does to files: one file, a whole folder as one archive, a folder made empty.

Travels into the container with `supervisor.py`: standard library only, Python 3.9 or newer. All but `wipe` run in a
child under the lease's user, so that nothing in here can reach what that user could not.
"""

# Without pathlib, for the reason given in `supervisor.py`.
# ruff: noqa: PTH101, PTH103, PTH106, PTH108, PTH109, PTH114, PTH115, PTH118, PTH120, PTH211

from __future__ import annotations

import errno
import json
import os
import stat
import struct

CHUNK = 65536
LENGTH = struct.Struct("!I")
ENTRY_BYTES = 100
"""How much of a snapshot's limit each entry takes beside its path and its content."""


def open_regular(path: str, flags: int) -> int:
    """A descriptor of the regular file at `path`; neither a link as last part nor a FIFO or device is opened."""
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, 0o644)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise OSError(errno.EISDIR if stat.S_ISDIR(os.fstat(fd).st_mode) else errno.EINVAL, "not a regular file")
    return fd


def write_all(fd: int, data: bytes | bytearray) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def write_file(path: str, data: bytes | bytearray) -> None:
    """Create or replace a file, its parent folders included."""
    os.makedirs(os.path.dirname(os.path.join(os.getcwd(), path)), exist_ok=True)
    fd = open_regular(path, os.O_WRONLY | os.O_CREAT)
    os.ftruncate(fd, 0)
    write_all(fd, data)
    os.close(fd)


def read_file(path: str) -> None:
    """A regular file to stdout."""
    fd = open_regular(path, os.O_RDONLY)
    while data := os.read(fd, CHUNK):
        write_all(1, data)
    os.close(fd)


def pack(limit: int) -> None:
    """The working folder in one piece to stdout (see `Snapshot`), or EFBIG before any of it where over `limit`."""
    index: list[list[str | int]] = []
    total = 0
    folders = [""]
    while folders:
        folder = folders.pop()
        for found in sorted(os.scandir(folder or "."), key=lambda found: found.name):
            path, about = os.path.join(folder, found.name), found.stat(follow_symlinks=False)
            common: list[str | int] = [path, about.st_mode & 0o777, about.st_mtime_ns]
            if stat.S_ISREG(about.st_mode):
                index.append(["file", *common, about.st_size])
                total += about.st_size
            elif stat.S_ISDIR(about.st_mode):
                index.append(["folder", *common])
                folders.append(path)
            elif stat.S_ISLNK(about.st_mode):
                index.append(["link", *common, os.readlink(path)])
            total += ENTRY_BYTES + len(path)
            if total > limit:
                raise OSError(errno.EFBIG, "over the limit")
    text = json.dumps(index).encode()
    write_all(1, LENGTH.pack(len(text)) + text)
    for entry in index:
        if entry[0] == "file":
            read_file(str(entry[1]))


def unpack(packed: bytes | bytearray) -> None:
    """What `pack` gave, into the working folder, which holds none of it yet."""
    at = LENGTH.size + LENGTH.unpack_from(packed)[0]
    folders = []
    for kind, path, mode, mtime_ns, *more in json.loads(packed[LENGTH.size : at]):
        os.makedirs(os.path.dirname(os.path.join(os.getcwd(), path)), exist_ok=True)
        if kind == "folder":
            os.makedirs(path, exist_ok=True)
            folders.append((path, mode, mtime_ns))
        elif kind == "link":
            os.symlink(more[0], path)
        else:
            fd = open_regular(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            write_all(fd, packed[at : at + more[0]])
            at += more[0]
            os.fchmod(fd, mode & 0o777)
            os.utime(fd, ns=(mtime_ns, mtime_ns))
            os.close(fd)
    for path, mode, mtime_ns in reversed(folders):  # last: it may be read-only, and putting things in changes its time
        os.chmod(path, mode & 0o777)
        os.utime(path, ns=(mtime_ns, mtime_ns))


def wipe(top: str) -> None:
    """Remove everything below `top`. Raises OSError where something cannot be removed."""

    def fail(problem: OSError) -> None:
        raise problem

    for folder, folders, files in os.walk(top, topdown=False, onerror=fail):
        for name in files:
            os.unlink(os.path.join(folder, name))
        for name in folders:
            path = os.path.join(folder, name)
            if os.path.islink(path):
                os.unlink(path)
            else:
                os.rmdir(path)
