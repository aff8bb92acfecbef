"""Classes for TRL's `environment_factory` as a world, as TRL's trainer would use them."""

import asyncio
import inspect
import json
import random
from pathlib import Path
from typing import Any

import pytest

from envs import EnvCrashed, Facts, JudgeFailed, Message
from envs.adapters.trl_environment import World

MINE = str(Path(__file__).with_name("trl_examples.py"))


def rows(folder: Path, count: int = 40, **columns: Any) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": "Count.", "target": i, **columns}) + "\n" for i in range(count)))
    return str(path)


def world(data: str | None, factory: Any = f"{MINE}:Counter", **settings: Any) -> World:
    return World(None, factory=factory, data=data, **settings)  # type: ignore[arg-type]


async def play(place: World, actions: list[str], index: int = 0) -> tuple[list[Message], Facts]:
    env = place.open(place.task("train", index))
    try:
        heard = list(await env.start())
        for action in actions:
            step = await env.step(action)
            heard += step.messages
            if step.done:
                break
        return heard, await env.measure()
    finally:
        await env.close()
        await place.close()


def added(step: int) -> str:
    return f'<tool_call>{{"name": "increment", "arguments": {{"step": {step}}}}}</tool_call>'


def test_an_attempt_resets_calls_tools_and_is_scored(tmp_path: Path) -> None:
    place = world(rows(tmp_path))
    target = place.task("train", 0).hidden["columns"]["target"]
    heard, facts = asyncio.run(play(place, ["<tool: double>\n</tool>", added(target), "Done."]))
    assert [m["role"] for m in heard] == ["system", "user", "tool", "tool"]
    assert heard[1]["content"] == f"Count. Reach {target}." and [m["content"] for m in heard[2:]] == ["0", str(target)]
    assert facts == {
        "solved": True,
        "reward": 1.0,
        "parts": {"Counter": 1.0},
        "calls": 2,
        "tool_errors": 0,
        "turns": 3,
        "truncated": False,
    }


def test_the_policy_hears_what_a_tool_raises_and_what_was_wrong_with_its_call(tmp_path: Path) -> None:
    place = world(rows(tmp_path), max_turns=4)
    calls = [
        added(101),
        '<tool_call>{"name": "increment", "arguments": {"step": "x"}}</tool_call>',
        "<tool: _secret>\n</tool>",
    ]
    heard, facts = asyncio.run(play(place, [*calls, added(1)]))
    said = [message["content"] for message in heard if message["role"] == "tool"]
    assert "Steps are at most 100." in said[0] and "step" in said[1] and "there is no tool '_secret'" in said[2]
    assert facts["tool_errors"] == 3 and facts["calls"] == 2 and facts["truncated"] is True and facts["turns"] == 4


def test_attempts_share_nothing(tmp_path: Path) -> None:
    place = world(rows(tmp_path))
    target = place.task("train", 0).hidden["columns"]["target"]

    async def both() -> list[tuple[list[Message], Facts]]:
        return await asyncio.gather(play(place, [added(target), "Done."]), play(place, ["Done."]))

    (_, right), (_, wrong) = asyncio.run(both())
    assert right["solved"] and not wrong["solved"]


def test_the_schema_of_a_tool_is_the_one_that_trl_shows_the_model(tmp_path: Path) -> None:
    from transformers.utils import get_json_schema

    place = world(rows(tmp_path))
    made = place.classes[""].make()
    for name, tool in place.classes[""].tools.items():
        ours, theirs = tool.schema["function"], get_json_schema(getattr(made, name))["function"]
        assert ours["name"] == theirs["name"] and ours["description"] == theirs["description"]
        assert ours["parameters"] == theirs["parameters"]


def test_the_tools_are_those_that_trl_would_take(tmp_path: Path) -> None:
    place = world(rows(tmp_path))
    instance = place.classes[""].make()
    names = [name for name, _ in inspect.getmembers(type(instance), predicate=inspect.isfunction)]
    assert set(place.classes[""].tools) == {n for n in names if n not in ("reset", "get_reward") and n[0] != "_"}


def test_functions_judge_the_conversation_beside_or_without_get_reward(tmp_path: Path) -> None:
    data = rows(tmp_path, word="hello")
    place = world(data, f"{MINE}:Echo", functions=[f"{MINE}:says"])
    assert asyncio.run(play(place, ["<tool: say>\nhello\n</tool>", "."]))[1]["parts"] == {"says": 1.0}
    assert asyncio.run(play(place, ["<tool: say>\nbye\n</tool>", "."]))[1]["reward"] == 0.0
    heard, _ = asyncio.run(play(place, ["<tool: say>\nmuch\n</tool>", "."]))
    assert len(heard[-1]["content"]) < 4100 and heard[-1]["content"].endswith("characters more")


