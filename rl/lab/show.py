"""A document on a terminal: its tables and warnings; or its figures as JSON. No text in it is markup."""

from __future__ import annotations

import json

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rl.lab.document import Document
from rl.lab.page.markup import clean


def show(found: Document, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(found.figures))
        return
    console = Console(markup=False, emoji=False, highlight=False)
    for drawn in found.tables:
        table = Table(title=_text(drawn.title), title_justify="left")
        for number, column in enumerate(drawn.columns):
            table.add_column(_text(column), justify="left" if number == 0 else "right")
        for row in drawn.rows:
            table.add_row(*(_text(_cell(value)) for value in row))
        console.print(table)
        console.print(_text(drawn.note))
    for warned in found.warnings:
        console.print(_text(f"{warned.name}{warned.about and f' ({warned.about})'}: {warned.text}"))


def _text(text: str) -> Text:
    return Text(clean(text))


def _cell(value: str | float | bool | None) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
