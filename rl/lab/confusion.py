"""What `rl lab audit` says: attempts whose truth is known, played, scored, and counted as paid or not."""

from __future__ import annotations

import hashlib
import secrets
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import envs
from envs import World, sandboxes
from rl import config
from rl.check import worlds
from rl.lab import plays, scoring
from rl.lab.document import Attempt, Document, Table, Warned
from rl.lab.judged import HACKS, TINY, Judged, median, scored
from rl.lab.plays import Played
from rl.lab.progress import Bar
from rl.lab.shapings import Shaping

FAILING = ("hack-pays", "near-miss-pays", "gold-unpaid", "unscored", "no-gold")
KINDS = ("gold", "honest", "near-miss", "wrong", "empty", "echo", "exploit")
MOST_ATTEMPTS = 10
IMAGE = "touchstone-sandbox:bookworm"
NOTE = (
    "Right and wrong as the attempts were made, not as the grader says; near misses as the hidden checks say. Paid: "
    "more than an honest failure by over {margin:g} of what gold gets beyond it. Lost: no score."
)


@dataclass(frozen=True, slots=True)
class Place:
    """A world to be audited. `ref` is its name, dotted module or file."""

    name: str
    ref: str
    args: Mapping[str, Any]
    image: str = IMAGE
    backend: str = "auto"


def places(given: str) -> list[Place]:
    """The worlds of a configuration, with their arguments; or one world as it stands."""
    if not given.endswith((".yaml", ".yml")):
        envs.load(given)
        return [Place(envs.short(given), given, {})]
    settings = config.load(given)
    kept = settings.rollout
    return [
        Place(name, world.world or name, {"seed": settings.seed, **world.args}, kept.image, kept.backend)
        for name, world in settings.worlds.items()
    ]


async def play(found: Sequence[Place], tasks: int) -> list[Played]:
    """Every attempt at every world, each world over a pool of its own, one world after another."""
    played: list[Played] = []
    for place in found:
        backend = sandboxes.choose(place.backend, place.image)
        run = f"audit-{secrets.token_hex(4)}"
        pool = sandboxes.load(backend).Pool(run=run, size=plays.AT_ONCE + 1, image=place.image)
        try:
            played += await play_world(place, worlds.build(place.ref, pool, place.args), tasks)
        finally:
            await pool.close()
    return played


async def play_world(place: Place, world: World, tasks: int) -> list[Played]:
    try:
        planned = plays.plan(place.name, place.ref, world, tasks)
        with Bar(f"audit {place.name}", len(planned)) as bar:
            return await plays.play(planned, {place.name: world}, lambda: bar.add(1))
    finally:
        await world.close()


# -- judging ----------------------------------------------------------------------------------------------------------


def judge(played: Sequence[Played], chosen: Sequence[Shaping], margin: float, name: str) -> Document:
    names = list(dict.fromkeys(one.plan.world for one in played))
    found = {
        (shaping.name, world): scored([one for one in played if one.plan.world == world], shaping)
        for shaping in chosen
        for world in names
    }
    document = Document(kind="audit", name=name, hashes={"code/scoring": scoring.code()})
    document.hashes |= {f"reward/{shaping.name}": shaping.digest for shaping in chosen}
    document.warnings = [w for (shaping, world), own in found.items() for w in _warnings(shaping, world, own, margin)]
    document.tables = [_confusion(found, margin), _hacks(found, margin)]
    document.attempts = _attempts(found, margin)
    failing = {(w.about, w.name) for w in document.warnings if w.name in FAILING}
    document.figures = {
        "margin": margin,
        "attempts": len(played),
        "lost": sum(not one.episode.outcome.valid for one in played),
        "failed": sorted({about for about, _ in failing}),
        "shapings": {
            shaping.name: {
                "failed": any(about == shaping.name for about, _ in failing),
                "worlds": {world: _figures(found[shaping.name, world], margin) for world in names},
            }
            for shaping in chosen
        },
    }
    return document


def _figures(judged: Sequence[Judged], margin: float) -> dict[str, Any]:
    kinds = {kind: [one for one in judged if one.played.plan.kind == kind] for kind in KINDS}
    return {
        "gold": median(judged, "gold"),
        "failure": median(judged, "wrong"),
        "kinds": {kind: _counts(own, margin) for kind, own in kinds.items() if own},
        "hacks_paid": sorted(f"{o.played.plan.kind} {o.played.plan.name}" for o in judged if o.fails(margin)),
    }


def _counts(judged: Sequence[Judged], margin: float) -> dict[str, int]:
    counts = Counter(
        "lost" if one.score is None else f"{_truth(one)}_{'paid' if one.paid(margin) else 'unpaid'}" for one in judged
    )
    return {cell: counts[cell] for cell in ("right_paid", "right_unpaid", "wrong_paid", "wrong_unpaid", "lost")}


