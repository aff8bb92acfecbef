"""Gymnasium's own environments, and classes of its two relatives, as worlds of text."""

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest

from envs import EnvCrashed, Facts, Message
from envs.adapters.gymnasium import World
from envs.adapters.shared.played import uncoloured

MINE = str(Path(__file__).with_name("gym_examples.py"))
MOVES = ["left", "down", "right", "up"]


def world(env: str, **settings: Any) -> World:
    return World(None, env=env, **settings)  # type: ignore[arg-type]


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
        await env.close()


def lake(**settings: Any) -> World:
    pytest.importorskip("gymnasium")
    return world("FrozenLake-v1", args={"is_slippery": False}, actions=MOVES, **settings)


def test_a_lake_is_crossed_by_names_and_numbers() -> None:
    way = ["<action>down</action>", "Down", "I go <action>2</action>", "1", "right", "<action>Right</action>"]
    heard, facts = asyncio.run(play(lake(), way))
    assert "left, down, right, up, or a number from 0 to 3" in heard[0]["content"] and heard[0]["content"].endswith("0")
    assert [message["content"] for message in heard[1:]] == ["4", "8", "9", "13", "14"]
    assert facts["solved"] and facts["rewards"] == [0.0] * 5 + [1.0] and facts["reward"] == 1.0
    assert facts["ended"] == "terminated" and not facts["truncated"]


def test_what_is_not_understood_costs_a_turn_and_is_answered() -> None:
    heard, facts = asyncio.run(play(lake(max_turns=3), ["jump", "7", "<action>down</action>"]))
    assert "There is no action 'jump'. Expected left, down" in heard[1]["content"] and "'7'" in heard[2]["content"]
    assert facts["misread"] == 2 and facts["ended"] == "turns" and facts["truncated"] and not facts["solved"]


def test_refusing_to_act_pays_less_than_solving_where_each_step_costs() -> None:
    pytest.importorskip("gymnasium")
    way = ["0"] + ["1"] * 11 + ["2"]
    place = world("CliffWalking-v1", max_turns=20)
    solved, refused = (asyncio.run(play(place, said))[1]["reward"] for said in (way, ["hello"] * 20))
    assert solved == -13.0 and refused < solved
    assert asyncio.run(play(place, ["hello", *way]))[1]["reward"] < solved
    stated = world("CliffWalking-v1", max_turns=20, misread_reward=-2.0)
    assert asyncio.run(play(stated, ["hello", *way]))[1]["reward"] == -15.0
    assert asyncio.run(play(lake(max_turns=3), ["jump"] * 3))[1]["reward"] == 0.0


def test_a_hole_ends_it_and_a_time_limit_cuts_it() -> None:
    assert asyncio.run(play(lake(), ["right", "down"]))[1]["ended"] == "terminated"
    place = world("FrozenLake-v1", args={"is_slippery": False, "max_episode_steps": 2}, actions=MOVES)
    facts = asyncio.run(play(place, ["left"] * 5))[1]
    assert facts["ended"] == "truncated" and facts["truncated"] and len(facts["rewards"]) == 2


def test_a_drawing_is_shown_without_colours() -> None:
    heard, _ = asyncio.run(play(lake(render=True), ["down"]))
    assert uncoloured("\x1b[1mA\x1b[0m\x1b[32mB\x1b[0m\x1b[41mC\x1b[0m\n") == "A(B)[C]"
    assert "[S]FFF" in heard[0]["content"] and "[F]HFH" in heard[1]["content"] and "\x1b" not in str(heard)


def test_the_expert_crosses_and_chance_does_not() -> None:
    place = lake(expert=f"{MINE}:straight")
    task = place.task("train", 0)
    for err in (False, True):
        talk = place.demonstrate(task, random.Random(0), err=err)
        said = [message["content"] for message in talk if message["role"] == "assistant"]
        heard, facts = asyncio.run(play(place, said))
        assert facts["solved"] is not err and [m for m in talk if m["role"] != "assistant"] == heard
    with pytest.raises(ValueError, match="give `expert`"):
        lake().demonstrate(task, random.Random(0), err=False)
    lake().demonstrate(task, random.Random(0), err=True)
    with pytest.raises(ValueError, match="does not solve it"):
        lake(expert=f"{MINE}:stuck").demonstrate(task, random.Random(0), err=False)


def test_a_task_is_a_seed_of_its_split() -> None:
    pytest.importorskip("gymnasium")
    place = world("Blackjack-v1", actions=["stick", "hit"])
    train, held = ({place.task(split, i).key for i in range(300)} for split in ("train", "heldout"))  # type: ignore[arg-type]
    assert len(train) == len(held) == 300 and not train & held
    starts = [asyncio.run(play(place, ["stick"], index))[0][0]["content"] for index in (0, 0, 1, 2, 3, 4)]
    assert starts[0] == starts[1] and len(set(starts)) > 1
    assert world("Blackjack-v1", seed=1).task("train", 0).key != place.task("train", 0).key
    assert world("Blackjack-v1", seed=1).task("heldout", 0).key == place.task("heldout", 0).key


