"""The user's own Python by name: `module:name` or `folder/file.py:name`. It is trusted as the run's own code."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


def resolve(reference: str, what: str) -> Any:
    """The object that `reference` names. Raises ValueError, with `what` it was wanted for, where there is none."""
    place, _, name = str(reference).rpartition(":")
    if not place or not name:
        raise ValueError(f"got {what} {reference!r}; expected `module:name` or `file.py:name`")
    found: Any = _file(place, what) if place.endswith(".py") else _imported(place, what)
    for part in name.split("."):
        if not hasattr(found, part):
            public = [known for known in vars(found) if not known.startswith("_")]
            near = difflib.get_close_matches(part, public, n=1)
            hint = f"did you mean {near[0]}?" if near else f"available: {', '.join(public[:20]) or 'nothing'}"
            raise ValueError(f"{what} {reference!r}: {place} has no {part!r}; {hint}")
        found = getattr(found, part)
    return found


def _imported(place: str, what: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        raise ValueError(f"{what} {place!r}: there is no module {error.name!r}") from None
    except Exception as error:  # whatever the user's module raises is told, not traced
        raise ValueError(f"{what}: {place} cannot be imported: {type(error).__name__}: {error}") from None


def _file(place: str, what: str) -> ModuleType:
    path = Path(place).resolve()
    if not path.is_file():
        raise ValueError(f"{what}: there is no file {place}")
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    if str(path.parent) not in sys.path:  # so that it may import what lies beside it
        sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ValueError(f"{what}: {place} cannot be imported: {type(error).__name__}: {error}") from None
    return module
