"""What is wrong with a shaping for certain, by name: each warning follows from the scores and advantages themselves."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from rl.lab.document import Warned
from rl.lab.measures import TINY, Array, Attempts, Shaped, centred, inversions, members, pearson, spread
from rl.lab.shapings import Shaping

FEWEST_GROUPS = 8
"""With attempts that could differ, before it is said that something never does."""
SMALL = 0.25
"""A bonus is small where its deviation is at most this share of the one that truth makes."""
FULL = 0.5
"""And is full-size where the advantage it gets is at least this share of the one that truth gets."""
BLOWN = 0.02
"""Share of the groups with an advantage from which on this is told."""
SAME = 1 - 1e-6
"""Correlation from which on two things are one."""
INVERTED = 0.01


def warnings(attempts: Attempts, shaped: Mapping[str, Shaped], shapings: Sequence[Shaping]) -> list[Warned]:
    found: list[Warned] = []
    for shaping in shapings:
        scored_N = ~np.isnan(shaped[shaping.name].score_N)
        own, mine = attempts.of(scored_N), shaped[shaping.name].of(scored_N)
        if lost := int((~scored_N).sum()):
            text = f"{lost} of {len(scored_N)} attempts get no score: training would lose them"
            found.append(Warned(name="unscorable", about=shaping.name, text=text))
        for look in (_no_signal, _wrong_beats_right, _same_for_all, _duplicates, _blown):
            found += [Warned(name=name, about=shaping.name, text=text) for name, text in look(shaping, own, mine)]
    return found + list(_identical(shaped))


Told = Iterator[tuple[str, str]]


def _no_signal(shaping: Shaping, attempts: Attempts, shaped: Shaped) -> Told:
    if len(attempts.group_N) and not shaped.teaches_N.any():
        yield "no-signal", "no attempt of any group has an advantage, so nothing would be learnt"


def _wrong_beats_right(shaping: Shaping, attempts: Attempts, shaped: Shaped) -> Told:
    inverted, _, pairs = inversions(attempts.group_N, attempts.solved_N, shaped.advantage_N)
    if pairs and inverted > INVERTED * pairs:
        yield (
            "wrong-beats-right",
            f"in {inverted / pairs:.0%} of {pairs} pairs of one group, the wrong attempt has more advantage",
        )


def _same_for_all(shaping: Shaping, attempts: Attempts, shaped: Shaped) -> Told:
    """Parts that change no advantage, since they add the same to all attempts of a group."""
    if _comparable(attempts.group_N) < FEWEST_GROUPS:
        return
    for name, part_N in shaped.parts.items():
        if not shaping.weight(name) or spread(centred(attempts.group_N, part_N)):
            continue
        if name in shaped.by_turn and shaped.credits_turns:
            continue
        if name in shaped.by_turn:
            yield (
                "telescoping-potential",
                f"{name} pays by turn, but its turns add up to the same for all attempts of a group: with one "
                "advantage for the whole attempt it cancels; it needs an algorithm with credit by turn, as turns",
            )
        else:
            yield (
                "dead-weight",
                f"{name} has weight {shaping.weight(name):g} and adds the same to all attempts of every group, so it "
                "changes no advantage",
            )


def _duplicates(shaping: Shaping, attempts: Attempts, shaped: Shaped) -> Told:
    """Two parts that move together in every group where one of them moves."""
    moved = {
        name: centred(attempts.group_N, part_N)
        for name, part_N in shaped.parts.items()
        if shaping.weight(name) and name not in shaping.gates()
    }
    for (a, a_N), (b, b_N) in itertools.combinations(moved.items(), 2):
        groups = len(np.unique(attempts.group_N[a_N != 0]))
        correlation = pearson(a_N, b_N)
        if groups >= FEWEST_GROUPS and correlation is not None and abs(correlation) >= SAME:
            told = "are one reward with two weights" if correlation > 0 else "take away what the other gives"
            yield "duplicate-parts", f"{a} and {b} {told}: within groups they correlate at {correlation:+.3f}"


def _blown(shaping: Shaping, attempts: Attempts, shaped: Shaped) -> Told:
    """Groups whose attempts are all equally right, where a small difference gets an advantage as large as truth's."""
    equal: list[tuple[float, float, Array]] = []
    mixed: list[tuple[float, float, Array]] = []
    for own_N in members(attempts.group_N):
        advantage = float(np.abs(shaped.advantage_N[own_N]).mean())
        if advantage > 0:
            alike = len(set(attempts.solved_N[own_N].tolist())) == 1
            (equal if alike else mixed).append((float(shaped.score_N[own_N].std()), advantage, own_N))
    if not equal or not mixed:
        return
    deviation, advantage = (float(np.median([one[place] for one in mixed])) for place in (0, 1))
    blown = [own_N for s, a, own_N in equal if s <= SMALL * deviation and a >= FULL * advantage]
    if len(blown) >= max(1.0, BLOWN * (len(equal) + len(mixed))):
        places = np.concatenate(blown)
        yield (
            "bonus-blown-up",
            f"in {len(blown)} of {len(equal) + len(mixed)} groups that teach, all attempts are equally right and "
            f"differ by little, mostly in {_loudest(attempts.group_N, shaped, places)}; divided by the group's "
            "deviation, that gets as much advantage as truth does elsewhere",
        )


def _loudest(group_N: Array, shaped: Shaped, places: Array) -> str:
    """The part that varies most at these places."""
    moved = {name: float(np.square(centred(group_N, part_N)[places]).sum()) for name, part_N in shaped.parts.items()}
    return max(moved, key=moved.__getitem__)


def _identical(shaped: Mapping[str, Shaped]) -> Iterator[Warned]:
    for (a, one), (b, other) in itertools.combinations(shaped.items(), 2):
        largest = float(np.abs(one.advantage_N).max(initial=0.0))
        same = np.allclose(one.advantage_N, other.advantage_N, rtol=0, atol=TINY * largest)
        alike = np.array_equal(np.isnan(one.score_N), np.isnan(other.score_N))
        if largest and same and alike and not one.credits_turns and not other.credits_turns:
            text = f"{a} and {b} give every attempt the same advantage"
            yield Warned(name="identical-shapings", about="", text=text)


def _comparable(group_N: Array) -> int:
    """Groups of two attempts or more."""
    return int((np.bincount(group_N) > 1).sum()) if len(group_N) else 0