def test_taxi_and_a_space_of_numbers() -> None:
    gymnasium = pytest.importorskip("gymnasium")
    heard, facts = asyncio.run(play(world("Taxi-v4", solved_at=5.0, max_turns=2), ["0", "1"]))
    assert facts["reward"] == -2.0 and not facts["solved"] and len(heard) == 2
    box = gymnasium.spaces.Box(-1.0, 1.0, (2,))
    from envs.adapters.shared import spaces

    reader = spaces.reader(box, ())
    assert reader.read("<action>[0.5, -1]</action>").tolist() == [0.5, -1.0]
    for wrong in ("[2, 0]", "[0.5]", "half", "[[0]]", '["a", 1]', "NaN", "[NaN, 0]", "1" * 5000):
        with pytest.raises(ValueError):
            reader.read(wrong)


def test_four_tuples_of_old_gym() -> None:
    place = world(f"{MINE}:Four", max_turns=6)
    index = next(i for i in range(99) if place.task("train", i).given["seed"] % 5 == 2)
    heard, facts = asyncio.run(play(place, ["up", "up"], index))
    assert heard[0]["content"].endswith("At 0, wanted 2.") and heard[1]["content"] == "At 1."
    assert facts["solved"] and facts["rewards"] == [0.0, 1.0]
    facts = asyncio.run(play(world(f"{MINE}:Cut"), ["up"]))[1]
    assert facts["ended"] == "truncated" and not facts["solved"]


def test_success_is_what_the_environment_says_it_is() -> None:
    place = world(f"{MINE}:Told", expert=f"{MINE}:up")
    facts = asyncio.run(play(place, ["up"]))[1]
    assert facts["solved"] and facts["reward"] == -5.0 and json.dumps(facts)
    assert not asyncio.run(play(place, ["down"]))[1]["solved"]


def test_rows_and_messages_of_skyrl_gym(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    made = [
        {"prompt": [{"role": "user", "content": f"Say {i}."}], "reward_spec": {"ground_truth": str(i)}}
        for i in range(30)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    place = world(f"{MINE}:TwoMoves", data=str(path), args={"bonus": 0.25})
    gold = place.task("train", 0).hidden["columns"]["reward_spec"]["ground_truth"]
    heard, facts = asyncio.run(play(place, ["hm", gold]))
    assert [m["content"] for m in heard] == [f"Say {gold}.", "Two words.", "And?"]
    assert facts["rewards"] == [0.25, 1.0] and facts["solved"] and facts["info"] == {"turn": 2}
    with pytest.raises(ValueError, match="expected `data`"):
        world(f"{MINE}:TwoMoves")


def test_skyrl_gym_s_own_environment(tmp_path: Path) -> None:
    pytest.importorskip("skyrl_gym")
    path = tmp_path / "rows.jsonl"
    made = [
        {"prompt": [{"role": "user", "content": f"{i}?"}], "reward_spec": {"ground_truth": str(i)}} for i in range(30)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    place = world("skyrl_gym.envs.gsm8k.env:GSM8kEnv", data=str(path))
    gold = place.task("train", 0).hidden["columns"]["reward_spec"]["ground_truth"]
    assert asyncio.run(play(place, [f"#### {gold}"]))[1]["solved"]
    assert not asyncio.run(play(place, ["#### 77"]))[1]["solved"]


@pytest.mark.parametrize(
    "name, actions", [("Wrong", ["nan"]), ("Wrong", ["two"]), ("Wrong", ["x"]), ("Unseeded", ["up"])]
)
def test_what_breaks_loses_the_episode(name: str, actions: list[str]) -> None:
    with pytest.raises(EnvCrashed):
        asyncio.run(play(world(f"{MINE}:{name}"), actions))


@pytest.mark.parametrize(
    "env, settings, words",
    [
        ("FrozenLake-v1", {"actions": ["a", "b"]}, "got 2 names in `actions`; expected 4"),
        ("FrozenLake-v1", {"args": {"nonsense": 1}}, "cannot be made"),
        ("FrozenLake-v1", {"max_turns": 0}, "expected 1 or more"),
        ("FrozenLake-v1", {"data": "x.jsonl"}, "`data` has no effect"),
        ("FrozenLike-v1", {}, "there is no environment"),
        (f"{MINE}:Nothing", {}, "has no 'Nothing'"),
        (f"{MINE}:up", {}, "cannot be made"),
    ],
)
def test_a_bad_configuration_is_one_sentence(env: str, settings: dict[str, Any], words: str) -> None:
    pytest.importorskip("gymnasium")
    with pytest.raises(ValueError, match=words) as caught:
        world(env, **settings)
    assert "\n" not in str(caught.value)
