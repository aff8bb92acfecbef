"""A document of the lab as one HTML page: no script, no network, all text escaped. `render` makes it.

`markup.py` escapes, `numbers.py` formats columns, `plots.py` draws, `style.css` is the page's only style.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rl.lab.document import Attempt, Document, Plot, Table
from rl.lab.page import numbers, plots
from rl.lab.page.markup import Markup, join, tag

ABOUT = {
    "score": "Stored attempts of finished runs, scored again under each reward shaping and put through the advantage "
    "code that training uses. Nothing was trained here.",
    "audit": "Each reward shaping against attempts whose truth is known: right answers, empty ones, echoes of the "
    "prompt, near misses and known exploits.",
    "train": "Each reward shaping trained from the same start, on the same tasks and seeds. The true score is measured "
    "beside the one that was paid.",
    "toy": "What shapings do to decision processes that are small enough to be solved exactly.",
}
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
LONGEST = 20_000
"""Characters of one message that are shown: most of them its beginning, a quarter its end."""
PREVIEW = 90
FOLDED = 12
"""Figures of each shaping beyond which they are to unfold, as the tables tell most of them."""
WRAPPED = 24
"""Characters of a cell beyond which it may take several lines."""
ROWS = 60
"""Of a plot's numbers, in a table below it; of more, the bounds only."""


def render(document: Document) -> str:
    """The page. The same document gives the same page."""
    parts = {
        "warnings": (f"Warnings ({len(document.warnings)})", _warnings(document)),
        "figures": ("Figures", _figures(document.figures)),
        "tables": ("Tables", join(_table(table) for table in document.tables)),
        "plots": ("Plots", _plots(document.plots)),
        "attempts": ("Attempts, side by side", _attempts(document.attempts)),
    }
    shown = {name: part for name, part in parts.items() if part[1]}
    links = [tag("li", tag("a", title, href=f"#{name}")) for name, (title, _) in shown.items()]
    header = tag(
        "header",
        tag("p", f"Reward lab: {document.kind}", class_="kind"),
        tag("h1", document.name or "Unnamed"),
        tag("p", ABOUT.get(document.kind, f"What rl lab {document.kind} found."), class_="lead"),
        _hashes(document.hashes),
        tag("nav", tag("ul", links), aria_label="Sections"),
    )
    sections = [tag("section", tag("h2", title), body, id=name) for name, (title, body) in shown.items()]
    footer = tag(
        "footer", tag("p", "Made by rl lab report. The same numbers, in full, are in the JSON beside this page.")
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{document.name}: rl lab {document.kind}"),
        tag("style", Markup((Path(__file__).parent / "style.css").read_text())),
    )
    body = tag("body", header, tag("main", sections), footer)
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _hashes(hashes: Mapping[str, str]) -> Markup:
    if not hashes:
        return Markup("")
    rows = [join([tag("dt", name), tag("dd", tag("code", value))]) for name, value in hashes.items()]
    return tag(
        "details",
        tag("summary", f"What it was made of: {len(hashes)} {'hash' if len(hashes) == 1 else 'hashes'}"),
        tag("dl", rows, class_="hashes"),
    )


def _warnings(document: Document) -> Markup:
    if not document.warnings:
        return tag("p", "Nothing to warn of.", class_="note")
    items = [
        tag("li", tag("b", warned.name), f" {warned.about}" if warned.about else "", tag("p", warned.text))
        for warned in document.warnings
    ]
    return tag("ul", items, class_="warnings")


