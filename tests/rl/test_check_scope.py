"""`rl check`: what is the world's and what a few tasks', and that a check which was stopped finds the same."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from envs import Task
from rl.check.player import Order, Player
from rl.check.result import Result
from rl.check.streams import leaks_together
from rl.check.watch import Page, Watch
from tests.rl.checking import IMAGE, heard

PLANTED = str(Path(__file__).with_name("planted.py"))
BAD = "tests.rl.planted_bad"


def test_what_fails_on_every_task_that_was_tried_is_the_worlds() -> None:
    result = heard(PLANTED, None, fault="contains", finite=20)
    assert {f["kind"] for f in result.faults} == {"malformed-scores"} and len(result.faults) == 8
    assert [why.split(" (")[0] for why in result.unfit_world()] == ["malformed-scores on 8 of 8 tasks"]
    result.faults = result.faults[:4]
    assert not result.unfit_world() and len(result.unfit_tasks()) == 4, "not more than half"


def test_what_every_phase_looks_for_is_counted_over_all_tasks() -> None:
    result = Result(PLANTED, {}, tasks={f"train/{n}": "x" for n in range(40)}, whole={"train": True, "heldout": True})
    result.played = {"gold": {("train", n) for n in range(8)}, "each": {("train", n) for n in range(8, 40)}}
    for n in range(20):
        result.add({"kind": "raises", "split": "train", "index": n, "key": str(n), "words": "so", "phase": "gold"})
    assert not result.unfit_world() and result.share("raises") == (20, 40)
    result.add({"kind": "raises", "split": "train", "index": 20, "key": "20", "words": "so", "phase": "each"})
    assert result.unfit_world() == ["raises on 21 of 40 tasks (so)"]


def test_an_answer_at_one_place_of_every_prompt_is_a_fault_of_every_task() -> None:
    result = heard(PLANTED, None, fault="leak-place", finite=20)
    assert len(result.faults) == 40 and {f["kind"] for f in result.faults} == {"leak"}
    assert result.unfit_world()[0].startswith("leak on 40 of 40 tasks")


def test_an_answer_at_one_place_in_one_family_is_a_fault_of_that_family() -> None:
    def task(family: str, number: int) -> Task:
        said = f"Mind {number} well." if family == "told" else f"Guess {'so ' * number}."
        message = {"role": "user", "content": said}
        hidden = {"answer": str(number)}
        return Task(world="w", key=f"{family}{number}", family=family, level=0, messages=(message,), hidden=hidden)

    families = [("told", n) for n in range(10)] + [("kept", n) for n in range(10)]
    tasks = {("train", at): task(*of) for at, of in enumerate(families)}
    assert [at for _, at in leaks_together(tasks, {})] == [("train", at) for at in range(10)]  # type: ignore[arg-type]


def test_a_limit_that_scores_is_the_worlds() -> None:
    result = heard(PLANTED, None, exploits=True, fault="silence-scores", finite=9)
    assert [why.split(" (")[0] for why in result.unfit_world()] == ["malformed-scores"], result.faults
    task = next(fault for fault in result.faults)
    result.faults = []
    result.add({**task, "phase": "malformed"})
    assert not result.unfit_world()
    result.add(task)
    assert len(result.faults) == 2 and result.unfit_world(), "not taken for the same fault of the same task"


def test_what_an_exploit_comes_to_otherwise_is_the_worlds() -> None:
    result = Result(PLANTED, {}, tasks={"train/a": "x", "heldout/b": "y"}, whole={"train": True, "heldout": True})
    result.add({"kind": "never-ends", "split": "exploits", "index": 0, "key": "two answers", "words": "so"})
    assert result.unfit_world() == ["never-ends (so)"]


def ordered(world: str, args: dict[str, Any], tasks: int | None) -> dict[str, Any]:
    order: dict[str, Any] = {"world": world, "args": args, "tasks": tasks, "deadline_s": 60.0, "image": IMAGE}
    return order | {"backend": "docker", "exploits": False, "only": []}


def told(result: Result) -> dict[str, Any]:
    """What must be the same, however often it was stopped."""
    faults = sorted(json.dumps(fault) for fault in result.faults)
    whole = result.to_json() | {"faults": faults, "notes": sorted(result.notes)}
    return {name: whole[name] for name in whole.keys() - {"seconds", "hashes"}}


def lines(order: dict[str, Any]) -> list[dict[str, Any]]:
    """All that the playing process says, from beginning to end."""
    said: list[dict[str, Any]] = []

    def say(said_: str, **more: Any) -> None:
        said.append(json.loads(json.dumps({"said": said_, **more})))

    asyncio.run(Player(Order(run="test-check", skip=[], hung=[], alone=[], **order), say).run())
    return said


def gone_on(order: dict[str, Any], before: list[dict[str, Any]], part: Path) -> Result:
    """The result of a check that was stopped when it had heard these lines."""
    part.write_text("".join(json.dumps(line) + "\n" for line in [{"of": order}, *before] if line.get("said") != "call"))
    text = part.read_text().splitlines()
    part.write_text("\n".join([json.dumps({"of": order}, sort_keys=True), *text[1:]]) + "\n")
    result = Result(order["world"], order["args"])
    watch = Watch(order, result, Page("planted"), part)
    watch._go_on()

    def say(said: str, **more: Any) -> None:
        watch._hear(json.loads(json.dumps({"said": said, **more})))

    kept = list(watch.kept.values())
    asyncio.run(Player(Order(run="test-check", skip=watch.done, hung=[], alone=[], kept=kept, **order), say).run())
    return result


@pytest.mark.parametrize(
    ("world", "args", "tasks"),
    [
        (BAD, {"fault": "flat"}, 2),  # what a wrong answer was paid
        (BAD, {"fault": "anything"}, 2),  # where an empty answer is solved
        (BAD, {"fault": "goes-on"}, 1),  # how attempts ended
        (BAD, {"fault": "one"}, 2),  # that nothing more can be learnt
        (PLANTED, {"fault": "leak-place", "finite": 5}, None),  # what was said before any answer, the longest of it
    ],
)
def test_a_check_that_was_stopped_anywhere_finds_the_same(
    world: str, args: dict[str, Any], tasks: int | None, tmp_path: Path
) -> None:
    order = ordered(world, args, tasks)
    said = lines(order)
    whole = told(gone_on(order, [], tmp_path / "part"))
    assert (whole["faults"] and whole["longest_prompt_chars"]) or args["fault"] == "one"
    ends = [at for at, line in enumerate(said) if line["said"] == "done"]
    for end in ends[:-1:5] + ends[-2:-1]:
        for cut in (end + 1, end):  # after a unit, and before it was done
            assert told(gone_on(order, said[:cut], tmp_path / "part")) == whole, said[cut - 1]


def test_a_new_process_is_handed_what_the_lost_one_kept(tmp_path: Path) -> None:
    order = ordered(BAD, {"fault": "flat"}, 2)
    said = lines(order)
    cut = max(at for at, line in enumerate(said) if line["said"] == "done" and line["unit"][0] == "wrong")
    part = tmp_path / "part"
    kept = [line for line in said[: cut + 1] if line["said"] != "call"]
    part.write_text("\n".join([json.dumps({"of": order}, sort_keys=True), *map(json.dumps, kept)]) + "\n")
    result = Result(BAD, order["args"])
    asyncio.run(Watch(order, result, Page("planted"), part).run())
    assert {f["kind"] for f in result.faults} == {"flat-reward"} and len(result.faults) == 4, result.faults


@pytest.mark.docker
@pytest.mark.parametrize("unknown", [[True], [True, False]])
def test_sandboxes_are_looked_into_without_demonstrations(unknown: list[bool]) -> None:
    result = heard(PLANTED, 1, fault="future", unknown=unknown)
    assert {f["kind"] for f in result.faults} == {"history", "sandbox-tells"} and len(result.faults) == 4, result.faults
    assert result.looked["sandboxes"] == 2 and not any("looked into" in note for note in result.notes)


@pytest.mark.docker
def test_a_task_whose_sandbox_nobody_looked_into_is_told() -> None:
    result = heard(PLANTED, 1, fault="late-sandbox")
    assert not result.faults and [note for note in result.notes if "looked into" in note], result.notes


def test_a_check_that_ended_early_does_not_say_that_all_tasks_were_played() -> None:
    order = ordered(PLANTED, {"finite": 2}, None)
    result = Result(PLANTED, order["args"])
    watch = Watch(order, result, Page("planted"), None)

    def say(said: str, **more: Any) -> None:
        watch._hear(json.loads(json.dumps({"said": said, **more})))

    hung = [["train", 7], ["train", 8], ["train", 9]]
    asyncio.run(Player(Order(run="test-check", skip=[], hung=hung, alone=[], **order), say).run())
    assert result.whole == {"train": False, "heldout": False}
    assert "ended early: 3 tasks never ended, the rest was not played" in result.notes
