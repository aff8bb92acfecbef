"""Comparison outside: text by the ladder, values by structure and type; whatever a claim is, it is only data."""

from __future__ import annotations

from typing import Any

import pytest

from envs.verifiers import Verdict, compare, runner
from envs.verifiers.compare import Comparison


@pytest.mark.parametrize(
    ("rule", "expected", "right", "wrong"),
    [
        ("exact", "1 2\n3", ["1 2\n3\n", "1 2  \n3\n\n"], ["1  2\n3", "1 2 3", "", "1 2\n3\n4", "1 2\n\n3"]),
        ("tokens", "1 2\n3", ["1\n2 3", " 1  2\n\n3"], ["12 3", "1 2", "1 2 3 3", "1 2 3.0"]),
        ({"kind": "tokens", "ignore_case": True}, "Yes", ["YES", "yes\n"], ["y", "no"]),
        (
            "numbers",
            "0.3333333333 7 x",
            ["0.33333333 7 x", "3.333333333e-1 7.0 x", ".33333333 +7 x"],
            ["0.3333 7 x", "0.3333333333 7.01 x", "nan 7 x", "1e9999 7 x", "0.3333333333 7", "0.3333333333 7 X"],
        ),
        ("numbers", "1000000000000.0", ["1000000000000.4", "999999999999.9"], ["1000010000000.0", "inf", "1_0"]),
        ("numbers", "0.0000001", ["1e-7", "2e-7"], ["1e-5"]),
        ({"kind": "numbers", "absolute": 0.0}, "0.0000001", ["1e-7"], ["2e-7"]),
        ("numbers", "9007199254740993", ["9007199254740993"], ["9007199254740992", "9007199254740992.0"]),
        ("unordered", "a b\nc", ["c\na  b\n"], ["a\nb c", "a b", "a b\nc\nc", "b a\nc"]),
        ({"kind": "unordered", "of": "tokens"}, "a b\nc", ["c b a"], ["a b", "a b b c"]),
    ],
)
def test_text(rule: Any, expected: str, right: list[str], wrong: list[str]) -> None:
    rule = Comparison.of_task(rule)
    for text in right:
        assert compare.output(text.encode(), expected, rule) is Verdict.RIGHT, text
    for text in wrong:
        assert compare.output(text.encode(), expected, rule) is Verdict.WRONG, text


def claimed(value: Any, expected: Any, rule: Any = None) -> Verdict:
    body = f'{{"value": {runner.encoded(value)}}}'.encode()
    return compare.claim(body, expected, Comparison.of_task(rule))[0]


class Equal(int):
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = int.__hash__


@pytest.mark.parametrize(
    ("expected", "right", "wrong"),
    [
        (1, [1], [True, 1.0, "1", [1], None, 2, Equal(5)]),
        (True, [True], [1, 1.0, "true", False]),
        (None, [None], [0, False, "", []]),
        ("a", ["a"], ["A", ["a"], "a "]),
        (0.3, [0.1 + 0.2], [0.31, "0.3", float("nan"), float("inf"), True]),
        (2.0, [2, 2.0000001], [True, 3, "2"]),
        (float("inf"), [float("inf")], [1e308, float("-inf"), float("nan")]),
        ([1, [2, "x"]], [(1, (2, "x")), [1, [2, "x"]]], [[1, 2, "x"], [True, [2, "x"]], {1, 2}, [1]]),
        ({"1": 2, "b": [0]}, [{"b": [0], "1": 2}, {1: 2, "b": (0,)}], [{"1": 2}, {"1": True, "b": [0]}, [["1", 2]]]),
    ],
)
def test_values_keep_their_types(expected: Any, right: list[Any], wrong: list[Any]) -> None:
    for value in right:
        assert claimed(value, expected) is Verdict.RIGHT, value
    for value in wrong:
        assert claimed(value, expected) is Verdict.WRONG, value


def test_numbers_longer_than_python_likes_to_print() -> None:
    assert claimed(10**6000, 10**6000) is Verdict.RIGHT
    assert claimed(10**6000 + 1, 10**6000) is Verdict.WRONG
    assert claimed(10**6000, 0.5) is Verdict.WRONG


def test_unordered_values() -> None:
    rule = {"kind": "unordered"}
    assert claimed([[3, 4], [1, 2]], [[1, 2], [3, 4]], rule) is Verdict.RIGHT
    assert claimed({2, 1}, [1, 2], rule) is Verdict.RIGHT
    assert claimed([[2, 1], [3, 4]], [[1, 2], [3, 4]], rule) is Verdict.WRONG
    assert claimed([1, 1, 2], [1, 2, 2], rule) is Verdict.WRONG
    assert claimed([True, 2], [1, 2], rule) is Verdict.WRONG
    assert claimed({2, 1}, [1, 2]) is Verdict.WRONG


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"1",
        b'{"value": {"int": "x"}}',
        b'{"value": {"int": 1}}',
        b'{"value": {"dict": [1]}}',
        b'{"verdict": "right"}',
        b"[" * 100_000,
        b'{"value": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"value": ' + b"9" * 5000 + b"}",
        b'{"value": NaN}',
        b"\xff\xfe",
    ],
)
@pytest.mark.parametrize("expected", [1, [1], {"a": 1}, 0.5, "x"])
def test_whatever_is_claimed_is_only_data(body: bytes, expected: Any) -> None:
    assert compare.claim(body, expected, Comparison())[0] in (Verdict.WRONG, Verdict.UNFINISHED)


def test_a_rule_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ValueError, match="available: exact, tokens, numbers, unordered, checker"):
        Comparison.of_task("fuzzy")
    with pytest.raises(ValueError, match="got tolerance; available: kind, absolute"):
        Comparison.of_task({"kind": "numbers", "tolerance": 1})
