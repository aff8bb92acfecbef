"""Statistics over few seeds: interquartile means, intervals, and when two shapings may be called different.

`S` seeds, `W` worlds. A seed is one whole run, so it is what repeats: everything is resampled and paired by seed.

Two shapings are called different where a paired t test over seeds, corrected for how many shapings are compared
(Holm), comes to at most `LEVEL`. A test at 0.05 calls 5 of 100 identical pairs different on average, so it breaks a
promise of "at most 5 of 100" four times out of ten; at 0.025 it keeps it in 96 % of the hundreds. Neither a bootstrap
(with 5 seeds its 95 % interval misses the truth 16 % of the time) nor an exact sign-flip test (with 5 pairs it
cannot go below 1/16) can decide this; both are given beside it. The t test takes the spread over seeds as it is found,
and with few seeds and coarse measurements it is found to be zero by chance, where every difference is certain: so the
spread is never taken as smaller than the error of the measurements, where that is known.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

LEVEL = 0.025
CONFIDENCE = 0.95
"""Of every interval."""
DRAWS = 5_000
LEAST_SEEDS = 5
"""Fewer pairs are never called different."""
EXACT_SEEDS = 14
"""With more pairs than this the sign flips are drawn, not enumerated."""
TINY = 1e-12


@dataclass(frozen=True, slots=True)
class Interval:
    mean: float
    """Or another location: see the function that made it."""
    low: float | None
    high: float | None
    """None where there are too few seeds for an interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One shaping against another over the same seeds."""

    n: int
    difference: float
    low: float | None
    high: float | None
    p: float
    """Of the paired t test, two-sided; 1 where there are too few pairs."""
    p_signs: float
    """Of the exact sign-flip test, two-sided; at least 2 / 2**n."""


def iqm(values: Sequence[float]) -> float:
    """Mean of the middle half: a quarter of the values, rounded down, is cut off each end."""
    ordered = sorted(values)
    cut = len(ordered) // 4
    return statistics.fmean(ordered[cut : len(ordered) - cut])


def bootstrap_iqm(scores_SW: Sequence[Sequence[float]], *, draws: int = DRAWS, seed: int = 0) -> Interval:
    """Interquartile mean over seeds and worlds, with a percentile bootstrap interval (as arXiv 2108.13264).

    The worlds are strata: none is resampled. A seed is drawn with all its worlds, since one policy played them all;
    drawing worlds apart, as if they were separate runs, would make the interval too narrow.
    """
    found = iqm([score for row in scores_SW for score in row])
    count = len(scores_SW)
    if count < 2:
        return Interval(found, None, None)
    scores = np.asarray(scores_SW, dtype=float)
    drawn = np.random.default_rng(seed).integers(count, size=(draws, count))
    resampled = np.sort(scores[drawn].reshape(draws, -1), axis=1)
    cut = resampled.shape[1] // 4
    means = resampled[:, cut : resampled.shape[1] - cut].mean(axis=1)
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(means, [tail, 100 - tail])
    return Interval(found, float(low), float(high))


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean with Student's interval; without one below two values."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Interval(mean, None, None)
    half = student_quantile(CONFIDENCE, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def paired(ours: Sequence[float], theirs: Sequence[float], error: float = 0.0) -> Compared:
    """`ours` minus `theirs`, one value a seed in the same order. `error`: the standard error of one such difference by
    its measurements alone; 0 where it is not known."""
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    around = mean_interval(differences)
    return Compared(
        n=len(differences),
        difference=around.mean,
        low=around.low,
        high=around.high,
        p=_t_test(differences, error),
        p_signs=sign_flip(differences),
    )


def _t_test(differences: Sequence[float], error: float) -> float:
    count = len(differences)
    mean = statistics.fmean(differences)
    if count < LEAST_SEEDS or abs(mean) < TINY:
        return 1.0
    spread = max(statistics.stdev(differences), error)
    return 1.0 - student(math.inf if spread < TINY else abs(mean) / spread * math.sqrt(count), count - 1)


def sign_flip(differences: Sequence[float], *, draws: int = DRAWS, seed: int = 0) -> float:
    """Share of all ways to sign the differences whose sum is as far from zero as the one found."""
    values = np.asarray(differences, dtype=float)
    if len(values) <= EXACT_SEEDS:
        signs = np.asarray(list(product((1.0, -1.0), repeat=len(values))))
    else:
        drawn = np.random.default_rng(seed).integers(2, size=(draws, len(values))) * 2.0 - 1
        signs = np.concatenate([np.ones((1, len(values))), drawn])
    return float(np.mean(np.abs(signs @ values) >= abs(values.sum()) - TINY))


def holm(ps: Sequence[float]) -> list[float]:
    """The same p-values, raised so that a level holds for all of them together (Holm 1979)."""
    raised = [0.0] * len(ps)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[index]))
        raised[index] = largest
    return raised


def student(t: float, freedom: int) -> float:
    """Chance that Student's |T| is at most `t`, exactly (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    if math.isinf(t):
        return 1.0
    angle = math.atan(t / math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = 0.0 if freedom == 1 else term
    for power in range(2 + odd, freedom - 1, 2):
        term *= cosine * cosine * (power - 1) / power
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def student_quantile(confidence: float, freedom: int) -> float:
    """The t that |T| stays within with this chance."""
    return _solve(lambda t: student(t, freedom), confidence)


def _solve(rising: Callable[[float], float], target: float) -> float:
    low, high = 0.0, 1.0
    while rising(high) < target:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < target else (low, middle)
    return high
