"""Which world is next. Weights are shares of the tokens that are trained on, not of prompts.

Of each world is known: what came back (useful tokens: those of groups that carry a gradient), and what is being played,
which is expected to bring the world's running mean of useful tokens a lease. The next lease goes to the world whose
sum of both, once that lease is in it, is furthest behind its weight. Which lease finishes first decides nothing, and
nothing finished is thrown away, so short episodes have no advantage over long ones:

- the running mean is over leases in the order in which they were granted, and ends before the oldest one in flight.
  A mean over whatever has come back would be one over the short ones;
- a flat group brings no useful tokens and counts with 0, so a world with many of them gets more leases. This has an
  end at LEAST_USEFUL: a world whose useful share is lower is treated as if it were that, so that one that teaches
  nothing gets at most 1 / LEAST_USEFUL times the sampled tokens that its weight asks for. Its share of the trained
  tokens then stays below its target, and metrics.jsonl shows it. This is judged WINDOW leases at a time: over the whole
  run, what a world has taught long ago would have to be outweighed first, while the others wait.

Everything here is a function of the set of leases that came back and of those in flight, not of the order in which
they came: in lockstep the same history gives the same choice, and `Mix(settings, rows)` is where it was.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rl import stages
from rl.buffer import tokens_of, useful
from rl.trajectory import Group

if TYPE_CHECKING:
    from rl.config import RunConfig

LEAST_USEFUL = 1 / 8
WINDOW = 64
"""Leases over which a world is judged: lengths, and what there is to learn, drift as the policy learns."""


def _worth(useful: int, sampled: int) -> float:
    return max(useful, LEAST_USEFUL * sampled)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What became of one lease: a row of the ledger."""

    lease: int
    world: str
    version: int
    """At which it was admitted; says which stage it belongs to."""
    trained: bool
    useful: int
    """Tokens that may be trained on, 0 for a group without advantage."""
    sampled: int
    """Tokens that the policy sampled for it, whatever became of them."""
    key: str
    family: str
    level: int
    tried: int
    """Attempts that the policy ended."""
    solved: int
    digest: str = ""
    """Content hash of the task, where it is known whole: not where a group was read back."""

    @classmethod
    def of(cls, group: Group, *, trained: bool = False) -> Row:
        task = group.members[-1].episode.task  # earlier ones may be tries that were lost whole
        return cls(
            lease=group.lease,
            world=group.world,
            version=group.version,
            trained=trained,
            useful=tokens_of(group) if useful(group) else 0,
            sampled=sum(member.trajectory.spoken for member in group.members),
            key=task.key,
            family=task.family,
            level=task.level,
            tried=len(group.earned),
            solved=sum(bool(member.episode.facts["solved"]) for member in group.earned),
            digest=task.content_hash if task.messages or task.given or task.hidden else "",
        )


@dataclass(slots=True)
class _Account:
    """What came back of one world in one stage, in the order of the leases."""

    rows: list[tuple[int, int, int]] = field(default_factory=list)
    """Lease, useful and sampled tokens."""
    closed: int = 0
    """Rows, from the first on, in whole windows whose worth is settled, since no lease among them is in flight."""
    worth: float = 0.0
    useful: int = 0
    sampled: int = 0
    """Tokens of the rows that are not closed."""

    def add(self, row: Row) -> None:
        bisect.insort(self.rows, found := (row.lease, row.useful, row.sampled))
        self.useful, self.sampled = self.useful + row.useful, self.sampled + row.sampled
        if self.closed and found < self.rows[self.closed]:  # a lease from before an interruption, played after it
            self.closed, self.worth = 0, 0.0
            self.useful, self.sampled = (sum(column) for column in list(zip(*self.rows, strict=True))[1:])

    def due(self, oldest: int) -> float:
        """Tokens to count, where `oldest` is the oldest lease in flight."""
        while len(self.rows) >= self.closed + WINDOW and self.rows[self.closed + WINDOW - 1][0] < oldest:
            _, useful, sampled = zip(*self.rows[self.closed : self.closed + WINDOW], strict=True)
            self.closed += WINDOW
            self.worth += _worth(sum(useful), sum(sampled))
            self.useful, self.sampled = self.useful - sum(useful), self.sampled - sum(sampled)
        return self.worth + _worth(self.useful, self.sampled)


class Mix:
    """The accounts of the worlds. Built from the ledger's rows of a run, none at its start."""

    def __init__(self, settings: RunConfig, rows: Iterable[Row] = ()) -> None:
        self.settings = settings
        self._back: dict[tuple[int, str], _Account] = defaultdict(_Account)
        """By stage and world."""
        self._trained: dict[tuple[int, str], int] = defaultdict(int)
        self._history: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
        """Lease, useful and sampled tokens of those that came back, in the order of the leases."""
        self._playing: dict[str, dict[int, int]] = defaultdict(dict)
        """Stage of each lease in flight, by world."""
        for row in rows:
            self._add(row)
            if row.trained:
                self._trained[stages.number(settings, row.version), row.world] += row.useful

    def admit(self, lease: int, world: str, version: int) -> None:
        self._playing[world][lease] = stages.number(self.settings, version)

    def arrive(self, row: Row) -> None:
        """A lease came back. What waits for the learner counts as what it trained on: nothing finished is dropped."""
        self._playing[row.world].pop(row.lease, None)
        self._add(row)

    def train(self, groups: Sequence[Group]) -> None:
        for group in groups:
            self._trained[stages.number(self.settings, group.version), group.world] += tokens_of(group)

    def next(self, version: int, without: Collection[str] = ()) -> str:
        """The world of the next lease, among those with a weight that are not `without`."""
        targets = {w: share for w, share in stages.targets(self.settings, version).items() if w not in without}
        if not targets:
            raise ValueError(f"got no world to play: {', '.join(without)} paused; expected at least one that is not")
        stage = stages.number(self.settings, version)
        expected = {world: self._a_lease(world) for world in targets}
        known = [tokens for tokens in expected.values() if tokens is not None]
        unknown = sum(known) / len(known) if known else 1.0

        def due(world: str) -> float:
            a_lease = unknown if (mean := expected[world]) is None else mean
            back = self._back[stage, world].due(min(self._playing[world], default=2**62))
            playing = list(self._playing[world].values()).count(stage)
            return (back + (playing + 1) * a_lease) / targets[world]

        return min(targets, key=due)

    def shares(self, version: int) -> dict[str, dict[str, float]]:
        """By world of this stage: `target`, and `share` of the tokens trained on so far, leases of this stage only."""
        stage = stages.number(self.settings, version)
        total = sum(tokens for (of, _), tokens in self._trained.items() if of == stage)
        return {
            world: {"target": target, "share": self._trained[stage, world] / max(1, total)}
            for world, target in stages.targets(self.settings, version).items()
        }

    def _add(self, row: Row) -> None:
        self._back[stages.number(self.settings, row.version), row.world].add(row)
        bisect.insort(self._history[row.world], (row.lease, row.useful, row.sampled))

    def _a_lease(self, world: str) -> float | None:
        """Useful tokens that a lease of the world is expected to bring, None where nothing is known."""
        history = self._history[world]
        end = bisect.bisect(history, (min(self._playing[world], default=2**62),))
        recent = history[max(0, end - WINDOW) : end] or history[:WINDOW]
        if not recent:
            return None
        brought, sampled = sum(row[1] for row in recent), sum(row[2] for row in recent)
        return max(_worth(brought, sampled), 1.0) / len(recent)
