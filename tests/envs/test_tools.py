"""Tools: schemas as transformers makes them, both syntaxes of a call, wrong calls answered in one sentence."""

import json
from collections.abc import Callable
from typing import Any, Literal

import pytest

from envs.tools import BadCall, Call, Tool, call, prompt, schema


def price(item: str) -> str:
    """What one item costs.

    It is asked of the shop.

    Args:
        item: its name, as on
            the list
    """
    return item


def move(direction: Literal["east", "west"], steps: int = 1, label: str | None = None) -> str:
    """Go somewhere.

    Args:
        direction: where to
        steps: how far
        label: what to call it

    Returns:
        Where it stands.
    """
    return f"{direction}{steps}{label}"


def everything(
    a: int, b: float, c: bool, d: list[int], e: dict[str, float], f: list[list[str]], g: int | str, h: list, i: dict
) -> None:
    """All kinds.

    Args:
        a: one
        b: two
        c: three
        d: four
        e: five
        f: six
        g: seven
        h: eight
        i: nine
    """


def submit() -> str:
    """End."""
    return ""


class Robot:
    def go(self, steps: int, sandbox: Any) -> str:
        """Go.

        Arguments:
            steps (int): how far
        """
        return ""


TOOLS = {tool.name: tool for tool in map(Tool.of, (price, move, everything, submit))}


@pytest.mark.parametrize("function", [price, move, everything, submit])
def test_schemas_are_those_of_transformers(function: Callable[..., Any]) -> None:
    from transformers.utils import get_json_schema

    theirs = get_json_schema(function)
    theirs["function"].pop("return", None)
    theirs["function"]["description"] = " ".join(theirs["function"]["description"].split())
    assert schema(function) == theirs


def test_a_method_without_self_and_what_is_handed_in() -> None:
    for function in (Robot.go, Robot().go):
        made = Tool.of(function, leave_out=["sandbox"])
        steps = {"type": "integer", "description": "how far"}
        assert made.parameters == {"type": "object", "properties": {"steps": steps}, "required": ["steps"]}


def no_hint(item) -> None:  # type: ignore[no-untyped-def]
    """X."""


def no_words(item: str) -> None: ...


def odd(item: set[int]) -> None:
    """X."""


def starred(*items: str) -> None:
    """X."""


def unknown(item: "Nothing") -> None:  # type: ignore[name-defined] # noqa: F821
    """X."""


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (no_hint, "tool no_hint: its parameter 'item' has no type hint; expected e.g. item: str"),
        (no_words, "tool no_words has no docstring; expected one that tells the policy what it does"),
        (odd, "tool odd: its parameter 'item' has the type set[int], which no JSON schema expresses here"),
        (starred, "tool starred: got the parameter *items: str; expected only ones with a name"),
        (unknown, "tool unknown: its type hints cannot be read: name 'Nothing' is not defined"),
    ],
)
def test_what_no_schema_expresses_is_refused(function: Callable[..., Any], said: str) -> None:
    with pytest.raises(ValueError) as refused:
        schema(function)
    assert str(refused.value).startswith(said)


def openai(name: str, arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        ("the answer is 3", None),
        ("<tool: price>\npen\n</tool>", Call("price", {"item": "pen"})),
        ('I ask. <tool: price>\n{"item": "pen"}\n</tool>', Call("price", {"item": '{"item": "pen"}'})),
        ("<tool: submit>\ndone\n</tool>", Call("submit", {})),
        ('<tool: move>\n{"direction": "east"}\n</tool>', Call("move", {"direction": "east"})),
        (openai("move", {"direction": "west", "steps": 2.0}), Call("move", {"direction": "west", "steps": 2})),
        (openai("move", '{"direction": "west", "label": null}'), Call("move", {"direction": "west", "label": None})),
        (openai("submit", {}), Call("submit", {})),
        ("<tool: price>\n<tool_call>{}</tool_call>\n</tool>", Call("price", {"item": "<tool_call>{}</tool_call>"})),
        (openai("price", {"item": "<tool: price>\nx\n</tool>"}), Call("price", {"item": "<tool: price>\nx\n</tool>"})),
    ],
)
def test_both_syntaxes_are_read(action: str, expected: Call | None) -> None:
    assert call(action, TOOLS) == expected


