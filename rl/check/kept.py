"""What one phase of a task leaves for later ones: said as lines, so that a process which goes on has it too."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any


class Kept:
    """By name, and within it by place (split and index) or whatever else it is about:

    `heard` what the world says before any answer · `empty-solved` · `paid` to a wrong answer · `took` a sandbox ·
    `looked` into sandboxes, counts · `steady` verdicts, by what was said · `ended`, the ways in which attempts did ·
    `longest` opening in characters · `right` answers that were not solved · `hung` tasks that never
    ended · `over`, since nothing more can be learnt.
    """

    def __init__(self, say: Callable[..., None], lines: Iterable[Sequence[Any]] = ()) -> None:
        self.say = say
        self._found: dict[str, dict[tuple[Any, ...], Any]] = {}
        for what, at, value in lines:
            self._found.setdefault(what, {})[tuple(at)] = value

    def __getitem__(self, what: str) -> Mapping[tuple[Any, ...], Any]:
        return self._found.setdefault(what, {})

    def put(self, what: str, at: tuple[Any, ...], value: Any = True) -> None:
        found = self._found.setdefault(what, {})
        if at not in found or found[at] != value:
            found[at] = value
            self.say("kept", what=what, at=list(at), value=value)
