"""A package's source tree in memory: from a folder, a source distribution or the package index. None of it runs here.

    tree = load("inflection==0.5.1", cache)      # or a folder, or a .tar.gz / .zip file
    tree.files["inflection/__init__.py"]         # bytes by path below the tree's root

An archive is read and never extracted: absolute paths, `..`, a path given twice and sizes above the limits are
refused, links and devices left out.
"""

from __future__ import annotations

import bz2
import email.parser
import gzip
import hashlib
import io
import lzma
import os
import re
import stat
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

MAX_FILES = 5000
MAX_FILE_BYTES = 4 * 2**20
MAX_BYTES = 48 * 2**20
"""Of an archive unpacked, headers and padding included."""
DOWNLOAD_TIMEOUT_S = 300
ARCHIVES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar", ".zip")
_PINNED = re.compile(r"([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)==([A-Za-z0-9][A-Za-z0-9.!+_-]*)")
_LEFT_OUT = {".git", ".hg", ".svn", ".tox", ".nox", ".venv", "venv", ".eggs", "node_modules", "__pycache__"}
_LEFT_OUT_ON_TOP = {"build", "dist", "htmlcov"}
_BINARY = {".pyc", ".pyo", ".so", ".pyd", ".dll", ".dylib", ".a", ".o", ".exe"}
_TEST_FOLDERS = {"tests", "test"}
_TEST_NAME = re.compile(r"(test_.*|.*_test|tests|conftest)\.py")
_MACHINERY = {"conftest.py", "sitecustomize.py", "usercustomize.py", "setup.py"}

PIP = """\
import os, runpy, shutil, sys
folder, wanted = sys.argv[1:]
archives = []
def watch(event, arguments):
    if event == "open" and str(arguments[0]).endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")):
        archives.append(str(arguments[0]))
    elif archives and event in ("subprocess.Popen", "os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.system"):
        shutil.copy(archives[-1], folder)
        os._exit(0)
sys.addaudithook(watch)
sys.argv = ["pip", "download", "--no-binary", ":all:", "--no-deps", "--dest", folder, wanted]
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""
"""`pip download` would run the package's build to learn its metadata. It always does that in a new process, so this one
ends, with what it has downloaded and checked, where it would start its first process after opening the archive."""


class Refused(ValueError):
    """A source that no tasks are made of; says why."""


@dataclass(frozen=True)
class Tree:
    package: str
    version: str
    files: Mapping[str, bytes]

    @property
    def name(self) -> str:
        return f"{self.package}-{self.version}"

    @cached_property
    def root(self) -> str:
        """The folder that its modules are imported from: `src` or the top, written as ``."""
        layout = any(p.startswith("src/") and p.endswith(".py") and p.count("/") <= 2 for p in self.files)
        return "src" if layout else ""

    @cached_property
    def tests(self) -> dict[str, bytes]:
        """Test files, with all that lies in test folders."""
        return {path: data for path, data in self.files.items() if is_test(path)}

    @cached_property
    def packed(self) -> bytes:
        """The tree as tar.gz, the same bytes every time."""
        return gzip.compress(tar(self.files), mtime=0)

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.packed).hexdigest()


def is_test(path: str) -> bool:
    """Whether a path belongs to the tests, so that it comes from the task and never from an attempt."""
    parts = PurePosixPath(path).parts
    return bool(_TEST_FOLDERS & set(parts[:-1])) or _TEST_NAME.fullmatch(parts[-1]) is not None


def is_source(path: str) -> bool:
    """Whether an attempt's file counts: Python, no test, nothing that the interpreter or pytest picks up by itself."""
    return path.endswith(".py") and not is_test(path) and PurePosixPath(path).name not in _MACHINERY


def load(spec: str, cache: Path) -> Tree:
    """A folder, an archive, or `name==version` from the index, whose archive is kept in `cache`. Raises Refused."""
    path = Path(spec)
    if path.is_dir():
        return _tree(_kept(_walk(path)), path.resolve().name)
    if path.is_file():
        return archive(path)
    if _PINNED.fullmatch(spec):
        return archive(_download(spec, cache))
    raise Refused(f"got source {spec!r}; expected a folder, a file ({', '.join(ARCHIVES)}) or name==version")


def archive(path: Path) -> Tree:
    return _tree(_kept(unpack(path.read_bytes(), path.name)), path.name)


def unpack(data: bytes, name: str, *, strip: bool = True) -> dict[str, bytes]:
    """Regular files of an archive by path, where `strip` without the one folder that all lie in. Raises Refused."""
    if not name.endswith(ARCHIVES):
        raise Refused(f"got archive {name}; expected one of {', '.join(ARCHIVES)}")
    files: dict[str, bytes] = {}
    size = 0
    try:
        for path, content in (_zip if name.endswith(".zip") else _tar)(data):
            size += len(content)
            if path in files or len(files) >= MAX_FILES or len(content) > MAX_FILE_BYTES or size > MAX_BYTES:
                raise Refused(
                    f"{name}: {path!r} comes twice, or there are more than {MAX_FILES} files, {MAX_FILE_BYTES} bytes "
                    f"in one of them or {MAX_BYTES} bytes in all"
                )
            files[path] = content
    except (tarfile.TarError, zipfile.BadZipFile, OSError, EOFError, lzma.LZMAError, RuntimeError, ValueError) as error:
        raise error if isinstance(error, Refused) else Refused(f"{name} is no readable archive: {error}") from None
    for path in files:
        if not {str(parent) for parent in PurePosixPath(path).parents}.isdisjoint(files):
            raise Refused(f"{name}: {path!r} lies below a file")
    if strip and len({path.partition("/")[0] for path in files}) == 1 and all("/" in path for path in files):
        return {path.partition("/")[2]: content for path, content in files.items()}
    return files


