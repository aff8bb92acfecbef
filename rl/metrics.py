"""What one step looked like, as one flat row: learning, worlds, staleness, and where the time went."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from rl.buffer import spread, tokens_of
from rl.trajectory import Group


class Window:
    """Collects the groups that arrived since the last step."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Start counting time and groups from now."""
        self.groups: list[Group] = []
        self.began = time.monotonic()

    def add(self, group: Group) -> None:
        self.groups.append(group)

    def worlds(self) -> dict[str, dict[str, float]]:
        """By world: attempts that count, share solved, mean score, share of groups without advantage, lost attempts."""
        by_world: dict[str, list[Group]] = defaultdict(list)
        for group in self.groups:
            by_world[group.world].append(group)
        rows = {}
        for world, groups in sorted(by_world.items()):
            valid = [member for group in groups for member in group.valid]
            count = max(1, len(valid))
            rows[world] = {
                "groups": len(groups),
                "attempts": len(valid),
                "success": sum(bool(m.episode.facts["solved"]) for m in valid) / count,
                "score": sum(m.score.value for m in valid if m.score) / count,
                "flat": sum(all(m.advantage == 0 for m in g.valid) for g in groups) / len(groups),
                "lost": sum(len(g.members) - len(g.valid) for g in groups),
                "turns": sum(m.episode.turns for m in valid) / count,
                "tokens": sum(tokens_of(g) for g in groups),
            }
        return rows

    def outcomes(self) -> dict[str, int]:
        counts: Counter[str] = Counter()
        for group in self.groups:
            counts.update({str(outcome): n for outcome, n in group.outcomes().items()})
        return dict(counts)

    def row(
        self,
        trained: Sequence[Group],
        version: int,
        learnt: Mapping[str, float],
        seconds: Mapping[str, float],
        tokens: int,
    ) -> dict[str, Any]:
        """The row of the step that trained at `version`; the window starts again."""
        mean, largest = spread(trained, version)
        wall_s = time.monotonic() - self.began
        played = sum(len(m.trajectory) for g in self.groups for m in g.members)
        sampled = sum(m.trajectory.spoken for g in self.groups for m in g.members)
        row = {
            "step": version + 1,
            "time": time.time(),
            "tokens": tokens,
            "worlds": self.worlds(),
            "outcomes": self.outcomes(),
            "trained_groups": len(trained),
            "staleness_mean": mean,
            "staleness_max": largest,
            "wall_s": wall_s,
            "wait_s": max(0.0, wall_s - seconds["learn"] - seconds["publish"]),
            **{f"{name}_s": value for name, value in seconds.items()},
            "played_tokens_per_s": played / wall_s,
            "sampled_tokens_per_s": sampled / wall_s,
            **{f"learner/{name}": value for name, value in learnt.items()},
        }
        self.restart()
        return row
