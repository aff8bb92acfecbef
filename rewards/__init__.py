"""The contract of rewards: pure functions from finished episodes to numbers, composed in configuration into one score.

A reward file exports one of three functions, and may export `check(**args)`, which raises ValueError on arguments that
make no sense, before a run starts:

    reward(episode, **args) -> float | None               of one attempt
    turns(episode, **args) -> list[float] | None          of one attempt, a number for each turn of the policy
    group(episodes, **args) -> list[float | None]         of all valid attempts of a group, which it compares

None says that the reward does not apply to this attempt: the part is left out. Configuration composes them:

    rewards:
      outcome: {}                                         # weight 1
      length: {weight: 0.2, soft_tokens: 100, hard_tokens: 300}
      boxed: {reward: format, gate: true, pattern: '\\\\boxed'}

`weight` (1) multiplies the part; at 0 it is a metric only. `gate: true` multiplies the sum by the part in place of
adding it. `threshold: t` makes the part 1 at t or above, else 0. `normalise: true` takes the difference to the group's
mean over its deviation. `reward: NAME` is the file, where the part has a name of its own. All else is the file's.

Nothing here runs code, sees a token or reads a clock (but to end a pattern that goes on for ever), so stored episodes
can be scored again at any time; groups may be scored in several threads at once. To divide the sum by the group's
deviation is a matter of rl/algorithms.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import math
import pkgutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import regex

from envs import Episode, JudgeFailed, JudgeTimedOut, MachineryError, Message, Outcome

KEYS = ("reward", "weight", "gate", "threshold", "normalise")
"""What composition takes of a part's settings; a reward's own arguments have other names."""
KINDS = ("reward", "turns", "group")
PATTERN_S = 1.0
"""Longest search for a configured pattern in one text: a policy can write one on which it would hardly ever end."""
SMALLEST_DEVIATION = 1e-4
"""Added to a group's deviation, so that parts which differ by rounding are not blown up."""

Settings = Mapping[str, Any]
Reward = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Score:
    """The composed sum, and every part by name as its reward (or its threshold) gave it."""

    value: float
    parts: Mapping[str, float] = field(default_factory=dict)
    turns: tuple[float, ...] = ()
    """Where a part pays by turn: how much of `value` each turn of the policy brought; what is not by turn, the last."""


class Unscored(JudgeFailed):
    """Some episodes of a group have no score. The others may be scored without them."""

    def __init__(self, failed: Mapping[int, MachineryError]) -> None:
        first = min(failed)
        super().__init__(f"{len(failed)} of the episodes have no score; the first, at {first}: {failed[first]}")
        self.failed = dict(failed)
        """Why, by position in the group."""


def available() -> list[str]:
    """Names of the rewards in this package."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__))


def load(name: str) -> Reward:
    """The function that a reward's file exports. Raises ValueError (got, available) where there is none."""
    return _found(name)[1]


@functools.cache
def _found(name: str) -> tuple[str, Reward]:
    if name not in available():
        raise ValueError(f"there is no reward {name!r}; available: {', '.join(available())}")
    module = importlib.import_module(f"rewards.{name}")
    found = [kind for kind in KINDS if hasattr(module, kind)]
    if len(found) != 1:
        raise ValueError(f"rewards/{name}.py exports {', '.join(found) or 'none'} of {', '.join(KINDS)}; expected one")
    return found[0], getattr(module, found[0])


def measured(episode: Episode) -> bool:
    """True where the world ran its checks and stated facts; else a budget was spent or an action refused."""
    return episode.outcome in (Outcome.SOLVED, Outcome.FAILED)


def rounds(episode: Episode) -> list[list[Message]]:
    """For each turn of the policy: its message, and what the world answered. What came before is not in there."""
    spoken = [at for at, message in enumerate(episode.messages) if message["role"] == "assistant"]
    begins = spoken[len(spoken) - episode.turns :]  # an opening may show turns that are not the policy's
    return [episode.messages[a:b] for a, b in zip(begins, [*begins[1:], len(episode.messages)], strict=False)]


