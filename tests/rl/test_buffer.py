"""The buffer: full batches, bounded age, nothing lost and nothing twice, in any order of arrival."""

import asyncio
import random

import pytest

from envs import Episode, Outcome, Task
from rewards import Score
from rl.buffer import Buffer, spread, tokens_of, useful
from rl.trajectory import Group, Member, Trajectory

TASK = Task(world="w", key="k", family="f", level=0, messages=())


def group(lease: int, version: int, tokens: int = 10, *, advantage: float = 1.0, lost: int = 0) -> Group:
    """One attempt of `tokens` tokens sampled at `version`, beside `lost` attempts of a thousand that do not count."""

    def attempt(count: int, outcome: Outcome) -> Member:
        trajectory = Trajectory()
        trajectory.hear([1, 2, 3])
        trajectory.speak([5] * count, [-1.0] * count, [version] * count)
        score = Score(1.0) if outcome.valid else None
        return Member(trajectory, Episode(task=TASK, messages=[], outcome=outcome), score, advantage)

    members = [attempt(1000, Outcome.SANDBOX_LOST) for _ in range(lost)]
    return Group(lease, "w", version, [*members, attempt(tokens, Outcome.SOLVED)] if tokens else members)


async def settled(buffer: Buffer, version: int) -> list[Group] | None:
    """What `take` gives by now, or None where it still waits."""
    taking = asyncio.create_task(buffer.take(version))
    for _ in range(3):
        await asyncio.sleep(0)
    if taking.done():
        return taking.result()
    taking.cancel()
    return None


def test_take_waits_for_a_full_batch_of_tokens_that_count() -> None:
    async def scene() -> None:
        buffer = Buffer(batch_tokens=30, max_staleness=8)
        for lease in range(4):
            buffer.admit(lease, 0)
        taking = asyncio.create_task(buffer.take(0))
        for lease in (2, 0):
            buffer.arrive(group(lease, 0, lost=1), useful=True)
            await asyncio.sleep(0)
        assert not taking.done() and buffer.waiting_for(0) == "rollouts, 67% of a batch is here"
        buffer.arrive(group(3, 0), useful=True)
        assert [g.lease for g in await asyncio.wait_for(taking, 1)] == [0, 2, 3], "the oldest lease first"
        assert buffer.ready == [] and list(buffer.in_flight) == [1]

    asyncio.run(scene())


def test_groups_beyond_a_full_batch_stay_for_the_next() -> None:
    async def scene() -> None:
        buffer = Buffer(batch_tokens=15, max_staleness=8)
        for lease in range(4):
            buffer.admit(lease, 0)
            buffer.arrive(group(lease, 0), useful=True)
        assert [[g.lease for g in await buffer.take(v)] for v in (0, 1)] == [[0, 1], [2, 3]]

    asyncio.run(scene())


def test_useless_groups_leave() -> None:
    async def scene() -> None:
        buffer = Buffer(batch_tokens=10, max_staleness=0)
        buffer.admit(0, 0)
        buffer.admit(1, 0)
        buffer.arrive(group(0, 0), useful=True)
        assert await settled(buffer, 0) is None, "lease 1 would be too old for the next step"
        assert buffer.waiting_for(0) == "lease 1, the oldest in flight"
        buffer.arrive(group(1, 0, advantage=0.0), useful=False)
        assert [g.lease for g in await settled(buffer, 0) or []] == [0]
        assert not buffer.in_flight and not buffer.ready

    asyncio.run(scene())


def test_what_is_useful_and_how_old_it_is() -> None:
    assert useful(group(0, 3)) and not useful(group(0, 3, advantage=0.0))
    assert not useful(group(0, 3, tokens=0, lost=2)), "an advantage on a lost member means nothing"
    assert tokens_of(group(0, 3, lost=2)) == 10
    assert spread([group(0, 3, tokens=10), group(1, 5, tokens=30, lost=1)], 7) == (2.5, 4)
    assert spread([], 7) == (0.0, 0)


@pytest.mark.parametrize("bound", [0, 1, 8])
@pytest.mark.parametrize("seed", range(5))
def test_no_trained_token_is_older_than_the_bound_and_no_group_is_lost(bound: int, seed: int) -> None:
    """Groups of random size arrive in random order while the learner steps; stragglers are common and all tokens are as
    old as admission allows. The driver admits as rl/train.py does: up to a number in flight, none while a batch waits.
    """

    async def scene() -> int:
        rng = random.Random(seed)
        buffer = Buffer(batch_tokens=60, max_staleness=bound)
        version, granted, oldest = 0, 0, 0
        useless: set[int] = set()
        trained: list[int] = []
        playing: dict[int, int] = {}
        taking = asyncio.create_task(buffer.take(version))
        while version < 60:
            while len(playing) < 12 and not buffer.full:
                buffer.admit(granted, version)
                playing[granted] = version
                granted += 1
            if playing:
                young = list(playing)[len(playing) // 2 :]
                lease = rng.choice(young if rng.random() < 0.8 else list(playing))
                teaches = rng.random() < 0.7
                if not teaches:
                    useless.add(lease)
                buffer.arrive(group(lease, playing.pop(lease), tokens=rng.randrange(1, 30)), useful=teaches)
            for _ in range(3):
                await asyncio.sleep(0)
            if taking.done():
                batch = taking.result()
                assert sum(map(tokens_of, batch)) >= 60
                assert not [lease for lease, at in playing.items() if version + 1 - at > bound], "left behind, too old"
                oldest = max(oldest, spread(batch, version)[1])
                assert oldest <= bound
                trained += [g.lease for g in batch]
                version += 1
                taking = asyncio.create_task(buffer.take(version))
        taking.cancel()
        waiting = [g.lease for g in buffer.ready]
        assert sorted([*trained, *useless, *playing, *waiting]) == list(range(granted)), "each exactly once"
        return oldest

    assert asyncio.run(scene()) >= min(bound, 1), "the bound was put to the test"