@pytest.mark.parametrize(
    ("action", "tool", "said"),
    [
        ("<tool: price>\npen", "", "the tool call cannot be read"),
        ("<tool: price>\na\n</tool><tool: price>\nb\n</tool>", "", "the tool call cannot be read"),
        (openai("price", {"item": "a"}) * 2, "", "got 2 whole tool calls; expected one"),
        ("<tool_call>{", "", "got 0 whole tool calls; expected one"),
        ("<tool_call>[1]</tool_call>", "", 'the tool call cannot be read; expected {"name": …, "arguments": {…}}'),
        ("<tool_call>{oops}</tool_call>", "", "expected JSON: "),
        ("<tool: fly>\nx\n</tool>", "", "there is no tool 'fly'; available: price, move, everything, submit"),
        (openai("move", {}), "move", "move: the arguments: 'direction' is missing; expected direction, steps, label"),
        (openai("move", {"direction": "up"}), "move", 'move: direction: got "up"; available: east, west'),
        (openai("move", {"direction": "east", "steps": 1.5}), "move", "move: steps: got 1.5; expected a whole number"),
        (openai("move", {"direction": "east", "steps": True}), "move", "move: steps: got true; expected a whole"),
        (openai("move", {"direction": "east", "speed": 1}), "move", "move: the arguments: there is no 'speed'; exp"),
        (openai("move", [1]), "move", "move: the arguments: got [1]; expected an object"),
        ('<tool: move>\n{"steps": 1e999}\n</tool>', "move", "move: expected JSON: 1e999 is no number that JSON has"),
        ('<tool: move>\n{"steps": NaN}\n</tool>', "move", "move: expected JSON: NaN is no number that JSON has"),
        (f"<tool: move>\n{'[' * 100_000}\n</tool>", "move", "move: expected JSON: "),
    ],
)
def test_a_wrong_call_is_one_sentence(action: str, tool: str, said: str) -> None:
    with pytest.raises(BadCall) as bad:
        call(action, TOOLS)
    assert str(bad.value).startswith(said) and "\n" not in str(bad.value)
    assert bad.value.tool == tool


def test_arguments_are_checked_to_their_depth() -> None:
    good = {"a": 1, "b": 2, "c": True, "d": [1], "e": {"x": 1.5}, "f": [["a"]], "g": "7", "h": [None], "i": {"j": [1]}}
    assert TOOLS["everything"].takes(good) == good
    for name, wrong in {"d": ["1"], "e": {"x": "1"}, "f": ["a"], "g": 1.5, "c": 1, "h": {}}.items():
        with pytest.raises(BadCall, match=f"everything: {name}"):
            TOOLS["everything"].takes({**good, name: wrong})


def test_true_is_not_one_of_the_numbers() -> None:
    def pick(one: Literal[True, 2]) -> None:
        """Pick."""

    assert Tool.of(pick).takes({"one": True}) == {"one": True}
    with pytest.raises(BadCall, match="pick: one: got 1; available: True, 2"):
        Tool.of(pick).takes({"one": 1})


@pytest.mark.parametrize("arguments", [{"direction": "east", "steps": 3}, {"direction": "west"}])
def test_what_is_written_is_read_again(arguments: dict[str, Any]) -> None:
    assert call(TOOLS["move"].written(arguments), TOOLS) == Call("move", arguments)
    assert call(TOOLS["price"].written({"item": "two\nlines"}), TOOLS) == Call("price", {"item": "two\nlines"})
    assert call(TOOLS["submit"].written({}), TOOLS) == Call("submit", {})


def test_schemas_of_others_are_taken() -> None:
    foreign = {"name": "find", "parameters": {"type": "object", "properties": {"n": {"anyOf": [{"type": "integer"}]}}}}
    tools = {"find": Tool.read(foreign)}
    assert call(openai("find", {"n": 3}), tools) == Call("find", {"n": 3})
    with pytest.raises(BadCall, match="expected JSON"):  # half a character, which no message can hold
        call(openai("find", {"n": "\ud800"}), tools)
    with pytest.raises(BadCall, match="find: n: got"):
        call(openai("find", {"n": "x"}), tools)
    assert Tool.read(TOOLS["move"].schema) == TOOLS["move"]
    assert '"name":"find"' in prompt(list(tools.values()))
    with pytest.raises(ValueError, match="expected a schema with `name`"):
        Tool.read({"title": "x"})