def expression(pattern: str) -> regex.Pattern[str]:
    """A configured pattern, as Python's `re` reads it. Raises ValueError where it is none."""
    try:
        return regex.compile(pattern)
    except (regex.error, TypeError) as error:
        raise ValueError(f"got pattern={pattern!r}; expected a regular expression: {error}") from None


def matches(pattern: str, text: str) -> bool:
    """Whether a pattern is found in what a policy wrote, or brought a tool to say. Raises JudgeTimedOut."""
    try:
        return expression(pattern).search(text, timeout=PATTERN_S) is not None
    except TimeoutError:
        words = f"the pattern {pattern!r:.80} took more than {PATTERN_S:g} s on a text of {len(text)} characters"
        raise JudgeTimedOut(f"{words}; expected one without repetitions that match the same in many ways") from None


@dataclass(frozen=True, slots=True)
class _Part:
    name: str
    file: str
    weight: float
    gate: bool
    threshold: float | None
    normalise: bool
    args: Settings

    @classmethod
    def of(cls, name: str, settings: Settings) -> _Part:
        return cls(
            name,
            settings.get("reward", name),
            settings.get("weight", 1.0),
            settings.get("gate", False),
            settings.get("threshold"),
            settings.get("normalise", False),
            {key: value for key, value in settings.items() if key not in KEYS},
        )

    @property
    def adds(self) -> bool:
        return not self.gate and self.weight != 0


@dataclass(frozen=True, slots=True)
class _Paid:
    """What one attempt gets of a part; `share` of it is what the sum takes, before the weight."""

    value: float
    turns: tuple[float, ...] = ()
    share: float = 0.0
    scale: float = 1.0
    """Of `turns`, in the share."""


# -- before a run -----------------------------------------------------------------------------------------------------


def check(name: str, settings: Settings) -> None:
    """Raises ValueError or TypeError where settings make no sense, or their reward cannot be called with them."""
    for key in ("weight", "threshold"):
        got = settings.get(key, 0)
        if isinstance(got, bool) or not isinstance(got, int | float) or not math.isfinite(got):
            raise ValueError(f"got {key}={got!r}; expected a number")
    for key in ("gate", "normalise"):
        if not isinstance(settings.get(key, False), bool):
            raise ValueError(f"got {key}={settings[key]!r}; expected true or false")
    part = _Part.of(name, settings)
    if part.gate and "weight" in settings:
        raise ValueError("weight has no effect on a gate, which multiplies the sum; leave one of the two out")
    if part.normalise and (part.gate or part.threshold is not None):
        other = "is a gate" if part.gate else "has a threshold"
        raise ValueError(f"a part {other} or is normalised within its group, not both; leave one of the two out")
    if part.normalise and part.weight == 0:
        raise ValueError("normalise has no effect on a part of weight 0, whose value is kept as it is; leave it out")
    inspect.signature(load(part.file)).bind(None, **part.args)
    if checks := getattr(importlib.import_module(f"rewards.{part.file}"), "check", None):
        checks(**part.args)


def check_sum(rewards: Mapping[str, Settings]) -> None:
    """Raises ValueError where no part would add to the score."""
    if not any(_Part.of(name, settings).adds for name, settings in rewards.items()):
        raise ValueError(
            f"got rewards that are all gates or of weight 0 ({', '.join(rewards)}); expected one that adds to the score"
        )


# -- scoring ----------------------------------------------------------------------------------------------------------


def score(episode: Episode, rewards: Mapping[str, Settings]) -> Score:
    """Judge one episode, as a group of its own."""
    return score_group([episode], rewards)[0]


def score_group(episodes: Sequence[Episode], rewards: Mapping[str, Settings]) -> list[Score]:
    """Judge the valid attempts of one group together.

    Raises ValueError where the machinery ended one of them, which has no score and belongs in no group's mean; and
    Unscored where a reward raised, gave what is no finite number, or none applies.
    """
    for episode in episodes:
        if not episode.outcome.valid:
            raise ValueError(f"an episode that ended as {episode.outcome} is the machinery's doing and has no score")
    parts = [_Part.of(name, settings) for name, settings in rewards.items()]
    failed: dict[int, MachineryError] = {}
    columns = [_column(part, episodes, failed) for part in parts]
    scores: list[Score] = []
    for number, episode in enumerate(episodes):
        if number in failed:
            continue
        paid = [(part, one) for part, column in zip(parts, columns, strict=True) if (one := column[number]) is not None]
        try:
            scores.append(_sum(paid, parts, episode))
        except (JudgeFailed, ArithmeticError, ValueError) as error:
            failed[number] = error if isinstance(error, JudgeFailed) else JudgeFailed(f"the sum of its parts: {error}")
    if failed:
        raise Unscored(failed)
    return scores


