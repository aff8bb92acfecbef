"""Rows of a data set with columns of their own, as a trainer would hand them to the user's code."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from envs import Message, Task
from envs.rows.read import lines
from envs.rows.records import Refused, Report

log = logging.getLogger(__name__)
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Read:
    rows: list[dict[str, Any]]
    """All with the same columns, in the order of the file; what a row lacks is None."""
    columns: tuple[str, ...]
    report: Report


def read(source: str, world: str, columns: Sequence[str] | None = None) -> Read:
    """Every row that can be stored as JSON. `columns`: the only ones to take, None for all. Raises ValueError."""
    report = Report(source=str(source)[:200])
    found: list[dict[str, Any]] = []
    names: dict[str, None] = {}
    for where, row in lines(str(source)):
        report.read += 1
        try:
            if isinstance(row, Refused):
                raise row
            kept = {name: value for name, value in row.items() if columns is None or name in columns}
            _storable(kept)
        except Refused as refusal:
            report.refuse(where, refusal)
            continue
        names |= dict.fromkeys(kept)
        found.append(kept)
    if absent := [name for name in columns or () if name not in names]:
        raise ValueError(f"world {world}: {source} has no column {absent[0]!r}; available: {', '.join(names)}")
    if not found:
        raise ValueError(f"world {world} can take no row of {report}")
    report.taken = len(found)
    return Read([{name: row.get(name) for name in names} for row in found], tuple(names), report)


def _storable(row: Row) -> None:
    for name, value in row.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            raise Refused(
                "a column is no JSON", f"`{name}` is {type(value).__name__}; leave it out by `columns`"
            ) from None


def tasks(
    found: Read, world: str, make: Callable[[dict[str, Any], str], Task], same: Callable[[Row], Any]
) -> list[Task]:
    """A task of each row, by its key; of rows in which `same` is equal, only the first. Raises ValueError for none."""
    made: dict[str, Task] = {}
    for number, row in enumerate(found.rows, start=1):
        key = digest(same(row))
        if key in made:
            found.report.duplicates += 1
            continue
        try:
            made[key] = make(row, key)
        except Refused as refusal:
            found.report.refuse(f"row {number}", refusal)
    found.report.taken = len(made)
    if not made:
        raise ValueError(f"world {world} can take no row of {found.report}")
    if found.report.refused or found.report.duplicates:
        log.warning("world %s: %s", world, found.report)
    return list(made.values())


def side(found: Read, world: str, split_by: Sequence[str] | None) -> Callable[[Task], str]:
    """What decides the split of a row's task: the columns `split_by`, so that rows alike in these are on one side; by
    default `prompt`, or all where every row has the same prompt or none. Raises ValueError for a column there is not.
    """
    if absent := [name for name in split_by or () if name not in found.columns]:
        raise ValueError(
            f"world {world}: got split_by={list(split_by or ())}, but there is no column {absent[0]!r}; available: "
            f"{', '.join(found.columns)}"
        )
    if split_by is None and len({digest(row.get("prompt")) for row in found.rows}) > 1:
        split_by = ("prompt",)
    names = tuple(split_by or found.columns)

    def decides(task: Task) -> str:
        row = task.hidden["columns"]
        return digest(row[names[0]] if len(names) == 1 else {name: row[name] for name in names})

    return decides


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def messages(prompt: Any, system: str = "") -> tuple[Message, ...]:
    """A column `prompt`, text or conversation, as messages. Raises Refused where it is neither."""
    start: tuple[Message, ...] = ({"role": "system", "content": system},) if system else ()
    if isinstance(prompt, str):
        return (*start, {"role": "user", "content": prompt})
    if not isinstance(prompt, list) or not prompt:
        raise Refused("`prompt` is no text and no conversation", f"got {type(prompt).__name__}")
    return (*start, *(_message(one) for one in prompt))


def _message(one: Any) -> Message:
    if not isinstance(one, Mapping) or not isinstance(one.get("role"), str):
        raise Refused("a message of `prompt` has no role", f"got {one!r:.60}")
    return {"role": one["role"], "content": text(one.get("content"))}


def text(content: Any) -> str:
    """The text of a message: as it is, or of its blocks. Raises Refused where it holds anything but text."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(b, Mapping) and isinstance(b.get("text"), str) for b in content):
        return "".join(block["text"] for block in content)
    raise Refused("a message holds something that is no text", f"got {content!r:.60}")
