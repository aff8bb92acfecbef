"""Held-out success of the weights that the engines serve: sampled, on distinct tasks, through training's actors."""

from __future__ import annotations

import asyncio
from math import comb
from typing import Any, Protocol

import envs
from rl.cluster import Cluster
from rl.config import RunConfig
from rl.firewall import MachineryDown
from rl.local import Local
from rl.quarantine import Quarantine
from rl.store import Lease, Run
from rl.trajectory import Group

AT_ONCE = 64
"""Attempts in flight."""
SCAN = 50
"""Positions of the stream to look through for each distinct task wanted."""


class Progress(Protocol):
    def progress(self, done: int, total: int) -> None: ...


def indices(settings: RunConfig, world: str, count: int, barred: Quarantine) -> list[int]:
    """Positions in the held-out stream of the first `count` distinct tasks. Raises ValueError where there are fewer."""
    place = envs.load(settings.plays(world)).World(None, seed=settings.seed, **settings.worlds[world].args)
    found: dict[str, int] = {}
    for index in range(SCAN * count):
        if not barred.holds(world, "heldout", index):
            found.setdefault(place.task("heldout", index).key, index)
        if len(found) == count:
            return list(found.values())
    raise ValueError(f"world {world} has {len(found)} distinct held-out tasks; got eval.tasks={count}")


def pass_at_k(attempts: int, solved: int, k: int) -> float:
    """Chance that at least one of `k` of the attempts solved it: the unbiased estimate (arXiv 2107.03374, eq. 1)."""
    return 1.0 - comb(attempts - solved, k) / comb(attempts, k)


async def measure(
    cluster: Cluster | Local, settings: RunConfig, version: int, run: Run | None, page: Progress, barred: Quarantine
) -> dict[str, Any]:
    """One row: by world the number of tasks, pass@1, pass@k, and attempts lost to the machinery (in no mean)."""
    return row(settings, version, await played(cluster, settings, version, run, page, barred))


def row(settings: RunConfig, version: int, groups: list[Group]) -> dict[str, Any]:
    return {
        "step": version,
        "worlds": {world: summary([g for g in groups if g.world == world]) for world in settings.worlds},
    }


async def played(
    cluster: Cluster | Local, settings: RunConfig, version: int, run: Run | None, page: Progress, barred: Quarantine
) -> list[Group]:
    """Every held-out task, `eval.samples` attempts each, from the run's store where it was played before."""
    count = settings.eval.tasks
    wanted = [(world, index) for world in settings.worlds for index in indices(settings, world, count, barred)]
    lost: dict[str, str] = {}
    gate = asyncio.Semaphore(max(1, AT_ONCE // settings.eval.samples))
    done = 0

    async def one(number: int, world: str, index: int) -> Group:
        nonlocal done
        lease = run.heldout(world, index, version) if run else Lease(-1 - number, world, index)
        group = run.stored(lease) if run else None
        if group is None:
            async with gate:
                group = await cluster.play(world, "heldout", index, lease.id, version, settings.eval.samples)
            if not group.valid:
                lost[world] = group.members[-1].episode.error
            elif run is not None:
                run.keep(group, "eval")
        done += 1
        page.progress(done, len(wanted))
        return group

    groups = await asyncio.gather(*(one(number, *task) for number, task in enumerate(wanted)))
    for world, cause in lost.items():
        if not any(group.valid for group in groups if group.world == world):
            raise MachineryDown(
                f"every held-out attempt of world {world} was lost to the machinery, the last with: {cause}"
            )
    return groups


def summary(groups: list[Group]) -> dict[str, Any]:
    """pass@1 and pass@k over the tasks that have a valid attempt; `k` is the number of samples of each."""
    tried = [g for g in groups if g.valid]
    counts = [(len(g.valid), sum(bool(m.episode.facts["solved"]) for m in g.valid)) for g in tried]
    most = min((n for n, _ in counts), default=0)
    ks = [k for k in (1, 2, 4, 8, 16, 32, 64) if k <= most]
    return {
        "n": len(tried),
        "lost": sum(len(g.members) - len(g.valid) for g in groups),
        **{f"pass@{k}": sum(pass_at_k(n, c, k) for n, c in counts) / len(counts) for k in ks},
    }
