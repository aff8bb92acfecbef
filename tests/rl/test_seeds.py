"""Every request of a seeded group has a seed of its own, and the same one whenever the group is played."""

import asyncio
from collections.abc import Sequence

from envs import JudgeFailed
from policy.engines import Completion, Sampling
from policy.engines.scripted import ScriptedEngine
from rl.rollout import play_group
from tests.rl.test_rollout import CHAT, JUDGES, LIMITS, Lesson, lesson, parrot


class Heard(ScriptedEngine):
    """Remembers the seeds that it was given."""

    def __init__(self) -> None:
        super().__init__(parrot)
        self.seeds: list[int | None] = []

    async def generate(self, ids: Sequence[int], sampling: Sampling) -> Completion:
        self.seeds.append(sampling.seed)
        return await super().generate(ids, sampling)


def seeds(seed: str | None, lost: int = 0) -> list[int | None]:
    """Of a group of three attempts of two turns each, `lost` of which are played again."""
    engine, world = Heard(), Lesson({"measure": [JudgeFailed("gone")] * lost})
    asyncio.run(play_group(world, lesson("more", "right"), 3, engine, CHAT, LIMITS, JUDGES, 1, seed))
    return engine.seeds


def test_seeds_differ_by_task_member_attempt_and_turn_and_are_the_same_again() -> None:
    group = seeds("0/math/train/5")
    assert len(set(group)) == len(group) == 6 and all(seed is not None and 0 <= seed < 2**63 for seed in group)
    assert seeds("0/math/train/5") == group
    again = seeds("0/math/train/5", lost=1)
    assert len(set(again)) == 8 and set(group) < set(again)
    assert not set(seeds("0/math/train/6")) & set(group)
    assert seeds(None) == [None] * 6
