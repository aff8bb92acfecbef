"""Comparison of what a case claims with what is expected: outside the sandbox, by the problem's own rule.

Text (`output`), kinds from strict to lenient:
  exact      the same lines after trimming blanks at their ends and empty lines at the end
  tokens     the same words, whatever blanks and line breaks stand between them
  numbers    the same words; where the expected one is a number written with a point or an exponent, any number within
             `absolute` or within `relative` times the expected; a whole number must be met exactly (3.0 meets 3)
  unordered  the same lines, each compared by its words, in any order; with `of: tokens` the same words in any order
  checker    a program of the problem's decides (checker.py)

Values (`claim`): the same structure and types. True is not 1, "1" is not 1, and 1.0 is not 1; but where a float is
expected, 1 meets 1.0, and any number within the tolerance will do. A tuple meets a list. An object's keys are text in
JSON, so that a whole number meets its decimal text there. `unordered`: the outermost list in any order. A set meets
only a set or, where `unordered`, a list.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from envs.verifiers import Verdict

Kind = Literal["exact", "tokens", "numbers", "unordered", "checker"]
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,4})?", re.ASCII)
_WHOLE = re.compile(r"[+-]?\d+", re.ASCII)
DIGITS = 4000
"""Longer numbers are compared as text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The rule of one problem, from its data."""

    kind: Kind = "exact"
    absolute: float = 1e-6
    relative: float = 1e-6
    ignore_case: bool = False
    of: Literal["lines", "tokens"] = "lines"

    @classmethod
    def of_task(cls, given: str | Mapping[str, Any] | None) -> Comparison:
        """From a kind's name or `{kind: ..., absolute: ...}`. Raises ValueError (got, available)."""
        fields = {"kind": given} if isinstance(given, str) else dict(given or {})
        known = cls.__dataclass_fields__
        if unknown := sorted(set(fields) - set(known)):
            raise ValueError(f"a comparison got {', '.join(unknown)}; available: {', '.join(known)}")
        rule = cls(**fields)
        if rule.kind not in get_args(Kind) or rule.of not in ("lines", "tokens"):
            kinds = ", ".join(get_args(Kind))
            raise ValueError(f"a comparison got kind={rule.kind!r}, of={rule.of!r}; available: {kinds}; lines, tokens")
        return rule


def output(got: bytes, expected: str, rule: Comparison) -> Verdict:
    """RIGHT or WRONG for what a program printed, by any kind but `checker`."""
    text = got.decode(errors="replace")
    if rule.ignore_case:
        text, expected = text.casefold(), expected.casefold()
    if rule.kind == "exact":
        same = _lines(text) == _lines(expected)
    elif rule.kind == "tokens":
        same = text.split() == expected.split()
    elif rule.kind == "numbers":
        same = _same_numbers(text.split(), expected.split(), rule)
    elif rule.of == "tokens":
        same = Counter(text.split()) == Counter(expected.split())
    else:
        same = Counter(_words(text)) == Counter(_words(expected))
    return Verdict.RIGHT if same else Verdict.WRONG


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]


def _words(text: str) -> list[tuple[str, ...]]:
    return [tuple(line.split()) for line in text.strip().split("\n")]


def _same_numbers(got: list[str], expected: list[str], rule: Comparison) -> bool:
    return len(got) == len(expected) and all(_same_word(*pair, rule) for pair in zip(got, expected, strict=True))


def _same_word(got: str, expected: str, rule: Comparison) -> bool:
    if got == expected:
        return True
    if max(len(got), len(expected)) > DIGITS or not (_NUMBER.fullmatch(got) and _NUMBER.fullmatch(expected)):
        return False
    if _WHOLE.fullmatch(expected):
        if _WHOLE.fullmatch(got):
            return int(got) == int(expected)
        return float(got).is_integer() and int(float(got)) == int(expected)
    return near(float(got), float(expected), rule)


def near(got: float, expected: float, rule: Comparison) -> bool:
    """Within the tolerance; infinities only where they are equal, and not-a-number only where it is expected."""
    if math.isnan(expected) or math.isnan(got):
        return math.isnan(expected) and math.isnan(got)
    if math.isinf(expected) or math.isinf(got):
        return got == expected
    return abs(got - expected) <= max(rule.absolute, rule.relative * abs(expected))


