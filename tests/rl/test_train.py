"""The driver's loops over a stand-in cluster that learns and publishes slowly: no token is older than its bound."""

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from envs import Episode, Outcome, Task
from rewards import Score
from rl import buffer, config
from rl.live import Page
from rl.store import Run
from rl.train import MachineryDown, Training
from rl.trajectory import Group, Member, Trajectory


class SlowCluster:
    """Groups take a random while, every fourth is flat; engines serve new weights only when a publish has ended."""

    def __init__(self, outcome: Outcome = Outcome.SOLVED) -> None:
        self.served = self.learnt = self.worst = 0
        self.outcome, self.rng = outcome, random.Random(0)
        self.trained: list[int] = []
        self.played: list[int] = []

    async def play(self, world: str, split: str, index: int, lease: int, version: int, size: int) -> Group:
        self.played.append(lease)
        await asyncio.sleep(0.002)
        members = []
        for number in range(2):
            trajectory = Trajectory()
            trajectory.hear([1])
            trajectory.speak([5] * 10, [-1.0] * 10, [self.served] * 10)
            task = Task(world=world, key=str(index), family="f", level=0, messages=())
            score = Score(float(number and lease % 4)) if self.outcome.valid else None
            members.append(
                Member(trajectory, Episode(task=task, messages=[], outcome=self.outcome, error="gone"), score)
            )
        await asyncio.sleep(self.rng.random() * 0.05)
        return Group(lease, world, version, members)

    async def step(self, groups: Sequence[Group]) -> dict[str, float]:
        self.worst = max(self.worst, buffer.spread(groups, self.learnt)[1])
        self.trained += [group.lease for group in groups]
        await asyncio.sleep(0.005)
        self.learnt += 1
        return {"version": float(self.learnt)}

    async def publish(self) -> float:
        await asyncio.sleep(0.03)
        self.served = self.learnt
        return 0.0


def trained(folder: Path, cluster: SlowCluster, *overrides: str) -> None:
    (folder / "x.yaml").write_text(
        "worlds: {math: {}}\nlearner: {batch_tokens: 40}\ntrain: {steps: 30, groups: 12, checkpoint_every: 1000}\n"
    )
    settings = config.load(folder / "x.yaml", overrides)
    run = Run.create(folder / "run")
    training = Training(settings, run, cluster, Page(settings))  # type: ignore[arg-type]

    async def main() -> None:
        await asyncio.wait_for(training.lockstep() if settings.train.sync else training.overlapped(), 60)

    try:
        asyncio.run(main())
    finally:
        run.close()


def gone_back(folder: Path, version: int, steps: int, *overrides: str) -> tuple[SlowCluster, set[int]]:
    """Go on from an earlier version of the run in `folder`, until `steps`. The cluster, and the leases it was owed
    whose groups were finished."""
    settings = config.load(folder / "x.yaml", [f"train.steps={steps}", *overrides])
    run, cluster = Run.reopen(folder / "run"), SlowCluster()
    training = Training(settings, run, cluster, Page(settings))  # type: ignore[arg-type]
    cluster.learnt = cluster.served = training.version = version
    training.owed = run.rewind(version, training.buffer.max_staleness)
    finished = {lease.id for lease in training.owed if lease.played}
    asyncio.run(training.lockstep() if settings.train.sync else training.overlapped())
    run.close()
    return cluster, finished


@pytest.mark.parametrize("bound", [1, 2, 8])
def test_no_token_is_older_than_the_bound_and_no_group_is_trained_on_twice(tmp_path: Path, bound: int) -> None:
    cluster = SlowCluster()
    trained(tmp_path, cluster, f"train.max_staleness={bound}")
    assert 0 < cluster.worst <= bound
    assert len(cluster.trained) == len(set(cluster.trained))


def test_in_lockstep_every_token_is_the_current_policys(tmp_path: Path) -> None:
    cluster = SlowCluster()
    trained(tmp_path, cluster, "train.sync=true")
    assert cluster.worst == 0 and cluster.learnt == 30


def test_a_run_whose_machinery_is_down_stops_and_says_why(tmp_path: Path) -> None:
    with pytest.raises(MachineryDown, match="gone"):
        trained(tmp_path, SlowCluster(Outcome.SANDBOX_LOST))


@pytest.mark.parametrize("bound", [1, 8])
def test_finished_groups_are_trained_on_after_going_back_without_being_played_again(tmp_path: Path, bound: int) -> None:
    trained(tmp_path, SlowCluster(), f"train.max_staleness={bound}")
    cluster, finished = gone_back(tmp_path, 20, 40, f"train.max_staleness={bound}")
    assert finished and not finished & set(cluster.played)
    assert {lease for lease in finished if lease % 4} <= set(cluster.trained), "every fourth is flat"
    assert len(cluster.trained) == len(set(cluster.trained))
    assert cluster.worst <= bound


def test_in_lockstep_the_steps_after_going_back_are_the_same_steps(tmp_path: Path) -> None:
    first = SlowCluster()
    trained(tmp_path, first, "train.sync=true")
    cluster, finished = gone_back(tmp_path, 20, 30, "train.sync=true")
    assert cluster.played == [] and finished
    assert cluster.trained == first.trained[-len(cluster.trained) :] and cluster.worst == 0
