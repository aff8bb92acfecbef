"""Tools of a real MCP server over stdio: listed, called, capped, late, dead; answers compared with a file of rows."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from replayed import gold, replay

from envs import EnvCrashed
from envs.adapters import mcp

T = TypeVar("T")
SERVER = f"{sys.executable} {Path(__file__).parent / 'warehouse.py'}"


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("rows") / "questions.jsonl"
    questions = [{"question": f"How many bolts and nuts, and {n} more?", "answer": str(57 + n)} for n in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in questions))
    return str(path)


@pytest.fixture(scope="module")
def world(rows: str) -> mcp.World:
    return mcp.World(None, server=SERVER, tasks=rows, call_timeout_s=30, observation_chars=100)  # type: ignore[arg-type]


def go(work: Awaitable[T]) -> T:
    async def bounded() -> T:
        return await asyncio.wait_for(work, 120)

    return asyncio.run(bounded())


def test_its_tools_stand_before_each_question_and_both_splits_have_their_own(world: mcp.World) -> None:
    task = world.task("train", 0)
    assert task.world == "mcp" and task.messages[0]["role"] == "system"
    assert '"stock"' in task.messages[0]["content"] and "How many of an item" in task.messages[0]["content"]
    keys = {split: {world.task(split, n).key for n in range(world.size(split))} for split in ("train", "heldout")}
    assert keys["train"] and keys["heldout"] and not keys["train"] & keys["heldout"]


def test_calls_in_both_syntaxes_reach_the_server_and_each_attempt_has_its_own(world: mcp.World) -> None:
    task = world.task("train", 0)
    take = '<tool_call>{"name": "take", "arguments": {"item": "bolts", "count": 2}}</tool_call>'
    actions = ["<tool: stock>\nbolts\n</tool>", take, take, gold(world, task)[0]]

    async def both() -> list[Any]:
        return await asyncio.gather(*(replay(world, task, actions) for _ in range(2)))

    for played in go(both()):
        assert played.heard[2:] == ["40", "2 bolts", "2 bolts, 2 bolts"]
        assert played.solved and played.facts["tool_uses"] == 3
    assert not go(replay(world, task, gold(world, task, err=True))).solved
    assert not go(replay(world, task, ["I do not know"])).solved


def test_wrong_calls_are_answered_and_long_answers_cut(world: mcp.World) -> None:
    task = world.task("train", 0)
    actions = ["<tool: stock>\nscrews\n</tool>", "<tool: flood>\n</tool>"]
    actions += ['<tool_call>{"name": "take", "arguments": {"count": 1}}</tool_call>', gold(world, task)[0]]
    played = go(replay(world, task, actions))
    error, flood, missing = played.heard[2:]
    assert error.startswith("error: ")
    assert flood.startswith("first") and flood.endswith("last") and "characters left out" in flood and len(flood) < 200
    assert "'item' is missing" in missing
    assert played.solved and played.facts["refused_calls"] == 1
    assert go(replay(world, task, ["<tool: nosuchtool>\nx\n</tool>"])).invalid


def test_a_late_answer_is_told_and_a_dead_server_is_the_machinerys_failure(world: mcp.World, rows: str) -> None:
    task = world.task("train", 0)
    hasty = mcp.World(None, server=SERVER, tasks=rows, call_timeout_s=1)  # type: ignore[arg-type]
    played = go(replay(hasty, task, ['<tool_call>{"name": "sleep", "arguments": {"seconds": 20}}</tool_call>']))
    assert "timed out" in played.heard[-1]
    with pytest.raises(EnvCrashed, match="the roof came down"):
        go(replay(world, task, ["<tool: die>\n</tool>"]))


def test_what_cannot_be_started_or_is_not_there_is_refused_at_once(rows: str) -> None:
    tries: list[tuple[dict[str, Any], str]] = [
        ({"server": "/nonexistent/server"}, "/nonexistent/server"),
        ({"server": f"{sys.executable} -c 'import sys; sys.exit(\"no licence\")'"}, "no licence"),
        ({"server": SERVER, "tools": ["stok"]}, "available: stock, take"),
        ({"server": " "}, "command line"),
        ({"server": SERVER, "compare": "fuzzy"}, "available: exact, math"),
    ]
    for args, words in tries:
        with pytest.raises(ValueError, match=words):
            mcp.World(None, tasks=rows, **args)  # type: ignore[arg-type]


def test_a_few_tools_may_be_offered(rows: str) -> None:
    world = mcp.World(None, server=SERVER, tasks=rows, tools=["stock"])  # type: ignore[arg-type]
    assert list(world.tools) == ["stock"] and "flood" not in world.task("train", 0).messages[0]["content"]