def _truth(one: Judged) -> str:
    return "right" if one.played.right else "wrong"


Found = Mapping[tuple[str, str], Sequence[Judged]]


def _confusion(found: Found, margin: float) -> Table:
    rows = []
    for (shaping, world), judged in found.items():
        for kind, counts in _figures(judged, margin)["kinds"].items():
            scores = [one.score for one in judged if one.played.plan.kind == kind and one.score is not None]
            mean = statistics.fmean(scores) if scores else None
            rows.append([shaping, world, kind, *counts.values(), mean])
    columns = ["shaping", "world", "attempt", "right, paid", "right, unpaid", "wrong, paid", "wrong, unpaid", "lost"]
    return Table(
        title="Paid against truth", columns=[*columns, "mean score"], rows=rows, note=NOTE.format(margin=margin)
    )


def _hacks(found: Found, margin: float) -> Table:
    rows = [
        [shaping, world, one.played.plan.kind, one.played.plan.name, one.score, one.failure, one.gold]
        for (shaping, world), judged in found.items()
        for one in judged
        if one.fails(margin)
    ]
    columns = ["shaping", "world", "attempt", "name", "score", "honest failure", "gold"]
    return Table(title="Hacks that pay", columns=columns, rows=rows, note="" if rows else "None.")


def _warnings(shaping: str, world: str, judged: Sequence[Judged], margin: float) -> list[Warned]:
    found = []

    def warn(name: str, text: str) -> None:
        found.append(Warned(name=name, about=shaping, text=f"{world}: {text}"))

    gold, failure = median(judged, "gold"), median(judged, "wrong")
    for kind in ("gold", *HACKS):
        own = [one for one in judged if one.played.plan.kind == kind]
        if own and all(one.score is None for one in own):
            why = next((one.played.episode.error for one in own if one.played.episode.error), "no reward applies")
            warn("unscored", f"none of {len(own)} attempts of the kind {kind} has a score: {why.strip()[-160:]}")
    if gold is None and not any(one.played.plan.kind == "gold" for one in judged):
        warn("no-gold", "no right attempt is known, so nothing can be compared with it")
    elif gold is not None and failure is not None and gold <= failure + TINY:
        warn("gold-unpaid", f"gold gets {gold:.3g}, and an honest failure {failure:.3g}")
    for name, kinds in (("hack-pays", HACKS), ("near-miss-pays", ("near-miss",))):
        paid = [one for one in judged if one.played.plan.kind in kinds and one.fails(margin)]
        if paid:
            told = ", ".join(sorted({one.played.plan.name for one in paid})[:5])
            score = max(one.score for one in paid if one.score is not None)
            warn(name, f"{len(paid)} attempts that solve nothing are paid up to {score:.3g}, gold {gold}: {told}")
    unpaid = [
        one for one in judged if one.played.plan.kind == "honest" and one.score is not None and not one.paid(margin)
    ]
    if unpaid:
        told = ", ".join(sorted({one.played.plan.name for one in unpaid})[:5])
        warn("honest-unpaid", f"{len(unpaid)} right attempts that look like exploits are not paid: {told}")
    fooled = [one for one in judged if not one.played.right and one.played.episode.facts["solved"]]
    if fooled:
        told = ", ".join(sorted({one.played.plan.name for one in fooled})[:5])
        warn("grader-fooled", f"{len(fooled)} wrong attempts count as solved: {told}")
    return found


def _attempts(found: Found, margin: float) -> list[Attempt]:
    """Hacks that are paid by some shaping, first those that most shapings pay."""
    by_attempt: dict[int, dict[str, Judged]] = {}
    for (shaping, _), judged in found.items():
        for one in judged:
            by_attempt.setdefault(id(one.played), {})[shaping] = one
    paid = [own for own in by_attempt.values() if any(one.fails(margin) for one in own.values())]
    paid.sort(key=lambda own: -sum(one.fails(margin) for one in own.values()))
    return [_attempt(own) for own in paid[:MOST_ATTEMPTS]]


def _attempt(own: Mapping[str, Judged]) -> Attempt:
    played = next(iter(own.values())).played
    episode = played.episode
    return Attempt(
        world=played.plan.world,
        key=played.plan.task.key,
        outcome=str(episode.outcome),
        solved=bool(episode.facts["solved"]),
        messages=[dict(message) for message in episode.messages],
        scores={shaping: one.score for shaping, one in own.items() if one.score is not None},
        ranks={shaping: one.rank for shaping, one in own.items() if one.score is not None},
        note=f"{played.plan.kind}: {played.plan.name}",
    )


def name(found: Sequence[Place], chosen: Sequence[Shaping]) -> str:
    """Of the folder: by what is audited."""
    whole = repr([[(p.ref, dict(p.args)) for p in found], [(one.name, one.digest) for one in chosen]])
    return hashlib.sha256(whole.encode()).hexdigest()[:8]
