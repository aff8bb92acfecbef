"""Worlds by what a configuration calls them: the name of a file of `envs/` or `envs/adapters/`, a dotted module, or a
Python file. Nothing is registered.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import pkgutil
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).parent
_NOT_WORLDS = ("adapters", "define", "exploits", "find", "rows", "sandboxes", "shared", "tools", "verifiers")
_NOT_THEIRS = (
    *(HERE / name for name in ("__init__.py", "define", "find.py", "tools.py")),
    HERE.parent / "rl",
    *(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")),
)
"""What is not the code of a world's author."""
DATA_BYTES = 4 * 2**30


def available() -> list[str]:
    """Names of the worlds in this package, adapters among them."""
    return sorted(_dotted())


def _dotted() -> dict[str, str]:
    folder = pkgutil.iter_modules([str(HERE / "adapters")])
    adapters = {m.name: f"envs.adapters.{m.name}" for m in folder if m.name not in _NOT_WORLDS}
    own = {m.name: f"envs.{m.name}" for m in pkgutil.iter_modules([str(HERE)]) if m.name not in _NOT_WORLDS}
    return adapters | own


def load(ref: str) -> ModuleType:
    """The module of one world: `math`, `mypackage.chess` or `./chess.py`. Raises ValueError where there is none, or it
    cannot be imported, or has no `World`.
    """
    if ref.endswith(".py"):
        found = _file(ref)
    elif ref in (known := _dotted()):
        found = _executed(ref, lambda: importlib.import_module(known[ref]))
    elif "." in ref:
        if (here := str(Path.cwd())) not in sys.path:
            sys.path.append(here)
        found = _executed(ref, lambda: importlib.import_module(ref))
    else:
        raise ValueError(f"there is no world {ref!r}; available: {', '.join(available())}")
    if not callable(getattr(found, "World", None)):
        raise ValueError(f"{ref} has no `World`; expected what envs/__init__.py describes")
    return found


def short(ref: str) -> str:
    """What a world is called by itself: `chess` of `./chess.py` and of `mypackage.chess`."""
    return Path(ref).stem if ref.endswith(".py") else ref.rpartition(".")[2]


def _file(ref: str) -> ModuleType:
    """Under a name of its own in `sys.modules`, so that it hides no other; again where it changed."""
    path = Path(ref).resolve()
    if not path.is_file():
        raise ValueError(f"there is no file {ref}; expected a world's file, or one of {', '.join(available())}")
    name, stamp = f"{path.stem}@{path}", (path.stat().st_mtime_ns, path.stat().st_size)
    if getattr(sys.modules.get(name), "__stamp__", None) == stamp:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    loader = spec.loader

    def run() -> ModuleType:
        sys.modules[name] = found
        try:
            loader.exec_module(found)
        except BaseException:
            del sys.modules[name]
            raise
        found.__dict__["__stamp__"] = stamp
        return found

    return _executed(ref, run)


def _executed(ref: str, run: Callable[[], ModuleType]) -> ModuleType:
    try:
        return run()
    except ModuleNotFoundError as error:
        raise ValueError(f"there is no module {error.name!r}, asked for by {ref}") from None
    except Exception as error:  # whatever a world's own code raises is told, not traced
        raise ValueError(f"{ref} cannot be imported: {type(error).__name__}: {error}{place(error)}") from None


def place(error: BaseException) -> str:
    """The line of a world's own code that an exception came from, as ` (chess.py, line 3)`; empty where none is."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_file() and not any(path.is_relative_to(folder) for folder in _NOT_THEIRS):
            return f" ({path.name}, line {frame.lineno})"
    return ""


def sources(ref: str) -> list[Path]:
    """The files of a world: its own, or every Python file of its folder. Empty where there is none."""
    if ref.endswith(".py"):
        return [Path(ref)] if Path(ref).is_file() else []
    try:
        spec = importlib.util.find_spec(_dotted().get(ref, ref))
    except (ImportError, ValueError):
        return []
    if spec is None or spec.origin is None:
        return []
    origin = Path(spec.origin)
    return sorted(origin.parent.rglob("*.py")) if origin.name == "__init__.py" else [origin]


def digest(ref: str) -> str:
    """Hex digest over the sources of a world; empty where it has none."""
    return of_files(files) if (files := sources(ref)) else ""


def of_files(files: Sequence[Path]) -> str:
    """Hex digest over names and contents."""
    whole = hashlib.sha256()
    for file in files:
        whole.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return whole.hexdigest()[:16]


def of_data(args: Mapping[str, Any]) -> dict[str, str]:
    """Hex digests of the files and folders among a world's arguments, e.g. `rows.jsonl` or `grader.py:exact`, by where
    they are named, as `tasks` or `functions.0`.
    """
    found = {where: _of_path(text) for where, text in _texts(args, "")}
    return {where: digest for where, digest in found.items() if digest}


def _texts(value: Any, where: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _texts(inner, f"{where}.{name}".lstrip("."))
    elif isinstance(value, Sequence):
        for number, inner in enumerate(value):
            yield from _texts(inner, f"{where}.{number}")


def _of_path(path: str) -> str:
    """Empty where it is neither a file nor a folder, or too large."""
    try:
        named = path if path and Path(path).exists() else path.partition(":")[0]
        if not named or not Path(named).exists():
            return ""
    except (OSError, ValueError):  # no path at all, but a text
        return ""
    files = [Path(named)] if Path(named).is_file() else sorted(p for p in Path(named).rglob("*") if p.is_file())
    if not files or sum(file.stat().st_size for file in files) > DATA_BYTES:
        return ""
    whole = hashlib.sha256()
    for file in files:
        with file.open("rb") as data:
            whole.update(hashlib.file_digest(data, "sha256").digest())
    return whole.hexdigest()[:16]
