"""`rl lab toy`: what is known of shaping, shown in seconds on processes that can be enumerated.

- potential-based shaping leaves the set of best actions after every history as it was, over random processes; a bonus
  planted to change it is caught, and one too small to change it is not;
- under an advantage of whole attempts a potential comes to nothing; under one by turn it does not;
- two identical shapings are called different at most as often as the statistics say, a harmful one always.

runs/lab/toy/document.json is what `rl lab report` and `rl lab diff` read.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rl.lab import curves, process, tabular
from rl.lab.curves import Curve
from rl.lab.document import Document, Table, save
from rl.lab.process import Process, Shaping
from rl.lab.show import show
from rl.lab.tables import plots, tables, warnings

HELP = "the same on tiny decision processes, exactly, in seconds"
PROCESSES = 100
REPETITIONS = 100
SEEDS = 5
GAMMAS = (1.0, 0.9)
PAID: Shaping = {"paid": {"reward": "turn_fact", "name": "paid"}}
BONUS: Shaping = {**PAID, "bonus": {"reward": "turn_fact", "name": "bonus"}}
DRIFT: Shaping = {**PAID, "drift": {"reward": "turn_fact", "name": "drift"}}
"""A potential whose end is not 0."""
POTENTIAL: Shaping = {"outcome": {}, "potential": {"fact": "potential"}}
SHAPINGS: dict[str, tuple[Shaping, str]] = {
    "outcome": ({"outcome": {}}, "grpo"),
    "outcome again": ({"outcome": {}}, "grpo"),
    "potential": (POTENTIAL, "grpo"),
    "potential by turn": (POTENTIAL, "turns"),
    "bonus": ({"outcome": {}, "bonus": {"reward": "turn_fact", "name": "bonus"}}, "grpo"),
}
"""With the algorithm that each is trained by."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", default="runs/lab/toy", metavar="FOLDER", help="of document.json (runs/lab/toy)")
    parser.add_argument("--seed", type=int, default=0, help="of the random processes and of all luck")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def run(args: argparse.Namespace) -> int:
    found = document(args.seed)
    save(found, Path(args.out))
    show(found, as_json=args.json)
    figures = found.figures
    return 0 if figures["potential_kept_optimum"] and figures["planted_bonus_caught"] else 1


def document(seed: int = 0, *, processes: int = PROCESSES, repetitions: int = REPETITIONS) -> Document:
    began = time.monotonic()
    exact = optima(seed, processes)
    trained = train(seed, repetitions)
    called = {name: different(trained, name, repetitions) for name in SHAPINGS if name != "outcome"}
    first = {name: cells[:SEEDS] for name, cells in trained.items()}
    study = curves.figures(first, "outcome")
    figures: dict[str, Any] = {
        "potential_kept_optimum": exact["potential_changed"] == 0,
        "planted_bonus_caught": exact["planted_caught"] == exact["planted"] > 0 == exact["harmless_called"],
        "identical_called_different": called["outcome again"],
        "harmful_called_different": called["bonus"],
        "repetitions": repetitions,
        "seconds": time.monotonic() - began,
        "exact": exact,
        "telescoped": telescoped(seed),
        "called_different": called,
        "study": study,
    }
    return Document(
        kind="toy",
        name="toy",
        figures=figures,
        tables=[_exact(exact, figures["telescoped"]), _called(called, repetitions), *tables(study)],
        plots=plots(first, study),
        warnings=warnings(study),
    )


