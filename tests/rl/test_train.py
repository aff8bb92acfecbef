"""The driver's loops over a stand-in cluster that learns and publishes slowly: no token is older than its bound."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import envs
from envs import Episode, Outcome, Task
from policy.engines import Swapped
from policy.engines.scripted import ScriptedEngine
from rewards import Score
from rl import buffer, config
from rl.live import Page
from rl.store import Run
from rl.train import MachineryDown, Training, rate_of_another
from rl.trajectory import Group, Member, Trajectory
from rl.workers import RolloutWorker
from tests.rl.test_mix import row
from tests.rl.test_rollout import CHAT


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

    async def publish(self) -> Swapped:
        await asyncio.sleep(0.03)
        self.served = self.learnt
        return Swapped(0.0)


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


@pytest.mark.parametrize("bound", [0, 1, 2, 8, 100])
def test_no_token_is_older_than_the_bound_and_no_group_is_trained_on_twice(tmp_path: Path, bound: int) -> None:
    cluster = SlowCluster()
    trained(tmp_path, cluster, f"train.max_staleness={bound}")
    assert min(bound, 1) <= cluster.worst <= bound
    assert len(cluster.trained) == len(set(cluster.trained))


def test_in_lockstep_every_token_is_the_current_policys(tmp_path: Path) -> None:
    cluster = SlowCluster()
    trained(tmp_path, cluster, "train.sync=true")
    assert cluster.worst == 0 and cluster.learnt == 30


def test_a_run_whose_machinery_is_down_stops_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rl.firewall.FIRST_PAUSE_S", 0.01)
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


class Recovering(SlowCluster):
    """Its machinery is down for its first groups, and for two probes."""

    tries = 0

    async def play(self, world: str, split: str, index: int, lease: int, version: int, size: int) -> Group:
        self.tries += 1
        self.outcome = Outcome.SANDBOX_LOST if self.tries <= 14 else Outcome.SOLVED
        return await super().play(world, split, index, lease, version, size)


@pytest.mark.parametrize("sync", ["true", "false"])
def test_groups_lost_while_the_machinery_was_down_are_played_again_and_trained_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync: str
) -> None:
    monkeypatch.setattr("rl.firewall.FIRST_PAUSE_S", 0.05)
    cluster = Recovering()
    trained(tmp_path, cluster, f"train.sync={sync}")
    assert len(cluster.trained) == len(set(cluster.trained))
    run = Run.reopen(tmp_path / "run")
    states = dict(run.db.execute("select state, count(*) from lease group by state").fetchall())
    rows = run.rows("metrics.jsonl")
    run.close()
    assert "lost" not in states and states["trained"] == len(cluster.trained)
    notes = [note for row in rows for note in row["notes"]]
    assert any("world math is paused" in note and "gone" in note for note in notes)
    assert "world math works again and goes on" in notes and rows[-1]["paused"] == {}


class FlatCluster(SlowCluster):
    """After 20 groups all attempts at a task score alike, for 80 groups."""

    async def play(self, world: str, split: str, index: int, lease: int, version: int, size: int) -> Group:
        group = await super().play(world, split, index, lease, version, size)
        for member in group.members if 20 <= lease < 100 else ():
            member.score = Score(1.0)
        return group


def test_a_run_that_has_nothing_to_learn_from_says_so(tmp_path: Path) -> None:
    trained(tmp_path, FlatCluster(), "train.groups=12")
    notes = [note for row in Run(tmp_path / "run").rows("metrics.jsonl") for note in row["notes"]]
    assert [note.partition(",")[0] for note in notes] == ["the last 48 groups carry no gradient"]


class JointCluster(SlowCluster):
    """Two worlds, the episodes of one 10 times as long, and the longer the slower; some attempts are cut off."""

    async def play(self, world: str, split: str, index: int, lease: int, version: int, size: int) -> Group:
        group = await super().play(world, split, index, lease, version, size)
        tokens = max(1, round((100 if world == "code" else 10) * self.rng.lognormvariate(0, 0.5)))
        for member in group.members:
            member.trajectory = Trajectory()
            member.trajectory.hear([1])
            member.trajectory.speak([5] * tokens, [-1.0] * tokens, [self.served] * tokens)
            member.episode.outcome = Outcome.TOKENS_SPENT if index % 4 == 3 else Outcome.SOLVED
            member.episode.facts = {"solved": member.episode.outcome is Outcome.SOLVED}
        await asyncio.sleep(tokens * 1e-4)
        return group

    async def step(self, groups: Sequence[Group]) -> dict[str, float]:
        assert all(member.episode.outcome is Outcome.SOLVED for group in groups for member in group.valid)
        return await super().step(groups)


JOINT = (
    "worlds.code.weight=1",
    "learner.batch_tokens=1500",
    "filters.overlong.mode=enforce",
    "train.groups=12",
    "train.steps=10",
)


@pytest.mark.parametrize("sync", [False, True])
def test_shares_of_trained_tokens_are_held_and_reported_and_filters_enforced(tmp_path: Path, sync: bool) -> None:
    trained(tmp_path, JointCluster(), *JOINT, f"train.sync={str(sync).lower()}")
    rows = Run(tmp_path / "run").rows("metrics.jsonl")
    assert len(rows) == 10
    for world, seen in rows[-1]["worlds"].items():
        assert seen["target"] == 0.5 and seen["share"] == pytest.approx(0.5, abs=0.1), world
        tokens = sum(row["worlds"][world].get("trained_tokens", 0) for row in rows)
        assert seen["share"] == pytest.approx(tokens / rows[-1]["tokens"])
    counted = [row["worlds"][world] for row in rows for world in row["worlds"] if "rejected" in row["worlds"][world]]
    assert sum(seen["rejected"] for seen in counted) == sum(seen["caught"].get("overlong", 0) for seen in counted) > 0


def test_a_resumed_run_goes_on_with_the_same_accounts(tmp_path: Path) -> None:
    trained(tmp_path, JointCluster(), *JOINT, "train.sync=true")
    settings = config.load(tmp_path / "x.yaml", [*JOINT, "train.sync=true"])
    run = Run.reopen(tmp_path / "run")
    training = Training(settings, run, JointCluster(), Page(settings))  # type: ignore[arg-type]
    last = run.rows("metrics.jsonl")[-1]["worlds"]
    for world, seen in training.mix.shares(0).items():
        assert seen["share"] == pytest.approx(last[world]["share"]), world
    tried, rate = training.difficulty.rate("code", "family f 0", 10**6)
    assert tried > 40 and rate == pytest.approx(0.75, abs=0.1)
    run.close()


def test_a_task_outside_the_bounds_is_passed_over_by_the_lease(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("worlds: {math: {difficulty: {low: 0.1, keep: 0.0}}}\n")
    settings = config.load(tmp_path / "x.yaml")
    run = Run.create(tmp_path / "run")
    training = Training(settings, run, SlowCluster(), Page(settings))  # type: ignore[arg-type]
    first = envs.load("math").World(None).task("train", 0)
    training.difficulty.add(replace(row(9, "math", 10, flat=True), key=first.key))
    assert training.lease().index == 1 and training.lease().index == 2
    run.close()


def test_a_worker_plays_the_stage_of_the_version_and_held_out_tasks_of_the_file(tmp_path: Path) -> None:
    """Levels and rewards of a stage; nothing of it in what is measured."""
    (tmp_path / "x.yaml").write_text(
        "worlds: {math: {args: {python_tool: false, levels: [2]}}}\nstages:\n  - until_step: 3\n"
        "    worlds: {math: {args: {levels: [0]}}}\n"
        "    rewards: {length: {soft_tokens: {from: 1, to: 3}, hard_tokens: 9}}\n"
    )
    worker = RolloutWorker()
    worker.playing = set()
    worker.config, worker.worlds, worker.pool = config.load(tmp_path / "x.yaml"), {}, None
    worker.chat, worker.engine = CHAT, ScriptedEngine(lambda prompt: CHAT.encode("\\boxed{") + CHAT.stop_ids[:1])

    def played(split: str, version: int) -> tuple[int, list[str]]:
        group = asyncio.run(worker.play("math", split, 0, 0, version, 1))  # type: ignore[arg-type]
        (member,) = group.members
        assert member.score is not None and member.episode.tokens == member.trajectory.spoken > 0
        return member.episode.task.level, list(member.score.parts)

    assert played("train", 0) == played("train", 2) == (0, ["outcome", "length"])
    assert played("train", 3) == played("heldout", 0) == (2, ["outcome"])
    assert len(worker.worlds) == 2, "a world is built once for each set of arguments"


def test_a_large_model_at_the_small_policys_rate_is_told(tmp_path: Path) -> None:
    for number in range(2):
        with (tmp_path / f"model-{number}.safetensors").open("wb") as file:
            file.truncate(6 * 10**7)
    words = "got learner.lr=0.0004, the small policy's rate, and weights of 0.1 GB; expected about 1e-6"
    assert rate_of_another(config.LearnerConfig().lr, tmp_path) == words
    assert rate_of_another(1e-5, tmp_path) == ""
    (tmp_path / "model-0.safetensors").unlink()
    assert rate_of_another(1.0, tmp_path) == ""
