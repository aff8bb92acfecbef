"""The contract of rewards: a pure function from a finished `Episode` to a number. One file, one reward of its name.

A reward file exports `reward(episode, **args) -> float`. Configuration composes them with weights:

    rewards: {outcome: {weight: 1.0}, format: {weight: 0.1}}

It may also export `check(**args)`, which raises ValueError on arguments that make no sense, before a run starts. A
weight of zero keeps the part as a metric. Nothing here runs code, reads a clock or sees a token, so stored episodes can
be scored again at any time.
"""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from envs import Episode


@dataclass(frozen=True, slots=True)
class Score:
    """The weighted sum, and every part by name before weighting."""

    value: float
    parts: Mapping[str, float] = field(default_factory=dict)


Reward = Callable[..., float]


def available() -> list[str]:
    """Names of the rewards in this package."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__))


def load(name: str) -> Reward:
    """One reward function. Raises ValueError (got, available) where there is none."""
    if name not in available():
        raise ValueError(f"there is no reward {name!r}; available: {', '.join(available())}")
    return importlib.import_module(f"rewards.{name}").reward


def check(name: str, args: Mapping[str, Any]) -> None:
    """Raises ValueError or TypeError where a reward cannot be called with these arguments."""
    inspect.signature(load(name)).bind(None, **args)
    if checks := getattr(importlib.import_module(f"rewards.{name}"), "check", None):
        checks(**args)


def score(episode: Episode, rewards: Mapping[str, Mapping[str, Any]]) -> Score:
    """Judge one episode. Raises ValueError where the machinery ended it, which has no score, or a part is no number."""
    if not episode.outcome.valid:
        raise ValueError(f"an episode that ended as {episode.outcome} is the machinery's doing and has no score")
    parts: dict[str, float] = {}
    total = 0.0
    for name, settings in rewards.items():
        args = {k: v for k, v in settings.items() if k != "weight"}
        parts[name] = float(load(name)(episode, **args))
        share = float(settings.get("weight", 1.0)) * parts[name]
        if not math.isfinite(share):
            raise ValueError(f"reward {name} came to {share}; expected a finite number")
        total += share
    return Score(total, parts)
