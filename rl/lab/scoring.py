"""Stored groups under every shaping, chunk by chunk, in processes beside each other; what is done is kept.

A chunk's result is a file named by all that it depends on: what was stored, the shapings, the code that scores. So a
scoring that was killed goes on where it was, and one of other things starts anew.
"""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import signal
import statistics
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import rewards
from rl import filters
from rl.algorithms import Algorithm
from rl.lab import hashes
from rl.lab.measures import Attempts, Shaped
from rl.lab.shapings import Shaping
from rl.lab.stored import Chunk, Stored
from rl.trajectory import Group, Member

Found = dict[str, Any]
"""What became of one chunk: columns over its attempts, JSON."""
CODE = ("rewards", "rl/algorithms", "rl/advantage.py", "rl/filters", "rl/trajectory.py", "rl/lab")
COMMON = ("lease", "member", "world", "solved", "tokens")
NO_SCORE = rewards.Score(0.0)
"""Of an attempt that had one in the run."""
LOOKED_INTO = 16
"""Groups of a chunk whose parts are scored alone, to see which pay by turn."""


def run(
    chunks: Sequence[Chunk], shapings: Sequence[Shaping], parts: Path, processes: int
) -> Iterator[tuple[Found, bool]]:
    """The result of every chunk, as they come, and whether it is new: first those that an earlier scoring left in the
    folder `parts`.
    """
    parts.mkdir(parents=True, exist_ok=True)
    names = {chunk: parts / f"{key(chunk, shapings)}.json" for chunk in chunks}
    for stale in set(parts.iterdir()) - set(names.values()):
        stale.unlink()
    todo = []
    for chunk, path in names.items():
        if path.is_file():
            yield json.loads(path.read_text()), False
        else:
            todo.append(chunk)
    for chunk, found in _each(todo, shapings, min(processes, len(todo))):
        draft = names[chunk].with_suffix(".tmp")
        draft.write_text(json.dumps(found))
        draft.replace(names[chunk])
        yield found, True


def key(chunk: Chunk, shapings: Sequence[Shaping]) -> str:
    whole = json.dumps([chunk.run, chunk.digest, [asdict(shaping) for shaping in shapings], code()], sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()[:24]


def code() -> str:
    """Hex digest over the sources that decide a score or an advantage."""
    return hashes.code(*CODE)


def _each(chunks: Sequence[Chunk], shapings: Sequence[Shaping], processes: int) -> Iterator[tuple[Chunk, Found]]:
    if processes <= 1:
        _stored.cache_clear()
        for chunk in chunks:
            yield chunk, score_chunk(chunk, shapings)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rl.lab.scoring", "torch"])
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_follow) as pool:
        waiting = {pool.submit(score_chunk, chunk, shapings): chunk for chunk in chunks}
        try:
            for done in as_completed(waiting):
                yield waiting[done], done.result()
        finally:
            for future in waiting:
                future.cancel()


