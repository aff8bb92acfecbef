"""Plots of a document: one drawing, as SVG that takes its colours from the page, and as PNG.

Up to four series share a panel, named at their line's end. More become small multiples: a panel each, the others in
grey behind it; for bars and intervals by name, a panel for each name instead, so that the series can be compared.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

from rl.lab.document import Plot, Series
from rl.lab.page.markup import Markup, clean

TOGETHER = 4
POINTS = 400
"""Of each series, drawn; of more, every so many-th."""
COLOURS = {
    **{"paper": "#ffffff", "ink": "#1c1f23", "muted": "#5c636b", "grid": "#e4e6e8", "faint": "#b9bec4"},
    **{"s0": "#0072b2", "s1": "#d55e00", "s2": "#009e73", "s3": "#cc79a7"},
    **{"t0": "#0071b1", "t1": "#b84e00", "t2": "#00704f", "t3": "#9b4a7c"},
}
"""Of the light page (style.css has both). Okabe and Ito's; `t` the same, dark enough for text."""
STROKES, MARKERS = ("-", (0, (5, 1.6)), (0, (1.2, 1.4)), (0, (6, 1.4, 1.2, 1.4))), "os^D"


@dataclass(frozen=True, slots=True)
class Panel:
    title: str
    plot: Plot
    focus: int | None = None
    """The series that is drawn in colour before the others; None where all are."""


def panels(plot: Plot) -> list[Panel]:
    """What is drawn, as one panel or as several that share their axes' meaning."""
    if _by_name(plot):
        names = _names(plot)
        if all(len(series.x) == 1 for series in plot.series) and len(plot.series) > 1:
            return [Panel("", _one_series(plot, [_row(series, names) for series in plot.series], plot.series))]
        if len(plot.series) > TOGETHER:
            return [Panel(name, _across(plot, name)) for name in names]
        return [Panel("", plot)]
    if len(plot.series) > TOGETHER:
        return [Panel(series.name, plot, number) for number, series in enumerate(plot.series)]
    return [Panel("", plot)]


def wide(plot: Plot) -> bool:
    """Do its small multiples need room for names beside the rows?"""
    return _by_name(plot)


