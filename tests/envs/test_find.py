"""Worlds are found by name, by dotted module and by file; a bad one is one sentence; digests follow sources."""

import sys
from pathlib import Path

import pytest

import envs
from envs import find

WORLD = "class World:\n    def __init__(self, sandboxes, *, seed=0): ...\n"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def test_all_four_ways_lead_to_a_world(place: Path) -> None:
    (place / "ownpackage").mkdir()
    for file in ("chess.py", "math.py", "ownpackage/go.py"):
        (place / file).write_text(WORLD)
    assert envs.load("math").__name__ == "envs.math"
    for ref in ("./chess.py", str(place / "chess.py"), "ownpackage.go", "./math.py"):
        assert callable(envs.load(ref).World)
        assert find.short(ref) in ("chess", "go", "math")
    import math

    assert math.pi, "a file does not hide a module of its name"
    assert not {"define", "find", "tools", "adapters", "sandboxes"} & {*envs.available()}


def test_adapters_are_found_by_name(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    (place / "adapters").mkdir()
    (place / "adapters" / "gymnasium.py").write_text(WORLD)
    monkeypatch.setattr(find, "HERE", place)
    assert envs.available() == ["gymnasium"] and find._dotted() == {"gymnasium": "envs.adapters.gymnasium"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, f"there is no file ./bad.py; expected a world's file, or one of {', '.join(envs.available())}"),
        ("x = 1\n", "./bad.py has no `World`; expected what envs/__init__.py describes"),
        ("import nothing_here\n", "there is no module 'nothing_here', asked for by ./bad.py"),
        ("\n\nx = 1 / 0\n", "./bad.py cannot be imported: ZeroDivisionError: division by zero (bad.py, line 3)"),
        ("def f(:\n", "./bad.py cannot be imported: SyntaxError: invalid syntax (bad.py, line 1)"),
    ],
)
def test_what_is_no_world_is_one_sentence(text: str | None, said: str) -> None:
    if text is not None:
        Path("bad.py").write_text(text)
    with pytest.raises(ValueError) as bad:
        envs.load("./bad.py")
    assert str(bad.value) == said
    assert (f"bad@{Path('bad.py').resolve()}" in sys.modules) == (text == "x = 1\n")


def test_a_file_is_read_again_where_it_changed() -> None:
    Path("chess.py").write_text(WORLD)
    first = envs.load("./chess.py")
    assert envs.load("chess.py") is first
    Path("chess.py").write_text(WORLD + "NEW = 1\n")
    assert envs.load("./chess.py").NEW == 1


def test_digests_follow_the_sources_and_the_data() -> None:
    Path("chess.py").write_text(WORLD)
    before = find.digest("./chess.py")
    assert before and before == find.digest("chess.py") != find.digest("math")
    Path("chess.py").write_text(WORLD + "NEW = 1\n")
    assert find.digest("./chess.py") != before
    assert len(find.sources("math")) > 5 and find.digest("nothing") == "" == find.digest("./nothing.py")
    Path("rows.jsonl").write_text("{}\n")
    found = find.of_data(
        {"tasks": "rows.jsonl", "functions": ["no/such.file", "chess.py:grade"], "in": {"a": "chess.py"}}
    )
    assert sorted(found) == ["functions.1", "in.a", "tasks"]
    assert found["functions.1"] == found["in.a"] != found["tasks"] and all(found.values())
    assert find.of_data({"a": "", "b": "a text\n" * 1000, "c": "\0", "d": 3, "e": None}) == {}
