"""Figures by world: the learner's sums split exactly, and every world of the mix has its row."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from envs import Outcome
from rl.algorithms import load as load_algorithm
from rl.batch import pack
from rl.learner import Learner, Settings
from rl.metrics import Window, learnt_worlds, means, sums_by_world
from rl.trajectory import Group, Member
from tests.policy.test_model import small_cwm
from tests.rl.test_batch import member, some_members


def of_worlds(members: list[Member]) -> list[Member]:
    """Every third member belongs to `a`, the others to `b`."""
    for index, attempt in enumerate(members):
        attempt.episode.task = replace(attempt.episode.task, world="a" if index % 3 == 0 else "b")
    return members


@pytest.fixture
def learner(tmp_path: Path) -> Learner:
    path = small_cwm(tmp_path / "m")
    return Learner(Settings(model=str(path), lr=0.0, loss_denominator=64.0, row_tokens=64, device="cpu", threads=1))


def test_a_worlds_figures_are_those_of_a_step_on_its_members_alone(learner: Learner) -> None:
    members = of_worlds(some_members(12))
    both = learner.step(members)
    worlds = learnt_worlds(both)
    assert list(worlds) == ["a", "b"]
    counts = {}
    for world, found in worlds.items():
        own = [m for m in members if m.episode.task.world == world]
        alone = learner.step(own)
        for name in ("entropy", "gap", "clip_low", "clip_high", "ratio", "kl"):
            assert found[name] == pytest.approx(alone[name], rel=1e-4, abs=1e-6), (world, name)
        counts[world] = alone["sampled_tokens"]
    mean = sum(worlds[world]["entropy"] * count for world, count in counts.items()) / sum(counts.values())
    assert both["entropy"] == pytest.approx(mean, rel=1e-5)


def test_splitting_does_not_touch_the_gradient(learner: Learner) -> None:
    one, two = some_members(12), of_worlds(some_members(12))
    assert learner.step(one)["grad_norm"] == learner.step(two)["grad_norm"]


def test_every_world_of_the_batch_has_its_sums_in_every_micro_batch() -> None:
    """So that ranks whose rows hold one world only add up the same names."""
    members = of_worlds(some_members(6))
    grpo = load_algorithm("grpo")
    total: dict[str, float] = {}
    for micro in pack(members, 64).split(rows=1):
        zeros_BT = torch.zeros_like(micro.behaviour_BT)

        def score(mask_BT: torch.Tensor, micro=micro, zeros_BT=zeros_BT) -> dict[str, torch.Tensor]:  # type: ignore[no-untyped-def]
            given = (zeros_BT, micro.behaviour_BT, micro.advantage_BT, mask_BT, zeros_BT, micro.document_BT)
            return grpo.loss(*given, denominator=1)[1]

        sums = sums_by_world(members, micro, score)
        assert {"worlds/a/tokens", "worlds/b/tokens"} <= set(sums)
        for name, value in sums.items():
            total[name] = total.get(name, 0.0) + float(value)
    for world in "ab":
        own = sum(m.trajectory.spoken for m in members if m.episode.task.world == world)
        assert total[f"worlds/{world}/tokens"] == own


def test_means_are_over_the_tokens_beside_them() -> None:
    sums = {"tokens": 10.0, "gap": 5.0, "worlds/a/tokens": 4.0, "worlds/a/gap": 2.0, "worlds/b/tokens": 0.0}
    assert means({**sums, "worlds/b/gap": 0.0}) == {"gap": 0.5, "worlds/a/gap": 0.5, "worlds/b/gap": 0.0}


def played(lease: int, world: str, *scores: float) -> Group:
    members = [member([[3] * 10], score=s, outcome=Outcome.SOLVED if s else Outcome.FAILED) for s in scores]
    for attempt in members:
        attempt.episode.facts = {"solved": attempt.episode.outcome is Outcome.SOLVED}
    group = Group(lease, world, 0, members)
    load_algorithm("grpo").advantages(group)
    return group


def test_the_row_of_a_step_has_every_world_with_its_share_and_its_part_in_the_batch() -> None:
    window = Window()
    groups = [played(0, "a", 1.0, 0.0), played(1, "a", 1.0, 1.0)]
    earlier = played(2, "b", 0.0, 1.0)
    for group in groups:
        window.add(group)
    learnt = {"version": 3.0, "entropy": 1.0, "worlds/a/entropy": 0.5, "worlds/b/entropy": 2.0}
    mix = {world: {"target": 0.5, "share": share} for world, share in (("a", 0.25), ("b", 0.75), ("c", 0.0))}
    row = window.row([groups[0], earlier], 2, learnt, {"learn": 0.1, "publish": 0.1}, 40, mix)
    a, b, c = (row["worlds"][world] for world in "abc")
    assert (a["groups"], a["flat"], a["success"], a["trained_groups"], a["trained_tokens"]) == (2, 0.5, 0.75, 1, 20)
    assert (a["entropy"], a["target"], a["share"], a["staleness_max"]) == (0.5, 0.5, 0.25, 2)
    assert (b["groups"], b["attempts"], b["trained_groups"], b["entropy"], b["share"]) == (0, 0, 1, 2.0, 0.75)
    assert (c["groups"], c["share"]) == (0, 0.0)
    assert row["learner/entropy"] == 1.0 and not any("worlds" in key for key in row if key != "worlds")
