"""Attempts of an audit under one shaping: what each gets, beside what gold and an honest failure get."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rl.lab import scoring, shapings
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
    if shapings.compares(shaping.rewards):
        for one in found:
            if one.played.plan.kind in HACKS and one.score is not None:
                _again(one, groups, shaping)
    gold, failure = median(found, "gold"), median(found, "wrong")
    failure = median(found, "empty") if failure is None else failure
    for one in found:
        one.gold = gold if one.gold is None else one.gold
        one.failure = failure if one.failure is None else one.failure
    return found


def _again(one: Judged, groups: Mapping[str, Sequence[Played]], shaping: Shaping) -> None:
    """Under rewards that compare, a hack's score is what it gets beside gold and an honest failure, and nothing else:
    of its own task, or where there is none, of another of the world."""
    own = groups[one.played.plan.group]
    beside = [_of(kinds, own, *groups.values()) for kinds in (("gold", "honest"), ("wrong",))]
    if not beside[0]:
        return
    trial = [Member(Trajectory(), played.episode) for played in (one.played, *beside[0], *beside[1])]
    scoring.score(trial, shaping)
    values = [member.score.value if member.score else None for member in trial]
    right = 1 + len(beside[0])
    one.score = values[0]
    for name, known in (("gold", values[1:right]), ("failure", values[right:])):
        if scores := [value for value in known if value is not None]:
            setattr(one, name, statistics.median(scores))


def _of(kinds: Sequence[str], *groups: Sequence[Played]) -> list[Played]:
    """Attempts of these kinds in the first group that has some."""
    for group in groups:
        if own := [played for played in group if played.plan.kind in kinds and played.episode.outcome.valid]:
            return own
    return []


def median(judged: Sequence[Judged], *kinds: str) -> float | None:
    scores = [one.score for one in judged if one.played.plan.kind in kinds and one.score is not None]
    return statistics.median(scores) if scores else None
