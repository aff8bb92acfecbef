"""Twins of tests, and what `rl tasks build` says where it cannot begin."""

from pathlib import Path

import pytest
from tally import COUNTS, TALLY, write

from envs.swe import twins
from rl import cli

pytestmark = [pytest.mark.docker, pytest.mark.slow]


def test_a_twin_expects_something_else_and_is_still_a_program() -> None:
    found = twins.changes(COUNTS)
    assert set(found) == {
        *("test_total", "test_longest", "TestPercent::test_part", "TestPercent::test_clipped"),
        "TestPercent::test_nothing",
    }
    assert len(found["test_total"]) == 5 and len(found["test_longest"]) == 3, "each case"
    for changes in found.values():
        text = twins.apply(COUNTS, changes)
        compile(text, "x", "exec")
        assert text != COUNTS and text.count("\n") == COUNTS.count("\n")


def test_the_command_refuses_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tasks.jsonl.gz").write_bytes(b"")
    for arguments, said in (
        (["no such thing", "--out", str(tmp_path / "new")], "none of the sources can be used: got source"),
        ([".", "--out", str(tmp_path)], "holds tasks already"),
        ([".", "--out", str(tmp_path / "new"), "--sandboxes", "0"], "expected at least 1"),
    ):
        assert cli.main(["tasks", "build", *arguments]) == 2
        assert said in capsys.readouterr().err


def test_without_docker_it_says_why_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nosuch.sock")
    source = write(tmp_path / "old", "1.0", TALLY, COUNTS)
    assert cli.main(["tasks", "build", source, "--out", str(tmp_path / "new")]) == 2
    assert "bubblewrap has no images, so a Docker engine is needed: no Docker engine" in capsys.readouterr().err
