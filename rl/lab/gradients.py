"""Which way each shaping would push the run's own policy: cosines between the gradients of the same stored attempts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rl import filters
from rl.interference import Gradient
from rl.lab.scoring import NO_SCORE, shape
from rl.lab.shapings import Shaping
from rl.lab.stored import Stored
from rl.store import Run
from rl.trajectory import Group

if TYPE_CHECKING:
    from torch import Tensor

Cosines = dict[str, dict[str, dict[str, float | None]]]
"""By world, and `all`: by shaping, by shaping."""


def cosines(stored: Stored, shapings: Sequence[Shaping]) -> Cosines:
    """At the newest checkpoint, over the newest attempts that its loss may weigh: a batch's tokens of each world.

    Raises ValueError where the run has no checkpoint, or no such attempts.
    """
    checkpoint = Run(stored.folder).latest()
    if checkpoint is None:
        raise ValueError(f"{stored.folder} has no checkpoint; expected one for gradients on the run's own policy")
    groups = _newest(stored, int(checkpoint.name))
    if not groups:
        raise ValueError(f"{stored.folder} has no attempts near its checkpoint {checkpoint.name}; expected some")
    gradient = Gradient(checkpoint, stored.settings)
    found: dict[str, dict[str, Tensor]] = {}
    for shaping in shapings:
        gradient.algorithm = shaping.rule(stored.settings)
        for group in groups:
            for member in group.members:
                member.score = NO_SCORE if member.episode.outcome.valid else None
            shape(group, shaping, gradient.algorithm)
        own: dict[str, Tensor] = {}
        for world in sorted({group.world for group in groups}):
            teaching = [m for group in groups if group.world == world for m in group.valid if m.teaches]
            if teaching:
                count, mean = gradient(teaching)
                own[world] = mean * count
        found[shaping.name] = {"all": sum(own.values()), **own} if own else {}
    worlds = ["all", *sorted({group.world for group in groups})]
    return {world: {a: {b: _cosine(found[a], found[b], world) for b in found} for a in found} for world in worlds}


def _newest(stored: Stored, version: int) -> list[Group]:
    """Whole groups, newest first, admitted within the run's bound on staleness of a version."""
    settings = stored.settings
    bound = 1 if settings.train.sync else settings.train.max_staleness
    groups: list[Group] = []
    tokens = dict.fromkeys(settings.worlds, 0)
    for chunk in reversed(stored.chunks()):
        read = list(stored.groups(chunk.leases))
        for group in reversed(read):
            filters.screen(group, stored.at(group.version).filters)
            wanted = tokens.get(group.world, 0) < settings.learner.batch_tokens
            if version - bound <= group.version <= version and group.valid and wanted:
                groups.append(group)
                tokens[group.world] += sum(member.trajectory.spoken for member in group.valid)
        if min(tokens.values()) >= settings.learner.batch_tokens or all(g.version < version - bound for g in read):
            break
    return groups


def _cosine(a: dict[str, Tensor], b: dict[str, Tensor], world: str) -> float | None:
    """None where one of the two has no advantage there."""
    if world not in a or world not in b:
        return None
    return float(a[world] @ b[world]) / max(1e-30, float(a[world].norm()) * float(b[world].norm()))
