"""Twins of hidden tests: the same test function with what it expects changed, so that it fails where it would pass.

Code under test runs in one process with its tests and can claim of each what it likes. So it is asked twice, in
sandboxes that know nothing of each other: a coin decides in which of the two a test function stands as it is, and in
which as its twin. Mended code passes the one and fails the other by itself; a liar has to know the right result.
Where what is expected is a literal, its twin looks as likely; where not, the twin says the opposite (`!=`), which a
liar who reads the tests could recognise.

    found = changes(source)                       # by function, e.g. `TestPercent::test_part`
    await verified(pool, tree, suite)             # those that fail, on the source as it is, and where
"""

from __future__ import annotations

import ast
import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from envs.sandboxes import SandboxPool
from envs.swe.mutate import Change, Text
from envs.swe.sources import Tree
from envs.swe.suite import Suite, run

Twin = dict[str, Any]
"""`function` (with its file), `path`, `changes`, `fails` (which of its cases then fail), `tests` (case by test id)."""

_ERRORS = ("ValueError", "TypeError", "KeyError", "IndexError", "AttributeError", "ZeroDivisionError")
_FLIPPED = {
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
}
_UNITTEST = {
    "assertTrue": "assertFalse",
    "assertFalse": "assertTrue",
    "assertIn": "assertNotIn",
    "assertIs": "assertIsNot",
}
_UNITTEST |= {"assertIsNone": "assertIsNotNone", "assertNotIn": "assertIn", "assertIsNotNone": "assertIsNone"}
_LITERAL = (ast.Constant, ast.List, ast.Tuple, ast.Dict, ast.Set, ast.UnaryOp, ast.unaryop, ast.expr_context)
Function = ast.FunctionDef | ast.AsyncFunctionDef


def changes(source: str) -> dict[str, list[Change]]:
    """For each test function, what makes a twin of it. Raises SyntaxError."""
    text = Text(source)
    return {name: found for name, node in _functions(ast.parse(source)) if (found := _twin(name, node, text))}


def apply(source: str, found: Sequence[Change]) -> str:
    data = source.encode()
    for start, end, new in sorted(found, reverse=True):
        data = data[:start] + new.encode() + data[end:]
    return data.decode()


def _functions(tree: ast.Module) -> Iterator[tuple[str, Function]]:
    for node in tree.body:
        if isinstance(node, Function):
            yield node.name, node
        elif isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, Function):
                    yield f"{node.name}::{inner.name}", inner


def _twin(name: str, function: Function, text: Text) -> list[Change]:
    """Every case's expectation where it has cases, else one expectation of its body."""
    rng = random.Random(name)
    if cases := [change for node in function.decorator_list for change in _cases(node, text, rng)]:
        return cases
    inside = [node for part in function.body for node in ast.walk(part)]
    for kind in (_values, _opposites):
        found = [change for node in inside if (change := next(kind(node, text, rng), None))]
        if found:
            return [rng.choice(found)]
    return []


def _cases(decorator: ast.expr, text: Text, rng: random.Random) -> Iterator[Change]:
    """The last value of each tuple of a `parametrize`."""
    call = isinstance(decorator, ast.Call) and isinstance(decorator.func, ast.Attribute) and decorator
    if not call or call.func.attr != "parametrize" or len(call.args) < 2:  # type: ignore[attr-defined]
        return
    values = call.args[1]
    for case in values.elts if isinstance(values, ast.List | ast.Tuple) else ():
        if isinstance(case, ast.Tuple | ast.List) and len(case.elts) > 1:
            yield from _another(case.elts[-1], text, rng)


def _values(node: ast.AST, text: Text, rng: random.Random) -> Iterator[Change]:
    """A value that something is compared with."""
    if isinstance(node, ast.Assert):
        for part in ast.walk(node.test):
            if isinstance(part, ast.Compare) and isinstance(part.ops[0], ast.Eq):
                for side in (part.comparators[-1], part.left):
                    yield from _another(side, text, rng)
    elif isinstance(node, ast.Call) and _called(node) in ("assertEqual", "assertEquals", "assertListEqual", "eq_"):
        for side in reversed(node.args[:2]):
            yield from _another(side, text, rng)


