"""Data sets of reasoning-gym as worlds: what they pay, what they must not, and what they never run."""

import ast
import asyncio
import inspect
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from envs import Facts, JudgeFailed

pytest.importorskip("reasoning_gym")

from reasoning_gym.factory import DATASETS

from envs.adapters import reasoning_gym as adapter
from envs.adapters.reasoning_gym import World, extract
from envs.adapters.shared.reference import resolve

EVALUATING = {"eval", "exec", "parse_expr", "sympify"}
SEVERAL = (
    "leg_counting",
    "countdown",
    "n_queens",
    "spiral_matrix",
    "sudoku",
    "gsm_symbolic",
    "puzzle24",
)


MADE: list[World] = []


def world(dataset: str, **settings: Any) -> World:
    MADE.append(World(None, dataset=dataset, **settings))  # type: ignore[arg-type]
    return MADE[-1]


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    while MADE:
        asyncio.run(MADE.pop().close())


def answered(place: World, answer: str, index: int = 0) -> Facts:
    async def play() -> Facts:
        env = place.open(place.task("train", index))
        try:
            await env.start()
            assert (await env.step(f"Well. <answer>{answer}</answer>")).done
            return await env.measure()
        finally:
            await env.close()

    return asyncio.run(play())


@pytest.mark.parametrize("dataset", SEVERAL)
def test_the_expert_is_right_and_when_wrong_is_wrong(dataset: str) -> None:
    place = world(dataset)
    for index in range(3):
        task = place.task("train", index)
        if task.hidden["answer"] is not None:
            right = place.demonstrate(task, random.Random(0), err=False)[-1]["content"]
            facts = answered(place, extract(right) or "", index)
            assert facts["solved"] and facts["reward"] == facts["score"] == 1.0, facts
        wrong = place.demonstrate(task, random.Random(0), err=True)[-1]["content"]
        assert not answered(place, extract(wrong) or "", index)["solved"]


def test_splits_never_meet_and_repeat() -> None:
    place, again, other = world("leg_counting"), world("leg_counting"), world("leg_counting", seed=1)
    train, held = ([place.task(split, i) for i in range(150)] for split in ("train", "heldout"))  # type: ignore[arg-type]
    assert not {task.key for task in train} & {task.key for task in held}
    assert len({task.key for task in train}) > 100 and len({task.key for task in held}) > 100
    assert [again.task("train", i).content_hash for i in range(20)] == [task.content_hash for task in train[:20]]
    assert other.task("train", 0).key != train[0].key and other.task("heldout", 0).key == held[0].key
    assert place.task("train", 10**7).key not in {task.key for task in train}


def test_an_answer_that_contains_the_right_one_earns_nothing() -> None:
    place = world("leg_counting")
    gold = place.task("train", 0).hidden["answer"]
    made, entry = place.entry(place.task("train", 0))
    flood = " ".join(map(str, range(1, 2000)))
    assert made.score_answer(f"{gold} or so", entry) > 0  # what the package itself would pay
    for answer in (f"{gold} or so", f"1{gold}", flood):
        facts = answered(place, answer)
        assert facts["reward"] == 0.0 and not facts["solved"] and facts["verdict"] == "contains the right answer"


def test_an_honest_part_is_paid_and_is_no_solution() -> None:
    place = world("countdown")
    _, entry = place.entry(place.task("train", 0))
    facts = answered(place, " + ".join(map(str, entry["metadata"]["numbers"])))
    assert not facts["solved"] and 0 < facts["reward"] == facts["score"] < 1


def test_what_puzzle24_would_take_with_other_numbers_is_wrong() -> None:
    place = world("puzzle24")
    index = next(
        i for i in range(99) if sorted(place.entry(place.task("train", i))[1]["metadata"]["numbers"]) != [1, 1, 4, 6]
    )
    made, entry = place.entry(place.task("train", index))
    assert made.score_answer("6*4*1*1", entry) == 1.0  # the package asks only for four numbers of the range
    facts = answered(place, "6*4*1*1", index)
    assert not facts["solved"] and facts["reward"] == 0.0


@pytest.mark.parametrize("dataset, answer", [("coin_flip", "0"), ("game_of_life_halting", "perhaps")])
def test_what_a_scorer_takes_though_it_is_wrong_is_wrong(dataset: str, answer: str) -> None:
    place = world(dataset)
    for index in range(3):
        made, entry = place.entry(place.task("train", index))
        assert made.score_answer(answer, entry) == 1.0
        facts = answered(place, answer, index)
        assert not facts["solved"] and facts["reward"] == 0.0
        assert answered(place, entry["answer"], index)["solved"]