def _figures(figures: Mapping[str, Any], level: str = "h3", title: str = "") -> Markup:
    """Plain values as a list, groups that share their names as one table, what is nested otherwise under its name."""
    plain = {name: value for name, value in figures.items() if not (isinstance(value, dict) and value)}
    groups = {name: flat(value) for name, value in figures.items() if isinstance(value, dict) and value}
    pieces = [tag(level, title)] if title and (plain or len(groups) > 1) else []
    if plain:
        pairs = [_fact(name, numbers.cell(value)) for name, value in plain.items()]
        pieces.append(tag("dl", pairs, class_="facts"))
    if len(groups) > 1 and set.intersection(*(set(group) for group in groups.values())):
        rows = list(dict.fromkeys(name for group in groups.values() for name in group))
        body = [[_words(row), *(group.get(row) for group in groups.values())] for row in rows]
        grid = _grid(["", *groups], body, by_row=True, label=title or "Figures")
        long = len(body) > FOLDED
        pieces.append(tag("details", tag("summary", f"{len(body)} figures of each"), grid) if long else grid)
    else:
        pieces += [_figures(figures[name], level, f"{title}, {name}" if title else name) for name in groups]
    return join(pieces)


def _fact(name: str, text: str) -> Markup:
    return tag("div", tag("dt", _words(name)), tag("dd", text, class_="long" if len(text) > 16 else None))