def tar(files: Mapping[str, bytes]) -> bytes:
    """Files as an uncompressed tar: the same bytes for the same files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as file:
        for path in sorted(files):
            member = tarfile.TarInfo(path)
            member.size = len(files[path])
            file.addfile(member, io.BytesIO(files[path]))
    return buffer.getvalue()


def _safe(path: str) -> str:
    """The path in plain form. Raises Refused where it leads out of the tree or could be read in two ways."""
    parts = path.split("/")
    plain = [part for part in parts if part not in ("", ".")]
    if path.startswith("/") or ".." in parts or not plain or "\\" in path or not path.isprintable():
        raise Refused(f"the archive holds the path {path!r:.200}; expected one inside its own folder")
    return "/".join(plain)


def _tar(data: bytes) -> Iterator[tuple[str, bytes]]:
    openers: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}
    # Unpacked as a whole and counted first: a header may name any size, and is believed by who reads it.
    with openers.get(data[:2], io.BufferedReader)(io.BytesIO(data)) as opened:
        plain: bytes = opened.read(MAX_BYTES + 1)
    if len(plain) > MAX_BYTES:
        raise Refused(f"the archive holds more than {MAX_BYTES} bytes")
    with tarfile.open(fileobj=io.BytesIO(plain), mode="r:") as file:
        for member in file:
            path = _safe(member.name)
            if member.isreg() and not member.issparse():
                content = file.extractfile(member)
                assert content is not None
                yield path, content.read()


def _zip(data: bytes) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        for member in file.infolist():
            path = _safe(member.filename)
            if member.is_dir() or stat.S_ISLNK(member.external_attr >> 16):
                continue
            with file.open(member) as content:
                yield path, content.read(MAX_FILE_BYTES + 1)


def _walk(folder: Path) -> Iterator[tuple[str, bytes]]:
    for place, folders, names in os.walk(folder, followlinks=False):
        folders[:] = sorted(name for name in folders if name not in _LEFT_OUT)
        for name in sorted(names):
            path = Path(place, name)
            if path.is_symlink() or not path.is_file():
                continue
            if path.stat().st_size > MAX_FILE_BYTES:
                raise Refused(f"{path} has more than {MAX_FILE_BYTES} bytes")
            yield path.relative_to(folder).as_posix(), path.read_bytes()


def _kept(files: Mapping[str, bytes] | Iterator[tuple[str, bytes]]) -> dict[str, bytes]:
    """Without history, caches, built copies and machine code, none of which an attempt should find."""
    return {
        path: data
        for path, data in sorted(dict(files).items())
        if not _LEFT_OUT & set(path.split("/"))
        and path.partition("/")[0] not in _LEFT_OUT_ON_TOP
        and PurePosixPath(path).suffix not in _BINARY
    }


def _tree(files: dict[str, bytes], called: str) -> Tree:
    """With name and version as its metadata says, and that metadata where the package's own code looks for it."""
    about, project = files.get("PKG-INFO", b""), files.get("pyproject.toml", b"")
    name, version = called.partition(".tar")[0].rpartition("-")[0] or called, "0"
    if about:
        headers = email.parser.HeaderParser().parsestr(about.decode(errors="replace"))
        name, version = headers.get("Name", name), headers.get("Version", version)
    elif project:
        try:
            table = tomllib.loads(project.decode(errors="replace")).get("project", {})
        except tomllib.TOMLDecodeError as error:
            raise Refused(f"{called}: pyproject.toml cannot be read: {error}") from None
        name, version = str(table.get("name", name)), str(table.get("version", version))
    name = re.sub(r"[-_.]+", "-", name).lower()
    if not re.fullmatch(r"[a-z0-9-]+", name) or not re.fullmatch(r"[A-Za-z0-9.!+_-]+", version):
        raise Refused(f"{called}: got name {name!r} and version {version!r}; expected letters, digits, dots, dashes")
    tree = Tree(name, version, files)
    if about and not any(".egg-info/" in path for path in files):
        place = f"{tree.root}/" if tree.root else ""
        tree = Tree(name, version, files | {f"{place}{name.replace('-', '_')}.egg-info/PKG-INFO": about})
    return tree


def _download(pinned: str, cache: Path) -> Path:
    """The archive of one release, by pip with the user's settings; from `cache` where it was fetched before."""
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / pinned
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    if not found:
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            into = Path(scratch, "into")
            into.mkdir()
            pip = subprocess.run(
                [sys.executable, "-c", PIP, str(into), pinned],
                env={**os.environ, "TMPDIR": scratch, "PIP_NO_INPUT": "1"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=DOWNLOAD_TIMEOUT_S,
            )
            if not any(into.iterdir()):
                said = [line for line in (pip.stderr + pip.stdout).splitlines() if "ERROR" in line] or ["nothing"]
                raise Refused(f"{pinned}: pip gave no source distribution and said: {said[-1].strip()}")
            into.rename(folder)
        found = sorted(folder.iterdir())
    return found[0]
