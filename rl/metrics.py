"""What one step looked like, as one flat row: learning, worlds, staleness, and where the time went.

Worlds are told apart by the tokens' documents: `B` rows, `T` tokens of a packed row (rl/batch.py).
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rl.buffer import spread, tokens_of
from rl.trajectory import Group, Member

if TYPE_CHECKING:
    from torch import Tensor

    from rl.batch import Batch

WORLDS = "worlds/"


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

    def worlds(self) -> dict[str, dict[str, Any]]:
        """By world: attempts that the policy ended, share solved, mean score and its parts, share of groups without
        advantage, attempts lost to the machinery, rejected by filters and caught by each.
        """
        rows: dict[str, dict[str, Any]] = {}
        for world, groups in _by_world(self.groups).items():
            earned = [member for group in groups for member in group.earned]
            count = max(1, len(earned))
            rows[world] = {
                "groups": len(groups),
                "attempts": len(earned),
                "success": sum(bool(m.episode.facts["solved"]) for m in earned) / count,
                "score": sum(m.score.value for m in earned if m.score) / count,
                "parts": _parts(earned),
                "flat": sum(not any(m.teaches for m in g.valid) for g in groups) / max(1, len(groups)),
                "lost": sum(len(g.members) - len(g.earned) for g in groups),
                "rejected": sum(m.rejected for m in earned),
                "caught": dict(sorted(Counter(name for m in earned for name in m.caught).items())),
                "turns": sum(m.episode.turns for m in earned) / count,
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
        mix: Mapping[str, Mapping[str, float]] | None = None,
    ) -> dict[str, Any]:
        """The row of the step that trained at `version`; the window starts again. `mix`: more figures by world."""
        mean, largest = spread(trained, version)
        wall_s = time.monotonic() - self.began
        played = sum(len(m.trajectory) for g in self.groups for m in g.members)
        sampled = sum(m.trajectory.spoken for g in self.groups for m in g.members)
        row = {
            "step": version + 1,
            "time": time.time(),
            "tokens": tokens,
            "worlds": _merged(
                _PLAYED, self.worlds(), trained_worlds(trained, version), learnt_worlds(learnt), mix or {}
            ),
            "outcomes": self.outcomes(),
            "trained_groups": len(trained),
            "staleness_mean": mean,
            "staleness_max": largest,
            "wall_s": wall_s,
            "wait_s": max(0.0, wall_s - seconds["learn"] - seconds["publish"]),
            **{f"{name}_s": value for name, value in seconds.items()},
            "played_tokens_per_s": played / wall_s,
            "sampled_tokens_per_s": sampled / wall_s,
            **{f"learner/{name}": value for name, value in learnt.items() if not name.startswith(WORLDS)},
        }
        self.restart()
        return row


_PLAYED: dict[str, Any] = {"groups": 0, "attempts": 0, "success": 0.0, "score": 0.0, "tokens": 0}
"""Of a world from which nothing came back during a step, though it may have been trained on."""


def _parts(earned: Sequence[Member]) -> dict[str, float]:
    """The mean of each part of the score, over the attempts that it applies to."""
    found: dict[str, list[float]] = defaultdict(list)
    for member in earned:
        for name, value in member.score.parts.items() if member.score else ():
            found[name].append(value)
    return {name: sum(values) / len(values) for name, values in sorted(found.items())}


def trained_worlds(groups: Sequence[Group], version: int) -> dict[str, dict[str, float]]:
    """By world, of the batch that was trained on at `version`: its useful groups and tokens, and their staleness."""
    rows = {}
    for world, own in _by_world(groups).items():
        mean, largest = spread(own, version)
        rows[world] = {
            "trained_groups": len(own),
            "trained_tokens": sum(tokens_of(group) for group in own),
            "staleness_mean": mean,
            "staleness_max": largest,
        }
    return rows


def learnt_worlds(learnt: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """The learner's `worlds/<world>/<name>`, by world."""
    rows: dict[str, dict[str, float]] = defaultdict(dict)
    for key, value in learnt.items():
        if key.startswith(WORLDS):
            world, _, name = key.removeprefix(WORLDS).rpartition("/")
            rows[world][name] = value
    return dict(rows)


def sums_by_world(
    members: Sequence[Member], micro: Batch, score: Callable[[Tensor], Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """The algorithm's own metrics of one micro-batch, once for each world of the whole batch, as sums over its tokens.

    `score` gives them for a mask of sampled tokens. A document belongs to one world, so a world's are those that are
    left where the others' tokens are masked out.
    """
    from torch import isin

    sums: dict[str, Tensor] = {}
    for world, document_N in _documents(members).items():
        own_BT = micro.mask_BT & isin(micro.document_BT, micro.document_BT.new_tensor(document_N))
        sums |= {f"{WORLDS}{world}/{name}": value for name, value in score(own_BT).items()}
    return sums


def means(sums: Mapping[str, float]) -> dict[str, float]:
    """Sums over tokens to means over them: each by the `tokens` beside it, of the batch or of a world."""
    rows = {}
    for key, value in sums.items():
        beside, slash, name = key.rpartition("/")
        if name != "tokens":
            rows[key] = value / max(1.0, sums[f"{beside}{slash}tokens"])
    return rows


def _documents(members: Sequence[Member]) -> dict[str, list[int]]:
    """Indices of the members of each world, in an order that every learner rank has."""
    worlds: dict[str, list[int]] = {}
    for index, member in enumerate(members):
        worlds.setdefault(member.episode.task.world, []).append(index)
    return dict(sorted(worlds.items()))


def _by_world(groups: Sequence[Group]) -> dict[str, list[Group]]:
    worlds: dict[str, list[Group]] = defaultdict(list)
    for group in groups:
        worlds[group.world].append(group)
    return dict(sorted(worlds.items()))


def _merged(default: Mapping[str, Any], *tables: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Figures by world from several tables; a world that only some of them have gets the default's beside them."""
    names = dict.fromkeys(world for table in tables for world in table)
    return {
        world: {**default, **{key: value for table in tables for key, value in table.get(world, {}).items()}}
        for world in names
    }
