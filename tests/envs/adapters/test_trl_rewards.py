"""TRL's reward functions as a world: what they are handed, what they may answer, and how they may fail."""

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from envs import Facts, JudgeFailed, JudgeTimedOut
from envs.adapters.trl_rewards import World

MINE = str(Path(__file__).with_name("trl_examples.py"))


def rows(folder: Path, count: int = 40, **columns: Any) -> str:
    path = folder / "rows.jsonl"
    made = [{"prompt": f"What is {i} + 2?", "answer": i + 2, "kind": "sum", **columns} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return str(path)


def world(data: str, *names: str, **settings: Any) -> World:
    return World(None, data=data, functions=[f"{MINE}:{name}" for name in names], **settings)  # type: ignore[arg-type]


async def one(place: World, action: str) -> Facts:
    env = place.open(place.task("train", 0))
    await env.start()
    assert (await env.step(action)).done
    return await env.measure()


def only(place: World, action: str) -> Facts:
    try:
        return asyncio.run(one(place, action))
    finally:
        asyncio.run(place.close())


def right(place: World) -> str:
    said: str = place.demonstrate(place.task("train", 0), random.Random(0), err=False)[-1]["content"]
    return said


def test_columns_weights_and_what_is_logged(tmp_path: Path) -> None:
    place = world(rows(tmp_path), "exact", "brief", "only_sums", weights=[1.0, 0.1, 2.0], gold="answer")
    facts = only(place, right(place))
    assert facts["parts"] == {"exact": 1.0, "brief": 0.5, "only_sums": 0.25}
    assert facts["reward"] == pytest.approx(1.55) and facts["solved"] is True
    assert facts["extra"] == {"length": len(right(place))} and facts["metrics"]["mean_length"] == len(right(place))
    assert only(place, "I do not know.")["solved"] is False


def test_none_is_left_out_and_only_none_is_no_verdict(tmp_path: Path) -> None:
    data = rows(tmp_path, kind="product")
    facts = only(world(data, "exact", "only_sums"), "no")
    assert facts["parts"] == {"exact": 0.0}
    with pytest.raises(JudgeFailed, match="all returned None"):
        only(world(data, "never", "only_sums"), "no")


def test_async_functions_wait_together(tmp_path: Path) -> None:
    facts = only(world(rows(tmp_path), "slow_judge", "other_judge"), "x")
    assert facts["parts"] == {"slow_judge": 2.0, "other_judge": 2.0}


def test_a_conversation_is_answered_with_a_conversation(tmp_path: Path) -> None:
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"}]
    path = tmp_path / "talk.json"
    path.write_text(json.dumps([{"prompt": [*talk, {"role": "user", "content": str(i)}]} for i in range(20)]))
    place = world(str(path), "contents")
    assert [m["role"] for m in place.task("train", 0).messages] == ["system", "user", "user"]
    assert only(place, "x" * 50)["reward"] == 1.5


def test_trl_s_own_functions_work(tmp_path: Path) -> None:
    path = tmp_path / "boxed.jsonl"
    row = '{"prompt": [{"role": "user", "content": "%d"}], "solution": "$\\\\frac{1}{%d}$"}\n'
    path.write_text("".join(row % (i, i + 1) for i in range(2, 30)))
    place = World(
        None,  # type: ignore[arg-type]
        data=str(path),
        functions=["trl.rewards:accuracy_reward", "trl.rewards:think_format_reward"],
        weights=[1.0, 0.0],
        gold="solution",
        answer="<think>easy</think>\\boxed{{}}",
    )
    facts = only(place, right(place).replace("$", ""))
    assert facts["parts"] == {"accuracy_reward": 1.0, "think_format_reward": 1.0} and facts["solved"]
    assert only(place, "\\boxed{7}")["parts"]["accuracy_reward"] == 0.0


def test_functions_may_print_and_set_alarms(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    facts = only(world(rows(tmp_path), "boxed_alarm", "prints"), "\\boxed{4}")
    assert facts["parts"] == {"boxed_alarm": 1.0, "prints": 1.0}
    assert "a line" not in capfd.readouterr().out


@pytest.mark.parametrize("name, words", [("raises", "KeyError"), ("too_few", "0 rewards"), ("infinite", "finite")])
def test_a_function_that_fails_gives_no_verdict(name: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(JudgeFailed, match=words):
        only(world(rows(tmp_path), name), "x")


def test_one_that_hangs_loses_its_episode_and_the_next_is_judged(tmp_path: Path) -> None:
    async def both(place: World) -> Facts:
        place.functions.timeout_s = 1.0
        with pytest.raises(JudgeTimedOut, match="within 1 s"):
            await one(place, "hang")
        place.functions.timeout_s = 60.0
        return await one(place, "fine")

    place = world(rows(tmp_path), "hangs")
    assert asyncio.run(both(place))["reward"] == 1.0
    place.functions.close()


def test_one_that_dies_loses_its_episode_and_the_next_is_judged(tmp_path: Path) -> None:
    async def both(place: World) -> Facts:
        with pytest.raises(JudgeFailed, match="code 7"):
            await one(place, "die")
        return await one(place, "fine")

    place = world(rows(tmp_path), "dies")
    assert asyncio.run(both(place))["reward"] == 1.0
    place.functions.close()


@pytest.mark.parametrize("fatal, error", [("hang", JudgeTimedOut), ("die", JudgeFailed)])
def test_waiting_in_line_is_nobody_s_time_and_the_line_is_asked_again(fatal: str, error: type, tmp_path: Path) -> None:
    async def several(place: World) -> list[Any]:
        await one(place, "fine")
        place.functions.timeout_s = 2.0
        said = ["fine", fatal, *["fine"] * 28]  # in line for longer than one may take
        return await asyncio.gather(*(one(place, action) for action in said), return_exceptions=True)

    place = world(rows(tmp_path), "sleeps")
    first, lost, *others = asyncio.run(several(place))
    place.functions.close()
    assert isinstance(lost, error) and [facts["reward"] for facts in (first, *others)] == [1.0] * 29


def test_a_table_of_any_kind_is_read_and_what_is_absent_is_none(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("prompt,answer,kind\n" + "".join(f"{i}?,{i},\n" for i in range(40)) + "40?,40,sum\n")
    assert only(world(str(path), "exact", "only_sums", gold="answer"), "no")["parts"] == {"exact": 0.0}


def test_a_column_that_is_no_json_can_be_left_out(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    made = [{"prompt": f"{i}?", "answer": str(i), "image": b"\x00"} for i in range(20)]
    parquet.write_table(pyarrow.Table.from_pylist(made), path)
    with pytest.raises(ValueError, match="`image` is bytes; leave it out by `columns`"):
        world(str(path), "exact")
    assert world(str(path), "exact", columns=["prompt", "answer"]).size("train") > 10


def test_splits_are_by_prompt_and_a_prompt_is_one_task(tmp_path: Path) -> None:
    path = Path(rows(tmp_path, count=60))
    path.write_text(path.read_text() + path.read_text().replace('"sum"', '"product"'))
    place = world(str(path), "exact")
    train, held = ({place.task(split, i).key for i in range(200)} for split in ("train", "heldout"))  # type: ignore[arg-type]
    assert not train & held and len(train | held) == 60 and place.stream.report.duplicates == 60
    assert "answer" not in place.task("train", 0).given


@pytest.mark.parametrize(
    "names, settings, words",
    [
        (["tokens"], {}, "completion_ids"),
        (["by_state"], {}, "trainer_state"),
        (["exact"], {"columns": ["prompt", "kind"]}, "demands the column 'answer'; available: kind"),
        (["exakt"], {}, "did you mean exact"),
        (["exact"], {"weights": [1.0, 2.0]}, "2 weights for 1"),
        (["exact"], {"gold": "gold"}, "no column 'gold'"),
        (["exact"], {"columns": ["prompt", "x"]}, "no column 'x'"),
        (["MINE"], {}, "has no 'MINE'"),
        ([], {}, "expected a list"),
    ],
)
def test_a_bad_configuration_is_one_sentence(
    names: list[str], settings: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        world(rows(tmp_path), *names, **settings)
    assert "\n" not in str(caught.value)


def test_without_gold_there_is_no_right_demonstration(tmp_path: Path) -> None:
    place = world(rows(tmp_path), "exact")
    with pytest.raises(ValueError, match="give `gold`"):
        place.demonstrate(place.task("train", 0), random.Random(0), err=False)