def _opposites(node: ast.AST, text: Text, rng: random.Random) -> Iterator[Change]:
    """The opposite of what is asserted, or another exception than the one expected."""
    if isinstance(node, ast.Assert):
        test = node.test
        if isinstance(test, ast.Compare) and type(test.ops[0]) in _FLIPPED and len(test.ops) == 1:
            yield from text.between(test.left, test.comparators[0], *_FLIPPED[type(test.ops[0])])
        elif isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            yield text.replace(test, text.of(test.operand))
        else:
            plain = isinstance(test, ast.Call | ast.Name | ast.Attribute | ast.Subscript)
            yield text.replace(test, f"not {text.of(test)}" if plain else f"not ({text.of(test)})")
    elif isinstance(node, ast.Call) and _called(node) in ("raises", "assertRaises", "assertRaisesRegex") and node.args:
        if isinstance(node.args[0], ast.Name):
            yield text.replace(node.args[0], rng.choice([name for name in _ERRORS if name != node.args[0].id]))
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _UNITTEST:
        end = text.end(node.func)
        yield end - len(node.func.attr), end, _UNITTEST[node.func.attr]


def _called(node: ast.Call) -> str:
    name = node.func
    return name.attr if isinstance(name, ast.Attribute) else name.id if isinstance(name, ast.Name) else ""


def _another(node: ast.expr, text: Text, rng: random.Random) -> Iterator[Change]:
    """A literal near the one there is: nothing in it tells which of the two is the right one."""
    constants = [part for part in ast.walk(node) if isinstance(part, ast.Constant)]
    if not all(isinstance(part, _LITERAL) for part in ast.walk(node)):
        return
    if isinstance(node, ast.List | ast.Tuple) and not node.elts:
        yield text.replace(node, "[0]" if isinstance(node, ast.List) else "(0,)")
    for constant in rng.sample(constants, len(constants)):
        if constant.value is not None and constant.value is not ...:
            new = _near(constant.value, rng)
            quoted = isinstance(new, str) and text.of(constant)[:1] == '"' and new.isascii()
            yield text.replace(constant, json.dumps(new) if quoted else repr(new))
            return


def _near(value: Any, rng: random.Random) -> Any:
    match value:
        case bool():
            return not value
        case int() | float():
            return value + rng.choice((1, 2, 3, -1)) if value else 1
        case str():
            return _misspelt(value, rng)
        case bytes():
            return value + b"1"
    return value


def _misspelt(value: str, rng: random.Random) -> str:
    if digits := [m.start() for m in re.finditer("[0-9]", value)]:
        at = rng.choice(digits)
        return f"{value[:at]}{(int(value[at]) + rng.randint(1, 8)) % 10}{value[at + 1 :]}"
    pairs = [at for at in range(len(value) - 1) if value[at] != value[at + 1]]
    if pairs:
        at = rng.choice(pairs)
        return value[:at] + value[at + 1] + value[at] + value[at + 2 :]
    return value + (value[-1:] or "a")


async def verified(pool: SandboxPool, tree: Tree, own: Suite) -> list[Twin]:
    """Twins of a tree's tests that fail, twice, on its own source, and pass as they are."""
    by_function: dict[str, dict[str, int]] = {}
    for test, seen in own.tests.items():
        by_function.setdefault(seen.place[0], {})[test] = seen.place[1]
    found: list[Twin] = []
    files = dict(tree.files)
    for path in sorted({function.partition("::")[0] for function in by_function}):
        try:
            source = tree.files[path].decode()
            twins = {f"{path}::{name}": made for name, made in changes(source).items()}
        except (SyntaxError, ValueError):
            continue
        twins = {function: made for function, made in twins.items() if function in by_function}
        files[path] = apply(source, [change for made in twins.values() for change in made]).encode()
        found += [{"path": path, "function": function, "changes": made} for function, made in twins.items()]
    places = [(function, at) for function, tests in by_function.items() for at in tests.values()]
    runs = [await run(pool, files, tree.root, places=places) for _ in range(2)]
    if not all(ran.done for ran in runs):
        return []
    kept = []
    for twin in found:
        tests = by_function[twin["function"]]
        statuses = {at: {ran.at(twin["function"], at) for ran in runs} for at in tests.values()}
        fails = [at for at, both in sorted(statuses.items()) if both == {"failed"}]
        if fails and all(both in ({"failed"}, {"passed"}) for both in statuses.values()):
            kept.append({**twin, "fails": fails, "tests": tests})
    return kept


def of_tests(twins: Sequence[Twin], tests: Sequence[str]) -> list[Twin]:
    """Those of the functions that these tests belong to."""
    return [twin for twin in twins if not set(tests).isdisjoint(twin["tests"])]


def asked(twins: Sequence[Twin], files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files with these functions as their twins."""
    by_path: dict[str, list[Change]] = {}
    for twin in twins:
        by_path.setdefault(twin["path"], []).extend((start, end, new) for start, end, new in twin["changes"])
    return {**files, **{path: apply(files[path].decode(), found).encode() for path, found in by_path.items()}}
