"""What became of each cell of a study, as figures by shaping. Knows neither trainer nor toy: both give it `Curve`s.

The *true* success is the share of attempts that passed the hidden checks; the *proxy* is what the shaping paid. Both
are means over worlds, each world counting the same. `S` seeds, `N` steps.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from rl.lab import intervals
from rl.lab.intervals import Interval

SMOOTH_STEPS = 3
"""A curve is read as its trailing mean over so many steps."""
NOISE = 2.0
"""Standard errors by which held-out success must fall to count as fallen."""
TINY = 1e-9


@dataclass(slots=True, kw_only=True)
class HeldOut:
    """One measurement on held-out tasks."""

    n: int
    """Attempts in all."""
    worlds: dict[str, float]
    """True success by world."""
    proxy: float
    true_deviation: float
    """Over attempts, within worlds."""
    proxy_deviation: float

    @property
    def true(self) -> float:
        return statistics.fmean(self.worlds.values())

    @property
    def variance(self) -> float:
        """Of `true`, by the draw of its attempts alone. Never 0: one more of each kind is taken as seen."""
        n = self.n / len(self.worlds)
        shares = [(n * share + 1) / (n + 2) for share in self.worlds.values()]
        return statistics.fmean(share * (1 - share) for share in shares) / self.n


@dataclass(slots=True, kw_only=True)
class Curve:
    """One cell: a shaping under a seed. Lists have one entry a step."""

    seed: int
    steps: list[int]
    tokens: list[int]
    """Sampled tokens trained on, up to this step."""
    seconds: list[float]
    """Of training, up to this step: neither start nor measurements."""
    true: list[float]
    proxy: list[float]
    before: HeldOut
    after: HeldOut
    starved: bool = False
    """It ended early: no group had an advantage any more."""
    compares: tuple[str, ...] = ()
    """Parts of the shaping that compare the attempts of a group: what they pay is not the same between groups."""


def smoothed(values: Sequence[float], span: int = SMOOTH_STEPS) -> list[float]:
    """Trailing means."""
    return [statistics.fmean(values[max(0, i + 1 - span) : i + 1]) for i in range(len(values))]


def area(curve: Curve, steps: int) -> float:
    """Mean height of the true curve over `steps` steps, from the start's held-out success on; a cell that ended early
    stays where it ended."""
    heights = [curve.before.true, *curve.true]
    heights += [heights[-1]] * (steps + 1 - len(heights))
    return statistics.fmean((a + b) / 2 for a, b in pairwise(heights)) if steps else heights[0]


def reached(curve: Curve, threshold: float) -> int | None:
    """Position of the first step whose smoothed true success is at the threshold."""
    return next((n for n, height in enumerate(smoothed(curve.true)) if height >= threshold), None)


def collapsed(curve: Curve) -> bool:
    """True success ended below its own start by more than chance, or below half of its best."""
    before, after = curve.before, curve.after
    error = math.sqrt(sum(seen.true * (1 - seen.true) / seen.n for seen in (before, after)))
    best = max([before.true, *smoothed(curve.true)])
    return after.true < before.true - NOISE * error or after.true < best / 2


def lost(curve: Curve) -> list[str]:
    """Worlds whose held-out success ended below half of its start, by more than chance: the mean may hide them."""
    before, after = curve.before.worlds, curve.after.worlds
    n = curve.before.n / len(before)

    def fell(world: str) -> bool:
        error = math.sqrt(sum(seen[world] * (1 - seen[world]) for seen in (before, after)) / n)
        return after[world] < min(before[world] / 2, before[world] - NOISE * error)

    return [world for world in before if world in after and fell(world)]


def gap(curve: Curve, proxy: float, true: float) -> float | None:
    """How much more the proxy has gained than the truth, each in deviations of an attempt at the start.

    So it is 0 for a proxy that is the truth, whatever its scale, and None for one that did not vary at the start, or
    that compares the attempts of a group.
    """
    start = curve.before
    if curve.compares or min(start.proxy_deviation, start.true_deviation) < TINY:
        return None
    return (proxy - start.proxy) / start.proxy_deviation - (true - start.true) / start.true_deviation


def gaps(curve: Curve) -> list[float] | None:
    """The gap by step, of the smoothed curves."""
    found = [gap(curve, *point) for point in zip(smoothed(curve.proxy), smoothed(curve.true), strict=True)]
    return None if None in found else [value for value in found if value is not None]


def parted(curves: Sequence[Curve]) -> int | None:
    """The step from which on, to the end, the gap's interval over seeds stays above zero. None where there is none."""
    by_seed = [gaps(curve) for curve in curves]
    if len(curves) < intervals.LEAST_SEEDS or any(gap is None for gap in by_seed):
        return None
    bands = band([gap for gap in by_seed if gap is not None])
    last = max(curves, key=lambda curve: len(curve.steps)).steps
    found = None
    for step, around in zip(reversed(last), reversed(bands), strict=True):
        if around.low is None or around.low <= TINY:
            break
        found = step
    return found


