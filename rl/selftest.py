"""Before a run learns, a few seconds to see that its parts agree; what is off stops it with one sentence.

- agreement: the log-probabilities that the engine recorded for sampled attempts are the learner's own
- ratio: the loss on these attempts, before any step, has ratio 1 and clips nothing
- gold: the scripted experts' right answers, played through sandbox and grader, are scored as right
- variance: how many groups carry a gradient at all: a forecast, and never a reason to stop
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from envs import EnvCrashed, Episode, MachineryError, Outcome, World
from policy.engines import Completion, Sampling
from rl import algorithms, quarantine, rollout, stages
from rl.buffer import tokens_of, useful
from rl.config import RunConfig
from rl.store import Run
from rl.trajectory import Group, Member, Trajectory

if TYPE_CHECKING:
    from rl.local import Local
    from rl.workers import RolloutWorker

FILE = "selftest.json"
GROUPS = 2
"""Of each world, sampled."""
GOLD = 3
"""Tasks of each world that its expert plays."""
FAR = 1_000_000
"""Position in the streams of training tasks from which these are taken, so that no lease meets them."""
LIMITS = {"float32": (1e-3, 0.1, 0.0), "bfloat16": (0.05, 2.0, 0.02)}
"""By dtype: mean and largest difference of log-probabilities in nats, and share of tokens that the loss may clip."""
Z = 1.96


class SelfTestFailed(RuntimeError):
    pass


class Parts(Protocol):
    """What is tested: rl/cluster.py's Cluster."""

    async def play(self, world: str, split: Any, index: int, lease: int, version: int, size: int) -> Group: ...

    async def expert(self, world: str, index: int) -> Member: ...

    async def score(self, members: Sequence[Member]) -> tuple[list[list[float]], dict[str, float]]: ...


