"""The engine that draws its replies: the same for the same prompt, seed and weights, another for others."""

import asyncio

from policy.engines import Completion, Sampling
from policy.engines.drawn import DrawnEngine

STOP = 9
REPLIES = [[number, STOP] for number in range(8)] + [[1, 2, 3, 4, STOP]]


def drawn(engine: DrawnEngine, prompt: list[int], *seeds: int | None) -> list[Completion]:
    async def ask() -> list[Completion]:
        return [await engine.generate(prompt, Sampling(max_tokens=3, stop_ids=(STOP,), seed=seed)) for seed in seeds]

    return asyncio.run(ask())


def test_replies_depend_on_prompt_seed_and_weights_and_on_nothing_else() -> None:
    first, second = DrawnEngine(REPLIES), DrawnEngine(REPLIES)
    drawn(second, [5], 3, None)
    seeds = range(64)
    assert drawn(first, [1, 2], *seeds) == drawn(second, [1, 2], *seeds)
    assert drawn(first, [1, 2], *seeds) != drawn(first, [1, 3], *seeds)
    assert len({tuple(said.ids) for said in drawn(first, [1, 2], *seeds)}) == len(REPLIES)
    asyncio.run(first.swap(b"weights", 1, None))
    asyncio.run(second.swap(b"others", 1, None))
    one, other = drawn(first, [1, 2], *seeds), drawn(second, [1, 2], *seeds)
    assert [said.ids for said in one] != [said.ids for said in other]
    assert {said.versions[0] for said in one} == {1}
    assert len({tuple(said.ids) for said in drawn(first, [1, 2], *[None] * 64)}) > 1


def test_a_reply_is_cut_like_any_other() -> None:
    engine = DrawnEngine([[1, 2, 3, 4, STOP]])
    (said,) = drawn(engine, [1], 0)
    assert said.ids == [1, 2, 3] and not said.stopped and len(said.logprobs) == len(said.versions) == 3