def test_a_column_chooses_among_classes(tmp_path: Path) -> None:
    path = tmp_path / "both.jsonl"
    made = [{"prompt": "p", "environment": ("count", "echo")[i % 2], "target": i, "word": str(i)} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    classes = {"count": f"{MINE}:Counter", "echo": f"{MINE}:Echo"}
    place = world(str(path), classes, functions=[f"{MINE}:says"])
    seen = {place.task("train", i).family: place.task("train", i) for i in range(20)}
    assert set(seen) == {"Counter", "Echo"}
    echo = next(i for i in range(20) if place.task("train", i).family == "Echo")
    word = place.task("train", echo).hidden["columns"]["word"]
    assert asyncio.run(play(place, [f"<tool: say>\n{word}\n</tool>", "."], echo))[1]["parts"] == {"says": 1.0}
    assert (
        "increment" in seen["Counter"].messages[0]["content"] and "increment" not in seen["Echo"].messages[0]["content"]
    )


def test_a_prompt_is_on_one_side_of_the_split_whatever_else_its_rows_say(tmp_path: Path) -> None:
    path = tmp_path / "orders.jsonl"
    made = [{"prompt": f"Count {i % 20}.", "target": i % 20, "id": i} for i in range(100)]
    path.write_text("".join(json.dumps(row) + "\n" for row in made))

    def sides(data: str, column: str, **settings: Any) -> list[set[Any]]:
        place = world(data, **settings)
        tasks = [[place.task(s, i) for i in range(place.size(s) or 0)] for s in ("train", "heldout")]  # type: ignore[arg-type]
        return [{task.hidden["columns"][column] for task in side} for side in tasks]

    for settings in ({}, {"split_by": ["target"]}):
        train, held = sides(str(path), "prompt", **settings)
        assert train and held and not train & held and len(train | held) == 20
        assert sum(map(len, sides(str(path), "id", **settings))) == 100
    same = rows(tmp_path)  # one prompt for all: the row decides
    assert all(sides(same, "target"))
    with pytest.raises(ValueError, match="no column 'goal'; available: prompt"):
        world(same, split_by=["goal"])
    with pytest.raises(ValueError, match="has no effect without `data`"):
        world(None, split_by=["goal"])


def test_without_data_a_task_is_a_seed() -> None:
    place = world(None, task_prompt="Go.")
    train, held = ({place.task(split, i).key for i in range(300)} for split in ("train", "heldout"))  # type: ignore[arg-type]
    assert len(train) == len(held) == 300 and not train & held
    assert place.task("train", 3).content_hash == world(None, task_prompt="Go.").task("train", 3).content_hash


def test_what_breaks_loses_the_episode() -> None:
    place = world(None, f"{MINE}:Broken")
    odd = next(i for i in range(99) if place.task("train", i).hidden["columns"]["seed"] % 2)
    even = next(i for i in range(99) if place.task("train", i).hidden["columns"]["seed"] % 2 == 0)
    with pytest.raises(EnvCrashed, match="no reset today"):
        asyncio.run(play(place, ["."], odd))
    with pytest.raises(JudgeFailed, match="no reward today"):
        asyncio.run(play(place, ["."], even))


def test_demonstrations_are_played(tmp_path: Path) -> None:
    place = world(rows(tmp_path), demonstration=f"{MINE}:reach")
    task = place.task("train", 0)
    talk = place.demonstrate(task, random.Random(0), err=False)
    said = [message["content"] for message in talk if message["role"] == "assistant"]
    heard, facts = asyncio.run(play(place, said))
    assert facts["solved"] and [m for m in talk if m["role"] != "assistant"] == heard
    wrong = [m["content"] for m in place.demonstrate(task, random.Random(0), err=True) if m["role"] == "assistant"]
    assert asyncio.run(play(place, wrong))[1]["solved"] is (task.hidden["columns"]["target"] == 0)
    with pytest.raises(ValueError, match="give `demonstration`"):
        world(rows(tmp_path)).demonstrate(task, random.Random(0), err=False)


@pytest.mark.parametrize(
    "factory, settings, words",
    [
        (f"{MINE}:Unscored", {}, "nothing gives a reward"),
        (f"{MINE}:Untyped", {}, "number"),
        (f"{MINE}:exact", {}, "cannot be called"),
        (f"{MINE}:Echo", {"functions": [f"{MINE}:says"]}, "demands 'word'"),
        ({"a": f"{MINE}:Counter"}, {}, "no column 'environment'"),
        (f"{MINE}:Judge", {}, "without a method `reset`"),
        ("nowhere.py:A", {}, "there is no file"),
        ("nowhere", {}, "expected `module:name`"),
    ],
)
def test_a_bad_configuration_is_one_sentence(
    factory: Any, settings: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        world(rows(tmp_path), factory, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("factory", [f"{MINE}:Seedless", {"a": f"{MINE}:Counter"}])
def test_without_data_and_a_seed_it_is_refused(factory: Any) -> None:
    with pytest.raises(ValueError, match="takes `seed`"):
        world(None, factory)