def test_a_number_of_a_billion_digits_is_not_written_out() -> None:
    for answer in ("1e999999999", "1e10_000_000"):
        facts = answered(world("coin_flip"), answer)
        assert not facts["solved"] and "thousands of digits" in facts["verdict"]
    assert not answered(world("coin_flip"), "1e1,000,000")["solved"]


def test_sets_in_the_order_of_the_process_need_a_fixed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    with pytest.raises(ValueError, match="PYTHONHASHSEED=0"):
        world("ransom_note")
    monkeypatch.setenv("PYTHONHASHSEED", "3")
    assert world("ransom_note").task("train", 0).key == world("ransom_note").task("train", 0).key


@pytest.mark.parametrize("dataset", sorted(adapter.SIGNS))
def test_no_answer_is_run_as_python(dataset: str, capfd: pytest.CaptureFixture[str]) -> None:
    place = world(dataset)
    for code in (
        "print('run')",
        "__import__('os').system('echo run')",
        "9**9**9**9",
        "(lambda: 1)()",
        "[print('run')]",
    ):
        facts = answered(place, code)
        assert not facts["solved"] and facts["reward"] == 0.0 and "signs" in facts["verdict"]
    assert "run" not in capfd.readouterr().out


def test_every_module_that_evaluates_is_known() -> None:
    """Read from the source of the installed package: a new release may bring another."""
    found = set()
    for name, (made, _) in DATASETS.items():
        tree = ast.parse(Path(inspect.getfile(made)).read_text())
        calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
        if {getattr(call, "id", getattr(call, "attr", "")) for call in calls} & EVALUATING:
            found.add(name)
    # These evaluate what they made themselves, or have a parser of their own, and never the policy's text.
    harmless = {"basic_arithmetic", "bitwise_arithmetic", "codeio", "number_sorting", "propositional_logic"}
    assert found - harmless == set(adapter.SIGNS) | {
        name for name in adapter.REFUSED if "integration" in name or "poly" in name
    }


@pytest.fixture
def brittle(monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(__file__).with_name("brittle.py")
    resolve(f"{path}:score", "scorer")
    monkeypatch.setattr(adapter, "SCORER", f"{path}:score")


@pytest.mark.parametrize("answer, why", [("hold", "too long"), ("grow", "MemoryError")])
def test_an_answer_that_keeps_the_scorer_or_its_memory_is_wrong(answer: str, why: str, brittle: None) -> None:
    place = world("brittle")
    place.functions.timeout_s = 2.0
    facts = answered(place, answer)
    assert not facts["solved"] and facts["reward"] == 0.0 and why in facts["verdict"]
    place.functions.timeout_s = 30.0
    assert answered(place, "42")["solved"]


def test_a_cube_turned_ten_million_times_is_not_solved() -> None:
    place = world("rubiks_cube")
    place.functions.timeout_s = 2.0
    facts = answered(place, "F9999999")
    assert not facts["solved"] and facts["reward"] == 0.0


def test_an_answer_that_breaks_the_scorer_is_wrong_and_a_broken_scorer_no_verdict(brittle: None) -> None:
    facts = answered(world("brittle"), "7000")
    assert facts["reward"] == 0.0 and "ZeroDivisionError" in facts["verdict"]
    assert answered(world("brittle"), "42")["solved"]
    with pytest.raises(JudgeFailed, match="no scorer today"):
        answered(world("brittle", args={"broken": True}), "7000")


def test_splits_never_meet_though_there_are_few_problems(brittle: None) -> None:
    place = world("brittle", args={"few": True})
    train, held = ({place.task(split, i).key for i in range(200)} for split in ("train", "heldout"))  # type: ignore[arg-type]
    assert train and held and not train & held and len(train | held) > 30


def test_marks() -> None:
    assert extract("<answer>1</answer> no, <answer> 2 </answer>") == "2"
    assert extract("between <answer> and <answer>3</answer>") == "3"
    assert extract("4") is None and extract("<answer></answer>") is None and extract("<answer>5") is None


@pytest.mark.parametrize(
    "dataset, settings, words",
    [
        ("leg_count", {}, "there is no data set 'leg_count'; available: .*leg_counting"),
        ("simple_integration", {}, "as Python"),
        ("codeio", {}, "another problem each time"),
        ("leg_counting", {"args": {"legs": 3}}, "refuses"),
        ("leg_counting", {"args": {"min_animals": -1}}, "refuses"),
        ("leg_counting", {"args": {"seed": 3}}, "args.seed has no effect"),
    ],
)
def test_a_bad_configuration_is_one_sentence(dataset: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        world(dataset, **settings)
    assert "\n" not in str(caught.value)
