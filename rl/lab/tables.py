"""What `figures` (rl/lab/curves.py) found, for readers: tables, plots and warnings. The same for trainer and toy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rl.lab import intervals
from rl.lab.curves import TINY, Curve, band, gap, smoothed
from rl.lab.document import Plot, Series, Table, Warned

COMPARED = ("difference", "low", "high", "p", "p_holm", "p_signs", "different")
FINAL = "Held-out success at the end"


def tables(found: Mapping[str, Any]) -> list[Table]:
    of = found["shapings"]
    worlds = list(next(iter(of.values()))["final"]["by_world"])
    seeds = len(found["seeds"])
    return [
        Table(
            title="Shapings",
            columns=["shaping", "start", "end", "final", "low", "high", "area", "area low", "area high", "collapse"],
            rows=[_success(name, row) for name, row in of.items()],
            note=(
                f"True success over {seeds} seeds. Start, end and final: held out; end is the plain mean, which is "
                f"what is tested against {found['reference']}; final is the interquartile mean over seeds and worlds, "
                f"with {intervals.CONFIDENCE:.0%} bootstrap bounds over seeds. Area: mean height of "
                "the true curve over the steps. Collapse: share of seeds that ended below their start (by two standard "
                "errors) or below half of their best."
            ),
        ),
        Table(
            title="Speed, and what was paid",
            columns=[
                "shaping",
                "reached",
                "steps",
                "trained tokens",
                "seconds",
                "proxy",
                "gap",
                "low",
                "high",
                "parts at",
            ],
            rows=[_drift(name, row) for name, row in of.items()],
            note=(
                f"Reached: seeds, of {seeds}, whose true curve came to {found['threshold']:.2f}; steps, trained tokens "
                "(those of groups without an advantage are not among them), seconds: medians "
                "until then, empty where half of the seeds never came there. Proxy: what the shaping paid at the end. "
                "Gap: what the proxy gained more than the truth, each in deviations of an attempt at the start; parts "
                "at: the step from which on the gap stays above zero."
            ),
        ),
        Table(
            title=f"Against {found['reference']}",
            columns=["shaping", "measure", "difference", "low", "high", "p", "p (Holm)", "p (signs)", "different"],
            rows=[
                [name, "end" if measure == "final" else measure, *(seen[key] for key in COMPARED)]
                for name, row in of.items()
                for measure, seen in row.get("against", {}).items()
            ],
            note=(
                f"Paired by seed: the same tasks, the same start. Different: the paired t test, corrected for the "
                f"number of shapings, is at most {intervals.LEVEL}; its spread is never taken as smaller than the "
                "error of the measurements. Only the mean end is tested; the area is shown with its interval. The "
                f"sign-flip test is exact; with {seeds} pairs it cannot go below {2 / 2**seeds:.3g}."
            ),
        ),
        Table(
            title=f"{FINAL}, by world",
            columns=["shaping", *worlds],
            rows=[[name, *(row["final"]["by_world"][world] for world in worlds)] for name, row in of.items()],
            note="Means over seeds.",
        ),
    ]


def _success(name: str, row: Mapping[str, Any]) -> list[str | float | int | bool | None]:
    final, area = row["final"], row["area"]
    bounds = (final["mean"], final["iqm"], final["low"], final["high"], area["mean"], area["low"], area["high"])
    return [name, row["start"], *bounds, row["collapse_rate"]]


def _drift(name: str, row: Mapping[str, Any]) -> list[str | float | int | bool | None]:
    took, around = row["to_threshold"], row["gap"] or {}
    gap = (around.get("mean"), around.get("low"), around.get("high"))
    return [
        name,
        took["reached"],
        took["steps"],
        took["trained_tokens"],
        took["seconds"],
        row["proxy"]["end"],
        *gap,
        row["parted_step"],
    ]


def plots(of: Mapping[str, Sequence[Curve]], found: Mapping[str, Any]) -> list[Plot]:
    def final(name: str) -> Mapping[str, Any]:
        read: Mapping[str, Any] = found["shapings"][name]["final"]
        return read

    return [
        Plot(
            title="True success",
            kind="line",
            x_label="optimiser step",
            y_label="success of sampled attempts, mean over worlds",
            series=[_share(_series(name, curves, [smoothed(c.true) for c in curves])) for name, curves in of.items()],
            note=f"Means over seeds of trailing means over three steps; bands: {intervals.CONFIDENCE:.0%} intervals, "
            "as far as they lie between 0 and 1.",
        ),
        Plot(
            title=FINAL,
            kind="interval",
            x_label="shaping",
            y_label="success, interquartile mean",
            series=[
                Series(
                    name=name, x=[name], y=[final(name)["iqm"]], low=[final(name)["low"]], high=[final(name)["high"]]
                )
                for name in of
            ],
        ),
        *(plot for name, curves in of.items() if (plot := _gains(name, curves, found["shapings"][name]))),
    ]


def _gains(name: str, curves: Sequence[Curve], row: Mapping[str, Any]) -> Plot | None:
    """What the shaping paid beside what was true; None where its proxy did not vary at the start."""
    if any(gap(curve, 0.0, 0.0) is None for curve in curves):
        return None
    proxy = [[(y - c.before.proxy) / c.before.proxy_deviation for y in smoothed(c.proxy)] for c in curves]
    true = [[(y - c.before.true) / c.before.true_deviation for y in smoothed(c.true)] for c in curves]
    parts = row["parted_step"]
    return Plot(
        title=f"{name}: what was paid, and what was true",
        kind="line",
        x_label="optimiser step",
        y_label="gain, in deviations of an attempt at the start",
        series=[_series("proxy", curves, proxy), _series("true success", curves, true)],
        note="They do not part." if parts is None else f"From step {parts} on the proxy stays ahead.",
    )


def _series(name: str, curves: Sequence[Curve], rows: Sequence[Sequence[float]]) -> Series:
    around = band(rows)
    longest = max((curve.steps for curve in curves), key=len)
    return Series(
        name=name,
        x=[float(step) for step in longest],
        y=[point.mean for point in around],
        low=[point.low for point in around] if len(curves) > 1 else [],
        high=[point.high for point in around] if len(curves) > 1 else [],
    )


def _share(series: Series) -> Series:
    """The interval of a share over few seeds may leave the shares."""
    low = [None if value is None else max(0.0, value) for value in series.low]
    high = [None if value is None else min(1.0, value) for value in series.high]
    return replace(series, low=low, high=high)


def warnings(found: Mapping[str, Any]) -> list[Warned]:
    """What a user should know of a shaping, by name."""
    warned = []
    seeds, reference = found["seeds"], found["reference"]
    if len(seeds) < intervals.LEAST_SEEDS:
        text = f"{len(seeds)} seeds say nothing about differences; expected at least {intervals.LEAST_SEEDS}."
        warned.append(Warned(name="few-seeds", about="", text=text))
    for name, row in found["shapings"].items():
        around, against = row["gap"], row.get("against", {}).get("final")
        below = against is not None and against["different"] and against["difference"] < 0
        gone = max([row["collapse_rate"], *(len(lost) / len(seeds) for lost in row["lost_worlds"].values())])
        if around and around["low"] is not None and around["low"] > TINY and (below or gone >= 0.5):
            text = (
                f"Its proxy gained {around['mean']:.2f} deviations more than the truth, which ended at "
                f"{row['final']['mean']:.2f}, with {reference} at {found['shapings'][reference]['final']['mean']:.2f}."
            )
            warned.append(Warned(name="reward-hacked", about=name, text=text))
        if row["collapsed_seeds"]:
            text = f"True success collapsed under seeds {_listed(row['collapsed_seeds'])}."
            warned.append(Warned(name="collapsed", about=name, text=text))
        for world, lost in row["lost_worlds"].items():
            text = f"Success in {world} ended below half of its start under seeds {_listed(lost)}."
            warned.append(Warned(name="world-lost", about=name, text=text))
        if row["starved_seeds"]:
            text = f"Under seeds {_listed(row['starved_seeds'])} no group had an advantage for long; they ended early."
            warned.append(Warned(name="starved", about=name, text=text))
        if row["compares"]:
            text = (
                f"Its parts {', '.join(row['compares'])} compare the attempts of a group, so what it pays on held-out "
                "tasks, one attempt each, is no proxy: it has no gap, and whether it was hacked is not said here."
            )
            warned.append(Warned(name="proxy-not-comparable", about=name, text=text))
        elif around is None:
            text = "Its proxy did not vary over attempts at the start, so its gap has no unit."
            warned.append(Warned(name="no-spread", about=name, text=text))
    return warned


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))
