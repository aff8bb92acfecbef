"""The world that `rl check` was asked for, made over a pool; and the digest of what it shares with others."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import envs
from envs import World
from envs.find import of_files
from envs.sandboxes import SandboxPool


def build(name: str, pool: SandboxPool, args: Mapping[str, Any]) -> World:
    """The world over a pool. Raises ValueError for an argument that it does not take, or refuses."""
    make = envs.load(name).World
    known = [n for n in inspect.signature(make).parameters if n not in ("self", "sandboxes")]
    for given in args:
        if given not in known:
            near = difflib.get_close_matches(given, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"available: {', '.join(known) or 'none'}"
            raise ValueError(f"world {name} takes no argument {given!r}; {hint}")
    if not inspect.signature(make).parameters:
        raise ValueError(f"the World of {name} takes no sandboxes; expected `@world` above it, or World(sandboxes, …)")
    try:
        world: World = make(pool, **args)
    except TypeError as error:
        raise ValueError(f"world {name}: {error}") from None
    absent = [n for n in ("task", "open", "close", "max_turns") if not hasattr(world, n)]
    if absent:
        raise ValueError(f"the World of {name} lacks {', '.join(absent)}; see envs/__init__.py")
    return world


def shared_digest() -> str:
    """Hex digest over what the verifiers of all worlds share, and over the check itself."""
    root = Path(envs.__file__).parent
    folders = [root / "define", root / "verifiers", root / "rows", root / "exploits", Path(__file__).parent]
    own = [root / name for name in ("__init__.py", "find.py", "tools.py")]
    return of_files([*own, *sorted(path for folder in folders for path in folder.rglob("*.py"))])