def claim(body: bytes, expected: Any, rule: Comparison) -> tuple[Verdict, str]:
    """The verdict on a call's claim, and the name of what it raised. The claim is untrusted: anything odd is WRONG."""
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
        return Verdict.UNFINISHED, ""
    if not isinstance(told, dict):
        return Verdict.UNFINISHED, ""
    if "missing" in told:
        return Verdict.MISSING, str(told["missing"])[:200]
    if "raised" in told:
        name = str(told["raised"])[:100]
        named = {"SystemExit": Verdict.UNFINISHED, "MemoryError": Verdict.OUT_OF_MEMORY}
        return named.get(name, Verdict.CRASHED), name
    try:
        same = "value" in told and same_value(told["value"], expected, rule, top=True)
    except RecursionError:
        same = False
    return (Verdict.RIGHT if same else Verdict.WRONG), ""


def same_value(got: Any, expected: Any, rule: Comparison, *, top: bool = False) -> bool:
    """Whether a value in the runner's tagged JSON is the expected plain one."""
    if expected is None or isinstance(expected, bool | str):
        return type(got) is type(expected) and bool(got == expected)
    if isinstance(expected, int):
        return _whole(got) == expected and _whole(got) is not None
    if isinstance(expected, float):
        number = _whole(got) if isinstance(got, dict) else got
        return isinstance(number, int | float) and not isinstance(number, bool) and _near(number, expected, rule)
    if isinstance(expected, list | tuple):
        return _same_list(got, list(expected), rule, unordered=top and rule.kind == "unordered")
    if isinstance(expected, set | frozenset):
        return _is_tagged(got, "set") and _matched(got["set"], list(expected), rule)
    if isinstance(expected, Mapping):
        if not _is_tagged(got, "dict"):
            return False
        return _matched(got["dict"], [[key, value] for key, value in expected.items()], rule, keyed=True)
    raise ValueError(f"an expected value is a {type(expected).__name__}; expected what JSON can say")


def _near(number: int | float, expected: float, rule: Comparison) -> bool:
    try:
        return near(float(number), expected, rule)
    except OverflowError:
        return False


def _whole(got: Any) -> int | None:
    if _is_tagged(got, "int", str):
        try:
            return int(got["int"], 16)
        except ValueError:
            return None
    return None


def _is_tagged(got: Any, tag: str, kind: type = list) -> bool:
    return isinstance(got, dict) and got.keys() == {tag} and isinstance(got[tag], kind)


def _same_list(got: Any, expected: list[Any], rule: Comparison, *, unordered: bool) -> bool:
    if unordered:
        items = got["set"] if _is_tagged(got, "set") else got
        return isinstance(items, list) and _matched(items, expected, rule)
    return (
        isinstance(got, list)
        and len(got) == len(expected)
        and all(same_value(a, b, rule) for a, b in zip(got, expected, strict=True))
    )


def _matched(got: list[Any], expected: list[Any], rule: Comparison, *, keyed: bool = False) -> bool:
    """Whether the items can be paired off. Sorted by their text first, so that equal lists take one pass."""
    if len(got) != len(expected):
        return False
    left = sorted(expected, key=repr)
    for item in sorted(got, key=lambda item: repr(_plain(item))):
        for place, wanted in enumerate(left):
            if _same_pair(item, wanted, rule) if keyed else same_value(item, wanted, rule):
                del left[place]
                break
        else:
            return False
    return True


def _same_pair(got: Any, wanted: list[Any], rule: Comparison) -> bool:
    if not isinstance(got, list) or len(got) != 2:
        return False
    key = _whole(got[0])
    named = same_value(got[0], wanted[0], rule) or (key is not None and _decimal(key) == wanted[0])
    return named and same_value(got[1], wanted[1], rule)


def _decimal(number: int) -> str:
    return str(number) if number.bit_length() < 3 * DIGITS else ""


def _plain(got: Any) -> Any:
    """Roughly the value that was encoded, to sort by."""
    if isinstance(got, dict):
        whole = _whole(got)
        return whole if whole is not None and whole.bit_length() < 3 * DIGITS else got.get("dict", got.get("set", got))
    return [_plain(item) for item in got] if isinstance(got, list) else got
