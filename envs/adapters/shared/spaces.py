"""Actions as text, by the space that they come from: read out of what a policy says, and written for an expert."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Reader:
    read: Callable[[str], Any]
    """The action that a text means. Raises ValueError with what the policy should hear."""
    write: Callable[[Any], str]
    how: str = ""
    """What the policy is told of it."""
    any: Callable[[random.Random], Any] | None = None
    """An action by chance, where there is a way to draw one."""


def reader(space: Any, names: Sequence[str]) -> Reader:
    """Raises ValueError where no text can be an action of this space. None: any text is one."""
    kind = type(space).__name__
    if space is None or kind == "Text":
        if names:
            raise ValueError("`actions` names the actions of a discrete space; this one takes any text")
        return Reader(read=inner, write=str)
    if kind == "Discrete":
        return _discrete(int(space.n), int(space.start), names)
    if names:
        raise ValueError(f"`actions` names the actions of a discrete space; this one is {space}")
    if kind not in ("Box", "MultiDiscrete", "MultiBinary"):
        raise ValueError(f"got the action space {space}; expected Discrete, Text, Box, MultiDiscrete or MultiBinary")
    return _numbers(space)


def inner(said: str) -> str:
    """What stands in the last `<action>…</action>`, else all that was said."""
    found = re.findall(r"<action>((?:(?!<action>).)*?)</action>", said, re.DOTALL)
    return (found[-1] if found else said).strip()


def _discrete(count: int, start: int, names: Sequence[str]) -> Reader:
    if names and (len(names) != count or len({name.lower() for name in names}) != count):
        raise ValueError(f"got {len(names)} names in `actions`; expected {count} different ones")
    by_name = {name.lower(): start + at for at, name in enumerate(names)}
    last = start + count - 1
    known = f"{', '.join(names)}, or a number from {start} to {last}" if names else f"a number from {start} to {last}"

    def read(said: str) -> int:
        word = inner(said)
        if word.lower() in by_name:
            return by_name[word.lower()]
        number = int(word) if re.fullmatch(r"-?\d{1,9}", word, re.ASCII) else None
        if number is None or not start <= number <= last:
            raise ValueError(f"There is no action {word[:40]!r}. Expected {known}.")
        return number

    def write(action: Any) -> str:
        number = int(action)
        return f"<action>{names[number - start] if names else number}</action>"

    how = f"Answer with one action as <action>…</action>: {known}."
    return Reader(read, write, how, lambda rng: rng.randrange(start, start + count))


def _numbers(space: Any) -> Reader:
    import numpy

    shape = "x".join(map(str, space.shape))

    def read(said: str) -> Any:
        word = inner(said)
        try:
            action = numpy.array(json.loads(word), dtype=space.dtype)
        except (ValueError, TypeError, OverflowError, RecursionError):
            raise ValueError(f"{word[:40]!r} is no list of numbers. Expected {shape} of them as JSON.") from None
        if action.shape != space.shape or not space.contains(action):
            raise ValueError(f"{word[:40]!r} is outside of {space}.")
        return action

    def write(action: Any) -> str:
        return f"<action>{json.dumps(numpy.asarray(action).tolist())}</action>"

    def chance(rng: random.Random) -> Any:
        space.seed(rng.randrange(2**31))
        return space.sample()

    return Reader(read, write, f"Answer with {shape} numbers as JSON, as <action>[…]</action>, of {space}.", chance)
