"""Reads the run folders of an experiment's cells, and says what came of them: curves, then a document."""

from __future__ import annotations

import json
import math
import sqlite3
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from rl import config
from rl.lab import curves, hashes, shapings
from rl.lab.curves import Curve, HeldOut
from rl.lab.document import Attempt, Document, Warned
from rl.lab.experiment import Cell, Experiment
from rl.lab.tables import plots, tables, warnings

ATTEMPTS = 10
COLUMNS = ["purpose", "version", "world", "key", "outcome", "solved", "score", "messages"]


def read(cell: Cell) -> Curve:
    """One finished cell, from its run folder alone."""
    folder, worlds = cell.folder, list(cell.settings.worlds)
    rows = _lines(folder / "metrics.jsonl")
    measured = {row["when"]: row for row in _lines(folder / "evals.jsonl")}
    attempts = _attempts(folder)
    before, after = (_held_out(measured[when], worlds, attempts) for when in ("before", "after"))
    success = dict(before.worlds)
    score = _means(attempts, measured["before"]["step"], worlds)
    true, proxy, seconds, spent = [], [], [], 0.0
    for row in rows:
        for world, seen in row["worlds"].items():
            if world in success and seen["attempts"]:  # else the last that was seen of it
                success[world], score[world] = seen["success"], seen["score"]
        true.append(statistics.fmean(success.values()))
        proxy.append(statistics.fmean(score.values()))
        spent += row["wall_s"]
        seconds.append(spent)
    budget = cell.settings.train
    return Curve(
        seed=cell.seed,
        steps=[row["step"] for row in rows],
        tokens=[row["tokens"] for row in rows],
        seconds=seconds,
        true=true,
        proxy=proxy,
        before=before,
        after=after,
        compares=shapings.compares(cell.settings.rewards),
        starved=len(rows) < budget.steps and not (budget.tokens and rows and rows[-1]["tokens"] >= budget.tokens),
    )


def document(experiment: Experiment, cells: Sequence[Cell]) -> Document:
    """All that the finished cells say. Raises ValueError where cells of one seed did not play the same tasks."""
    _same_tasks(cells)
    of: dict[str, list[Curve]] = {name: [] for name in experiment.shapings}
    for cell in cells:
        of[cell.shaping].append(read(cell))
    found = curves.figures(of, experiment.reference, experiment.threshold)
    warned = [*told(experiment), *warnings(found)]
    return Document(
        kind="train",
        name=experiment.name,
        hashes=_hashes(experiment, cells[0]),
        figures={"cells": len(cells), "seconds": _seconds(cells), **found},
        tables=tables(found),
        plots=plots(of, found),
        warnings=warned,
        attempts=_paid_though_wrong(cells, warned),
    )


def told(experiment: Experiment) -> list[Warned]:
    """What a reader should know of the base."""
    base = experiment.base
    chosen = [
        name
        for name, world in base.worlds.items()
        if world.difficulty.active or any("difficulty" in stage.worlds.get(name, {}) for stage in base.stages)
    ]
    if not chosen:
        return []
    text = (
        f"Tasks of {', '.join(chosen)} are drawn by difficulty, so by what each cell's policy solves: cells of one "
        "seed draw from one stream, but pass over different tasks of it."
    )
    return [Warned(name="tasks-by-difficulty", about="", text=text)]


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def _attempts(folder: Path) -> list[dict[str, Any]]:
    """The scored attempts at held-out tasks."""
    table = pq.read_table(folder / "episodes", columns=COLUMNS, filters=[("purpose", "=", "eval")])
    return [row for row in table.to_pylist() if row["score"] is not None]


def _means(attempts: Sequence[Mapping[str, Any]], step: int, worlds: Sequence[str]) -> dict[str, float]:
    scores = {
        world: [row["score"] for row in attempts if row["version"] == step and row["world"] == world]
        for world in worlds
    }
    return {world: statistics.fmean(found) for world, found in scores.items()}


def _held_out(measured: Mapping[str, Any], worlds: Sequence[str], attempts: Sequence[Mapping[str, Any]]) -> HeldOut:
    step = measured["step"]
    own = [row for row in attempts if row["version"] == step]

    def deviation(key: str) -> float:
        return math.sqrt(
            statistics.fmean(
                statistics.pvariance([float(row[key]) for row in own if row["world"] == world]) for world in worlds
            )
        )

    return HeldOut(
        n=len(own),
        worlds={world: measured["worlds"][world]["pass@1"] for world in worlds},
        proxy=statistics.fmean(_means(attempts, step, worlds).values()),
        true_deviation=deviation("solved"),
        proxy_deviation=deviation("score"),
    )


