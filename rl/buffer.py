"""Groups on their way from rollout workers to learner; staleness is bounded here, by waiting and never by dropping.

A token's staleness is the learner's version when it trains on the token minus the version that sampled it. A group's
tokens are at least as new as the version at which the group was admitted: bounding the age of leases bounds them all.
"""

from __future__ import annotations

import asyncio
import bisect
from collections import defaultdict
from collections.abc import Sequence

from rl.trajectory import Group


class Buffer:
    """`batch_tokens` sampled tokens make a batch; no token older than `max_staleness` steps is ever in one."""

    def __init__(self, batch_tokens: int, max_staleness: int) -> None:
        self.batch_tokens, self.max_staleness = batch_tokens, max_staleness
        self.in_flight: dict[int, int] = {}
        """Version at admission, by lease."""
        self._admitted: dict[int, set[int]] = defaultdict(set)
        """The same leases by version, of which there are few."""
        self.ready: list[Group] = []
        self.tokens = 0
        """Sampled tokens that are ready to be trained on."""
        self.learning = False
        """From `take` until whoever took says that engines serve what was learnt."""
        self._changed = asyncio.Event()

    def admit(self, lease: int, version: int) -> None:
        self.in_flight[lease] = version
        self._admitted[version].add(lease)

    def arrive(self, group: Group, *, useful: bool) -> None:
        """A group is done. One that teaches nothing leaves here."""
        version = self.in_flight.pop(group.lease)
        self._admitted[version].remove(group.lease)
        if not self._admitted[version]:
            del self._admitted[version]
        if useful:
            bisect.insort(self.ready, group, key=lambda g: (g.version, g.lease))
            self.tokens += tokens_of(group)
        self._changed.set()

    @property
    def full(self) -> bool:
        """A whole batch waits for the learner: admitting more would only make it older."""
        return self.tokens >= self.batch_tokens

    @property
    def closed(self) -> bool:
        """What is admitted now is one step old before it can be trained on, and that would be too old."""
        return self.learning and self.max_staleness == 0

    def too_old(self, version: int) -> list[int]:
        """Leases in flight that must be in the step from `version`, since the one after would find them too old."""
        old = (leases for admitted, leases in self._admitted.items() if version + 1 - admitted > self.max_staleness)
        return [lease for leases in old for lease in leases]

    def waiting_for(self, version: int) -> str:
        """What keeps the next batch, in words, for the person who looks."""
        if old := self.too_old(version):
            return f"lease {min(old)}, the oldest in flight"
        if not self.full:
            return f"rollouts, {min(1.0, self.tokens / self.batch_tokens):.0%} of a batch is here"
        return "nothing"

    async def take(self, version: int) -> list[Group]:
        """The next batch for the step from `version`: the oldest first, and any that would be too old later."""
        while self.too_old(version) or not self.full:
            self._changed.clear()
            await self._changed.wait()
        self.learning = True
        taken: list[Group] = []
        tokens = 0
        while self.ready and (tokens < self.batch_tokens or version + 1 - self.ready[0].version > self.max_staleness):
            group = self.ready.pop(0)
            taken.append(group)
            tokens += tokens_of(group)
        self.tokens -= tokens
        return taken


def tokens_of(group: Group) -> int:
    """Sampled tokens of the members that may be trained on."""
    return sum(member.trajectory.spoken for member in group.valid)


def useful(group: Group) -> bool:
    """True where some member has an advantage, so that the group carries a gradient."""
    return any(member.teaches for member in group.valid)


def spread(groups: Sequence[Group], version: int) -> tuple[float, int]:
    """Mean and largest staleness, in steps, of the sampled tokens of groups trained on at `version`."""
    ages = [version - v for group in groups for m in group.valid for v in m.trajectory.versions if v >= 0]
    return (sum(ages) / len(ages), max(ages)) if ages else (0.0, 0)
