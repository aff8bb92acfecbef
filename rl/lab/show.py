"""A document on a terminal: its tables and warnings; or its figures as JSON."""

from __future__ import annotations

import json

from rich.console import Console
from rich.table import Table

from rl.lab.document import Document


def show(found: Document, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(found.figures))
        return
    console = Console()
    for drawn in found.tables:
        table = Table(title=drawn.title, title_justify="left")
        for number, column in enumerate(drawn.columns):
            table.add_column(column, justify="left" if number == 0 else "right")
        for row in drawn.rows:
            table.add_row(*(_cell(value) for value in row))
        console.print(table)
        console.print(drawn.note, highlight=False)
    for warned in found.warnings:
        console.print(f"{warned.name}{warned.about and f' ({warned.about})'}: {warned.text}", highlight=False)


def _cell(value: str | float | bool | None) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
