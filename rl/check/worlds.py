"""The world that `rl check` was asked for, by name, dotted module or path of a Python file; and its digest."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import envs
from envs import World
from envs.sandboxes import SandboxPool

DATA_BYTES = 4 * 2**30


def module(name: str) -> ModuleType:
    """Raises ValueError where there is none, or it has no `World`."""
    if name.endswith(".py"):
        path = Path(name)
        if not path.is_file():
            raise ValueError(
                f"there is no file {name}; expected a world's file, or one of {', '.join(envs.available())}"
            )
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        found = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = found
        _executed(name, lambda: spec.loader.exec_module(found))
    elif "." in name:
        found = _executed(name, lambda: importlib.import_module(name))
    else:
        found = envs.load(name)
    if not callable(getattr(found, "World", None)):
        raise ValueError(f"{name} has no `World`; expected what envs/__init__.py describes")
    return found


def _executed(name: str, run: Any) -> Any:
    try:
        return run()
    except ModuleNotFoundError as error:
        raise ValueError(f"there is no module {error.name!r}, asked for by {name}") from None
    except Exception as error:  # whatever the file's own code raises is told, not traced
        raise ValueError(f"{name} cannot be imported: {type(error).__name__}: {error}") from None


def build(name: str, pool: SandboxPool, args: Mapping[str, Any]) -> World:
    """The world over a pool. Raises ValueError for an argument that it does not take, or refuses."""
    make = module(name).World
    known = [n for n in inspect.signature(make).parameters if n not in ("self", "sandboxes")]
    for given in args:
        if given not in known:
            near = difflib.get_close_matches(given, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"available: {', '.join(known) or 'none'}"
            raise ValueError(f"world {name} takes no argument {given!r}; {hint}")
    try:
        world: World = make(pool, **args)
    except TypeError as error:
        raise ValueError(f"world {name}: {error}") from None
    absent = [n for n in ("task", "open", "close", "max_turns") if not hasattr(world, n)]
    if absent:
        raise ValueError(f"the World of {name} lacks {', '.join(absent)}; see envs/__init__.py")
    return world


def digest(name: str) -> str:
    """Hex digest over the sources of a world: its file, or every Python file of its folder."""
    if name.endswith(".py"):
        files = [Path(name)] if Path(name).is_file() else []
    else:
        try:
            spec = importlib.util.find_spec(name if "." in name else f"envs.{name}")
        except ImportError:
            return ""
        if spec is None or spec.origin is None:
            return ""
        origin = Path(spec.origin)
        files = sorted(origin.parent.rglob("*.py")) if origin.name == "__init__.py" else [origin]
    return _digest(files)


def shared_digest() -> str:
    """Hex digest over what the verifiers of all worlds share, and over the check itself."""
    root = Path(envs.__file__).parent
    folders = [root / "verifiers", root / "rows", root / "exploits", Path(__file__).parent]
    return _digest([root / "__init__.py", *sorted(path for folder in folders for path in folder.rglob("*.py"))])


def _digest(files: Sequence[Path]) -> str:
    whole = hashlib.sha256()
    for file in files:
        whole.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return whole.hexdigest()[:16]


def file_digest(path: str) -> str:
    """Hex digest of a data file, or of all files of a folder, among a world's arguments; empty where it is neither."""
    if not path:
        return ""
    files = [Path(path)] if Path(path).is_file() else sorted(p for p in Path(path).rglob("*") if p.is_file())
    if not files or sum(file.stat().st_size for file in files) > DATA_BYTES:
        return ""
    whole = hashlib.sha256()
    for file in files:
        with file.open("rb") as data:
            whole.update(hashlib.file_digest(data, "sha256").digest())
    return whole.hexdigest()[:16]
