"""The warm start's cache: another folder where anything that the demonstrations depend on is another."""

import itertools
from pathlib import Path

import pytest

from envs import Message
from rl import warmstart
from rl.config import load
from rl.new import ONE_TURN

WITH_ROWS = ONE_TURN.replace("most: int = 30", "most: int = 30, rows: str = 'no.txt'")


def folder(*overrides: str) -> Path:
    return warmstart.place(load("x.yaml", overrides))[0]


@pytest.fixture(autouse=True)
def sums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("sums.py").write_text(WITH_ROWS)
    Path("x.yaml").write_text("worlds: {sums: {world: ./sums.py}}")
    return tmp_path / "sums.py"


def test_the_cache_depends_on_a_worlds_code_arguments_and_data(sums: Path) -> None:
    first = folder()
    assert folder() == folder("learner.lr=1") == first
    assert len({first, folder("worlds.sums.args.most=40"), folder("seed=1"), folder("worlds.other.world=math")}) == 4
    sums.write_text(WITH_ROWS.replace("What is", "How much is"))
    assert folder() != first
    sums.write_text(WITH_ROWS)
    assert folder() == first
    without = folder("worlds.sums.args.rows=rows.txt")
    Path("rows.txt").write_text("1")
    one = folder("worlds.sums.args.rows=rows.txt")
    Path("rows.txt").write_text("2")
    assert len({first, without, one, folder("worlds.sums.args.rows=rows.txt")}) == 4


class Page:
    def phase(self, name: str) -> None: ...

    def progress(self, done: int, total: int, note: str = "") -> None: ...


def test_a_head_that_no_engine_serves_is_refused_before_anything_is_made() -> None:
    with pytest.raises(ValueError, match=r"hidden=64 in 4 heads, 16 dimensions a head; expected .* 32, 64"):
        warmstart.ensure(load("x.yaml", ["warmstart.hidden=64"]), Page())
    assert not list(Path(".cache/warmstart").glob("*"))


def test_a_world_without_a_wrong_demonstration_says_so(sums: Path) -> None:
    sums.write_text(ONE_TURN.replace("def wrong", "def _wrong"))
    with pytest.raises(ValueError, match="world sums has no `wrong`, so there is no wrong demonstration"):
        warmstart.ensure(load("x.yaml"), Page())
    assert not list(Path(".cache/warmstart").glob("*"))


def test_a_long_demonstration_is_a_row_of_its_own_up_to_the_context() -> None:
    class Words:
        def conversation(self, said: list[Message]) -> tuple[list[int], list[bool]]:
            return [1] * len(said), [True] * len(said)

    settings = load("x.yaml", ["warmstart.row_tokens=10", "warmstart.steps=1", "policy.context=25"])
    demos = itertools.cycle([[{}] * length for length in (4, 20, 4)])
    lengths = {len(row["input_ids"]) for row in warmstart._rows(demos, Words(), settings)}
    assert max(lengths) == 20 and lengths - {20} <= {4, 8}
    with pytest.raises(ValueError, match=r"26 tokens; expected at most policy.context=25"):
        warmstart._rows(itertools.repeat([{}] * 26), Words(), settings)
