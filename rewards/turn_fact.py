"""Rewards by turn that the world measured: the fact of this name is a list with a number for each turn.

An attempt that ended before it was measured gets zeros; where a measured one has no such fact, it does not apply.
"""

from envs import Episode
from rewards import measured


def turns(episode: Episode, *, name: str) -> list[float] | None:
    return episode.facts.get(name) if measured(episode) else [0.0] * episode.turns
