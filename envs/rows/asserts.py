"""Asserts of a test as cases: `assert f(1, 2) == 3` is a call and a value, so that no test has to run beside a program.

Read, never run. An assert of another form is refused by its text, since leaving it out would make the test weaker.
"""

from __future__ import annotations

import ast
import json
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from envs.rows.records import Case, Refused

SOURCE_CHARS = 1_000_000
NOT_PLAIN = "a test is no plain comparison of a call with a value"
LARGE = 1_000_000
"""Greatest number, or longest text, in the arithmetic of an expected value."""
_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_UNORDERED = ("set", "sorted", "Counter", "frozenset")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tests:
    name: str
    cases: tuple[Case, ...]
    tolerance: float | None
    unordered: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Compared:
    call: ast.Call
    expected: Any
    tolerance: float | None = None
    unordered: bool = False


def tests(sources: Sequence[str], called: str = "", name: str = "") -> Tests:
    """The cases of assert lines, or of a function with asserts in it. `called`: the only name that they may call;
    `name`: what the function is really called, where that differs.
    """
    found = [_compared(node) for source in sources for node in _asserts(source)]
    if not found:
        raise Refused("there is no test", "no assert was found")
    names = {_name(one.call) for one in found}
    if len(names) != 1 or (called and names != {called}):
        expected = called or "one function"
        raise Refused(NOT_PLAIN, f"the asserts call {', '.join(sorted(names))}; expected {expected}")
    unordered = [one.unordered for one in found]
    if any(unordered) and not all(unordered):
        raise Refused(NOT_PLAIN, "some asserts regard order and some do not")
    return Tests(
        name=name or names.pop(),
        cases=tuple(Case(given=[_value(a) for a in _plain(one.call)], expected=one.expected) for one in found),
        tolerance=max((one.tolerance for one in found if one.tolerance is not None), default=None),
        unordered=all(unordered),
    )


def _asserts(source: str) -> list[ast.Assert]:
    """All asserts, where the text holds nothing else that could matter: no loop, no call, no other function."""
    if len(source) > SOURCE_CHARS:
        raise Refused(NOT_PLAIN, f"the test has {len(source)} characters")
    try:
        body: list[ast.stmt] = ast.parse(source.strip()).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise Refused("a test is no Python", f"starts with {source.strip()[:60]!r}") from None
    functions = [node for node in body if isinstance(node, ast.FunctionDef)]
    if len(functions) == 1:
        body = functions[0].body
    found: list[ast.Assert] = []
    for node in body:
        harmless = isinstance(node, ast.Import | ast.ImportFrom | ast.Pass) or (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        )
        names = isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict | ast.Constant)  # METADATA
        if isinstance(node, ast.Assert):
            if not (isinstance(node.test, ast.Constant) and node.test.value is True):
                found.append(node)
        elif not harmless and not names:
            raise Refused(NOT_PLAIN, ast.unparse(node)[:100])
    return found


def _compared(node: ast.Assert) -> _Compared:
    test = node.test
    try:
        if isinstance(test, ast.Call) and _name(test).rpartition(".")[2] == "isclose":
            return _close(test)
        if isinstance(test, ast.Call):
            return _Compared(call=test, expected=True)
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not) and isinstance(test.operand, ast.Call):
            return _Compared(call=test.operand, expected=False)
        if isinstance(test, ast.Compare) and len(test.ops) == 1:
            left, compared, right = test.left, test.ops[0], test.comparators[0]
            if isinstance(compared, ast.Lt | ast.LtE):
                return _near(left, _value(right))
            if isinstance(compared, ast.Eq | ast.Is):
                return _equal(left, right)
    except Refused:
        raise
    except (ValueError, TypeError, SyntaxError, ArithmeticError, KeyError, RecursionError):
        pass
    raise Refused(NOT_PLAIN, ast.unparse(node)[:100])


