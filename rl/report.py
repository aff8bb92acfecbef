"""`rl report`: held-out success before and after by world, as a table or JSON, and learning curves as a PNG."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rl.status import swap_words
from rl.store import Run

SMOOTH_STEPS = 5


def facts(folder: Path) -> dict[str, Any]:
    """The run in figures. Raises ValueError where there is no run, or nothing has been measured yet."""
    if not (folder / "ledger.db").is_file():
        runs = sorted(p.parent.name for p in folder.parent.glob("*/ledger.db")) if folder.parent.is_dir() else []
        raise ValueError(f"there is no run at {folder}; available beside it: {', '.join(runs) or 'none'}")
    run = Run(folder)
    measured = {row["when"]: row["worlds"] for row in run.rows("evals.jsonl")}
    if "before" not in measured:
        raise ValueError(f"{folder} has not been measured yet; expected a run that got past its first evaluation")
    summary = run.summary()
    worlds = {
        world: {
            "before": seen["pass@1"],
            "after": measured["after"][world]["pass@1"] if "after" in measured else None,
            "n": seen["n"],
            "lost": seen["lost"],
        }
        for world, seen in measured["before"].items()
    }

    def joint(when: str) -> float | None:
        values = [world[when] for world in worlds.values()]
        return sum(values) / len(values) if all(v is not None for v in values) else None

    return {
        "worlds": worlds,
        "joint": {"before": joint("before"), "after": joint("after")},
        "swaps": swaps(run.rows("metrics.jsonl")),
        **{
            key: summary.get(key)
            for key in ("wall_s", "first_step_s", "steps", "tokens", "warmstart_s", "leaked_containers")
        },
    }


def swaps(rows: list[dict[str, Any]]) -> dict[str, float] | None:
    """Means over the swaps of a run; of the canary the worst, and of the pause too. None where there was none."""
    found = [row["swap"] for row in rows if "swap" in row]
    if not found:
        return None
    means = {name: sum(swap[name] for swap in found) / len(found) for name in found[0]}
    worst = {name: max(swap[name] for swap in found) for name in ("pause_s", "canary_gap")}
    return {"count": len(found), **means, "pause_max_s": worst["pause_s"], "canary_gap": worst["canary_gap"]}


def show(folder: Path, *, as_json: bool) -> int:
    found = facts(folder)
    if as_json:
        print(json.dumps(found))
        return 0
    console = Console()
    table = Table(title=f"Held-out success, {folder.name}", title_justify="left")
    for column in ("world", "before", "after", "change", "tasks"):
        table.add_column(column, justify="left" if column == "world" else "right")
    joint = [("joint mean", found["joint"])] if len(found["worlds"]) > 1 else []
    for name, row in [*found["worlds"].items(), *joint]:
        before, after = row["before"], row["after"]
        change = f"{after - before:+.2f}" if after is not None else ""
        table.add_row(name, f"{before:.2f}", f"{after:.2f}" if after is not None else "", change, str(row.get("n", "")))
    console.print(table)
    if found["wall_s"] is not None:
        console.print(
            f"{found['steps']} steps on {found['tokens']:,} sampled tokens; {found['wall_s']:.0f} s in all, "
            f"{found['warmstart_s']:.0f} s of warm start; {found['leaked_containers']} containers left behind"
        )
    if swapped := found["swaps"]:
        console.print(
            f"weights swapped {swapped['count']} times, each verified: {swap_words(swapped)}", highlight=False
        )
    picture = folder / "curves.png"
    if draw([folder], picture):
        console.print(f"learning curves: {picture}")
    return 0


def draw(folders: list[Path], picture: Path) -> bool:
    """Success of the sampled attempts by step, a panel a world, a line a run. False where no step was taken."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    runs = {folder.name: Run(folder).rows("metrics.jsonl") for folder in folders}
    worlds = sorted({world for rows in runs.values() for row in rows for world in row["worlds"]})
    if not worlds:
        return False
    figure, axes = pyplot.subplots(1, len(worlds), figsize=(3.6 * len(worlds), 3.0), sharey=True, squeeze=False)
    for axis, world in zip(axes[0], worlds, strict=True):
        for colour, (name, rows) in enumerate(runs.items()):
            seen = [
                (row["step"], row["worlds"][world]["success"])
                for row in rows
                if row["worlds"].get(world, {}).get("attempts")
            ]
            steps, values = [s for s, _ in seen], [v for _, v in seen]
            axis.plot(steps, values, color=f"C{colour}", alpha=0.25, linewidth=0.8)
            axis.plot(steps, _smoothed(values), color=f"C{colour}", linewidth=1.8, label=name)
            _held_out(axis, Run(folders[colour]), world, f"C{colour}")
        axis.set_title(world)
        axis.set_xlabel("optimiser step")
        axis.set_ylim(0, 1)
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("success")
    if len(runs) > 1:
        axes[0][-1].legend(fontsize="small", loc="lower right")
    figure.tight_layout()
    figure.savefig(picture, dpi=150)
    pyplot.close(figure)
    return True


def _held_out(axis: Any, run: Run, world: str, colour: str) -> None:
    """Dots where held-out tasks were measured."""
    rows = [row for row in run.rows("evals.jsonl") if world in row["worlds"]]
    axis.plot([r["step"] for r in rows], [r["worlds"][world]["pass@1"] for r in rows], "o", color=colour, markersize=6)


def _smoothed(values: list[float]) -> list[float]:
    """Trailing mean over SMOOTH_STEPS."""
    windows = [values[max(0, i - SMOOTH_STEPS + 1) : i + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]
