"""A document on a terminal: its tables and warnings; or its figures as JSON. No text in it is markup.

Nothing is cut: a table that is too wide for the terminal is written out row by row, and in a pipe no line is broken.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from rl.lab import document
from rl.lab.document import Document
from rl.lab.page.markup import clean

PIPE_COLUMNS = 1000


def show(found: Document, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(found.figures))
        return
    piped = None if sys.stdout.isatty() else PIPE_COLUMNS
    write(found, Console(markup=False, emoji=False, highlight=False, width=piped))


def write(found: Document, console: Console) -> None:
    for drawn in found.tables:
        console.print(_text(drawn.title, "bold"))
        table = _table(drawn)
        if Measurement.get(console, console.options.update(max_width=PIPE_COLUMNS), table).minimum <= console.width:
            console.print(table)
        else:
            for row in drawn.rows:
                console.print(_text(_written(drawn.columns, row)))
        console.print(_text(f"{drawn.note}\n" if drawn.note else ""))
    for warned in found.warnings:
        console.print(_text(f"{warned.name}{warned.about and f' ({warned.about})'}: {warned.text}"))


def _table(drawn: document.Table) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=bool(drawn.rows))
    for number, column in enumerate(drawn.columns):
        words = number == 0 or any(isinstance(row[number], str) for row in drawn.rows)
        cells = [column, *(_cell(row[number]) for row in drawn.rows)]
        longest = max((len(word) for cell in cells for word in clean(cell).split()), default=0)
        table.add_column(_text(column), justify="left" if words else "right", vertical="bottom", min_width=longest)
    for row in drawn.rows:
        table.add_row(*(_text(_cell(value)) for value in row))
    return table


def _written(columns: Sequence[str], row: Sequence[str | float | bool | None]) -> str:
    """A row as a sentence: its words, then what was measured."""
    words = next((at for at, value in enumerate(row) if not isinstance(value, str)), len(row))
    shown = (
        f"{column} {_cell(value)}"
        for column, value in list(zip(columns, row, strict=True))[words:]
        if value is not None
    )
    return f"{', '.join(map(str, row[:words]))}: {', '.join(shown)}"


def _text(text: str, style: str = "") -> Text:
    return Text(clean(text), style)


def _cell(value: str | float | bool | None) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
