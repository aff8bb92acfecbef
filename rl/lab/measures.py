"""What a shaping does to stored groups, in numbers. Arrays are over `N` attempts; `group_N` numbers their groups.

All but the rank correlation of the score look at advantages, as the algorithm that trains would set them. A figure is
None where nothing could show it: no pair of a right and a wrong attempt, no two lengths, and the like.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

TINY = 1e-9
"""Differences smaller than this share of the largest value are rounding."""


@dataclass(slots=True)
class Attempts:
    """What is the same under every shaping."""

    run_N: Array
    lease_N: Array
    member_N: Array
    world_N: Array
    group_N: Array
    """Whole numbers from 0, not by world."""
    solved_N: Array
    """The true score: all hidden checks passed."""
    tokens_N: Array
    """Sampled."""

    def of(self, keep_N: Array) -> Attempts:
        return Attempts(*(getattr(self, name)[keep_N] for name in self.__slots__))


@dataclass(slots=True)
class Shaped:
    """The same attempts under one shaping; NaN where an attempt has no score."""

    score_N: Array
    advantage_N: Array
    """Of all an attempt's tokens; where the algorithm tells turns apart, their mean over its tokens."""
    teaches_N: Array
    """Some token has an advantage."""
    parts: dict[str, Array]
    """What each part adds to the score, after its weight; a gate's is what it takes away."""
    by_turn: frozenset[str] = frozenset()
    """Parts that pay different attempts of a group differently on their turns."""
    credits_turns: bool = False
    """The algorithm gives turns advantages of their own."""

    def of(self, keep_N: Array) -> Shaped:
        parts = {name: part_N[keep_N] for name, part_N in self.parts.items()}
        arrays = self.score_N[keep_N], self.advantage_N[keep_N], self.teaches_N[keep_N]
        return Shaped(*arrays, parts, self.by_turn, self.credits_turns)


def measure(attempts: Attempts, shaped: Shaped) -> dict[str, Any]:
    """The figures of a shaping over these attempts."""
    groups = len(np.unique(attempts.group_N))
    scored_N = ~np.isnan(shaped.score_N)
    attempts, shaped = attempts.of(scored_N), shaped.of(scored_N)
    group_N, solved_N, advantage_N = attempts.group_N, attempts.solved_N, shaped.advantage_N
    live = len(np.unique(group_N[shaped.teaches_N]))
    inverted, tied, pairs = inversions(group_N, solved_N, advantage_N)
    return {
        "attempts": int(scored_N.sum()),
        "groups": groups,
        "dead_groups": 1 - live / groups if groups else None,
        "pairs": pairs,
        "inversion_rate": inverted / pairs if pairs else None,
        "tie_rate": tied / pairs if pairs else None,
        "rank_correlation": pearson(ranks(shaped.score_N), ranks(solved_N.astype(float))),
        "advantage_rank_correlation": pearson(ranks(advantage_N), ranks(solved_N.astype(float))),
        "length_bias": length_bias(attempts, advantage_N),
        "parts": shares(group_N, shaped),
    }


def inversions(group_N: Array, solved_N: Array, advantage_N: Array) -> tuple[int, int, int]:
    """Over pairs of a right and a wrong attempt of one group: those where the wrong one has more, as much; all."""
    inverted = tied = pairs = 0
    for own_N in members(group_N):
        right, wrong = advantage_N[own_N][solved_N[own_N]], advantage_N[own_N][~solved_N[own_N]]
        if len(right) and len(wrong):
            gap = wrong[:, None] - right[None, :]
            slack = TINY * float(np.abs(advantage_N[own_N]).max())
            inverted += int((gap > slack).sum())
            tied += int((np.abs(gap) <= slack).sum())
            pairs += gap.size
    return inverted, tied, pairs


def length_bias(attempts: Attempts, advantage_N: Array) -> float | None:
    """Correlation of advantage with sampled tokens, among attempts of one group that are equally right.

    Above 0: longer ones are paid more. 0 where lengths differ and the advantage does not care.
    """
    class_N = 2 * attempts.group_N + attempts.solved_N
    length_N = centred(class_N, attempts.tokens_N.astype(float))
    if not spread(length_N):
        return None
    return pearson(length_N, centred(class_N, advantage_N)) or 0.0


def shares(group_N: Array, shaped: Shaped) -> dict[str, float | None]:
    """Of the variance of the score within groups, what each part brings: its covariance with the sum. They add to 1,
    and one below 0 works against the others.
    """
    sum_N = centred(group_N, shaped.score_N)
    total = float(sum_N @ sum_N)
    if not spread(sum_N):
        return dict.fromkeys(shaped.parts)
    return {name: float(centred(group_N, part_N) @ sum_N) / total for name, part_N in shaped.parts.items()}


def agreement(a: Shaped, b: Shaped) -> float | None:
    """Correlation of the advantages of two shapings, over attempts that both score."""
    both_N = ~np.isnan(a.score_N) & ~np.isnan(b.score_N)
    return pearson(a.advantage_N[both_N], b.advantage_N[both_N])


def ranks_in_groups(group_N: Array, score_N: Array) -> Array:
    """1 is the best of its group; ties share their mean. NaN where there is no score."""
    rank_N = np.full(len(score_N), np.nan)
    for own_N in members(group_N):
        scored = own_N[~np.isnan(score_N[own_N])]
        rank_N[scored] = ranks(-score_N[scored])
    return rank_N


def members(group_N: Array) -> list[Array]:
    """Places of each group's attempts."""
    order = np.argsort(group_N, kind="stable")
    cuts = np.flatnonzero(np.diff(group_N[order])) + 1
    return [own for own in np.split(order, cuts) if len(own)]


def ranks(value_N: Array) -> Array:
    """From 1 upwards, ties at their mean."""
    _, inverse, counts = np.unique(value_N, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def centred(group_N: Array, value_N: Array) -> Array:
    """Less the mean of the group; exact 0 where that is rounding."""
    if not len(value_N):
        return value_N
    count = np.bincount(group_N)
    mean = np.bincount(group_N, weights=value_N) / np.maximum(count, 1)
    rest_N = value_N - mean[group_N]
    rest_N[np.abs(rest_N) <= TINY * float(np.abs(value_N).max())] = 0.0
    return rest_N


def spread(centred_N: Array) -> bool:
    return bool(np.any(centred_N != 0))


def pearson(a_N: Array, b_N: Array) -> float | None:
    """Correlation; None where one of the two never changes."""
    if len(a_N) < 2:
        return None
    everything = np.zeros(len(a_N), dtype=int)
    a_N, b_N = centred(everything, a_N), centred(everything, b_N)
    if not spread(a_N) or not spread(b_N):
        return None
    return float(np.clip(a_N @ b_N / np.sqrt((a_N @ a_N) * (b_N @ b_N)), -1.0, 1.0))