def band(rows_SN: Sequence[Sequence[float]]) -> list[Interval]:
    """Mean and interval over seeds at each step; a seed that ended early stays where it ended."""
    longest = max((len(row) for row in rows_SN), default=0)
    held = [[*row, *[row[-1]] * (longest - len(row))] for row in rows_SN if row]
    return [intervals.mean_interval([row[n] for row in held]) for n in range(longest)]


def default_threshold(shapings: Mapping[str, Sequence[Curve]]) -> float:
    """Halfway from the mean start to the highest that any shaping's mean curve comes."""
    start = statistics.fmean(curve.before.true for curves in shapings.values() for curve in curves)
    tops = [height.mean for curves in shapings.values() for height in band([smoothed(c.true) for c in curves])]
    return (start + max([start, *tops])) / 2


def figures(shapings: Mapping[str, Sequence[Curve]], reference: str, threshold: float | None = None) -> dict[str, Any]:
    """Everything that is known of each shaping, and of each against the reference. Seeds are in the same order."""
    level = default_threshold(shapings) if threshold is None else threshold
    steps = max((len(curve.steps) for curves in shapings.values() for curve in curves), default=0)
    found = {name: _of(curves, level, steps) for name, curves in shapings.items()}
    others = [name for name in shapings if name != reference]
    rows = {name: _against(shapings[name], shapings[reference]) for name in others}
    raised = intervals.holm([row.p for row in rows.values()])
    for (name, row), p in zip(rows.items(), raised, strict=True):
        areas = intervals.paired(found[name]["area"]["by_seed"], found[reference]["area"]["by_seed"])
        shown = {"n": areas.n, "difference": areas.difference, "low": areas.low, "high": areas.high}
        found[name]["against"] = {
            "final": {**asdict(row), "p_holm": p, "different": p <= intervals.LEVEL},
            "area": {**shown, "p": None, "p_holm": None, "p_signs": None, "different": None},  # one measure is tested
        }
    return {
        "reference": reference,
        "threshold": level,
        "seeds": [curve.seed for curve in shapings[reference]],
        "shapings": found,
    }


def _against(ours: Sequence[Curve], theirs: Sequence[Curve]) -> intervals.Compared:
    """Of held-out success at the end, by seed, on the same tasks."""
    here, there = ([curve.after.true for curve in curves] for curves in (ours, theirs))
    error = math.sqrt(sum(statistics.fmean(curve.after.variance for curve in curves) for curves in (ours, theirs)))
    return intervals.paired(here, there, error)


def _of(curves: Sequence[Curve], level: float, steps: int) -> dict[str, Any]:
    final = intervals.bootstrap_iqm([list(curve.after.worlds.values()) for curve in curves])
    areas = [area(curve, steps) for curve in curves]
    ends = [gap(curve, curve.after.proxy, curve.after.true) for curve in curves]
    known = [end for end in ends if end is not None]
    worlds, compares = curves[0].after.worlds, list(curves[0].compares)
    return {
        "start": statistics.fmean(curve.before.true for curve in curves),
        "final": {
            "mean": statistics.fmean(curve.after.true for curve in curves),
            "iqm": final.mean,
            "low": final.low,
            "high": final.high,
            "by_seed": [curve.after.true for curve in curves],
            "by_world": {world: statistics.fmean(curve.after.worlds[world] for curve in curves) for world in worlds},
        },
        "area": {**asdict(intervals.mean_interval(areas)), "by_seed": areas},
        "to_threshold": _to_threshold(curves, level),
        "collapse_rate": statistics.fmean(collapsed(curve) for curve in curves),
        "collapsed_seeds": [curve.seed for curve in curves if collapsed(curve)],
        "lost_worlds": {
            world: seeds for world in worlds if (seeds := [curve.seed for curve in curves if world in lost(curve)])
        },
        "proxy": {
            "start": None if compares else statistics.fmean(curve.before.proxy for curve in curves),
            "end": None if compares else statistics.fmean(curve.after.proxy for curve in curves),
        },
        "compares": compares,
        "gap": asdict(intervals.mean_interval(known)) if len(known) == len(ends) else None,
        "parted_step": parted(curves),
        "steps": [len(curve.steps) for curve in curves],
        "starved_seeds": [curve.seed for curve in curves if curve.starved],
    }


def _to_threshold(curves: Sequence[Curve], level: float) -> dict[str, Any]:
    """Medians over all seeds; one that never got there took longer than any, so a median may be unknown."""
    places = [reached(curve, level) for curve in curves]

    def median(values: Callable[[Curve], Sequence[float]]) -> float | None:
        took = [math.inf if at is None else values(c)[at] for c, at in zip(curves, places, strict=True)]
        middle = statistics.median(took)
        return None if math.isinf(middle) else middle

    return {
        "reached": sum(at is not None for at in places),
        "of": len(places),
        "steps": median(lambda curve: curve.steps),
        "trained_tokens": median(lambda curve: curve.tokens),
        "seconds": median(lambda curve: curve.seconds),
    }
