"""Rows of a source, one by one, each with its place: JSON Lines, JSON, CSV, Parquet, Arrow; gzipped; files or folders.

The format is told by the content, only CSV by its name. A row that cannot be read is yielded as a refusal; a source
of which nothing can be read raises BadSource.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from envs.rows.records import BadSource, Refused

LINE_BYTES = 256 * 2**20
JSON_BYTES = 1024 * 2**20
"""Largest file that is one JSON value, unpacked."""
KINDS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")

Line = tuple[str, "dict[str, Any] | Refused"]
"""Where it is (`file:line`, counted from 1), and the row or why there is none."""


def lines(source: Any) -> Iterator[Line]:
    """Every row of a path, of a data set object (or of several by split), or of any iterable of dicts."""
    if isinstance(source, str | Path):
        yield from _path(Path(source))
    elif isinstance(source, Mapping):
        for split, part in source.items():
            yield from _objects(part, f"{split}")
    elif isinstance(source, Iterable):
        yield from _objects(source, "row")
    else:
        raise BadSource(f"got {type(source).__name__}; expected a path or rows")


def _objects(rows: Iterable[Any], name: str) -> Iterator[Line]:
    for number, row in enumerate(rows, start=1):
        yield f"{name}:{number}", _row(row)


def _row(value: Any) -> dict[str, Any] | Refused:
    if not isinstance(value, Mapping):
        return Refused("a row is no object", f"got {type(value).__name__}")
    return {str(k): v for k, v in value.items()}


def _path(path: Path) -> Iterator[Line]:
    try:
        if path.is_dir():
            yield from _folder(path)
        elif not path.exists():
            raise BadSource(f"there is no file {path}")
        elif not path.is_file():
            raise BadSource(f"{path} is no regular file")
        elif path.stat().st_size == 0:
            raise BadSource(f"{path} is empty")
        else:
            yield from _file(path)
    except OSError as error:
        raise BadSource(f"{path} cannot be read: {error.strerror or error}") from None


def _folder(folder: Path) -> Iterator[Line]:
    """A folder that `datasets` saved (its splits in turn), or one with files of rows in it or in `data/`."""
    if (folder / "dataset_dict.json").is_file():
        splits = json.loads((folder / "dataset_dict.json").read_text()).get("splits", [])
        files = [file for split in splits for file in sorted((folder / split).glob("*.arrow"))]
    else:
        found = [*folder.iterdir(), *((folder / "data").iterdir() if (folder / "data").is_dir() else ())]
        named = [file for file in found if file.name.lower().removesuffix(".gz").endswith(KINDS)]
        arrow = [file for file in named if file.suffix == ".arrow"]
        files = sorted(arrow or [file for file in named if file.name not in ("dataset_info.json", "state.json")])
    if not files:
        raise BadSource(f"{folder} is a folder without rows; expected files named {', '.join(KINDS)} in it")
    for file in files:
        yield from _path(file)


def _file(path: Path) -> Iterator[Line]:
    with path.open("rb") as raw:
        start = raw.read(8)
    if start.startswith(b"PAR1"):
        return _parquet(path)
    if start.startswith(b"\x1f\x8b"):
        return _unzipped(path)
    if path.suffix == ".arrow":
        return _arrow(path)
    return _text(path, path.name)


def _unzipped(path: Path) -> Iterator[Line]:
    try:
        yield from _text(path, path.name.removesuffix(".gz"))
    except EOFError:
        raise BadSource(f"{path} is only the first part of a gzip file: fetch it again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise BadSource(f"{path} is a broken gzip file: {error}") from None


def _opened(path: Path) -> IO[bytes]:
    with path.open("rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
    return io.BufferedReader(gzip.open(path)) if zipped else path.open("rb")


def _text(path: Path, name: str) -> Iterator[Line]:
    if name.lower().endswith((".csv", ".tsv")):
        yield from _csv(path, "\t" if name.lower().endswith(".tsv") else ",")
        return
    with _opened(path) as stream:
        first = _first_line(stream)
    if not first:
        raise BadSource(f"{path} is empty")
    if isinstance(_parsed(first), dict):
        yield from _jsonl(path)
    elif first[:1] in b"[{":
        yield from _json(path)
    else:
        yield from _jsonl(path)


def _first_line(stream: IO[bytes]) -> bytes:
    """The first line that is not blank."""
    while line := stream.readline(LINE_BYTES):
        if stripped := line.removeprefix(b"\xef\xbb\xbf").strip():
            return stripped
    return b""


def _parsed(line: bytes) -> Any:
    """The line's JSON value, or Refused."""
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError:
        return Refused("a line is no UTF-8", f"starts with {line[:30]!r}")
    except RecursionError:
        return Refused("a line is nested too deeply")
    except ValueError as error:
        return Refused("a line is no JSON", f"{error}; starts with {line[:40].decode(errors='replace')!r}")