def _column(part: _Part, episodes: Sequence[Episode], failed: dict[int, MachineryError]) -> list[_Paid | None]:
    """What every attempt gets of a part; None where it does not apply. What goes wrong goes into `failed`."""
    kind, function = _found(part.file)
    raw: list[Any] = [None] * len(episodes)
    if kind == "group":
        try:
            raw = list(function(episodes, **part.args))
            if len(raw) != len(episodes):
                raise ValueError(f"gave {len(raw)} numbers for {len(episodes)} attempts")
        except Exception as error:
            failed |= dict.fromkeys(range(len(episodes)), _failure(part, error))
            return [None] * len(episodes)
    column: list[_Paid | None] = []
    for number, episode in enumerate(episodes):
        try:
            got = raw[number] if kind == "group" else function(episode, **part.args)
            column.append(None if got is None else _paid(part, kind, got, episode))
        except Exception as error:
            failed.setdefault(number, _failure(part, error))
            column.append(None)
    return _normalised(column) if part.normalise else column


def _failure(part: _Part, error: Exception) -> MachineryError:
    """A reward is a plug-in: what it raises cannot be foreseen, and is no reward."""
    if isinstance(error, MachineryError):
        return error
    return JudgeFailed(f"reward {part.name}: {type(error).__name__}: {error}")


def _paid(part: _Part, kind: str, got: Any, episode: Episode) -> _Paid:
    turns: tuple[float, ...] = ()
    if kind == "turns":
        turns = tuple(float(one) for one in got)
        if len(turns) != episode.turns:
            raise ValueError(f"gave {len(turns)} numbers for {episode.turns} turns")
    value = math.fsum(turns) if kind == "turns" else float(got)
    if not math.isfinite(value):
        raise ValueError(f"came to {value}; expected a finite number")
    if part.threshold is not None:
        value, turns = float(value >= part.threshold), ()
    return _Paid(value, turns, share=value)


def _normalised(column: Sequence[_Paid | None]) -> list[_Paid | None]:
    """(x - mean) / (s + 1e-4) over those to whom the part applies, s the sample deviation; 0 where all are equal."""
    values = [paid.value for paid in column if paid is not None]
    alike = len(set(values)) < 2
    mean = statistics.fmean(values) if values else 0.0
    scale = 0.0 if alike else 1 / (statistics.stdev(values) + SMALLEST_DEVIATION)
    return [p and _Paid(p.value, p.turns, share=(p.value - mean) * scale, scale=scale) for p in column]


def _sum(paid: Sequence[tuple[_Part, _Paid]], parts: Sequence[_Part], episode: Episode) -> Score:
    """One attempt's score of what its parts paid: the gates' product times the weighted sum of the others."""
    wanted = [part.name for part in parts if part.adds] or [part.name for part in parts]
    if not any(part.name in wanted for part, _ in paid):
        raise JudgeFailed(f"no reward applies to an attempt at {episode.task.key}; got None of {', '.join(wanted)}")
    gate = math.prod(one.value for part, one in paid if part.gate)
    value = gate * math.fsum(part.weight * one.share for part, one in paid if part.adds)
    if not math.isfinite(value):
        raise JudgeFailed(f"the sum of {', '.join(part.name for part, _ in paid)} came to {value}")
    by_turn = [(gate * part.weight * one.scale, one.turns) for part, one in paid if part.adds and one.turns]
    turns = [math.fsum(scale * own[turn] for scale, own in by_turn) for turn in range(episode.turns)] if by_turn else []
    if turns:
        turns[-1] += value - math.fsum(turns)
    return Score(value, {part.name: one.value for part, one in paid}, tuple(turns))