def _equal(left: ast.expr, right: ast.expr) -> _Compared:
    """`f(x) == value`, or both sides within set(...) or sorted(...)."""
    if isinstance(left, ast.Call) and _name(left) in _UNORDERED and len(left.args) == 1 and not left.keywords:
        inner = left.args[0]
        if isinstance(right, ast.Call) and _name(right) == _name(left) and len(right.args) == 1:
            right = right.args[0]
        value = _folded(right)
        listed = sorted(value, key=repr) if isinstance(value, set) else value
        if isinstance(inner, ast.Call):
            return _Compared(call=inner, expected=_json(listed), unordered=True)
        raise ValueError
    if isinstance(left, ast.Call) and _name(left) in ("list", "tuple") and len(left.args) == 1:
        left = left.args[0]  # JSON has one kind of sequence
        if isinstance(right, ast.Call) and _name(right) in ("list", "tuple") and len(right.args) == 1:
            right = right.args[0]
        if not isinstance(_value(right), list):
            raise ValueError
    if not isinstance(left, ast.Call):
        raise ValueError
    return _Compared(call=left, expected=_value(right))


def _near(left: ast.expr, tolerance: Any) -> _Compared:
    """`abs(f(x) - value) < tolerance`."""
    if not (isinstance(left, ast.Call) and _name(left) in ("abs", "math.fabs") and len(left.args) == 1):
        raise ValueError
    difference = left.args[0]
    if not (isinstance(difference, ast.BinOp) and isinstance(difference.op, ast.Sub)):
        raise ValueError
    call, value = difference.left, difference.right
    if not isinstance(call, ast.Call):
        call, value = value, call
    if not isinstance(call, ast.Call):
        raise ValueError
    return _Compared(call=call, expected=float(_value(value)), tolerance=float(tolerance))


def _close(test: ast.Call) -> _Compared:
    """`math.isclose(f(x), value, rel_tol=...)`."""
    call, value = test.args
    options = {k.arg: float(_value(k.value)) for k in test.keywords}
    if not isinstance(call, ast.Call) or not set(options) <= {"rel_tol", "abs_tol"}:
        raise ValueError
    expected = float(_value(value))
    tolerance = max(options.get("rel_tol", 1e-9) * abs(expected), options.get("abs_tol", 0.0))
    return _Compared(call=call, expected=expected, tolerance=tolerance)


def _name(call: ast.Call) -> str:
    return ast.unparse(call.func)


def _plain(call: ast.Call) -> list[ast.expr]:
    if call.keywords or any(isinstance(a, ast.Starred) for a in call.args):
        raise Refused(NOT_PLAIN, ast.unparse(call)[:100])
    return call.args


def _value(node: ast.expr) -> Any:
    """The value of a literal, arithmetic of two numbers included. Refused where JSON cannot hold it."""
    try:
        return _json(_folded(node))
    except (ValueError, TypeError, SyntaxError, ArithmeticError, KeyError, RecursionError, MemoryError):
        raise Refused(NOT_PLAIN, f"{ast.unparse(node)[:100]} is no value that JSON can hold") from None


def _folded(node: ast.expr) -> Any:
    """What a literal is worth, arithmetic within it included; ValueError for anything else, or anything large."""
    if isinstance(node, ast.List | ast.Tuple):
        return [_folded(item) for item in node.elts]
    if isinstance(node, ast.BinOp):
        left, right = _folded(node.left), _folded(node.right)
        sizes = [abs(v) if isinstance(v, int | float) else len(v) for v in (left, right)]
        if max(sizes) > LARGE or (isinstance(node.op, ast.Pow) and (sizes[0] > 1000 or sizes[1] > 100)):
            raise ValueError
        if not all(isinstance(v, int | float) for v in (left, right)) and sizes[0] * sizes[1] > LARGE:
            raise ValueError
        return _OPERATORS[type(node.op)](left, right)
    return ast.literal_eval(node)


def _json(value: Any) -> Any:
    """Tuples as lists; sets, bytes and dicts with keys other than text are no JSON."""
    if isinstance(value, list | tuple):
        return [_json(item) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _json(item) for key, item in value.items()}
    if value is None or isinstance(value, str | int | float):
        json.dumps(value)  # an integer with thousands of digits has no text
        return value
    raise ValueError
