"""Faults for real code: one small change inside one function, the text around it untouched.

    for fault in faults(source):
        if sound(fault, source):          # it compiles and is another program than the source
            fault.apply(source)

An operator is a function from a node of the syntax tree to changes (place in the text, new text); `OPERATORS` names
them. Whether a fault can be seen is not decided here: tests decide.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass

MAX_CHANGED_LINES = 12
"""A larger change is not the small slip that a fault should be."""


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    start: int
    """Offsets in the source's UTF-8 bytes, as the syntax tree counts them."""
    end: int
    new: str
    operator: str
    function: str
    """Dotted name within the module."""
    line: int
    """First line of the function, decorators included, as a code object tells it."""

    def apply(self, source: str) -> str:
        data = source.encode()
        return (data[: self.start] + self.new.encode() + data[self.end :]).decode()


Change = tuple[int, int, str]


class Text:
    """A module's text, addressed by the nodes of its syntax tree."""

    def __init__(self, source: str) -> None:
        self.data = source.encode()
        self.starts = [0]
        for line in self.data.split(b"\n"):
            self.starts.append(self.starts[-1] + len(line) + 1)

    def start(self, node: ast.AST) -> int:
        return self.starts[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]

    def end(self, node: ast.AST) -> int:
        return self.starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]

    def of(self, node: ast.AST) -> str:
        return self.data[self.start(node) : self.end(node)].decode()

    def replace(self, node: ast.AST, new: str) -> Change:
        return self.start(node), self.end(node), new

    def between(self, left: ast.AST, right: ast.AST, old: str, new: str) -> Iterator[Change]:
        """Change the one operator that stands between two nodes; none where a comment could be meant."""
        begin, gap = self.end(left), self.data[self.end(left) : self.start(right)].decode()
        word = r"\b" if old[0].isalpha() else ""
        found = list(re.finditer(word + r"\s+".join(map(re.escape, old.split())) + word, gap))
        if len(found) == 1 and "#" not in gap:
            at = found[0]
            yield begin + len(gap[: at.start()].encode()), begin + len(gap[: at.end()].encode()), new


_BINARY = {
    ast.Add: ("+", ["-"]),
    ast.Sub: ("-", ["+"]),
    ast.Mult: ("*", ["+", "//"]),
    ast.Div: ("/", ["//", "*"]),
    ast.FloorDiv: ("//", ["/", "*"]),
    ast.Mod: ("%", ["//"]),
    ast.Pow: ("**", ["*"]),
    ast.BitAnd: ("&", ["|"]),
    ast.BitOr: ("|", ["&"]),
    ast.LShift: ("<<", [">>"]),
    ast.RShift: (">>", ["<<"]),
}
_COMPARE = {
    ast.Eq: ("==", ["!="]),
    ast.NotEq: ("!=", ["=="]),
    ast.Lt: ("<", ["<=", ">"]),
    ast.LtE: ("<=", ["<", ">="]),
    ast.Gt: (">", [">=", "<"]),
    ast.GtE: (">=", [">", "<="]),
    ast.Is: ("is", ["is not"]),
    ast.IsNot: ("is not", ["is"]),
    ast.In: ("in", ["not in"]),
    ast.NotIn: ("not in", ["in"]),
}
_PAIRS = (
    *("min max", "any all", "startswith endswith", "lstrip rstrip", "upper lower", "floor ceil", "index rindex"),
    *("find rfind", "split rsplit", "append extend", "partition rpartition", "union intersection", "keys values"),
)
_TWINS = {a: b for pair in _PAIRS for a, b in (pair.split(), reversed(pair.split()))}


def arithmetic(node: ast.AST, text: Text) -> Iterator[Change]:
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        old, news = _BINARY[type(node.op)]
        for new in news:
            yield from text.between(node.left, node.right, old, new)
    elif isinstance(node, ast.AugAssign) and type(node.op) in _BINARY:
        old, news = _BINARY[type(node.op)]
        for new in news:
            yield from text.between(node.target, node.value, f"{old}=", f"{new}=")


def comparison(node: ast.AST, text: Text) -> Iterator[Change]:
    if isinstance(node, ast.Compare):
        operands = [node.left, *node.comparators]
        for left, op, right in zip(operands, node.ops, operands[1:], strict=False):
            old, news = _COMPARE[type(op)]
            for new in news:
                yield from text.between(left, right, old, new)


def boolean(node: ast.AST, text: Text) -> Iterator[Change]:
    if isinstance(node, ast.BoolOp) and len(node.values) == 2:  # of more, one changed would bind otherwise
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        yield from text.between(node.values[0], node.values[1], old, new)


def condition(node: ast.AST, text: Text) -> Iterator[Change]:
    """The two branches of an if change places; `not` comes or goes."""
    if isinstance(node, ast.If | ast.IfExp | ast.While):
        inner = node.test
        if not (isinstance(inner, ast.UnaryOp) and isinstance(inner.op, ast.Not)):
            yield text.replace(inner, f"not ({text.of(inner)})")
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield text.replace(node, text.of(node.operand))


def constant(node: ast.AST, text: Text) -> Iterator[Change]:
    if isinstance(node, ast.Constant):
        if isinstance(node.value, bool):
            yield text.replace(node, str(not node.value))
        elif isinstance(node.value, int):
            for value in (node.value + 1, node.value - 1):
                yield text.replace(node, str(value) if value >= 0 else f"({value})")
        elif isinstance(node.value, float):
            yield text.replace(node, repr(node.value * 2 or 1.0))
        elif isinstance(node.value, str) and len(node.value) == 1:
            yield text.replace(node, '""')


