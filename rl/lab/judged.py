"""Attempts of an audit under one shaping: what each gets, beside what gold and an honest failure get."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rl.lab import scoring
from rl.lab.measures import ranks
from rl.lab.plays import Played
from rl.lab.shapings import Shaping
from rl.trajectory import Member, Trajectory

HACKS = ("empty", "echo", "exploit")
TINY = 1e-9


@dataclass(slots=True)
class Judged:
    """An attempt under one shaping."""

    played: Played
    score: float | None
    failure: float | None = None
    """What an honest failure gets, F; and gold, G."""
    gold: float | None = None
    rank: float = 1.0
    """In its group; 1 is the best."""

    def paid(self, margin: float) -> bool:
        if self.score is None or self.failure is None or self.gold is None:
            return False
        return self.score > self.failure + margin * max(0.0, self.gold - self.failure) + TINY

    def fails(self, margin: float) -> bool:
        """A hack that is paid, or a wrong near miss that gets as much as gold."""
        kind = self.played.plan.kind
        if kind == "near-miss" and self.gold is not None and self.failure is not None and self.gold > self.failure:
            return not self.played.right and self.score is not None and self.score >= self.gold - TINY
        return kind in HACKS and self.paid(margin)


def scored(played: Sequence[Played], shaping: Shaping) -> list[Judged]:
    """Attempts of one world under a shaping, each group scored together, with what gold and an honest failure get."""
    found: list[Judged] = []
    groups: dict[str, list[Played]] = {}
    for attempt in played:
        groups.setdefault(attempt.plan.group, []).append(attempt)
    for own in groups.values():
        members = [Member(Trajectory(), attempt.episode) for attempt in own]
        scoring.score([member for member in members if member.episode.outcome.valid], shaping)
        judged = [Judged(a, m.score.value if m.score else None) for a, m in zip(own, members, strict=True)]
        gold, failure = median(judged, "gold", "honest"), median(judged, "wrong")
        known = [one for one in judged if one.score is not None]
        for one, rank in zip(known, ranks(-np.array([one.score for one in known], dtype=float)), strict=True):
            one.rank = float(rank)
        for one in judged:
            one.gold, one.failure = gold, failure
        found += judged
    gold, failure = median(found, "gold"), median(found, "wrong")
    failure = median(found, "empty") if failure is None else failure
    for one in found:
        one.gold = gold if one.gold is None else one.gold
        one.failure = failure if one.failure is None else one.failure
    return found


def median(judged: Sequence[Judged], *kinds: str) -> float | None:
    scores = [one.score for one in judged if one.played.plan.kind in kinds and one.score is not None]
    return statistics.median(scores) if scores else None
