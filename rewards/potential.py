"""Potential-based shaping: turn k gets gamma Phi(s_k+1) - Phi(s_k), which keeps the optimal policies (Ng et al., 1999).

s_k is the conversation before turn k, counted from 0. Phi is one of two things: `fact`, a list of the world's with a
number for each turn, the potential after it (0 before the first); or `of`, a reward by its file's name with `args`,
asked about the conversation so far, without facts and tokens. Phi of an attempt that has ended is 0, however it ended,
so that all turns together come to -Phi(s_0) at gamma 1: under an algorithm that takes only the sum it does nothing.
`gamma` must be that of the algorithm (`turns`), or the guarantee is gone.
"""

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from envs import Episode, Outcome
from rewards import load, measured, rounds


def turns(
    episode: Episode,
    *,
    fact: str | None = None,
    of: str | None = None,
    args: Mapping[str, Any] | None = None,
    gamma: float = 1.0,
) -> list[float] | None:
    if of is not None:
        phi = [float(load(of)(prefix, **(args or {}))) for prefix in _prefixes(episode)]
    else:
        stated = episode.facts.get(fact or "") if measured(episode) else [0.0] * episode.turns
        if stated is None:
            return None
        phi = [0.0, *stated][: len(stated)]
    return [gamma * after - before for before, after in zip(phi, [*phi[1:], 0.0], strict=False)]


def _prefixes(episode: Episode) -> list[Episode]:
    """The conversation before each turn, as attempts that were not measured."""
    own = rounds(episode)
    begin = len(episode.messages) - sum(map(len, own))
    found = []
    for turn, messages in enumerate(own):
        found.append(
            replace(
                episode,
                messages=episode.messages[:begin],
                outcome=Outcome.TURNS_SPENT,
                facts={"solved": False},
                turns=turn,
                tokens=0,
            )
        )
        begin += len(messages)
    return found


def check(
    *,
    fact: str | None = None,
    of: str | None = None,
    args: Mapping[str, Any] | None = None,
    gamma: float = 1.0,
) -> None:
    if (fact is None) is (of is None):
        raise ValueError(f"got fact={fact}, of={of}; expected one of the two")
    if fact is not None and not isinstance(fact, str):
        raise ValueError(f"got fact={fact!r}; expected the name of a fact")
    if isinstance(gamma, bool) or not isinstance(gamma, int | float) or not 0 <= gamma <= 1:
        raise ValueError(f"got gamma={gamma!r}; expected a number from 0 to 1")
    if of is None:
        if args is not None:
            raise ValueError("args has no effect without of; leave it out")
        return
    function = load(of)
    if function.__name__ != "reward":
        raise ValueError(f"got of={of}, which is no number of one conversation; expected a file that exports `reward`")
    inspect.signature(function).bind(None, **(args or {}))
    if inner := getattr(importlib.import_module(f"rewards.{of}"), "check", None):
        inner(**(args or {}))
