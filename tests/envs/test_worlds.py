"""Every world: splits that never meet, tasks that repeat, demonstrations that mean what they say."""

import asyncio
import itertools
import random
from collections.abc import Iterator
from typing import Any

import pytest

import envs
from envs import Message, Outcome, World, sandboxes

BACKENDS = ("docker", "bubblewrap")
IMAGE = "touchstone-sandbox:bookworm"
WORLDS = ("math", "code", "swe")


@pytest.mark.parametrize("name", WORLDS)
def test_splits_never_meet_and_are_varied(name: str) -> None:
    world = envs.load(name).World(None)
    train = {world.task("train", i).key for i in range(2000)}
    held_out = {world.task("heldout", i).key for i in range(2000)}
    assert not train & held_out
    assert len(train) >= 400 and len(held_out) >= 100


@pytest.mark.parametrize("name", WORLDS)
def test_a_task_is_a_function_of_split_index_and_seed(name: str) -> None:
    first, second = (envs.load(name).World(None, seed=3) for _ in range(2))
    other = envs.load(name).World(None, seed=4)
    same = [first.task("train", i).content_hash == second.task("train", i).content_hash for i in range(50)]
    assert all(same)
    assert any(first.task("train", i).key != other.task("train", i).key for i in range(50))
    assert all(first.task("heldout", i).key == other.task("heldout", i).key for i in range(50))


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture(scope="module", params=[pytest.param(name, marks=getattr(pytest.mark, name)) for name in BACKENDS])
def pool(request: pytest.FixtureRequest, loop: asyncio.AbstractEventLoop) -> Iterator[Any]:
    backend = sandboxes.load(request.param)
    try:
        backend.preflight(IMAGE)
    except sandboxes.SandboxUnavailable as problem:
        pytest.skip(str(problem))
    pool = backend.Pool(run="test-worlds", size=4, image=IMAGE, memory_mb=512)
    yield pool
    loop.run_until_complete(pool.close())


async def replay(world: World, index: int, *, err: bool) -> tuple[bool, list[Message], list[Message]]:
    """Play an expert's actions in the real world: solved, what the world said, what the expert foresaw."""
    task = world.task("train", index)
    demo = world.demonstrate(task, random.Random(index), err=err)
    env = world.open(task)
    try:
        heard = list(await env.start())
        for action in (m["content"] for m in demo if m["role"] == "assistant"):
            step = await env.step(action)
            assert not step.invalid
            heard += [{"role": "assistant", "content": action}, *step.messages]
        return (await env.measure())["solved"], heard, demo
    finally:
        await env.close()


@pytest.mark.parametrize("name", WORLDS)
def test_experts_solve_when_right_fail_when_wrong_and_foresee_the_world(
    name: str, loop: asyncio.AbstractEventLoop, pool: Any
) -> None:
    world = envs.load(name).World(pool)
    for index, err in itertools.product(range(25), (False, True)):
        solved, heard, demo = loop.run_until_complete(asyncio.wait_for(replay(world, index, err=err), 60))
        assert heard == demo
        assert solved is not err, demo
    loop.run_until_complete(world.close())


async def act(world: World, index: int, *actions: str) -> dict[str, object]:
    env = world.open(world.task("train", index))
    try:
        await env.start()
        for action in actions:
            step = await env.step(action)
        return {"step": step, **(await env.measure())}
    finally:
        await env.close()


def test_code_that_crashes_hangs_or_is_absent_is_the_policys_failure(
    loop: asyncio.AbstractEventLoop, pool: Any
) -> None:
    world = envs.load("code").World(pool, cases=1)
    verdicts = {
        text: loop.run_until_complete(act(world, 0, text))
        for text in ("```python\nraise ValueError\n```", "no program at all")
    }
    assert [v["solved"] for v in verdicts.values()] == [False, False]
    assert verdicts["```python\nraise ValueError\n```"]["verdicts"] == ["crashed"]
    slow = loop.run_until_complete(act(world, 0, "```python\nwhile True: pass\n```"))
    assert slow["verdicts"] == ["timed_out"]


def test_swe_grading_is_not_fooled(loop: asyncio.AbstractEventLoop, pool: Any) -> None:
    """Exits, always-equal objects and planted modules earn nothing: what comes back is compared elsewhere."""
    world = envs.load("swe").World(pool)
    task = world.task("train", 0)
    (path,) = task.given["files"]
    module, function = task.hidden["module"], task.hidden["tests"][0]["function"]
    equal = f"class E:\n    def __eq__(self, other): return True\ndef {function}(a, b): return E()\n"
    for attack in (
        f"printf 'import os\\nos._exit(0)\\n' > {path}",
        f"cat > {path} <<'X'\n{equal}X",
        "printf 'def dumps(*a): return \"[]\"\\n' > json.py",
        f"rm {path}; mkdir {path}",
        f"ln -sf /proc/self/environ {path}",
        f"printf 'import sys\\nprint([[\"value\", 1]] * 9)\\nsys.exit()\\n' > {module}.py",
    ):
        facts = loop.run_until_complete(
            act(world, 0, f"<tool: bash>\n{attack}\n</tool>", "<tool: submit>\ndone\n</tool>")
        )
        assert facts["solved"] is False, attack


def test_outcomes_are_the_policys_or_the_machinerys() -> None:
    assert [o for o in Outcome if o.valid] == list(Outcome)[:6]


def test_delays_follow_from_the_seed_and_change_nothing_else(loop: asyncio.AbstractEventLoop, pool: Any) -> None:
    def waits(seed: int) -> list[float]:
        world = envs.load("delayed").World(pool, seed=seed, world="math", median_s=0.01, args={"levels": [0]})

        async def attempt() -> float:
            task = world.task("train", 0)
            env = world.open(task)
            try:
                assert list(await env.start()) == list(task.messages)
                await env.step(world.demonstrate(task, random.Random(0), err=False)[-1]["content"])
                facts = await env.measure()
                assert facts["solved"]
                return facts["waited_s"]
            finally:
                await env.close()

        return [loop.run_until_complete(asyncio.wait_for(attempt(), 60)) for _ in range(5)]

    assert waits(0) == waits(0) != waits(1)
    assert len(set(waits(0))) == 5
