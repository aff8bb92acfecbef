"""Scores of a group to advantages: the frame that all algorithms share, and the rules that several of them use."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from rl.trajectory import Group

Rule = Callable[[Sequence[float], Sequence[int]], list[float]]
"""Scores, and numbers of sampled tokens, of at least two members whose scores differ, to their advantages."""

ROUNDING = 1e-12
SMALLEST_DEVIATION = 1e-4
"""Added to a group's deviation, so that scores which differ by rounding are not blown up."""


def assign(group: Group, rule: Rule) -> None:
    """Set `member.advantage` of the valid members; exact zeros where their scores are equal."""
    scored = [(member, member.score.value) for member in group.valid if member.score is not None]
    scores = [score for _, score in scored]
    if not differ(scores):
        advantages = [0.0] * len(scored)
    else:
        advantages = rule(scores, [member.trajectory.spoken for member, _ in scored])
    for (member, _), advantage in zip(scored, advantages, strict=True):
        member.advantage, member.turn_advantages = advantage, ()


def differ(scores: Sequence[float]) -> bool:
    """By more than the rounding of sums that should be equal."""
    return len(scores) > 1 and max(scores) - min(scores) > ROUNDING * max(1.0, *map(abs, scores))


def centred(scores: Sequence[float], lengths: Sequence[int]) -> list[float]:
    """R_i - mean R: the advantages sum to zero over members, whatever their lengths."""
    mean = statistics.fmean(scores)
    return [score - mean for score in scores]


def standardised(scores: Sequence[float], lengths: Sequence[int]) -> list[float]:
    """(R_i - mean R) / (s + 1e-4), s the sample deviation (divided by the number of members less one)."""
    deviation = statistics.stdev(scores) + SMALLEST_DEVIATION
    return [advantage / deviation for advantage in centred(scores, lengths)]