def optima(seed: int, count: int) -> dict[str, int]:
    """Of so many random processes, each under every discount: how many changed their best actions, and under what."""
    rng = np.random.default_rng(seed)
    found = dict.fromkeys(
        ("processes", "potential_changed", "open_end_changed", "planted", "planted_caught", "harmless_called"), 0
    )
    for number in range(count):
        world, gamma = process.drawn(rng), GAMMAS[number % len(GAMMAS)]
        plain = process.optimal(world, PAID, gamma)
        potential: Shaping = {**PAID, "potential": {"fact": "potential", "gamma": gamma}}
        found["processes"] += 1
        found["potential_changed"] += process.optimal(world, potential, gamma) != plain
        found["open_end_changed"] += process.optimal(world, DRIFT, gamma) != plain
        falls_short = process.regret(world, PAID, gamma=gamma)
        action, short = max(falls_short.items(), key=lambda pair: pair[1])
        if short > process.TINY:
            found["planted"] += 1
            found["planted_caught"] += process.optimal(_planted(world, action, 1.5 * short), BONUS, gamma) != plain
            found["harmless_called"] += process.optimal(_planted(world, action, short / 2), BONUS, gamma) != plain
    return found


def _planted(world: Process, action: int, bonus: float) -> Process:
    """The process with a bonus for an action in the first turn."""
    paid = np.zeros_like(world.bonus_KA)
    paid[0, action] = bonus
    return replace(world, bonus_KA=paid)


def telescoped(seed: int, groups: int = 200, size: int = 8) -> dict[str, float]:
    """Largest difference that a potential makes to any advantage, by algorithm, over groups drawn at random."""
    from rl import algorithms
    from rl.trajectory import Group

    rng, world = np.random.default_rng(seed), process.walk()
    plain, shaped = (tabular.members(world, shaping) for shaping in (SHAPINGS["outcome"][0], POTENTIAL))
    found = {}
    for name in ("grpo", "dapo", "turns"):
        algorithm = algorithms.load(name)
        largest = 0.0
        for _ in range(groups):
            drawn = rng.choice(len(plain), size, replace=False)
            for of in (plain, shaped):
                algorithm.advantages(Group(lease=0, world="toy", version=0, members=[of[n] for n in drawn]))
            pairs = [(plain[n], shaped[n]) for n in drawn]
            gaps = [np.abs(np.subtract(tabular.by_turn(a), tabular.by_turn(b))).max() for a, b in pairs]
            largest = max([largest, *map(float, gaps)])
        found[name] = largest
    return found


def train(seed: int, repetitions: int) -> dict[str, list[Curve]]:
    """Every shaping under as many seeds as all repetitions need, each with luck of its own."""
    from rl import algorithms

    return {
        name: tabular.curves(
            process.walk(), shaping, algorithms.load(algorithm), runs=SEEDS * repetitions, seed=1000 * seed + number
        )
        for number, (name, (shaping, algorithm)) in enumerate(SHAPINGS.items())
    }


def different(trained: Mapping[str, Sequence[Curve]], name: str, repetitions: int) -> int:
    """In how many repetitions, each of seeds of its own, a shaping is called different from `outcome` at the end."""
    called = 0
    for number in range(repetitions):
        seeds = slice(SEEDS * number, SEEDS * (number + 1))
        found = curves.figures({of: trained[of][seeds] for of in ("outcome", name)}, "outcome", threshold=0.5)
        called += found["shapings"][name]["against"]["final"]["different"]
    return called


def _exact(exact: dict[str, int], largest: dict[str, float]) -> Table:
    rows: list[list[str | float | int | bool | None]] = [
        ["processes whose best actions a potential changed", exact["potential_changed"], exact["processes"]],
        ["… a potential changed that is not 0 at the end", exact["open_end_changed"], exact["processes"]],
        ["… a planted bonus changed, and was caught", exact["planted_caught"], exact["planted"]],
        ["… a bonus too small to change them was blamed for", exact["harmless_called"], exact["planted"]],
        *([f"largest change of an advantage by a potential, {name}", gap, None] for name, gap in largest.items()),
    ]
    return Table(
        title="Exactly",
        columns=["what", "found", "of"],
        rows=rows,
        note="Best actions after every history, by going back from the ends of all paths; ties are all best.",
    )


def _called(called: dict[str, int], repetitions: int) -> Table:
    return Table(
        title="Called different from outcome",
        columns=["shaping", "times", "of"],
        rows=[[name, times, repetitions] for name, times in called.items()],
        note=f"Each time {SEEDS} seeds a shaping, trained afresh; the first and second shaping are identical.",
    )