def _follow() -> None:
    """In a process of the pool: end with the one that started it, however it ended; leave Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@cache
def _stored(folder: str) -> Stored:
    return Stored(Path(folder))


def score_chunk(chunk: Chunk, shapings: Sequence[Shaping]) -> Found:
    """Every group of a chunk under every shaping. Raises ValueError where it cannot be scored again."""
    stored = _stored(chunk.run)
    rules = {shaping.name: shaping.rule(stored.settings) for shaping in shapings}
    found: Found = {
        "run": chunk.run,
        "attempts": chunk.attempts,
        "skipped": Counter(),
        "rejected": 0,
        **{name: [] for name in COMMON},
    }
    found["shapings"] = {shaping.name: _empty() for shaping in shapings}
    for number, group in enumerate(stored.groups(chunk.leases)):
        filters.screen(group, stored.at(group.version).filters)
        found["skipped"].update(str(m.episode.outcome) for m in group.members if not m.earned)
        found["rejected"] += sum(member.rejected for member in group.members)
        _note(found, group)
        for shaping in shapings:
            column = found["shapings"][shaping.name]
            _write(column, group, shaping, rules[shaping.name])
            if number < LOOKED_INTO and column["pays_turns"]:
                column["by_turn"] = sorted({*column["by_turn"], *_by_turn(group, shaping)})
    return found


def _empty() -> dict[str, Any]:
    lists: dict[str, Any] = {name: [] for name in ("score", "advantage", "teaches", "parts", "by_turn")}
    return {**lists, "lost": {}, "credits_turns": False, "pays_turns": False}


def _note(found: Found, group: Group) -> None:
    for number, member in enumerate(group.members):
        if member.valid:
            noted = (group.lease, number, group.world, bool(member.episode.facts["solved"]), member.trajectory.spoken)
            for name, value in zip(COMMON, noted, strict=True):
                found[name].append(value)


def shape(group: Group, shaping: Shaping, rule: Algorithm) -> list[str]:
    """Give the attempts of a group scores and advantages as training would. Returns why some have no score."""
    kept, earned = group.valid, group.earned
    for member in earned:
        member.score, member.advantage, member.turn_advantages = None, 0.0, ()
    lost = score(earned, shaping)
    rule.advantages(Group(group.lease, group.world, group.version, kept))
    return lost


def _write(column: dict[str, Any], group: Group, shaping: Shaping, rule: Algorithm) -> None:
    kept, earned = group.valid, group.earned
    column["lost"] = dict(Counter(column["lost"]) + Counter(shape(group, shaping, rule)))
    column["pays_turns"] |= any(member.score.turns for member in kept if member.score)
    column["credits_turns"] |= any(member.turn_advantages for member in kept)
    known = [(id(member), member.score) for member in earned if member.score]
    shares = added([score for _, score in known], shaping)  # normalised over all of them, as the score was
    parts = {member: share for (member, _), share in zip(known, shares, strict=True)}
    for member in kept:
        column["score"].append(None if member.score is None else member.score.value)
        column["advantage"].append(member.advantage)
        column["teaches"].append(member.teaches)
        column["parts"].append(parts.get(id(member), {}))
    for member in earned:
        member.score = NO_SCORE


def score(members: Sequence[Member], shaping: Shaping) -> list[str]:
    """Score them together, without those on which a reward fails, as a rollout does. Returns why, a line each."""
    lost: list[str] = []
    while members:
        try:
            scores = rewards.score_group([member.episode for member in members], shaping.rewards)
        except rewards.Unscored as error:
            lost += [" ".join(str(failure).split())[:160] for failure in error.failed.values()]
            members = [member for number, member in enumerate(members) if number not in error.failed]
            continue
        for member, found in zip(members, scores, strict=True):
            member.score = found
        break
    return lost


def added(scores: Sequence[rewards.Score], shaping: Shaping) -> Iterator[dict[str, float]]:
    """What each part adds to the scores of a group; the gates, one after another, what they take away."""
    shares = {name: _shares(name, scores, shaping) for name in shaping.rewards}
    gates = shaping.gates()
    for number, one in enumerate(scores):
        found = {name: share[number] for name, share in shares.items() if name not in gates}
        whole = math.fsum(found.values())
        for name in gates:
            found[name] = whole * (one.parts.get(name, 1.0) - 1)
            whole += found[name]
        yield found


def _shares(name: str, scores: Sequence[rewards.Score], shaping: Shaping) -> list[float]:
    """Of a part that adds: weight times value, or times its distance to the group's mean in deviations."""
    weight, known = shaping.weight(name), [one.parts[name] for one in scores if name in one.parts]
    mean, scale = 0.0, 1.0
    if shaping.rewards[name].get("normalise"):
        mean = statistics.fmean(known) if known else 0.0
        scale = 1 / (statistics.stdev(known) + rewards.SMALLEST_DEVIATION) if len(set(known)) > 1 else 0.0
    return [weight * (one.parts[name] - mean) * scale if name in one.parts else 0.0 for one in scores]


def _by_turn(group: Group, shaping: Shaping) -> Iterator[str]:
    """Parts that pay attempts of the group differently on their turns."""
    members = group.earned
    for name, settings in shaping.rewards.items():
        if name in shaping.gates() or not shaping.weight(name):
            continue
        for member in members:
            member.score = None
        score(members, Shaping(shaping.name, {name: settings}))
        paid = {member.score.turns for member in members if member.score and member.score.turns}
        if len(paid) > 1:
            yield name
    for member in members:
        member.score = NO_SCORE


def columns(found: Sequence[Found], shapings: Sequence[Shaping]) -> tuple[Attempts, dict[str, Shaped]]:
    """All chunks as arrays, in the order of runs, leases and members."""
    found = sorted(found, key=lambda one: (one["run"], one["lease"][:1]))
    sizes = [len(one["lease"]) for one in found]

    def whole(name: str) -> Any:
        return np.array([value for one in found for value in one[name]])

    run_N = np.repeat([one["run"] for one in found], sizes) if found else np.array([])
    lease_N = whole("lease")
    places = {place: n for n, place in enumerate(dict.fromkeys(zip(run_N.tolist(), lease_N.tolist(), strict=True)))}
    group_N = np.array([places[place] for place in zip(run_N.tolist(), lease_N.tolist(), strict=True)], dtype=int)
    solved_N = whole("solved").astype(bool)
    attempts = Attempts(run_N, lease_N, whole("member"), whole("world"), group_N, solved_N, whole("tokens"))
    return attempts, {shaping.name: _column(found, shaping) for shaping in shapings}


def _column(found: Sequence[Found], shaping: Shaping) -> Shaped:
    own = [one["shapings"][shaping.name] for one in found]
    parts = [part for one in own for part in one["parts"]]
    return Shaped(
        np.array([value for one in own for value in one["score"]], dtype=float),
        np.array([value for one in own for value in one["advantage"]], dtype=float),
        np.array([value for one in own for value in one["teaches"]], dtype=bool),
        {name: np.array([part.get(name, 0.0) for part in parts], dtype=float) for name in shaping.rewards},
        frozenset(name for one in own for name in one["by_turn"]),
        any(one["credits_turns"] for one in own),
    )