def _same_tasks(cells: Sequence[Cell]) -> None:
    """Cells of one seed drew from one stream: the same place in it is the same task, and all measured the same ones."""
    streams: dict[int, dict[tuple[str, int], str]] = defaultdict(dict)
    heldout: dict[int, set[tuple[str, int]]] = {}
    for cell in cells:
        with closing(sqlite3.connect(f"file:{cell.folder / 'ledger.db'}?mode=ro", uri=True)) as db:
            drawn = db.execute("select world, task_index, task_key from lease where task_key is not null").fetchall()
            measured = set(db.execute("select world, task_index from heldout").fetchall())
        stream = streams[cell.seed]
        for world, index, key in drawn:
            if stream.setdefault((world, index), key) != key:
                raise ValueError(
                    f"task {index} of {world} is {key} in {cell.name} and {stream[world, index]} in another cell of "
                    f"seed {cell.seed}; expected the same stream of tasks"
                )
        if heldout.setdefault(cell.seed, measured) != measured:
            raise ValueError(f"{cell.name} measured other held-out tasks than the other cells of seed {cell.seed}")


def _seconds(cells: Sequence[Cell]) -> float:
    return sum(float(json.loads((cell.folder / "summary.json").read_text())["wall_s"]) for cell in cells)


def _hashes(experiment: Experiment, first: Cell) -> dict[str, str]:
    """Of the base configuration, the weights that all cells start from, each shaping, the rewards' code, each world."""
    plain = config.plain(first.settings)
    base = {key: value for key, value in plain.items() if key not in ("name", "seed", "runs", "rewards", "algorithm")}
    base["policy"] = {**base["policy"], "model": ""}
    found = {"config": hashes.digest(json.dumps(base, sort_keys=True).encode())}
    if first.settings.policy.model:
        weights = sorted(Path(first.settings.policy.model).glob("*.safetensors"))
        found["start"] = hashes.digest(*(path.read_bytes() for path in weights))
    for name, shaping in experiment.shapings.items():
        algorithm = config.plain(shaping.algorithm or experiment.base.algorithm)
        whole = [shaping.rewards, algorithm, hashes.data(shaping.rewards)]
        found[f"reward/{name}"] = hashes.digest(json.dumps(whole, sort_keys=True).encode())
    played = hashes.of_run(first.settings)
    del played["data"]  # by shaping
    return found | played


def _paid_though_wrong(cells: Sequence[Cell], warned: Sequence[Warned]) -> list[Attempt]:
    """Of shapings that were hacked: held-out attempts after training that were wrong and paid the most."""
    hacked = [warning.about for warning in warned if warning.name == "reward-hacked"]
    found = []
    for name in hacked:
        rows = []
        for cell in cells:
            if cell.shaping == name:
                last = _lines(cell.folder / "evals.jsonl")[-1]["step"]
                rows += [(row, cell) for row in _attempts(cell.folder) if row["version"] == last]
        right = [row["score"] for row, _ in rows if row["solved"]]
        wrong = sorted((pair for pair in rows if not pair[0]["solved"]), key=lambda pair: -pair[0]["score"])
        paid = f"right attempts were paid {statistics.fmean(right):.2f} on average" if right else "none was right"
        found += [
            Attempt(
                world=row["world"],
                key=row["key"],
                outcome=row["outcome"],
                solved=False,
                messages=json.loads(row["messages"]),
                scores={name: row["score"]},
                ranks={name: float(rank)},
                note=f"held out, after training, {cell.name}; wrong, yet paid {row['score']:.2f}; {paid}",
            )
            for rank, (row, cell) in enumerate(_apart(wrong, ATTEMPTS // len(hacked)), 1)
        ]
    return found


def _apart(rows: Sequence[tuple[dict[str, Any], Cell]], count: int) -> list[tuple[dict[str, Any], Cell]]:
    """The first so many, one of each world in turn."""
    worlds: dict[str, list[tuple[dict[str, Any], Cell]]] = defaultdict(list)
    for row, cell in rows:
        worlds[row["world"]].append((row, cell))
    turns = max((len(own) for own in worlds.values()), default=0)
    return [own[n] for n in range(turns) for own in worlds.values() if n < len(own)][:count]
