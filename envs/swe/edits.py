"""A change of text files as the steps of the `edit` tool, and as a patch to read.

steps = edits("a.py", before, after)     # each replaces text that occurs once when its turn comes
assert applied({"a.py": before}, steps) == {"a.py": after}
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import TypedDict

NEAR_LINES = 3
"""Changes with fewer untouched lines between them are one step."""
_MARKS = ("<<<<", "====", ">>>>")


class Edit(TypedDict):
    path: str
    old: str | None
    """None where the file is new."""
    new: str | None
    """None where the file goes."""


def edits(path: str, before: str | None, after: str | None) -> list[Edit]:
    """Steps from one text of a file to another. Raises ValueError where the `edit` tool cannot write them."""
    if before is None or after is None:
        return [] if before == after else [Edit(path=path, old=None, new=after)]
    old, new = before.split("\n"), after.split("\n")
    steps: list[Edit] = []
    shift = 0
    current = list(old)
    for a, b, c, d in _hunks(old, new):
        first, last = _unique(current, a + shift, b + shift)
        lines = current[first : a + shift] + new[c:d] + current[b + shift : last]
        step = Edit(path=path, old="\n".join(current[first:last]), new="\n".join(lines))
        if any(line in _MARKS for line in (*current[first:last], *lines)) or not step["old"] or not step["new"]:
            raise ValueError(f"{path}: lines {first + 1} to {last} hold a mark of the edit tool, or nothing")
        steps.append(step)
        current[first:last] = lines
        shift += (d - c) - (b - a)
    return steps


def _hunks(old: Sequence[str], new: Sequence[str]) -> list[tuple[int, int, int, int]]:
    """Differing line ranges, near ones joined."""
    hunks: list[tuple[int, int, int, int]] = []
    for kind, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "equal":
            continue
        if hunks and a - hunks[-1][1] < NEAR_LINES:
            hunks[-1] = (hunks[-1][0], b, hunks[-1][2], d)
        else:
            hunks.append((a, b, c, d))
    return hunks


def _unique(lines: Sequence[str], first: int, last: int) -> tuple[int, int]:
    """The range widened, a line at a time on each side, until its text occurs once and neither side can be empty."""
    whole = "\n".join(lines)
    first, last = max(0, first - 1), min(len(lines), last + 1)
    while not _names(whole, "\n".join(lines[first:last]), at=sum(len(line) + 1 for line in lines[:first])):
        if first == 0 and last == len(lines):
            raise ValueError("the text holds nothing that could be named")
        first, last = max(0, first - 1), min(len(lines), last + 1)
    return first, last


def _names(whole: str, text: str, *, at: int) -> bool:
    """Whether replacing this text replaces it at that place: it may overlap with itself elsewhere."""
    return text.strip("\n") != "" and whole.count(text) == 1 and whole.find(text) == at


def applied(files: Mapping[str, str], steps: Sequence[Edit]) -> dict[str, str]:
    """The files after the steps. Raises ValueError where one does not fit."""
    changed = dict(files)
    for step in steps:
        path, old, new = step["path"], step["old"], step["new"]
        if new is None:
            changed.pop(path, None)
        elif old is None:
            changed[path] = new
        elif changed.get(path, "").count(old) == 1:
            changed[path] = changed[path].replace(old, new)
        else:
            raise ValueError(f"the step of {path} names text that occurs {changed.get(path, '').count(old)} times")
    return changed


def patch(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """A unified diff of the files that differ."""
    parts: list[str] = []
    for path in sorted({*before, *after}):
        old, new = before.get(path), after.get(path)
        if old != new:
            names = (f"a/{path}" if old is not None else "/dev/null", f"b/{path}" if new is not None else "/dev/null")
            for line in difflib.unified_diff(
                (old or "").splitlines(keepends=True), (new or "").splitlines(keepends=True), *names
            ):
                parts.append(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n")
    return "".join(parts)


def similarity(mine: str, gold: str) -> float:
    """Of two patches, from 0 to 1, by lines added and removed."""
    a, b = (
        [line for line in text.split("\n") if line[:1] in ("+", "-") and line[:3] not in ("+++", "---")]
        for text in (mine, gold)
    )
    return round(difflib.SequenceMatcher(None, a, b, autojunk=False).ratio(), 3)