def _jsonl(path: Path) -> Iterator[Line]:
    some, first = False, b""
    with _opened(path) as stream:
        for number in itertools.count(1):
            line = stream.readline(LINE_BYTES)
            if not line:
                break
            if len(line) >= LINE_BYTES and not line.endswith(b"\n"):
                while (rest := stream.readline(LINE_BYTES)) and not rest.endswith(b"\n"):
                    pass
                yield f"{path.name}:{number}", Refused(f"a line is longer than {LINE_BYTES // 2**20} MB")
                continue
            if not (line := line.removeprefix(b"\xef\xbb\xbf").strip()):
                continue
            first = first or line
            value = _parsed(line)
            row = value if isinstance(value, Refused) else _row(value)
            some = some or isinstance(row, dict)
            yield f"{path.name}:{number}", row
    if not some:
        raise BadSource(
            f"{path} holds no row: expected JSON Lines, a JSON list, CSV, Parquet or one of them gzipped; "
            f"it starts with {first[:40]!r}"
        )


def _json(path: Path) -> Iterator[Line]:
    with _opened(path) as stream:
        data = stream.read(JSON_BYTES + 1)
    if len(data) > JSON_BYTES:
        raise BadSource(f"{path} is one JSON value of more than {JSON_BYTES // 2**20} MB: write it as JSON Lines")
    value = _parsed(data.removeprefix(b"\xef\xbb\xbf"))
    if isinstance(value, Refused):
        if data.count(b"\n{") > 0:  # JSON Lines whose first line is broken
            yield from _jsonl(path)
            return
        raise BadSource(f"{path} is no JSON: {value.detail or value.reason}")
    rows = value if isinstance(value, list) else [value]
    if not rows:
        raise BadSource(f"{path} holds an empty list")
    yield from _objects(rows, path.name)


def _csv(path: Path, delimiter: str) -> Iterator[Line]:
    csv.field_size_limit(LINE_BYTES)
    number = 1
    with _opened(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        try:
            header = next(reader, [])
            for number, fields in enumerate(reader, start=2):
                if not fields:
                    continue
                where = f"{path.name}:{number}"
                if len(fields) != len(header):
                    got = f"{len(fields)} for {len(header)} columns"
                    yield where, Refused("a row has too many or too few fields", got)
                else:
                    yield where, {k: v for k, v in zip(header, fields, strict=True) if v != ""}
        except UnicodeDecodeError:
            raise BadSource(f"{path} is no UTF-8 text") from None
        except csv.Error as error:
            raise BadSource(f"{path} is no CSV from row {number} on: {error}") from None
    if number == 1:
        raise BadSource(f"{path} holds no row below its header")


def _parquet(path: Path) -> Iterator[Line]:
    import pyarrow
    from pyarrow import parquet

    try:
        number = 0
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=64):
            for row in batch.to_pylist():
                number += 1
                yield f"{path.name}:{number}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise BadSource(f"{path} is a broken Parquet file: {' '.join(str(error).split())[:200]}") from None


def _arrow(path: Path) -> Iterator[Line]:
    """A stream as `datasets` saves it."""
    import pyarrow

    try:
        number = 0
        with pyarrow.memory_map(str(path)) as stream:
            for batch in pyarrow.ipc.open_stream(stream):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path.name}:{number}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise BadSource(f"{path} is no Arrow stream: {' '.join(str(error).split())[:200]}") from None
