"""What `rl lab score` says: stored attempts under other rewards, measured, warned of, and written down."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rl import config
from rl.lab import hashes, scoring, warn
from rl.lab.document import Attempt, Document, Plot, Series, Table, save
from rl.lab.measures import Array, Attempts, Shaped, agreement, measure, ranks_in_groups
from rl.lab.progress import Bar
from rl.lab.shapings import Shaping
from rl.lab.stored import Chunk, Stored

MOST_ATTEMPTS = 10
FIGURES = {
    "dead_groups": "dead",
    "inversion_rate": "inverted",
    "tie_rate": "ties",
    "rank_correlation": "rank",
    "length_bias": "length",
}
NOTE = (
    "Dead: share of groups in which no attempt has an advantage. Inverted: of the pairs of a right and a wrong attempt "
    "of one group, those in which the wrong one has more advantage; ties: as much. Rank: Spearman's correlation of "
    "score and true score. Length: correlation of advantage with sampled tokens among attempts of one group that are "
    "equally right; above 0, longer is paid more."
)


def score(
    folders: Sequence[Path], chosen: Sequence[Shaping], out: Path | None, processes: int = 2, gradients: bool = False
) -> Document:
    """The document, saved in `out`. Raises ValueError where something cannot be scored again."""
    began = time.monotonic()
    runs = [Stored(folder) for folder in folders]
    for shaping in chosen:
        for one in runs:
            shaping.rule(one.settings)
    chunks = [chunk for one in runs for chunk in one.chunks()]
    if not chunks:
        raise ValueError(
            f"there are no attempts in {', '.join(map(str, folders))}; expected groups played to their end"
        )
    out = out or Path(runs[0].settings.runs) / "lab" / f"score-{_name(folders, chosen)}"
    parts = out / f".parts-{_name(folders, chosen)}"
    found = _score(chunks, chosen, parts, processes)
    attempts, shaped = scoring.columns(found, chosen)
    _refuse(found, attempts, shaped)
    document = Document(kind="score", name=out.name, hashes=_hashes(runs, chunks, chosen))
    document.figures = _figures(found, attempts, shaped, runs, chosen)
    document.warnings = warn.warnings(attempts, shaped, chosen)
    document.attempts = _most_changed(attempts, shaped, {str(one.folder): one for one in runs})
    if gradients:
        from rl.lab.gradients import cosines

        document.figures["gradient_cosine"] = cosines(runs[0], chosen)
    document.figures["seconds"] = round(time.monotonic() - began, 2)
    document.tables, document.plots = _tables(document.figures), _plots(document.figures)
    save(document, out)
    shutil.rmtree(parts)
    print(f"{out / 'document.json'}; see it with: rl lab report {out}", file=sys.stderr)
    return document


def _score(chunks: Sequence[Chunk], chosen: Sequence[Shaping], parts: Path, processes: int) -> list[scoring.Found]:
    found = []
    with Bar("score", sum(chunk.attempts for chunk in chunks)) as bar:
        for one, fresh in scoring.run(chunks, chosen, parts, processes):
            found.append(one)
            bar.add(one["attempts"], before=not fresh)
    return found


def _refuse(found: Sequence[scoring.Found], attempts: Attempts, shaped: Mapping[str, Shaped]) -> None:
    """A shaping that can score nothing of a world cannot be replayed."""
    for name, one in shaped.items():
        for world in dict.fromkeys(attempts.world_N.tolist()):
            if np.isnan(one.score_N[attempts.world_N == world]).all():
                why = next((line for part in found for line in part["shapings"][name]["lost"]), "")
                raise ValueError(f"{name} cannot be scored on what is stored of world {world}: {why}")


def _figures(
    found: Sequence[scoring.Found],
    attempts: Attempts,
    shaped: Mapping[str, Shaped],
    runs: Sequence[Stored],
    chosen: Sequence[Shaping],
) -> dict[str, Any]:
    worlds = sorted(set(attempts.world_N.tolist()))
    own_NW = {world: attempts.world_N == world for world in worlds}
    algorithm = runs[0].settings.algorithm.name
    everywhere = {"all": np.ones(len(attempts.group_N), dtype=bool), **own_NW}
    return {
        "runs": _labels(runs),
        "attempts": len(attempts.group_N),
        "groups": len(np.unique(attempts.group_N)),
        "success": float(attempts.solved_N.mean()) if len(attempts.solved_N) else None,
        "skipped": dict(sum((Counter(one["skipped"]) for one in found), Counter())),
        "rejected": sum(one["rejected"] for one in found),
        "shapings": {
            shaping.name: {
                "algorithm": shaping.algorithm or algorithm,
                "lost": dict(sum((Counter(one["shapings"][shaping.name]["lost"]) for one in found), Counter())),
                **measure(attempts, shaped[shaping.name]),
                "worlds": {
                    world: measure(attempts.of(own_N), shaped[shaping.name].of(own_N))
                    for world, own_N in own_NW.items()
                },
            }
            for shaping in chosen
        },
        "advantage_correlation": {
            world: {a: {b: agreement(shaped[a].of(own_N), shaped[b].of(own_N)) for b in shaped} for a in shaped}
            for world, own_N in everywhere.items()
        },
    }


def _tables(figures: Mapping[str, Any]) -> list[Table]:
    worlds = list(figures["advantage_correlation"])
    rows, parts = [], []
    for name, own in figures["shapings"].items():
        for world in worlds if len(worlds) > 2 else worlds[1:]:
            seen = own if world == "all" else own["worlds"][world]
            rows.append([name, world, own["algorithm"], seen["attempts"], *(seen[figure] for figure in FIGURES)])
            parts += [[name, world, part, share] for part, share in seen["parts"].items()]
    tables = [
        Table(
            title="Shapings",
            columns=["shaping", "world", "algorithm", "attempts", *FIGURES.values()],
            rows=rows,
            note=NOTE,
        ),
        Table(
            title="Parts",
            columns=["shaping", "world", "part", "share"],
            rows=parts,
            note="Share of the variance of the score within groups. Those of a shaping add to 1; one below 0 works "
            "against the others.",
        ),
    ]
    matrices = {"Correlation of advantages": figures["advantage_correlation"]}
    matrices["Cosine of gradients on the run's own policy"] = figures.get("gradient_cosine", {})
    for title, by_world in matrices.items():
        for world, matrix in by_world.items():
            if len(matrix) > 1 and (world == "all" or len(by_world) > 2):
                own_rows = [[a, *row.values()] for a, row in matrix.items()]
                tables.append(Table(title=f"{title}, {world}", columns=["shaping", *matrix], rows=own_rows))
    return tables


def _plots(figures: Mapping[str, Any]) -> list[Plot]:
    worlds = [world for world in figures["advantage_correlation"] if world != "all"]
    names = list(figures["shapings"])

    def bars(figure: str) -> list[Series]:
        own = figures["shapings"]
        return [Series(name=w, x=list(names), y=[own[n]["worlds"][w][figure] for n in names]) for w in worlds]

    titles = {"dead_groups": "Dead groups", "inversion_rate": "Inversion rate", "length_bias": "Length bias"}
    return [
        Plot(title=title, kind="bar", x_label="shaping", y_label=FIGURES[figure], series=bars(figure))
        for figure, title in titles.items()
    ]


def _most_changed(attempts: Attempts, shaped: Mapping[str, Shaped], runs: Mapping[str, Stored]) -> list[Attempt]:
    """The attempts whose rank in their group differs most between shapings, by score."""
    if len(shaped) < 2 or not len(attempts.group_N):
        return []
    rank_SN = np.stack([ranks_in_groups(attempts.group_N, one.score_N) for one in shaped.values()])
    change_N: Array = np.nan_to_num(rank_SN.max(axis=0) - rank_SN.min(axis=0))
    order = np.argsort(-change_N, kind="stable")[:MOST_ATTEMPTS]
    return [_attempt(int(n), rank_SN[:, n], attempts, shaped, runs) for n in order if change_N[n] > 0]


def _attempt(
    n: int, rank_S: Array, attempts: Attempts, shaped: Mapping[str, Shaped], runs: Mapping[str, Stored]
) -> Attempt:
    run, lease, member = str(attempts.run_N[n]), int(attempts.lease_N[n]), int(attempts.member_N[n])
    stored = runs[run].attempt(lease, member)
    return Attempt(
        world=stored["world"],
        key=stored["key"],
        outcome=stored["outcome"],
        solved=bool(attempts.solved_N[n]),
        messages=json.loads(stored["messages"]),
        scores={name: float(one.score_N[n]) for name, one in shaped.items()},
        ranks={name: float(rank) for name, rank in zip(shaped, rank_S, strict=True)},
        note=f"{Path(run).name}, lease {lease}, attempt {member}: {int(attempts.tokens_N[n])} sampled tokens, "
        f"in a group of {int((attempts.group_N == attempts.group_N[n]).sum())}",
    )


def _hashes(runs: Sequence[Stored], chunks: Sequence[Chunk], chosen: Sequence[Shaping]) -> dict[str, str]:
    found = {"code/scoring": scoring.code()}
    for one, label in zip(runs, _labels(runs), strict=True):
        found[f"run/{label}"] = _hash("".join(chunk.digest for chunk in chunks if chunk.run == str(one.folder)))
        found[f"config/{label}"] = _hash(json.dumps(config.plain(one.settings), sort_keys=True))
        found |= {
            f"world/{name}": hashes.world(one.settings.plays(name), own.args)
            for name, own in one.settings.worlds.items()
        }
    return found | {f"reward/{shaping.name}": shaping.digest for shaping in chosen}


def _labels(runs: Sequence[Stored]) -> list[str]:
    """The folders' names; whole paths where two have one name."""
    names = [one.folder.name for one in runs]
    return [one.folder.name if names.count(one.folder.name) == 1 else str(one.folder) for one in runs]


def _name(folders: Sequence[Path], chosen: Sequence[Shaping]) -> str:
    return _hash(json.dumps([list(map(str, folders)), [[one.name, one.digest] for one in chosen]]))[:8]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
