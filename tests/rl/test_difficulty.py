"""Tasks that are always or never solved are drawn less, by what the ledger says; a world never dries up."""

import random
from dataclasses import replace

import pytest

from envs import load
from rl.config import RunConfig, WorldConfig
from rl.difficulty import LOOK, Difficulty
from rl.mix import Row
from rl.stages import DifficultyConfig, StageConfig
from tests.rl.test_mix import row

ARGS = {"families": ["arithmetic", "compare"], "levels": [0]}


def settings(**bounds: object) -> RunConfig:
    world = WorldConfig(args=ARGS, difficulty=DifficultyConfig(**bounds))  # type: ignore[arg-type]
    return RunConfig(worlds={"math": world})


def seen(lease: int, family: str, solved: int, *, key: str = "k") -> Row:
    return replace(row(lease, "math", 10), key=key, family=family, solved=solved)


def families(difficulty: Difficulty, count: int, version: int = 0) -> list[str]:
    """Families of the next `count` tasks that would be granted."""
    stream, index, out = load("math").World(None, **ARGS), 0, []
    for _ in range(count):
        index = difficulty.next("math", index, version)
        out.append(stream.task("train", index).family)
        index += 1
    return out


def test_as_configured_by_default_nothing_is_passed_over() -> None:
    difficulty = Difficulty(settings(), [seen(0, "arithmetic", 0)])
    assert [difficulty.next("math", index, 0) for index in range(50)] == list(range(50))


@pytest.mark.parametrize(("solved", "drawn"), [(0, False), (1, True), (5, True), (6, False), (8, False)])
def test_a_family_outside_the_bounds_is_left_out(solved: int, drawn: bool) -> None:
    difficulty = Difficulty(settings(low=0.1, high=0.7, by="family", keep=0.0), [seen(0, "compare", solved)])
    found = families(difficulty, 50)
    assert ("compare" in found) == drawn
    told = difficulty.told({"math": {"share": 1.0}})["math"]
    assert told["share"] == 1.0 and bool(told["skipped"]) != drawn
    assert difficulty.told({"math": {}}) == {"math": {"skipped": 0}}


def test_too_few_attempts_mean_nothing_and_old_ones_are_forgotten() -> None:
    config = settings(low=0.1, high=0.7, by="family", keep=0.0, least=16, window=16)
    difficulty = Difficulty(config, [seen(0, "compare", 0)])
    assert "compare" in families(difficulty, 50), "8 attempts of 16"
    difficulty.add(seen(1, "compare", 0))
    assert "compare" not in families(difficulty, 50)
    for lease in (2, 3):
        difficulty.add(seen(lease, "compare", 4))
    assert "compare" in families(difficulty, 50)
    assert difficulty.rate("math", "family compare 0", 16) == (16, 0.5)


def test_some_of_what_is_outside_is_drawn_nevertheless_and_always_the_same() -> None:
    config = settings(high=0.7, by="family", keep=0.25)
    found = families(Difficulty(config, [seen(0, "compare", 8)]), 800)
    share = found.count("compare") / len(found)
    assert share == pytest.approx(0.2, abs=0.05), "a quarter of one half, beside the other half"
    assert found == families(Difficulty(config, [seen(0, "compare", 8)]), 800)


def test_one_task_is_left_out_by_its_own_attempts() -> None:
    first = load("math").World(None, **ARGS).task("train", 0)
    config = settings(high=0.9, keep=0.0)
    assert Difficulty(config, [seen(0, first.family, 8, key=first.key)]).next("math", 0, 0) == 1
    assert Difficulty(config, [seen(0, first.family, 8, key="another")]).next("math", 0, 0) == 0


def test_a_world_never_dries_up() -> None:
    rows = [seen(0, "compare", 0), seen(1, "arithmetic", 0)]
    difficulty = Difficulty(settings(low=0.1, by="family", keep=0.0), rows)
    assert difficulty.next("math", 7, 0) == 7
    assert LOOK < 1000, "looking must stay cheap"


def test_it_holds_in_the_stage_that_asks_for_it() -> None:
    bounds = {"low": 0.1, "by": "family", "keep": 0.0}
    config = replace(settings(), stages=[StageConfig(until_step=5, worlds={"math": {"difficulty": bounds}})])
    difficulty = Difficulty(config, [seen(0, "compare", 0)])
    assert "compare" not in families(difficulty, 50, version=4)
    assert "compare" in families(difficulty, 50, version=5)


def test_rates_do_not_depend_on_the_order_in_which_leases_came_back() -> None:
    rows = [seen(lease, "compare", lease % 9) for lease in range(60)]
    rng = random.Random(0)
    expected = Difficulty(settings(), rows).rate("math", "family compare 0", 64)
    for _ in range(5):
        assert Difficulty(settings(), rng.sample(rows, 60)).rate("math", "family compare 0", 64) == expected
