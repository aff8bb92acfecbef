"""A number that the world measured, by its name: `{fact: {name: reward}}`, or `parts.style` for one inside another.

With `low` and `high` it is scaled to 0 at low and 1 at high, and held there. An attempt that ended before it was
measured gets `unmeasured`; where a measured one has no such fact, the reward does not apply.
"""

import math
from collections.abc import Mapping
from typing import Any

from envs import Episode
from rewards import measured


def reward(
    episode: Episode, *, name: str, low: float | None = None, high: float | None = None, unmeasured: float = 0.0
) -> float | None:
    if not measured(episode):
        return unmeasured
    value: Any = episode.facts
    for key in name.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    if value is None or low is None or high is None:
        return value
    if not math.isfinite(value):
        raise ValueError(f"the world measured {name}={value}; expected a finite number")
    return min(1.0, max(0.0, (value - low) / (high - low)))


def check(*, name: str, low: float | None = None, high: float | None = None, unmeasured: float = 0.0) -> None:
    if not isinstance(name, str) or not name:
        raise ValueError(f"got name={name!r}; expected the name of a fact")
    for key, got in (("low", low), ("high", high), ("unmeasured", unmeasured)):
        number = isinstance(got, int | float) and not isinstance(got, bool) and math.isfinite(got)
        if not number and (got is not None or key == "unmeasured"):
            raise ValueError(f"got {key}={got!r}; expected a number")
    if (low is None) is not (high is None) or (low is not None and high is not None and low >= high):
        raise ValueError(f"got low={low}, high={high}; expected both with low below high, or neither")