def flat(figures: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested figures by their path, as `math.dead`."""
    found: dict[str, Any] = {}
    for name, value in figures.items():
        path = f"{above}.{name}" if above else str(name)
        found |= flat(value, path) if isinstance(value, dict) and value else {path: value}
    return found


def _table(table: Table) -> Markup:
    note = [tag("p", table.note, class_="note")] if table.note else []
    return join([tag("h3", table.title), *note, _grid(table.columns, table.rows, label=table.title)])


def _grid(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, label: str, by_row: bool = False) -> Markup:
    """A table that scrolls within itself. Numbers agree in their decimals down a column, or `by_row` along a row."""
    width = len(columns)
    rows = [[*row, *[None] * width][:width] for row in rows]
    right = [bool(rows) and numbers.numeric([row[n] for row in rows]) for n in range(width)]
    if by_row:
        right = [False, *[True] * (width - 1)]
        shown = [[numbers.cell(row[0]), *numbers.column(row[1:])] for row in rows]
    else:
        shown = [
            list(row) for row in zip(*(numbers.column([row[n] for row in rows]) for n in range(width)), strict=True)
        ]

    def drawn(name: str, n: int, text: str, scope: str | None) -> Markup:
        kinds = [kind for kind, so in (("number", right[n]), ("words", len(text) > WRAPPED)) if so]
        return tag(name, text, scope=scope, class_=" ".join(kinds) or None)

    head = [drawn("th", n, name, "col") for n, name in enumerate(columns)]
    body = [
        tag(
            "tr",
            [
                drawn("td", n, text, None) if n or right[0] else drawn("th", 0, text, "row")
                for n, text in enumerate(row)
            ],
        )
        for row in shown
    ]
    grid = tag("table", tag("thead", tag("tr", head)), tag("tbody", body))
    return tag("div", grid, class_="scroll", tabindex="0", role="region", aria_label=label)


def _plots(all_plots: Sequence[Plot]) -> Markup:
    shown = [_plot(plot, number) for number, plot in enumerate(all_plots) if any(series.x for series in plot.series)]
    return tag("div", shown, class_="plots") if shown else Markup("")


def _plot(plot: Plot, number: int) -> Markup:
    drawn = plots.panels(plot)
    many = len(drawn) > 1
    said = f"{plot.title}: {plot.y_label} by {plot.x_label}" if plot.x_label else f"{plot.title}: {plot.y_label}"
    pictures = [
        plots.svg(panel, f"p{number}-{n}-", f"{said}; {panel.title}" if panel.title else said, many=many)
        for n, panel in enumerate(drawn)
    ]
    if many:
        titled = [tag("div", tag("h4", panel.title), picture) for panel, picture in zip(drawn, pictures, strict=True)]
        body = tag("div", titled, class_="panels wide" if plots.wide(plot) else "panels")
        if not plots.wide(plot):
            body = join([tag("p", f"{plot.y_label}; in grey, the others.", class_="note"), body])
    else:
        body = join(pictures)
    every = plots.stride(plot)
    notes = [tag("p", plot.note, class_="note")] if plot.note else []
    notes += [tag("p", f"Drawn: one point in {every}.", class_="note")] if every > 1 else []
    caption = tag("figcaption", notes, _numbers(plot))
    return tag("figure", tag("h3", plot.title), body, caption, class_="many" if many else "alone")


def _numbers(plot: Plot) -> Markup:
    """The plot for those who would rather read it."""
    xs = list(dict.fromkeys(x for series in plot.series for x in series.x))
    if len(xs) > ROWS:
        columns = ["", "points", "first", "last", "lowest", "highest"]
        rows: list[list[Any]] = []
        for series in plot.series:
            there = [y for y in series.y if y is not None]
            ends = [there[0], there[-1], min(there), max(there)] if there else [None] * 4
            rows.append([series.name, len(there), *ends])
    else:
        columns = [plot.x_label, *(series.name for series in plot.series)]
        by_x = [
            dict(zip(series.x, _with_bounds(series.y, series.low, series.high), strict=False)) for series in plot.series
        ]
        rows = [[x, *(held.get(x) for held in by_x)] for x in xs]
    return tag("details", tag("summary", "The numbers"), _grid(columns, rows, label=f"Numbers of {plot.title}"))


def _with_bounds(
    y: Sequence[float | None], low: Sequence[float | None], high: Sequence[float | None]
) -> Sequence[float | str | None]:
    if not (low or high):
        return y
    cells = [numbers.column([*three]) for three in zip(y, low, high, strict=False)]
    return [f"{value} [{least}, {most}]" for value, least, most in cells]


def _attempts(attempts: Sequence[Attempt]) -> Markup:
    """An overview of the ranks, then every attempt; those at the same task beside each other."""
    if not attempts:
        return Markup("")
    shapings = list(dict.fromkeys(name for attempt in attempts for name in attempt.ranks))
    rows = [
        [f"{n}. {attempt.world}", "solved" if attempt.solved else "not solved", *map(attempt.ranks.get, shapings)]
        for n, attempt in enumerate(attempts, 1)
    ]
    tasks = list(dict.fromkeys((attempt.world, attempt.key) for attempt in attempts))
    beside = sorted(enumerate(attempts, 1), key=lambda pair: tasks.index((pair[1].world, pair[1].key)))
    return join(
        [
            tag("p", "Rank of each attempt in its group under each shaping: 1 is the best, ties share their mean."),
            _grid(["attempt", "truth", *shapings], rows, label="Ranks of the attempts"),
            tag("div", [_attempt(n, attempt) for n, attempt in beside], class_="attempts"),
        ]
    )


def _attempt(number: int, attempt: Attempt) -> Markup:
    names = list(dict.fromkeys([*attempt.ranks, *attempt.scores]))
    rows = [[name, attempt.scores.get(name), attempt.ranks.get(name)] for name in names]
    truth = "solved" if attempt.solved else "not solved"
    ended = "" if attempt.outcome in ("solved", "") else f", ended as {attempt.outcome}"
    return tag(
        "article",
        tag("h3", f"{number}. {attempt.world}: {attempt.key}"),
        tag("p", f"Truly {truth}{ended}.", f" {attempt.note}" if attempt.note else "", class_="note"),
        _grid(["shaping", "score", "rank"], rows, label=f"Scores and ranks of attempt {number}"),
        tag("div", [_message(message) for message in attempt.messages]),
    )


def _message(message: Mapping[str, Any]) -> Markup:
    text = message.get("content")
    text = text if isinstance(text, str) else numbers.cell(text)
    extra = {key: value for key, value in message.items() if key not in ("role", "content") and value}
    text += "".join(f"\n[{key}] {numbers.cell(value)}" for key, value in extra.items())
    first = " ".join(text[: 4 * PREVIEW].split())[:PREVIEW]
    return tag(
        "details",
        tag("summary", tag("b", str(message.get("role", ""))), f" {first}"),
        tag("pre", _clipped(text), tabindex="0", class_="mono"),
        class_="said",
    )


def _clipped(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    end = LONGEST // 4
    return f"{text[: LONGEST - end]}\n\n[{len(text) - LONGEST:,} characters are left out here]\n\n{text[-end:]}"


def _words(name: str) -> str:
    return name.replace("_", " ")
