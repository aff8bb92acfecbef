"""The contract of filters: is this attempt one that should not be learnt from? One file, one filter of its name.

A filter file exports `caught(member, **args) -> bool` and may export `check(**args)`, which raises ValueError before a
run starts. Configuration gives each a mode:

    filters: {gibberish: {mode: track, vocabulary: 128256, rare_from: 100000}, overlong: {mode: enforce}}

`track` counts what it catches, `enforce` also rejects it. A rejected attempt is the policy's doing, but it leaves its
group whole, before advantages are set: it is not trained on and is not in the group's mean, as if the group had been
one smaller. Were it left in the mean, the others' advantages would no longer sum to zero over tokens, and what was
rejected would still push. What was caught is counted by world, and success counts every attempt the policy ended.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

from rl.trajectory import Group, Member

MODES = ("track", "enforce")

Filter = Callable[..., bool]


def available() -> list[str]:
    """Names of the filters in this package."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__))


def load(name: str) -> Filter:
    """One filter. Raises ValueError (got, available) where there is none."""
    if name not in available():
        raise ValueError(f"there is no filter {name!r}; available: {', '.join(available())}")
    caught: Filter = importlib.import_module(f"rl.filters.{name}").caught
    return caught


def check(name: str, args: Mapping[str, Any]) -> None:
    """Raises ValueError or TypeError where a filter cannot be called with these arguments."""
    if (mode := args.get("mode", "track")) not in MODES:
        raise ValueError(f"got mode={mode!r}; available: {', '.join(MODES)}")
    given = {key: value for key, value in args.items() if key != "mode"}
    inspect.signature(load(name)).bind(None, **given)
    if checks := getattr(importlib.import_module(f"rl.filters.{name}"), "check", None):
        checks(**given)


def screen(group: Group, filters: Mapping[str, Mapping[str, Any]]) -> None:
    """Note on each member what caught it, and whether that rejects it. The same group is always judged the same."""
    active = {name: (load(name), {k: v for k, v in given.items() if k != "mode"}) for name, given in filters.items()}
    for member in group.members:
        member.caught = tuple(name for name, (caught, args) in active.items() if _is_caught(member, caught, args))
        member.rejected = any(filters[name].get("mode", "track") == "enforce" for name in member.caught)


def _is_caught(member: Member, caught: Filter, args: Mapping[str, Any]) -> bool:
    return member.earned and caught(member, **args)
