"""Programming languages of answers, as data: a program's file, how it is compiled and run, how much time it gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Language:
    tags: tuple[str, ...]
    """What may stand behind the fence of an answer."""
    file: str
    run: tuple[str, ...]
    """Empty: Python, run by the runner's own interpreter."""
    compile: tuple[str, ...] = ()
    time_factor: float = 1.0
    """Of a problem's time limit."""

    @property
    def needs(self) -> str:
        """The program that an image has to have for it."""
        return (self.compile or self.run or ("python3",))[0]


LANGUAGES: dict[str, Language] = {
    "python": Language(tags=("python", "py", "python3"), file="main.py", run=(), time_factor=2.0),
    "cpp": Language(
        tags=("cpp", "c++", "cc", "cxx"),
        file="main.cpp",
        compile=("g++", "-std=c++17", "-O2", "-o", "main", "main.cpp"),
        run=("./main",),
    ),
    "c": Language(
        tags=("c",),
        file="main.c",
        compile=("gcc", "-std=c17", "-O2", "-o", "main", "main.c", "-lm"),
        run=("./main",),
    ),
    "bash": Language(tags=("bash", "sh"), file="main.sh", run=("bash", "main.sh"), time_factor=3.0),
}


def chosen(given: Sequence[str] | Mapping[str, Mapping[str, Any] | None]) -> dict[str, Language]:
    """The languages of a world, in order: names from the table, or `name: {tags, file, run}` for one of its own."""
    own: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
    found = {}
    for name in given:
        fields = own.get(name)
        if fields is None and name not in LANGUAGES:
            raise ValueError(
                f"world code: got language {name!r}; available: {', '.join(LANGUAGES)}, or its own tags, file, run"
            )
        if fields is None:
            found[name] = LANGUAGES[name]
            continue
        known = Language.__dataclass_fields__
        if unknown := sorted(set(fields) - set(known)):
            raise ValueError(f"language {name!r}: got {', '.join(unknown)}; available: {', '.join(known)}")
        if missing := sorted({"tags", "file", "run"} - set(fields)):
            raise ValueError(f"language {name!r}: {', '.join(missing)} missing; expected tags, file and run")
        values: dict[str, Any] = {k: v if isinstance(v, str | int | float) else tuple(v) for k, v in fields.items()}
        found[name] = Language(**values)
    if not found:
        raise ValueError(f"world code: got no language; available: {', '.join(LANGUAGES)}")
    return found