def stride(plot: Plot) -> int:
    """Every so many-th point is drawn."""
    return max([1, *(-(-len(series.x) // POINTS) for series in plot.series)])


def svg(panel: Panel, prefix: str, label: str, *, many: bool) -> Markup:
    """One panel. `prefix` keeps its ids apart from those of others, `label` says what it shows."""
    small = many and not _by_name(panel.plot)
    with _figure(_height(panel.plot, small), 2.35 if small else 3.5 if many else 4.6) as figure:
        _draw(figure, figure.subplots(), panel, small=small)
        out = io.StringIO()
        figure.savefig(
            out, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    return _themed(out.getvalue(), prefix, label)


def png(plot: Plot, path: Path) -> None:
    """All panels in one picture, with the title."""
    drawn = panels(plot)
    columns = min(len(drawn), 2 if _by_name(plot) else 4)
    rows, small = -(-len(drawn) // columns), len(drawn) > 1 and not _by_name(plot)
    with _figure(_height(plot, small) * rows + 0.4, (2.35 if small else 4.6) * columns) as figure:
        grid = figure.subplots(rows, columns, squeeze=False).flatten()
        for axis, panel in zip(grid, drawn, strict=False):
            _draw(figure, axis, panel, small=small, titled=True)
        for axis in grid[len(drawn) :]:
            axis.set_axis_off()
        figure.suptitle(_wrapped(plot.title, 44 * columns), x=0.01, ha="left", fontsize=11, color=COLOURS["ink"])
        figure.savefig(path, format="png", dpi=160, facecolor=COLOURS["paper"], metadata={"Software": None})


def _draw(figure: Any, axis: Any, panel: Panel, *, small: bool, titled: bool = False) -> None:
    plot = panel.plot
    _bare(axis)
    label = clean(plot.y_label)
    if _by_name(plot):
        _rows(axis, plot)
        axis.set_xlabel(_wrapped(label, 44))
    else:
        _xy(axis, panel)
        axis.set_xlabel(_wrapped(clean(plot.x_label), 26 if small else 52))
        several = panel.focus is None and len(plot.series) > 1
        if label and not small:
            above = 15 * -(-len(plot.series) // 2) if several and plot.kind != "line" else 0
            axis.set_title(_wrapped(label, 56), loc="left", fontsize=9, color=COLOURS["muted"], pad=6 + above)
        if several:
            _name_lines(figure, axis, plot) if plot.kind == "line" else _legend(axis)
    if titled and panel.title:
        axis.set_title(_short(panel.title, 30), loc="left", fontsize=9.5, color=COLOURS["ink"])


def _xy(axis: Any, panel: Panel) -> None:
    """Lines, points, intervals and bars over numbers (of a line also over names, in their order)."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    plot, step = panel.plot, stride(panel.plot)
    names = _names(plot) if any(isinstance(x, str) for series in plot.series for x in series.x) else []
    order = [n for n in range(len(plot.series)) if n != panel.focus]
    for number in [*order, *([] if panel.focus is None else [panel.focus])]:
        series = plot.series[number]
        style = _style(number, panel.focus)
        x = [float(names.index(str(value))) if names else float(value) for value in series.x][::step]
        y, low, high = ([_real(v) for v in values][::step] for values in (series.y, *_bounds(series)))
        behind = panel.focus is not None and number != panel.focus
        if plot.kind == "line":
            marked = len(x) <= 14 and not behind
            axis.plot(x, y, marker=MARKERS[0] if marked else None, markersize=3.2, **style)
            if not behind:
                axis.fill_between(x, low, high, color=style["color"], alpha=0.16, linewidth=0)
        elif plot.kind == "bar":
            gaps = [b - a for a, b in zip(sorted(x), sorted(x)[1:], strict=False) if b > a]
            width = 0.9 * min(gaps, default=1.0) / (1 if panel.focus is not None else len(plot.series))
            shift = 0.0 if panel.focus is not None else (number - (len(plot.series) - 1) / 2) * width
            if not behind:
                axis.bar([v + shift for v in x], y, width=width, color=style["color"], label=_short(series.name))
        else:
            shape = MARKERS[0 if panel.focus is not None else number % len(MARKERS)]
            if not behind:
                axis.vlines(x, low, high, color=style["color"], linewidth=1.2)
            size = 2.0 if behind else 3.6
            axis.plot(x, y, shape, markersize=size, color=style["color"], markeredgewidth=0, label=_short(series.name))
    if names:
        axis.set_xticks(range(len(names)), [_short(name, 14) for name in names])
    else:
        whole = all(float(x).is_integer() for series in plot.series for x in series.x if not isinstance(x, str))
        axis.xaxis.set_major_locator(MaxNLocator(4 if panel.focus is not None else 6, integer=whole, min_n_ticks=2))
        axis.xaxis.set_major_formatter(FuncFormatter(_tick))
    axis.yaxis.set_major_locator(MaxNLocator(5, min_n_ticks=3))
    axis.yaxis.set_major_formatter(FuncFormatter(_tick))
    if panel.focus is not None:  # small multiples are compared: all of one height
        values = _drawn(plot)
        room = 0.05 * (max(values, default=1.0) - min(values, default=0.0)) or 1.0
        axis.set_ylim(min(values, default=0.0) - room, max(values, default=1.0) + room)
    _shares(axis.set_ylim, plot)


def _rows(axis: Any, plot: Plot) -> None:
    """Bars, or points with their intervals, one row a name: names are read without turning the head."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    names, several = _names(plot), len(plot.series) > 1
    room = 0.72 / len(plot.series)
    for number, series in enumerate(plot.series):
        style, shift = _style(number, None), (number - (len(plot.series) - 1) / 2) * room
        y = [names.index(str(x)) + shift for x in series.x]
        x, low, high = ([_real(v) for v in values] for values in (series.y, *_bounds(series)))
        if plot.kind == "bar":
            axis.barh(y, x, height=0.9 * room, color=style["color"], label=_short(series.name))
            axis.hlines(y, low, high, color=COLOURS["ink"], linewidth=1.0)
        else:
            axis.hlines(y, low, high, color=style["color"], linewidth=1.6)
            shape = MARKERS[number % len(MARKERS)]
            axis.plot(x, y, shape, markersize=5, color=style["color"], markeredgewidth=0, label=_short(series.name))
    axis.set_yticks(range(len(names)), [_short(name) for name in names])
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.tick_params(axis="y", labelcolor=COLOURS["ink"])
    axis.grid(axis="y", visible=False)
    axis.grid(axis="x", visible=True)
    axis.spines["left"].set_visible(False)
    values = _drawn(plot)
    if plot.kind == "bar" or (values and min(values) < 0 < max(values)):
        axis.axvline(0, color=COLOURS["muted"], linewidth=0.8)
    axis.xaxis.set_major_locator(MaxNLocator(6, min_n_ticks=3))
    axis.xaxis.set_major_formatter(FuncFormatter(_tick))
    _shares(axis.set_xlim, plot)
    if several:
        _legend(axis)


def _legend(axis: Any) -> None:
    axis.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=2,
        frameon=False,
        borderaxespad=0.2,
        handlelength=1.2,
        labelcolor=COLOURS["ink"],
    )


def _name_lines(figure: Any, axis: Any, plot: Plot) -> None:
    """Each series' name at its last point, moved apart where they would touch."""
    figure.draw_without_rendering()
    ends = []
    for number, series in enumerate(plot.series):
        there = [
            (x, v)
            for x, y in zip(axis.lines[number].get_xdata(), series.y[:: stride(plot)], strict=True)
            if (v := _real(y)) == v
        ]
        if there:
            x, y = max(there, key=lambda point: point[0])
            ends.append((axis.transData.transform((x, y))[1] * 72 / figure.dpi, y, number, series.name))
    right, last = axis.get_xlim()[1], -1e9
    for height, y, number, name in sorted(ends):
        last = max(height, last + 10.5)
        axis.annotate(
            _short(name, 18),
            (right, y),
            xytext=(5, last - height),
            textcoords="offset points",
            va="center",
            color=COLOURS[f"t{number}"],
            fontsize=9,
            annotation_clip=False,
        )


def _style(number: int, focus: int | None) -> dict[str, Any]:
    if focus is None:
        return {"color": COLOURS[f"s{number % TOGETHER}"], "linestyle": STROKES[number % TOGETHER], "linewidth": 1.7}
    if number == focus:
        return {"color": COLOURS["s0"], "linestyle": "-", "linewidth": 1.7}
    return {"color": COLOURS["faint"], "linestyle": "-", "linewidth": 0.7}


def _bare(axis: Any) -> None:
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axis.spines[side].set_color(COLOURS["faint"])
    axis.tick_params(color=COLOURS["faint"], labelcolor=COLOURS["muted"], length=3)
    axis.grid(axis="y", color=COLOURS["grid"], linewidth=0.7)
    axis.grid(axis="x", visible=False, color=COLOURS["grid"], linewidth=0.7)


def _drawn(plot: Plot) -> list[float]:
    """All numbers of a plot, bounds included."""
    return [v for s in plot.series for held in (s.y, *_bounds(s)) for v in map(_real, held) if v == v]


def _shares(limit: Any, plot: Plot) -> None:
    """Shares are drawn from 0 to 1, where they fill that; all else as wide as it is."""
    values = _drawn(plot)
    if values and min(values) >= 0 and 0.6 <= max(values) <= 1:
        limit(0, 1.02)
    elif plot.kind == "bar" and values and min(values) >= 0:
        limit(0, None)


@contextmanager
def _figure(height: float, width: float) -> Iterator[Any]:
    import warnings

    import matplotlib
    from matplotlib.figure import Figure

    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": "touchstone",
        "text.parse_math": False,
        "font.size": 9,
        "axes.labelcolor": COLOURS["muted"],
        "axes.labelsize": 9,
        "legend.fontsize": 9,
        "axes.unicode_minus": True,
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of glyphs that this font lacks: the page's may have them
        yield Figure(figsize=(width, height), layout="constrained")


def _themed(text: str, prefix: str, label: str) -> Markup:
    """Matplotlib's SVG as part of a page: its colours the page's, its fonts too, its ids its own, nothing of XML."""
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.S)
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, count=1, flags=re.S)
    box = re.search(r'viewBox="([^"]*)"', text)
    assert box is not None
    body = text[text.index(">") + 1 : text.rindex("</svg>")]

    def themed(found: re.Match[str]) -> str:
        mark = found[0].replace(' id="', f' id="{prefix}').replace("url(#", f"url(#{prefix}")
        mark = mark.replace('xlink:href="#', f'href="#{prefix}')
        mark = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", mark)
        for name, colour in COLOURS.items():
            mark = mark.replace(colour, f"var(--{name})")
        return mark

    body = re.sub(r"<[^>]*>", themed, body)
    return Markup(f'<svg viewBox="{box[1]}" role="img"><title>{escape(clean(label))}</title>{body}</svg>')


def _by_name(plot: Plot) -> bool:
    return plot.kind in ("bar", "interval") and any(isinstance(x, str) for series in plot.series for x in series.x)


def _names(plot: Plot) -> list[str]:
    return list(dict.fromkeys(str(x) for series in plot.series for x in series.x))


def _row(series: Series, names: list[str]) -> str:
    """The name of a series of one point, as a row."""
    return series.name if len(names) == 1 or series.name == series.x[0] else f"{series.name}, {series.x[0]}"


def _one_series(plot: Plot, names: list[str], parts: list[Series]) -> Plot:
    """Several series of one point each as one with a row each."""
    low, high = ([held for part in parts for held in _bounds(part)[side]] for side in (0, 1))
    return replace(plot, series=[Series(name="", x=list(names), y=[part.y[0] for part in parts], low=low, high=high)])


def _across(plot: Plot, name: str) -> Plot:
    """One name in all series: a row for each series that has it."""
    parts = []
    for series in plot.series:
        if name in series.x:
            at, (low, high) = series.x.index(name), _bounds(series)
            parts.append(Series(name=series.name, x=[name], y=[series.y[at]], low=[low[at]], high=[high[at]]))
    return _one_series(plot, [part.name for part in parts], parts)


def _bounds(series: Series) -> tuple[list[float | None], list[float | None]]:
    """Low and high, as many as there are points."""
    missing: list[float | None] = [None] * len(series.x)
    return (series.low + missing)[: len(series.x)], (series.high + missing)[: len(series.x)]


def _height(plot: Plot, small: bool) -> float:
    if _by_name(plot):
        rows = len(_names(plot)) * max(1.0, 0.6 * len(plot.series))
        return 0.75 + 0.24 * rows + 0.2 * (len(plot.series) > 1) * -(-len(plot.series) // 2)
    return 1.9 if small else 2.9


def _real(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _tick(value: float, _: Any = None) -> str:
    size = abs(value)
    text = f"{value / 1e6:g}M" if size >= 1e6 else f"{value / 1e3:g}k" if size >= 1e4 else f"{value:.6g}"
    return text.replace("-", "\u2212")


def _short(name: str, most: int = 26) -> str:
    name = " ".join(clean(name).split())
    return name if len(name) <= most else name[: most - 1] + "…"


def _wrapped(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(clean(text), width)) or " "
