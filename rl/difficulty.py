"""Which task of a world is next: those that the policy always or never solves teach little and are drawn less.

A task is judged by its own attempts (`by: task`, for worlds whose tasks come again) or by those at its family and level
(`by: family`, for endless ones). Where at least `least` attempts were seen and the solve rate of the latest `window` of
them is below `low` or above `high`, the task is drawn only `keep` of the times that it comes up. 0 leaves it out for
the stage, and then its rate is never measured again.
"""

from __future__ import annotations

import bisect
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import envs
from rl import stages
from rl.mix import Row
from rl.stages import DifficultyConfig

if TYPE_CHECKING:
    from rl.config import RunConfig

LOOK = 256
"""Positions of a stream to pass over in a row. Then the next is taken as it comes, so that a world never dries up."""


class Difficulty:
    """Solve rates as observed, from the ledger's rows. A function of the set of rows, not of their order."""

    def __init__(self, settings: RunConfig, rows: Iterable[Row] = ()) -> None:
        self.settings = settings
        self.skipped: Counter[str] = Counter()
        """Tasks passed over, by world, since they were last told."""
        self._seen: dict[tuple[str, str], list[tuple[int, int, int]]] = defaultdict(list)
        """Lease, attempts and solved ones, in the order of the leases, by world and by key or family."""
        self._places: dict[str, Any] = {}
        for row in rows:
            self.add(row)

    def add(self, row: Row) -> None:
        for name in (_name("task", row.key, row.family, row.level), _name("family", row.key, row.family, row.level)):
            bisect.insort(self._seen[row.world, name], (row.lease, row.tried, row.solved))

    def next(self, world: str, index: int, version: int) -> int:
        """The first position of the world's training stream, from `index` on, whose task is to be drawn."""
        settings = stages.at(self.settings, version).worlds[world]
        bounds = settings.difficulty
        if not bounds.active:
            return index
        for position in range(index, index + LOOK):
            if self._wanted(world, position, bounds, settings.args):
                self.skipped[world] += position - index
                return position
        return index

    def told(self, figures: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
        """Figures by world, with the tasks passed over since the last time as `skipped`."""
        skipped, self.skipped = self.skipped, Counter()
        return {world: {**row, "skipped": skipped[world]} for world, row in figures.items()}

    def rate(self, world: str, name: str, window: int) -> tuple[int, float]:
        """Attempts among the latest `window` (whole leases), and the share of them that was solved."""
        tried = solved = 0
        for _, attempts, good in reversed(self._seen.get((world, name), [])):
            if tried >= window:
                break
            tried, solved = tried + attempts, solved + good
        return tried, solved / max(1, tried)

    def _wanted(self, world: str, index: int, bounds: DifficultyConfig, args: dict[str, Any]) -> bool:
        try:
            task = self._place(world, args).task("train", index)
        except Exception:  # a world is a plug-in: what it raises here it raises where it is played, and is named there
            return True
        tried, rate = self.rate(world, _name(bounds.by, task.key, task.family, task.level), bounds.window)
        if tried < bounds.least or bounds.low <= rate <= bounds.high:
            return True
        return random.Random(f"keep/{self.settings.seed}/{world}/{index}").random() < bounds.keep

    def _place(self, world: str, args: dict[str, Any]) -> Any:
        known = f"{world} {args!r}"
        if known not in self._places:
            place = envs.load(self.settings.plays(world))
            self._places[known] = place.World(None, seed=self.settings.seed, **args)
        return self._places[known]


def _name(by: str, key: str, family: str, level: int) -> str:
    return f"task {key}" if by == "task" else f"family {family} {level}"