def off_by_one(node: ast.AST, text: Text) -> Iterator[Change]:
    """In what counts: bounds of slices, arguments of range, lengths."""
    bounds: list[ast.expr] = []
    if isinstance(node, ast.Slice):
        bounds = [bound for bound in (node.lower, node.upper) if bound is not None]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if node.func.id == "range":
            bounds = node.args[:2]
        elif node.func.id == "len":
            bounds = [node]
    for bound in bounds:
        if not isinstance(bound, ast.Constant | ast.Starred):
            for step in ("+ 1", "- 1"):
                yield text.replace(bound, f"({text.of(bound)} {step})")


def arguments(node: ast.AST, text: Text) -> Iterator[Change]:
    """Two neighbouring positional arguments change places; a keyword argument is forgotten."""
    if isinstance(node, ast.Call):
        for left, right in zip(node.args, node.args[1:], strict=False):
            a, b = text.of(left), text.of(right)
            if a != b and not isinstance(left, ast.Starred) and not isinstance(right, ast.Starred):
                gap = text.data[text.end(left) : text.start(right)].decode()
                yield text.start(left), text.end(right), f"{b}{gap}{a}"
        if len(node.keywords) > 1 and node.keywords[-1].arg and node.keywords[-2].arg:
            yield text.end(node.keywords[-2]), text.end(node.keywords[-1]), ""


def twin(node: ast.AST, text: Text) -> Iterator[Change]:
    """A function is taken for its counterpart, e.g. min for max."""
    if isinstance(node, ast.Call):
        called = node.func
        name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
        if name in _TWINS:
            yield text.end(called) - len(name.encode()), text.end(called), _TWINS[name]


def statement(node: ast.AST, text: Text) -> Iterator[Change]:
    """A step is left out."""
    step = isinstance(node, ast.AugAssign | ast.Raise | ast.Continue | ast.Break | ast.Delete)
    call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call | ast.Await)
    store = isinstance(node, ast.Assign) and not any(isinstance(target, ast.Name) for target in node.targets)
    guard = isinstance(node, ast.If) and not node.orelse and isinstance(node.body[-1], ast.Return | ast.Raise)
    if step or call or store or guard:
        yield text.replace(node, "pass")


def returned(node: ast.AST, text: Text) -> Iterator[Change]:
    if isinstance(node, ast.Return) and node.value is not None:
        value = node.value
        if isinstance(value, ast.Compare | ast.BoolOp):
            yield text.replace(value, f"not ({text.of(value)})")
        elif isinstance(value, ast.Tuple) and len(value.elts) == 2:
            first, second = value.elts
            gap = text.data[text.end(first) : text.start(second)].decode()
            yield text.start(first), text.end(second), f"{text.of(second)}{gap}{text.of(first)}"
        elif not isinstance(value, ast.Constant):
            yield text.replace(value, "None")


Operator = Callable[[ast.AST, Text], Iterator[Change]]
OPERATORS: dict[str, Operator] = {
    operator.__name__: operator
    for operator in (
        *(arithmetic, comparison, boolean, condition, constant),
        *(off_by_one, arguments, twin, statement, returned),
    )
}


def faults(source: str) -> list[Fault]:
    """Every change that the operators make in the source's functions, in order. None where it cannot be parsed."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return []
    if "\r" in source or "\f" in source:
        return []  # the tree's lines would not be the text's
    text, strings = Text(source), _in_format_strings(tree)
    made: dict[tuple[int, int, str], Fault] = {}
    for function, name in _functions(tree, ""):
        line = min([function.lineno, *(d.lineno for d in function.decorator_list)])
        for node in _body(function):
            if id(node) in strings:
                continue
            for operator, change in OPERATORS.items():
                for start, end, new in change(node, text):
                    made.setdefault((start, end, new), Fault(start, end, new, operator, name, line))
    return sorted(made.values())


def sound(fault: Fault, source: str) -> bool:
    """Whether the changed text is a program, differs as one, changes few lines, and keeps every comment."""
    changed = fault.apply(source)
    if source.encode()[fault.start : fault.end].count(b"\n") >= MAX_CHANGED_LINES:
        return False
    try:
        if ast.dump(ast.parse(changed)) == ast.dump(ast.parse(source)):
            return False
        compile(changed, "fault", "exec", dont_inherit=True)
        return _comments(changed) == _comments(source)
    except (SyntaxError, ValueError, tokenize.TokenError):
        return False


def _functions(node: ast.AST, outer: str) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, str]]:
    """Functions with their dotted names, of modules and classes; those inside functions belong to these."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child, f"{outer}{child.name}"
        else:
            yield from _functions(child, f"{outer}{child.name}." if isinstance(child, ast.ClassDef) else outer)


def _body(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[ast.AST]:
    """Nodes of the body: no decorators, defaults or annotations."""
    for statement_ in function.body:
        yield from ast.walk(statement_)


def _in_format_strings(tree: ast.AST) -> set[int]:
    """Nodes inside f-strings, whose places before Python 3.12 are not those of the text."""
    return {id(node) for string in ast.walk(tree) if isinstance(string, ast.JoinedStr) for node in ast.walk(string)}


def _comments(source: str) -> int:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return sum(token.type == tokenize.COMMENT for token in tokens)
