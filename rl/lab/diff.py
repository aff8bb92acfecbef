"""`rl lab diff`: what differs between two documents of one kind, and from which other things that may come.

Tables are compared by title, their rows by their words (the first columns that hold text only), all else by name.
Whether a difference is more than chance is not said here: only intervals can tell.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from rl.lab.document import Document, Plot, Table, load
from rl.lab.page import flat, numbers

HELP = "what differs between two documents of the same kind"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", metavar="A", help="a folder with document.json, or such a file")
    parser.add_argument("b", metavar="B", help="another, of the same kind")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    found = facts(load(Path(args.a)), load(Path(args.b)))
    if args.json:
        print(json.dumps(found))
    else:
        show(found)
    return 0


def facts(a: Document, b: Document) -> dict[str, Any]:
    """All differences. Raises ValueError where the two are of different kinds."""
    if a.kind != b.kind:
        raise ValueError(f"got a document of rl lab {a.kind} and one of rl lab {b.kind}; expected two of the same kind")
    warned = [{(warning.name, warning.about): warning.text for warning in document.warnings} for document in (a, b)]
    found: dict[str, Any] = {
        "kind": a.kind,
        "names": [a.name, b.name],
        "hashes": _values(a.hashes, b.hashes),
        "figures": _values(flat(a.figures), flat(b.figures)),
        "tables": _tables(a.tables, b.tables),
        "plots": _plots(a.plots, b.plots),
        "warnings": {
            "came": [[*key, text] for key, text in warned[1].items() if key not in warned[0]],
            "went": [[*key, text] for key, text in warned[0].items() if key not in warned[1]],
            "changed": [[*key, text] for key, text in warned[1].items() if warned[0].get(key, text) != text],
        },
    }
    found["same"] = not any(found[part] for part in ("hashes", "figures", "tables", "plots")) and warned[0] == warned[1]
    return found


def _values(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """By name, what is not equal: `a` and `b`, where each has it, and `change` where both are numbers."""
    found: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys([*a, *b]):
        if name in a and name in b and a[name] == b[name]:
            continue
        found[name] = {side: held[name] for side, held in (("a", a), ("b", b)) if name in held}
        if (change := _less(found[name])) is not None:
            found[name]["change"] = change
    return found


def _less(held: Mapping[str, Any]) -> float | None:
    """B less A, where both are numbers."""
    a, b = held.get("a"), held.get("b")
    return None if a is None or b is None or not numbers.numeric([a, b]) else b - a


def _tables(a: Sequence[Table], b: Sequence[Table]) -> dict[str, dict[str, Any]]:
    """By title and row, the cells that differ, as `_values`; and titles and rows that only one has."""
    found: dict[str, dict[str, Any]] = {}
    of_a, of_b = ({table.title: table for table in tables} for tables in (a, b))
    for title in dict.fromkeys([*of_a, *of_b]):
        if title not in of_a or title not in of_b:
            found[title] = {"only": "a" if title in of_a else "b"}
            continue
        pair = of_a[title], of_b[title]
        words = _words(*pair)
        rows = [_rows(table, words) for table in pair]
        cells = {name: _values(rows[0][name], rows[1][name]) for name in rows[0] if name in rows[1]}
        differing: dict[str, Any] = {
            "rows": {name: changed for name, changed in cells.items() if changed},
            "only_a": [name for name in rows[0] if name not in rows[1]],
            "only_b": [name for name in rows[1] if name not in rows[0]],
        }
        if any(differing.values()):
            found[title] = differing
    return found


def _words(a: Table, b: Table) -> set[str]:
    """Columns by which rows are known: those before the first that holds anything but text; the
    first column in any case."""
    shared = [column for column in a.columns if column in b.columns]
    cells = {column: [row[table.columns.index(column)] for table in (a, b) for row in table.rows] for column in shared}
    text = takewhile(lambda column: all(isinstance(cell, str) for cell in cells[column]), shared)
    return set(text if any(cells.values()) else ()) or set(shared[:1])


def _rows(table: Table, words: set[str]) -> dict[str, dict[str, Any]]:
    """Rows by their words; where several have the same, numbered."""
    found: dict[str, dict[str, Any]] = {}
    for row in table.rows:
        held = dict(zip(table.columns, row, strict=False))
        name = ", ".join(str(held[column]) for column in table.columns if column in words and column in held)
        count = 1 + sum(other == name or other.startswith(f"{name} (") for other in found)
        found[name if count == 1 else f"{name} ({count})"] = {k: v for k, v in held.items() if k not in words}
    return found


def _plots(a: Sequence[Plot], b: Sequence[Plot]) -> dict[str, dict[str, Any]]:
    """By title and series, the point at which the two are furthest apart; and what only one has."""
    of_a, of_b = (
        {f"{plot.title}: {series.name}": series for plot in plots for series in plot.series} for plots in (a, b)
    )
    found: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys([*of_a, *of_b]):
        if name not in of_a or name not in of_b:
            found[name] = {"only": "a" if name in of_a else "b"}
            continue
        at_a, at_b = (dict(zip(series.x, series.y, strict=False)) for series in (of_a[name], of_b[name]))
        apart = {x: (at_a[x], at_b[x]) for x in at_a if at_a[x] is not None and at_b.get(x) is not None}
        furthest = max(apart, key=lambda x: abs(_gap(apart[x])), default=None)
        if furthest is not None and _gap(apart[furthest]):
            found[name] = {"x": furthest, "a": apart[furthest][0], "b": apart[furthest][1]}
    return found


def _gap(pair: tuple[float | None, float | None]) -> float:
    return (pair[1] or 0.0) - (pair[0] or 0.0)


def show(found: Mapping[str, Any]) -> None:
    """For a terminal. Nothing in a document is taken as markup or obeyed as a control code."""
    from rich.console import Console
    from rich.text import Text

    from rl.lab.page.markup import clean

    console = Console(markup=False, highlight=False, emoji=False)
    say = lambda text, style="": console.print(Text(clean(text), style=style))  # noqa: E731
    a, b = found["names"]
    say(f"rl lab {found['kind']}: A is {a}, B is {b}")
    if found["same"]:
        say("No difference.")
        return
    for when, warnings in found["warnings"].items():
        for name, about, text in warnings:
            say(f"Warning that {when}: {name}{f' ({about})' if about else ''}: {text}", "bold")
    if found["hashes"]:
        short = {
            name: {side: value[:12] for side, value in held.items() if side in ("a", "b")}
            for name, held in found["hashes"].items()
        }
        console.print(_grid("Made of something else", short))
    if found["figures"]:
        console.print(_grid("Figures", found["figures"]))
    for title, held in found["tables"].items():
        if "only" in held:
            say(f"Only {held['only'].upper()} has the table: {title}")
            continue
        rows = {f"{row}: {name}": cell for row, changed in held["rows"].items() for name, cell in changed.items()}
        if rows:
            console.print(_grid(title, rows))
        for side in ("a", "b"):
            if held[f"only_{side}"]:
                say(f"Only {side.upper()} has these rows of {title}: {'; '.join(held[f'only_{side}'])}")
    apart = {f"{name}, at {held['x']}": held for name, held in found["plots"].items() if "only" not in held}
    if apart:
        console.print(_grid("Plots, where they are furthest apart", apart))
    for name, held in found["plots"].items():
        if "only" in held:
            say(f"Only {held['only'].upper()} has in its plots: {name}")


def _grid(title: str, rows: Mapping[str, Mapping[str, Any]]) -> Any:
    """Name, A, B and, where they are numbers, B less A."""
    from rich.table import Table as Grid
    from rich.text import Text

    from rl.lab.page.markup import clean

    grid = Grid(title=Text(clean(title)), title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in ("", "A", "B", "B - A"):
        grid.add_column(column, justify="left" if not column else "right")
    for name, held in rows.items():
        change = _less(held)
        shown = numbers.column([held.get("a"), held.get("b"), change])
        sign = "+" if change and change > 0 else ""
        grid.add_row(*(Text(text) for text in (clean(name), shown[0], shown[1], sign + shown[2] if change else "")))
    return grid