class Progress(Protocol):
    def phase(self, name: str) -> None: ...

    def say(self, text: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Finding:
    """One test: its name, whether all is well, one line in words, and the figures."""

    name: str
    passed: bool
    words: str
    figures: dict[str, Any]


async def run(parts: Parts, settings: RunConfig, version: int, store: Run, page: Progress) -> None:
    """All tests, one line each on the page and together in `selftest.json`. Raises SelfTestFailed where one is off."""
    page.phase("self-tests")
    began = time.monotonic()
    worlds = [name for name, world in settings.worlds.items() if world.weight > 0]
    size = settings.rollout.group_size
    barred, _ = quarantine.read(settings)

    def places(world: str, count: int, now: RunConfig) -> Iterator[int]:
        args = now.worlds[world].args
        return itertools.islice((i for i in range(FAR, 2 * FAR) if not barred.holds(world, "train", i, args)), count)

    now = stages.at(settings, version)  # groups are played in the stage, experts in the world of the file
    sampling = [parts.play(w, "train", i, FAR - i - 1, version, size) for w in worlds for i in places(w, GROUPS, now)]
    playing = [parts.expert(world, index) for world in worlds for index in places(world, GOLD, settings)]
    groups, experts = await asyncio.gather(asyncio.gather(*sampling), asyncio.gather(*playing))
    algorithm = algorithms.load(settings.algorithm.name, **settings.algorithm.args)
    for group in groups:
        algorithm.advantages(group)
    members = [member for group in groups for member in group.valid]
    findings = [gold(experts), variance(groups, settings.learner.batch_tokens)]
    if members:
        scored, rehearsed = await parts.score(members)
        findings = [*compared(members, scored, rehearsed, settings.policy.dtype), *findings]
    else:
        last = groups[-1].members[-1].episode.error
        words = f"none of {size * len(groups)} sampled attempts was valid, the last for: {last}"
        findings.insert(0, Finding("agreement", False, words, {"attempts": 0}))
    seconds = time.monotonic() - began
    told = {"time": time.time(), "version": version, "seconds": seconds, "tests": [asdict(f) for f in findings]}
    (store.folder / FILE).write_text(json.dumps(told, indent=1) + "\n")
    for finding in findings:
        page.say(f"self-test {finding.name}: {'ok' if finding.passed else 'OFF'}, {finding.words}")
    if off := [finding for finding in findings if not finding.passed]:
        raise SelfTestFailed(
            f"a self-test is off, so nothing was learnt: {'; '.join(f'{f.name}: {f.words}' for f in off)}. "
            f"See {store.folder / FILE}; train.selftest=false leaves the tests out"
        )


def compared(
    members: Sequence[Member], scored: Sequence[Sequence[float]], rehearsed: dict[str, float], dtype: str
) -> list[Finding]:
    """Agreement and ratio: `scored` are the learner's log-probabilities of each member's tokens."""
    mean_limit, max_limit, clip_limit = LIMITS[dtype]
    by_world: dict[str, list[float]] = {}
    for member, ours in zip(members, scored, strict=True):
        pairs = zip(ours, member.trajectory.logprobs, member.trajectory.mask, strict=True)
        by_world.setdefault(member.episode.task.world, []).extend(abs(a - b) for a, b, spoken in pairs if spoken)
    gaps = [gap for found in by_world.values() for gap in found]
    mean, worst = sum(gaps) / len(gaps), max(gaps)
    where = max(by_world, key=lambda world: max(by_world[world]))
    agreement = Finding(
        "agreement",
        mean <= mean_limit and worst <= max_limit,
        f"engine and learner differ by {mean:.1e} nats a token (at most {mean_limit:g}), at worst, in {where}, by "
        f"{worst:.1e} (at most {max_limit:g}); {len(gaps)} tokens",
        {
            "mean": mean,
            "max": worst,
            "tokens": len(gaps),
            "worlds": {world: {"mean": sum(f) / len(f), "max": max(f)} for world, f in by_world.items()},
        },
    )
    ratio = rehearsed.get("ratio", 1.0)
    clipped = sum(value for name, value in rehearsed.items() if name.startswith("clip"))
    return [
        agreement,
        Finding(
            "ratio",
            abs(ratio - 1) <= mean_limit and clipped <= clip_limit,
            f"{ratio:.5f} before any step (1 within {mean_limit:g}), {clipped:.1%} of the tokens clipped "
            f"(at most {clip_limit:.0%})",
            {"ratio": ratio, "clipped": clipped},
        ),
    ]


def gold(experts: Sequence[Member]) -> Finding:
    """An expert's attempt that the grader or the machinery refused is off; one that no budget holds is only told."""
    by_outcome: dict[str, list[Member]] = {}
    right = 0
    for member in experts:
        if member.episode.outcome is Outcome.SOLVED:
            right += 1
        else:
            by_outcome.setdefault(str(member.episode.outcome), []).append(member)
    without = by_outcome.pop(str(Outcome.CANCELLED), [])
    spent = sum(
        len(by_outcome.pop(str(o), [])) for o in (Outcome.TOKENS_SPENT, Outcome.TURNS_SPENT, Outcome.TIME_SPENT)
    )
    words = f"{right} of {len(experts) - len(without)} right answers of the experts were scored as right"
    if without:
        words += f"; {len(without)} tasks have no expert"
    if spent:
        words += f"; {spent} spent a budget, so policy.context, policy.turn_tokens or the turns may be too tight"
    for outcome, members in by_outcome.items():
        task, error = members[0].episode.task, members[0].episode.error
        words += f"; {len(members)} ended as {outcome}, as {task.world} {task.key}" + (f" ({error})" if error else "")
    return Finding(
        "gold",
        not by_outcome,
        words,
        {"right": right, "tasks": len(experts) - len(without), "spent": spent, "no_expert": len(without)},
    )


def variance(groups: Sequence[Group], batch_tokens: int) -> Finding:
    """Share of groups whose members scored alike, and what that means for the length of a step."""
    count, live = len(groups), [group for group in groups if useful(group)]
    low, high = _interval(len(live), count)
    words = f"{len(live)} of {count} groups carry a gradient; forecast {low:.0%} to {high:.0%}"
    figures: dict[str, Any] = {"groups": count, "useful": len(live), "low": low, "high": high}
    if live:
        needed = batch_tokens / (sum(tokens_of(group) for group in live) / count)
        figures["groups_a_step"] = needed
        words += f", about {needed:.0f} groups a step"
    else:
        scores = [member.score.value for group in groups for member in group.valid if member.score]
        words += (
            f", mean score {sum(scores) / max(1, len(scores)):.2f}: tasks may be too easy or too hard to learn from"
        )
    return Finding("variance", True, words, figures)


def _interval(good: int, count: int) -> tuple[float, float]:
    """Wilson's interval of a share, at 95 %."""
    if not count:
        return 0.0, 1.0
    share, rest = good / count, Z * Z / count
    middle = (share + rest / 2) / (1 + rest)
    half = Z / (1 + rest) * (share * (1 - share) / count + rest / (4 * count)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)


async def play_expert(place: World, worker: RolloutWorker | Local, index: int) -> Member:
    """In a rollout worker: the expert says its turns where the policy would; what it is lost to is tried once more.

    A task without an expert comes back as cancelled, one whose expert breaks as crashed.
    """
    try:
        task = rollout.task_of(place, "train", index)
    except MachineryError as error:
        return rollout.unplayed(place.name, "train", index, error)[0]
    limits = rollout.limits(worker.config, place)
    try:
        messages = place.demonstrate(task, random.Random(task.key), err=False)
    except (NotImplementedError, AttributeError, ValueError):
        return Member(Trajectory(), Episode(task=task, messages=[], outcome=Outcome.CANCELLED))
    except Exception as error:  # a world is a plug-in: what its code raises cannot be foreseen
        crashed = Episode(task=task, messages=[], outcome=Outcome.ENV_CRASHED, error=f"{type(error).__name__}: {error}")
        return Member(Trajectory(), crashed)
    turns = [worker.chat.encode(m["content"]) for m in messages if m["role"] == "assistant"]
    engine = Recital([[*turn, worker.chat.stop_ids[0]] for turn in turns])
    member = await rollout.play(place, task, engine, worker.chat, limits, worker.config.rewards)
    if not member.episode.outcome.valid:
        engine = Recital(engine.turns)
        member = await rollout.play(place, task, engine, worker.chat, limits, worker.config.rewards)
    return member


class Recital:
    """Says given turns, one after another, whatever it hears: an engine for one attempt."""

    def __init__(self, turns: Sequence[Sequence[int]]) -> None:
        self.turns = turns
        self._next = iter(turns)

    async def generate(self, ids: Sequence[int], sampling: Sampling) -> Completion:
        said = next(self._next, None)
        if said is None:
            raise EnvCrashed("the world asks for more turns than its expert has")
        kept = list(said[: sampling.max_tokens])
        return Completion(
            ids=kept, logprobs=[0.0] * len(kept), versions=[0] * len(kept), stopped=len(kept) == len(said)
        )
