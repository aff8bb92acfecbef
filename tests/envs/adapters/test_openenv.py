"""A real OpenEnv server, started as a process on this machine, played by its URL; and lost."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from replayed import replay

from envs import EnvCrashed
from envs.adapters import openenv

pytest.importorskip("openenv.core.env_server")
T = TypeVar("T")
START_S = 60.0


def go(work: Awaitable[T]) -> T:
    async def bounded() -> T:
        return await asyncio.wait_for(work, 120)

    return asyncio.run(bounded())


@contextmanager
def served() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, str(Path(__file__).parent / "countdown.py"), str(port)])
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START_S
        while server.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5):
                break
            time.sleep(0.1)
        yield url
    finally:
        server.kill()
        server.wait()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served() as url:
        yield url


def act(**fields: Any) -> str:
    return f"<tool_call>{json.dumps({'name': 'act', 'arguments': fields})}</tool_call>"


def test_steps_reach_the_server_and_their_rewards_add_up(url: str) -> None:
    world = openenv.World(None, url=url, sessions=2, instructions="Reach nought.")  # type: ignore[arg-type]
    task = world.task("train", 0)
    assert task.messages[0]["content"].startswith("Reach nought.") and '"count"' in task.messages[0]["content"]
    assert '"metadata"' not in task.messages[0]["content"]
    left = task.given["seed"] % 5 + 3

    async def several() -> Any:
        plays = [[act(count=1), act(count=left - 1)], [f"<tool: act>\n{json.dumps({'count': left + 1})}\n</tool>"]]
        return await asyncio.gather(*(replay(world, task, actions) for actions in plays * 2))

    right, wrong, *again = go(several())
    assert json.loads(right.heard[1]) == {"left": left} and json.loads(right.heard[2]) == {"left": left - 1}
    assert right.solved and right.facts["rewards"] == [0.0, 1.0] and right.facts["reward"] == 1.0
    assert not wrong.solved and wrong.facts["reward"] == 0.0
    assert [played.solved for played in again] == [True, False]


def test_a_refused_action_is_told_and_nonsense_is_invalid(url: str) -> None:
    world = openenv.World(None, url=url, reset={"base": 10})  # type: ignore[arg-type]
    task = world.task("heldout", 3)
    assert task == world.task("heldout", 3) != world.task("heldout", 4)
    left = task.given["seed"] % 5 + 10
    played = go(replay(world, task, [act(count="two"), act(amount=1), act(count=left)]))
    assert all(said.startswith("error: ") for said in played.heard[2:4]), played.heard
    assert played.solved and played.facts["refused_calls"] == 2
    assert go(replay(world, task, ["two, please"])).invalid
    with pytest.raises(ValueError, match="does not say which actions are right"):
        world.demonstrate(task, random.Random(0), err=False)


def test_the_last_turn_ends_the_attempt_with_what_it_earned(url: str) -> None:
    world = openenv.World(None, url=url, reset={"base": 10}, max_turns=3)  # type: ignore[arg-type]

    async def play() -> Any:
        env = world.open(world.task("train", 0))
        try:
            await env.start()
            steps = [await env.step(action) for action in (act(count=1), act(count="two"), act(count=1))]
            return [step.done for step in steps], await env.measure()
        finally:
            await env.close()

    ended, facts = go(play())
    assert ended == [False, False, True] and facts["rewards"] == [0.0, 0.0]
    assert facts["truncated"] and facts["turns"] == 3 and not facts["solved"]


def test_a_server_that_raises_or_is_lost_is_the_machinerys_failure(url: str) -> None:
    world = openenv.World(None, url=url)  # type: ignore[arg-type]
    task = world.task("train", 0)
    with pytest.raises(EnvCrashed, match="the abacus broke"):
        go(replay(world, task, [act(count=1, note="crash")]))
    with served() as own:
        lost = openenv.World(None, url=own)  # type: ignore[arg-type]
        with pytest.raises(EnvCrashed, match="lost during step"):
            go(replay(lost, task, [act(count=1, note="die")]))
        with pytest.raises(EnvCrashed, match="no OpenEnv server answers"):
            go(replay(lost, task, [act(count=1)]))


def test_what_is_no_openenv_server_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="does not tell the action of an OpenEnv server"):
        openenv.World(None, url="http://127.0.0.1:9")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected http"):
        openenv.World(None, url="127.0.0.1:9")  # type: ignore[arg-type]
