"""`rl check` calls each planted fault by its one name, says what to change, and finds nothing in honest look-alikes."""

import json
from pathlib import Path
from typing import Any

import pytest

from envs.tools import Tool
from rl.check import KINDS, odd
from rl.cli import main
from tests.rl.checking import heard
from tests.rl.planted_bad import FAULTS
from tests.rl.planted_honest import HONEST

NAMES = {
    *("leak", "accepts-anything", "not-repeatable", "state-shared", "never-ends", "raises", "huge-output"),
    *("not-json", "wrong-type", "gold-fails"),
}
"""The ten that every environment can have; each of them through the command, from end to end."""
BY_COMMAND = {kind: world for world, (kind, _) in reversed(FAULTS.items()) if kind in NAMES}


def checked(tmp_path: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[dict[str, Any], list[str]]:
    """The result, and what a person reads."""
    code = main(["check", *arguments, "--out", str(tmp_path / "result.json")])
    result = json.loads((tmp_path / "result.json").read_text())
    assert code == bool(result["faults"])
    return result, capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("kind", sorted(NAMES))
def test_each_of_the_ten_is_said_first_with_its_name_and_what_to_change(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = ["--tasks", "1", "--deadline", "1"] if kind == "never-ends" else ["--tasks", "4"]
    result, said = checked(tmp_path, capsys, "tests.rl.planted_bad", f"fault={BY_COMMAND[kind]}", *limits)
    assert {fault["kind"] for fault in result["faults"]} == {kind}, result["faults"]
    assert said[0].startswith(f"{kind} on ") and result["faults"][0]["words"] in said[0], said
    assert KINDS[kind].change in said[0] and result["kinds"][kind]["change"] == KINDS[kind].change
    assert result["unfit_world"], "nothing trains on it"


@pytest.mark.parametrize("world", ["once", "met"])
def test_a_verdict_that_earlier_attempts_decide_is_no_fault_of_the_grader(
    world: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result, _ = checked(tmp_path, capsys, "tests.rl.planted_bad", f"fault={world}", "--tasks", "4")
    assert {fault["kind"] for fault in result["faults"]} == {"state-shared"}, result["faults"]


@pytest.mark.parametrize("world", sorted(FAULTS.keys() - BY_COMMAND.values() - {"once", "met", "one"}))
def test_a_fault_has_one_name(world: str) -> None:
    result = heard("tests.rl.planted_bad", 8, fault=world)
    assert {fault["kind"] for fault in result.faults} == {FAULTS[world][0]}, result.faults
    assert result.unfit_world(), "nothing trains on it"


@pytest.mark.parametrize("world", HONEST)
def test_an_honest_look_alike_has_none(world: str) -> None:
    result = heard("tests.rl.planted_honest", 1 if world == "slow" else 8, kind=world)
    assert not result.faults, result.faults
    assert len(result.tasks) == (2 if world in ("slow", "one-task") else 16)
    assert bool(result.undemonstrated) == (world == "tagged")


def test_where_no_attempt_is_one_of_its_own_nothing_is_played() -> None:
    result = heard("tests.rl.planted_bad", 8, fault="one")
    assert len(result.faults) == 1 and result.notes == ["nothing was played, since no attempt is one of its own"]


def test_every_kind_says_what_to_change_and_the_page_lists_them() -> None:
    page = (Path(__file__).parents[2] / "docs" / "check.md").read_text()
    assert [line for line in page.splitlines() if line.startswith("| `")] == [
        f"| `{name}` | {kind.plain} | {kind.change} |" for name, kind in KINDS.items()
    ]
    assert all(kind.plain and kind.change and "\n" not in kind.plain + kind.change for kind in KINDS.values())
    assert {kind for kind, _ in FAULTS.values()} <= set(KINDS)


BEGINNER = """
from envs.define import world
from envs.tools import Call

@world
class World:
    basket = []

    def task(self, rng):
        number = str(rng.randrange(10**6))
        return {"prompt": f"Put {number} in.", "wanted": [number]}

    def put(self, thing: str) -> str:
        '''Put something in.'''
        self.basket.append(thing)
        return "there"

    def grade(self, wanted):
        return self.basket == wanted

    def right(self, wanted):
        return [Call("put", {"thing": wanted[0]}), "done"]
"""


@pytest.mark.parametrize(
    ("old", "new", "kind", "words"),
    [
        ("", "", "state-shared", "the right answer does not count as solved"),
        ("    basket = []\n", "", "raises", "no attribute 'basket' (beginner.py, line "),
        ("return [Call", "return 3 or [Call", "raises", "right answered with '3'; expected a text, a Call, or a list"),
        ('Call("put"', 'Call("putt"', "raises", "right calls 'putt', which is no tool; available: put"),
        ("@world\n", "@world(max_turns=1)\n", "never-done", "the right answer takes 2 turns; max_turns is 1"),
    ],
)
def test_what_a_beginner_gets_wrong_is_told_by_its_name_and_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, kind: str, words: str
) -> None:
    """State in the class spoils an attempt as soon as the right answer has been found by playing it."""
    (tmp_path / "beginner.py").write_text(BEGINNER.replace(old, new, 1) if old else BEGINNER)
    result, _ = checked(tmp_path, capsys, str(tmp_path / "beginner.py"), "--tasks", "2")
    assert {fault["kind"] for fault in result["faults"]} == {kind}, result["faults"]
    assert any(words in fault["words"] for fault in result["faults"]), result["faults"]
    assert not result["undemonstrated"]


SHELF = """
from typing import Literal
from envs.define import world
from envs.tools import BadCall, Call

@world
class World:
    def task(self, rng):
        return {"prompt": f"Take what stands at {rng.randrange(6, 10**6)}."}

    def start(self):
        self.taken = None

    def take(self, place: int, side: Literal["left", "right"] = "left") -> str:
        '''Take what stands there.'''
        self.taken = "abcdef"[place]
        return self.taken

    def grade(self):
        return self.taken == "d"

    def right(self):
        return [Call("take", {"place": 3}), "done"]
"""


def test_a_tool_that_raises_over_what_its_schema_admits_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "shelf.py").write_text(SHELF)
    result, _ = checked(tmp_path, capsys, str(tmp_path / "shelf.py"), "--tasks", "2")
    assert {fault["kind"] for fault in result["faults"]} == {"raises"} and result["unfit_world"]
    words = 'string index out of range (shelf.py, line 16), after take("place": 1000000, "side": "right")'
    assert words in result["faults"][0]["words"]
    taken = '        self.taken = "abcdef"'
    wary = SHELF.replace(taken, f"        if not 0 <= place < 6: raise BadCall('0 to 5')\n{taken}")
    (tmp_path / "shelf.py").write_text(wary)
    result, _ = checked(tmp_path, capsys, str(tmp_path / "shelf.py"), "--tasks", "2")
    refused = "tools refuse calls of a right answer"
    assert not result["faults"] and not any(refused in note for note in result["notes"])
    (tmp_path / "shelf.py").write_text(wary.replace("return [Call(", 'return [Call("take", {"place": 9}), Call('))
    result, _ = checked(tmp_path, capsys, str(tmp_path / "shelf.py"), "--tasks", "2")
    assert not result["faults"] and any(refused in note for note in result["notes"])


def test_odd_calls_fit_the_schema_of_each_tool() -> None:
    def one(a: str, b: int | None = None, c: list[float] = [], d: dict[str, bool] = {}) -> None:  # noqa: B006
        """Of many kinds."""

    def none() -> None:
        """Without any."""

    tool = Tool.of(one)
    given = list(odd.calls(tool))
    assert len(given) == 4 and all(tool.takes(call) == call for call in given)
    assert {call["a"] for call in given} == {"", "no such thing", "-1", "\x00"} and None in [
        call["b"] for call in given
    ]
    assert list(odd.calls(Tool.of(none))) == []
    assert list(odd.calls(Tool("odd", "", {"type": "object", "properties": {"x": {"type": "unheard-of"}}}))) == []


def test_a_class_without_the_decorator_is_told_what_it_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bare.py").write_text(BEGINNER.replace("@world\n", ""))
    assert main(["check", str(tmp_path / "bare.py"), "--out", str(tmp_path / "result.json")]) == 2
    assert "takes no sandboxes; expected `@world` above it" in capsys.readouterr().err
