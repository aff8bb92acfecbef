"""Files of every format, whole and broken: each row is counted, each broken file is one clear sentence."""

import gzip
import json
import os
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from envs import rows

ROWS = [{"problem": f"What is {i}?", "answer": str(i)} for i in range(5)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def written(folder: Path, name: str) -> Path:
    path = folder / name
    if name.endswith(".parquet"):
        parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    elif name.endswith(".csv"):
        path.write_text("problem,answer\n" + "".join(f'"{r["problem"]}",{r["answer"]}\n' for r in ROWS))
    elif name.endswith(".json"):
        path.write_text(json.dumps(ROWS, indent=1))
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(LINES.encode()))
    else:
        path.write_text("\ufeff" + LINES.replace("\n", "\r\n\n"))
    return path


@pytest.mark.parametrize("name", ["r.jsonl", "r.json", "r.csv", "r.parquet", "r.jsonl.gz", "unnamed"])
def test_every_format_gives_the_same_problems(tmp_path: Path, name: str) -> None:
    loaded = rows.load(written(tmp_path, name))
    assert [p.golds for p in loaded.problems] == [(str(i),) for i in range(5)]  # type: ignore[union-attr]
    assert loaded.report.read == loaded.report.taken == 5


def test_one_object_is_one_row(tmp_path: Path) -> None:
    path = tmp_path / "row.json"
    path.write_text(json.dumps(ROWS[0], indent=2))
    assert rows.load(path).report.taken == 1


def test_folders_of_files_and_saved_data_sets(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "data" / "train-0.parquet")
    (tmp_path / "dataset_info.json").write_text("{}")
    assert rows.load(tmp_path).report.taken == 5
    datasets = pytest.importorskip("datasets")
    saved = datasets.Dataset.from_list(ROWS)
    saved.save_to_disk(str(tmp_path / "saved"))
    assert rows.load(tmp_path / "saved").report.taken == 5
    assert rows.load(saved).report.taken == 5
    both = datasets.DatasetDict(train=saved, test=datasets.Dataset.from_list([{"problem": "Else?", "answer": "9"}]))
    both.save_to_disk(str(tmp_path / "both"))
    assert rows.load(tmp_path / "both").report.taken == rows.load(both).report.taken == 6


def test_malformed_rows_are_counted_named_by_line_and_stop_nothing(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    bad = [b"{broken\n", b"[1, 2]\n", b'{"problem": "\xff"}\n', b'{"problem": "P", "answer": ""}\n', b'{"other": 1}\n']
    path.write_bytes(LINES.encode() + b"".join(bad) + b'{"problem": "Last?", "answer": 6}\n')
    report = rows.load(path).report
    assert (report.read, report.taken, sum(report.refused.values())) == (11, 6, 5)
    assert report.examples["a line is no JSON"][0].startswith("r.jsonl:6: ")
    assert report.examples["a row is no object"] == ["r.jsonl:7: got list"]
    assert report.examples["a line is no UTF-8"][0].startswith("r.jsonl:8: ")
    assert report.examples["the answer is empty"][0].startswith("r.jsonl:9: ")
    assert report.examples["no known shape"][0].startswith("r.jsonl:10: it has the columns `other`")
    assert "11 rows read, 6 taken" in str(report)


def test_a_broken_first_line_does_not_hide_the_others(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text("{broken\n" + LINES)
    assert rows.load(path).report.refused == {"a line is no JSON": 1}


def test_rows_of_a_table_with_missing_values_are_refused_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "r.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([*ROWS, {"problem": None, "answer": "1"}]), path)
    report = rows.load(path).report
    assert report.taken == 5
    assert "r.parquet:6" in report.examples["no known shape"][0]
    csv = tmp_path / "r.csv"
    csv.write_text("problem,answer\nWhat?,1\nWhat,2,3\n")
    assert rows.load(csv).report.examples == {"a row has too many or too few fields": ["r.csv:3: 3 for 2 columns"]}


def test_each_broken_source_is_one_sentence(tmp_path: Path) -> None:
    whole = written(tmp_path, "r.parquet").read_bytes()
    zipped = gzip.compress(os.urandom(5000).hex().encode())
    made = {
        "empty.jsonl": (b"", "is empty"),
        "blank.jsonl": (b"\n \n", "is empty"),
        "none.json": (b"[]", "holds an empty list"),
        "rubbish.bin": (bytes(range(128, 256)) * 9, "holds no row: expected JSON Lines"),
        "half.jsonl.gz": (gzip.compress(LINES.encode() * 99)[:-20], "only the first part of a gzip file"),
        "half.gz": (zipped[: len(zipped) // 2], "only the first part of a gzip file"),
        "bad.gz": (b"\x1f\x8b" + b"\x00" * 40, "broken gzip file"),
        "half.parquet": (whole[: len(whole) // 2], "broken Parquet file"),
        "half.json": (json.dumps(ROWS).encode()[:-9], "is no JSON"),
        "header.csv": (b"problem,answer\n", "holds no row below its header"),
        "latin.csv": (b"problem,answer\n\xff,1\n", "is no UTF-8"),
    }
    for name, (data, why) in made.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(rows.BadSource, match=why) as caught:
            rows.load(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value), name
    (tmp_path / "folder").mkdir()
    with pytest.raises(rows.BadSource, match="is a folder without rows"):
        rows.load(tmp_path / "folder")
    with pytest.raises(rows.BadSource, match="there is no file"):
        rows.load(tmp_path / "absent.jsonl")
    with pytest.raises(rows.BadSource, match="got int; expected a path or rows"):
        rows.load(7)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = written(tmp_path, "r.jsonl")
    path.chmod(0)
    with pytest.raises(rows.BadSource, match="cannot be read: Permission denied"):
        rows.load(path)


SAMPLES = Path(__file__).parents[3] / ".." / "shared" / "data"


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="no sample rows on this machine")
def test_sample_rows_of_real_data_sets_are_taken() -> None:
    taken = {path.name: rows.load(path).report for path in sorted(SAMPLES.iterdir()) if path.name != "README.md"}
    assert taken
    for name, report in taken.items():
        assert report.taken >= 0.9 * report.read, f"{name}: {report}"
