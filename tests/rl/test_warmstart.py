"""The warm start's cache: another folder where anything that the demonstrations depend on is another."""

from pathlib import Path

import pytest

from rl import warmstart
from rl.config import RunConfig, load
from rl.new import ONE_TURN


class Page:
    def phase(self, name: str) -> None: ...

    def progress(self, done: int, total: int, note: str = "") -> None: ...


def folder(config: RunConfig) -> Path:
    return warmstart.ensure(config, Page())[0]


def test_a_changed_world_or_data_file_is_learnt_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sums.py").write_text(ONE_TURN)
    tiny = "hidden: 16, layers: 1, heads: 2, kv_heads: 1, mlp: 16, vocab: 330, steps: 1, rows: 1, row_tokens: 96"
    Path("x.yaml").write_text(f"{{worlds: {{sums: {{world: ./sums.py}}}}, warmstart: {{{tiny}}}}}")
    first = folder(load("x.yaml"))
    assert (first / "config.json").is_file() and folder(load("x.yaml")) == first
    assert folder(load("x.yaml", ["worlds.sums.args.most=40"])) != first
    Path("sums.py").write_text(ONE_TURN.replace("What is", "How much is"))
    second = folder(load("x.yaml"))
    assert second != first
    Path("sums.py").write_text(ONE_TURN.replace("most: int = 30", "most: int = 30, rows: str = 'rows.txt'"))
    without = folder(load("x.yaml", ["worlds.sums.args.rows=rows.txt"]))
    Path("rows.txt").write_text("1\n")
    assert folder(load("x.yaml", ["worlds.sums.args.rows=rows.txt"])) != without
    assert len(list(Path(".cache/warmstart").iterdir())) == 5


def test_a_world_without_a_wrong_demonstration_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sums.py").write_text(ONE_TURN.replace("def wrong", "def _wrong"))
    Path("x.yaml").write_text("worlds: {sums: {world: ./sums.py}}")
    with pytest.raises(ValueError, match="world sums has no `wrong`, so there is no wrong demonstration"):
        folder(load("x.yaml"))
    assert not list(Path(".cache/warmstart").glob("*"))
