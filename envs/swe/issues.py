"""Issue texts for real tasks: what goes wrong, told from failing tests without naming them or the faulty line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence

from envs.swe.sources import Tree

EXAMPLES = 3
EXAMPLE_CHARS = 400
EXAMPLE_LINES = 8
NEWS_CHARS = 2500
_ADDRESS = re.compile(r"0x[0-9a-f]{6,}")
_PLACE = re.compile(r"/work/\S*|/tmp/\S*")
_TEST = re.compile(r"\btest_\w+|\bTest[A-Z]\w*")
_NEWS = re.compile(
    r"(changelog|changes|history|news|readme)(\.(md|rst|txt))?|docs/(versions|changelog|changes)\.rst", re.I
)


def seen(messages: Sequence[str]) -> list[str]:
    """What went wrong, each once and shortened: no addresses, places or names of tests."""
    found: list[str] = []
    for message in messages:
        text = _ADDRESS.sub("0x…", _PLACE.sub("…", _TEST.sub("…", message)))
        lines = [line.rstrip() for line in text.strip().splitlines()[:EXAMPLE_LINES]]
        short = "\n".join(lines)[:EXAMPLE_CHARS].rstrip()
        if short and short not in found:
            found.append(short)
    return sorted(found, key=lambda text: (len(text), text))[:EXAMPLES]


def fault(tree: Tree, path: str, function: str, messages: Sequence[str]) -> str:
    """Something that worked no longer does. A private function is not named, only its module."""
    module = path.removeprefix(f"{tree.root}/" if tree.root else "").removesuffix(".py").removesuffix("/__init__")
    public = not any(part.startswith("_") for part in function.split("."))
    place = f"`{function}` in `{path}`" if public else f"`{module.replace('/', '.')}`"
    return f"{tree.package} {tree.version}: {place} does not behave as it should.\n\n{_told(messages)}"


def release(old: Tree, new: Tree, messages: Sequence[str]) -> str:
    """What the next release says of itself, and what fails until then."""
    news = _news(old.files, new.files)
    text = f"{old.package} {old.version} lacks a change: after it, the package does what is described here.\n\n"
    return text + (f"From the notes of the next release:\n\n{news}\n\n" if news else "") + _told(messages)


def _told(messages: Sequence[str]) -> str:
    examples = seen(messages)
    if not examples:
        return "Some checks of it fail."
    block = "\n\n".join("\n".join(f"    {line}" for line in example.split("\n")) for example in examples)
    return f"Checks of it fail with, for example (of two values compared, one is what was expected):\n\n{block}"


def _news(old: Mapping[str, bytes], new: Mapping[str, bytes]) -> str:
    """Lines that the next release adds to its notes."""
    added: list[str] = []
    for path in sorted(new):
        if _NEWS.fullmatch(path):
            before, after = (files.get(path, b"").decode(errors="replace").splitlines() for files in (old, new))
            matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
            for kind, _, _, c, d in matcher.get_opcodes():
                if kind in ("insert", "replace"):
                    added += after[c:d]
    return "\n".join(added).strip()[:NEWS_CHARS].rstrip()
