"""What some steps on one world alone do to the held-out success of every world: `rl interference RUN --effect N`.

From the run's checkpoint, with the run's own learner: N optimiser steps on the stored attempts of one world, the same
ones each time, then the held-out tasks in a real engine, and from the checkpoint again for the next world. AdamW's
average of gradients is emptied first, as it holds the other worlds' (its scale by weight is kept); all else is as in
training. Before and after, the tasks are the same and so are the seeds of sampling, so that tasks can be paired.

One row has no step at all: it shows whether the machine repeats itself. That is not all the noise, as any change of
the weights turns some tasks by chance; this the intervals know of.
"""

from __future__ import annotations

import asyncio
import math
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rl.config import RunConfig
from rl.trajectory import Group, Member

NOTHING = "(no step)"
QUANTILE = 1.96
"""Of the normal distribution, for 95 %."""

Play = Callable[[str], Sequence[Group]]
"""The held-out tasks as the model in this folder plays them."""


def measured(
    checkpoint: Path, settings: RunConfig, attempts: Mapping[str, Sequence[Member]], steps: int, play: Play
) -> dict[str, Any]:
    """By world that was trained on alone, `NOTHING` first: what it did to each world, as `change` has it."""
    before = solved(play(str(checkpoint)))
    found = {NOTHING: _changes(before, solved(play(str(checkpoint))))}
    for world, members in attempts.items():
        with tempfile.TemporaryDirectory(prefix="touchstone-effect-") as place:
            model = nudged(checkpoint, settings, members, steps, Path(place) / "model")
            found[world] = _changes(before, solved(play(str(model))))
    return found


def nudged(checkpoint: Path, settings: RunConfig, members: Sequence[Member], steps: int, model: Path) -> Path:
    """The policy of the checkpoint after so many steps on these members, saved as `model`."""
    from rl.learner import Learner, Settings

    learner = Learner(Settings.of(settings, str(checkpoint)))
    learner.restore(checkpoint)
    for held in learner.optimizer.state.values():
        held["exp_avg"].zero_()
    for _ in range(steps):
        learner.step(members)
    learner.save(model)
    return model


def solved(groups: Sequence[Group]) -> dict[str, dict[str, float]]:
    """By world and task, the share of its valid attempts that solved it; tasks without a valid attempt are left out."""
    found: dict[str, dict[str, float]] = {}
    for group in groups:
        if tried := [bool(member.episode.facts["solved"]) for member in group.valid]:
            found.setdefault(group.world, {})[group.valid[0].episode.task.key] = sum(tried) / len(tried)
    return found


def _changes(before: Mapping[str, Mapping[str, float]], after: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    return {world: change(before[world], after[world]) for world in before if world in after}


def change(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, Any]:
    """The mean change of success over the tasks that both have, with a 95 % interval, and how many went which way.

    The interval is Wald's of paired differences, with one pair more that changes in either direction (Bonett and Price,
    2012), so that few tasks without a change are not taken for certainty.
    """
    changes = [after[key] - before[key] for key in before if key in after]
    adjusted = [*changes, 1.0, -1.0]
    middle = statistics.fmean(adjusted)
    half = QUANTILE * statistics.pstdev(adjusted) / math.sqrt(len(adjusted))
    return {
        "n": len(changes),
        "before": statistics.fmean(before[key] for key in before if key in after) if changes else None,
        "change": statistics.fmean(changes) if changes else None,
        "low": max(-1.0, middle - half),
        "high": min(1.0, middle + half),
        "better": sum(value > 0 for value in changes),
        "worse": sum(value < 0 for value in changes),
    }


def in_engine(settings: RunConfig) -> Play:
    """Plays in a real engine and sandboxes, started for each model. Sampling is seeded by task, as in train.sync."""
    from rich.console import Console

    from rl import evaluate, quarantine, standalone
    from rl.cluster import preflight
    from rl.live import Page

    settings.train.sync = True
    barred, _ = quarantine.read(settings)
    for world in settings.worlds:
        evaluate.indices(settings, world, settings.eval.tasks, barred)
    preflight(settings)

    def play(model: str) -> Sequence[Group]:
        with Page(settings, Console(stderr=True)) as page:
            return asyncio.run(standalone.played(settings, model, page, barred))

    return play
