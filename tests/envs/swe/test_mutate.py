"""Planted faults: each operator by hand-made cases, the text around untouched; changes as steps of the edit tool."""

import random

import pytest

from envs.swe import edits, mutate, parse_edit
from envs.swe.mutate import OPERATORS, Fault, faults, sound


def made(body: str, operator: str) -> set[str]:
    """The body as the operator changes it, in a function."""
    source = f"def f(a, b, c):\n    {body}\n"
    texts = [fault.apply(source) for fault in faults(source) if fault.operator == operator and sound(fault, source)]
    assert all(text.startswith("def f(a, b, c):\n    ") and text.endswith("\n") for text in texts)
    return {text.removeprefix("def f(a, b, c):\n    ").removesuffix("\n") for text in texts}


@pytest.mark.parametrize(
    ("operator", "body", "expected"),
    [
        ("arithmetic", "return a + b", {"return a - b"}),
        ("arithmetic", "return (a) * (  b )", {"return (a) + (  b )", "return (a) // (  b )"}),
        ("arithmetic", "a -= b", {"a += b"}),
        ("arithmetic", "return a ** -b", {"return a * -b"}),
        ("comparison", "return a < b", {"return a <= b", "return a > b"}),
        ("comparison", "return a not in b", {"return a in b"}),
        ("comparison", "return a is b", {"return a is not b"}),
        ("comparison", "return a == b == c", {"return a != b == c", "return a == b != c"}),
        ("boolean", "return a and b", {"return a or b"}),
        ("boolean", "return a or b or c", set()),
        ("condition", "return a if b else c", {"return a if not (b) else c"}),
        ("condition", "return not a", {"return a"}),
        ("constant", "return 1", {"return 2", "return 0"}),
        ("constant", "return a[0]", {"return a[1]", "return a[(-1)]"}),
        ("constant", "return True", {"return False"}),
        ("constant", "return ', '", set()),
        ("constant", "return ','", {'return ""'}),
        ("off_by_one", "return a[b:]", {"return a[(b + 1):]", "return a[(b - 1):]"}),
        ("off_by_one", "return range(a)", {"return range((a + 1))", "return range((a - 1))"}),
        ("off_by_one", "return len(a)", {"return (len(a) + 1)", "return (len(a) - 1)"}),
        ("arguments", "return g(a,  b)", {"return g(b,  a)"}),
        ("arguments", "return g(a, *b)", set()),
        ("arguments", "return g(x=a, y=b)", {"return g(x=a)"}),
        ("twin", "return min(a)", {"return max(a)"}),
        ("twin", "return a.lstrip().upper()", {"return a.rstrip().upper()", "return a.lstrip().lower()"}),
        ("statement", "a.append(b)", {"pass"}),
        ("statement", "a[b] = c", {"pass"}),
        ("statement", "a = b", set()),
        ("returned", "return a.b", {"return None"}),
        ("returned", "return a, b", {"return b, a"}),
        ("returned", "return a or b", {"return not (a or b)"}),
        ("returned", "return None", set()),
    ],
)
def test_what_each_operator_makes(operator: str, body: str, expected: set[str]) -> None:
    assert made(body, operator) == expected


def test_every_operator_has_a_case() -> None:
    marks = [mark for mark in test_what_each_operator_makes.pytestmark if mark.name == "parametrize"]  # type: ignore[attr-defined]
    assert {case[0] for case in marks[0].args[1]} == set(OPERATORS)


SOURCE = '''"""Ünïcode first, so that bytes and characters differ."""
LIMIT = 3  # outside of functions: never touched


class Box:
    @property
    def area(self):  # a comment + another
        """Words a + b stay."""
        if self.a > 0:  # not > here
            return f"{self.a + 1}" + "é" * self.b
        raise ValueError("ü" if self.a - 1 else "ö")

    def outer(self, x=1 + 1):
        def inner(y):
            return y - 1
        return inner(x)
'''


def test_faults_stay_inside_functions_and_leave_words_alone() -> None:
    found = [fault for fault in faults(SOURCE) if sound(fault, SOURCE)]
    assert {(fault.function, fault.line) for fault in found} == {("Box.area", 6), ("Box.outer", 13)}
    for fault in found:
        data, changed = SOURCE.encode(), fault.apply(SOURCE).encode()
        assert changed.startswith(data[: fault.start]) and changed.endswith(data[fault.end :])
        for kept in ("LIMIT = 3", "x=1 + 1", "# a comment + another", "Words a + b stay.", "# not > here"):
            assert kept in changed.decode() or (kept == "# not > here" and fault.operator == "statement"), fault
        assert 'f"{self.a + 1}"' in changed.decode() or 'f"' not in changed.decode(), "strings are taken whole or not"
    assert "return y + 1" in "".join(fault.apply(SOURCE) for fault in found)


def test_what_is_the_same_program_or_none_is_not_sound() -> None:
    source = "def f(a):\n    return a\n"
    assert not sound(Fault(21, 22, "(a)", "returned", "f", 1), source)
    assert not sound(Fault(21, 22, "a b", "returned", "f", 1), source)
    assert faults("def f(:") == [] and faults("def f(a):\r\n    return a + 1\r\n") == []


def test_changes_become_steps_that_the_edit_tool_takes() -> None:
    rng = random.Random(0)
    for _ in range(200):
        before = "\n".join(rng.choice("abcd") for _ in range(30))
        lines = before.split("\n")
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(lines))
            lines[at : at + rng.randint(0, 2)] = [rng.choice("abcdxyz") for _ in range(rng.randint(0, 3))]
        after = "\n".join(lines)
        steps = edits.edits("a.py", before, after)
        assert edits.applied({"a.py": before}, steps) == {"a.py": after}
        for step in steps:
            body = f"a.py\n<<<<\n{step['old']}\n====\n{step['new']}\n>>>>"
            assert parse_edit(body) == ("a.py", step["old"], step["new"])


def test_files_come_and_go_and_marks_are_refused() -> None:
    steps = edits.edits("a.py", None, "x\n") + edits.edits("b.py", "y\n", None)
    assert edits.applied({"b.py": "y\n"}, steps) == {"a.py": "x\n"}
    with pytest.raises(ValueError, match="mark"):
        edits.edits("a.py", "====\nx\n", "====\ny\n")
    with pytest.raises(ValueError, match="occurs"):
        edits.applied({"a.py": "z"}, [edits.Edit(path="a.py", old="x", new="y")])
    assert mutate.faults("x = 1") == []
