"""What a command of the lab found, as data: figures for machines; tables, plots, warnings and attempts for readers.

`rl lab report` draws any document, and `rl lab diff` compares any two of the same kind, without knowing the command.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

FORMAT = 1


@dataclass(slots=True, kw_only=True)
class Table:
    title: str
    columns: list[str]
    rows: list[list[str | float | int | bool | None]]
    """One list a row, as long as `columns`; numbers as numbers, not as text."""
    note: str = ""
    """How to read it, in a sentence or two."""


@dataclass(slots=True, kw_only=True)
class Series:
    name: str
    x: list[float | str]
    y: list[float | None]
    low: list[float | None] = field(default_factory=list)
    """Bounds of an interval about each y, where there is one."""
    high: list[float | None] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Plot:
    title: str
    kind: Literal["line", "bar", "interval", "scatter"]
    x_label: str
    y_label: str
    series: list[Series]
    note: str = ""


@dataclass(slots=True, kw_only=True)
class Warned:
    """Something that a user should know of one of the shapings."""

    name: str
    """Short and stable, as `telescoping-potential`."""
    about: str
    """The shaping's name; empty where it is about the whole."""
    text: str


@dataclass(slots=True, kw_only=True)
class Attempt:
    """A stored attempt to read side by side with how each shaping ranked it."""

    world: str
    key: str
    outcome: str
    solved: bool
    messages: list[dict[str, str]]
    scores: dict[str, float]
    ranks: dict[str, float]
    """By shaping: 1 is the best of its group; ties share their mean."""
    note: str = ""


@dataclass(slots=True, kw_only=True)
class Document:
    kind: str
    """The command that made it: score, audit, train or toy."""
    name: str
    hashes: dict[str, str] = field(default_factory=dict)
    """Hex digests by what they are of, as `config`, `reward/A`, `world/math`, `run/quickstart`."""
    figures: dict[str, Any] = field(default_factory=dict)
    """What `--json` prints: named numbers, nested by shaping where they belong to one."""
    tables: list[Table] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    warnings: list[Warned] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    """At most ten, those first whose rank changed most."""


def save(document: Document, folder: Path) -> Path:
    """Write `folder/document.json`, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "document.json"
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps({"format": FORMAT, **asdict(document)}, indent=1, allow_nan=False) + "\n")
    draft.replace(path)
    return path


def load(path: Path) -> Document:
    """A document, from its file or folder. Raises ValueError where there is none, or one of another format."""
    file = path / "document.json" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(
            f"there is no document of the lab in {path}; expected a folder with document.json, as runs/lab/…"
        )
    try:
        read = json.loads(file.read_text())
        if read.pop("format") != FORMAT:
            raise ValueError("of another format")
        read["tables"] = [Table(**table) for table in read["tables"]]
        read["plots"] = [
            Plot(**{**plot, "series": [Series(**series) for series in plot["series"]]}) for plot in read["plots"]
        ]
        read["warnings"] = [Warned(**warned) for warned in read["warnings"]]
        read["attempts"] = [Attempt(**attempt) for attempt in read["attempts"]]
        return Document(**read)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is no document of the lab (format {FORMAT}): {error}") from None
