"""Two documents of one kind, side by side: what was planted as different is found, and nothing else is."""

import copy
import json
from pathlib import Path

import pytest

from rl import cli
from rl.lab import diff
from rl.lab.document import Series, Table, Warned, save
from tests.rl.lab import samples


@pytest.mark.parametrize("kind", ["score", "audit", "train", "toy"])
def test_a_document_does_not_differ_from_itself(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = samples.every()[kind]
    found = diff.facts(document, copy.deepcopy(document))
    assert found["same"] and not any(found[part] for part in ("hashes", "figures", "tables", "plots"))
    save(document, tmp_path)
    assert cli.main(["lab", "diff", str(tmp_path), str(tmp_path / "document.json")]) == 0
    assert "No difference." in capsys.readouterr().out


def test_what_was_planted_is_found_and_nothing_else() -> None:
    a, b = samples.score(), samples.score()
    b.hashes["reward/tests"] = "ff" * 32
    del b.hashes["run/quickstart"]
    b.figures["shapings"]["tests"]["dead_groups"] += 0.25
    b.figures["new"] = "x"
    b.tables[0].rows[4][3] = 0.5
    b.tables[0].rows.pop()
    b.tables.append(Table(title="another", columns=["a"], rows=[]))
    b.plots[0].series[1].y[2] = 0.9
    b.plots[1].series.append(Series(name="third", x=[1.0], y=[1.0]))
    b.warnings = [
        Warned(name="skipped", about="", text="13 attempts"),
        Warned(name="dead-weight", about="tests", text="t"),
    ]
    found = diff.facts(a, b)
    assert set(found["hashes"]) == {"reward/tests", "run/quickstart"}
    assert set(found["hashes"]["run/quickstart"]) == {"a"}
    assert found["figures"]["shapings.tests.dead_groups"]["change"] == pytest.approx(0.25)
    assert set(found["figures"]) == {"shapings.tests.dead_groups", "new"} and found["figures"]["new"] == {"b": "x"}
    table = found["tables"].pop("By shaping and world")
    assert table["rows"] == {"tests, code": {"dead groups": {"a": 0.27, "b": 0.5, "change": pytest.approx(0.23)}}}
    assert (table["only_a"], table["only_b"]) == (["outcome+format, swe"], [])
    assert found["tables"] == {"another": {"only": "b"}}
    assert found["plots"] == {
        "Groups that teach nothing: tests": {"x": "swe", "a": pytest.approx(0.15), "b": 0.9},
        "Score against length: third": {"only": "b"},
    }
    assert [name for name, *_ in found["warnings"]["came"]] == ["dead-weight"]
    assert [name for name, *_ in found["warnings"]["went"]] == ["telescoping-potential"]
    assert found["warnings"]["changed"] == [["skipped", "", "13 attempts"]]
    assert not found["same"]


def test_columns_and_rows_of_one_name_are_kept_apart() -> None:
    a = Table(title="t", columns=["seed", "value"], rows=[[0, 1.0], [0, 2.0], [1, None]])
    b = Table(title="t", columns=["seed", "value", "more"], rows=[[0, 1.0, 1], [0, 2.5, 1], [1, 3.0, 1]])
    one, two = samples.toy(), samples.toy()
    one.tables, two.tables = [a], [b]
    rows = diff.facts(one, two)["tables"]["t"]["rows"]
    assert rows["0 (2)"]["value"] == {"a": 2.0, "b": 2.5, "change": 0.5}
    assert rows["0"] == {"more": {"b": 1}}
    assert rows["1"]["value"] == {"a": None, "b": 3.0}, "no difference to what is missing"


def test_a_figure_in_words_does_not_make_another_row() -> None:
    one, two = samples.toy(), samples.toy()
    for document, reached in ((one, "5 of 5"), (two, "4 of 5")):
        rows: list[list[str | float | int | bool | None]] = [["length", "math", 0.5, reached]]
        document.tables = [Table(title="t", columns=["shaping", "world", "end", "reached"], rows=rows)]
    changed = diff.facts(one, two)["tables"]["t"]
    assert changed == {
        "rows": {"length, math": {"reached": {"a": "5 of 5", "b": "4 of 5"}}},
        "only_a": [],
        "only_b": [],
    }


def test_for_people_and_for_machines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = samples.train(), samples.train()
    b.figures["seconds"] = 6000.0
    b.hashes["config"] = "00" * 32
    b.warnings = [Warned(name="collapsed", about="hackable", text="Two of five seeds.")]
    b.tables[0].rows[1][1] = 0.9
    b.plots[0].series[0].y[3] = 0.99
    save(a, tmp_path / "a")
    save(b, tmp_path / "b")
    assert cli.main(["lab", "diff", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    said = capsys.readouterr().out
    for part in [
        "000000000000",
        "cdcdcdcdcdcd",
        "seconds",
        "\u2212312",
        "collapsed (hackable)",
        "tests: final",
        "outcome, at 15.0",
    ]:
        assert part in said, part
    assert cli.main(["lab", "diff", str(tmp_path / "a"), str(tmp_path / "b"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["figures"]["seconds"]["change"] == -312.5


def test_other_kinds_are_refused_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(samples.train(), tmp_path / "a")
    save(samples.toy(), tmp_path / "b")
    assert cli.main(["lab", "diff", str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    said = capsys.readouterr().err
    assert said == "rl lab: got a document of rl lab train and one of rl lab toy; expected two of the same kind\n"


def test_no_text_of_a_document_acts_in_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hostile, other = samples.hostile(), samples.hostile()
    other.figures = {f"{name}!": value for name, value in other.figures.items()}
    other.hashes = {samples.HOSTILE[6]: samples.HOSTILE[5]}
    other.tables[0].rows = [[samples.HOSTILE[6], 2.0]]
    other.warnings, other.plots = [], []
    save(hostile, tmp_path / "a")
    save(other, tmp_path / "b")
    assert cli.main(["lab", "diff", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    said = capsys.readouterr().out
    assert "[bold red]" in said
    assert not [c for c in said if c in "\x00\x07\x1b\x9b\u202e" or "\ud800" <= c <= "\udfff"]
