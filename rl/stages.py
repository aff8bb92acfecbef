"""A curriculum in stages: what the configuration is while the policy is at a version.

    stages:
      - until_step: 200                                        # steps 1 to 200
        worlds: {math: {weight: 3, args: {levels: [0]}}}       # over what `worlds` says
        rewards: {length: {soft_tokens: {from: 8192, to: 65536}}}   # moves in a line over the stage
      - until_step: 500
        filters: {overlong: {mode: enforce}}

After the last stage, the file holds as it stands; a last stage without `until_step` lasts to the end. A lease belongs
to the stage of the version at which it was admitted, whenever it is trained on. Held-out tasks are always those of the
file itself, so that measurements compare.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rl.config import RunConfig

RAMP = {"from", "to"}


@dataclass
class DifficultyConfig:
    """Which tasks are drawn less: see rl/difficulty.py. As it stands, none."""

    low: float = 0.0
    high: float = 1.0
    """Bounds of the observed solve rate."""
    by: str = "task"
    """Whose attempts count: `task`, or `family` for those of its family and level."""
    least: int = 8
    """Attempts before a rate means anything."""
    window: int = 64
    """Attempts looked back on."""
    keep: float = 0.1
    """Share of the tasks outside the bounds that is drawn nevertheless."""

    @property
    def active(self) -> bool:
        return self.low > 0 or self.high < 1

    def check(self, where: str) -> None:
        """Raises ValueError where the bounds make no sense or change nothing."""
        if not 0 <= self.low <= self.high <= 1 or not 0 <= self.keep < 1:
            raise ValueError(
                f"got {where} low={self.low}, high={self.high}, keep={self.keep}; "
                "expected 0 <= low <= high <= 1 and 0 <= keep < 1"
            )
        if self.by not in ("task", "family"):
            raise ValueError(f"got {where}.by={self.by}; available: task, family")
        if self.least < 1 or self.window < self.least:
            raise ValueError(
                f"got {where} least={self.least}, window={self.window}; expected 1 or more, and no smaller window"
            )
        if self != DifficultyConfig() and not self.active:
            raise ValueError(f"{where} has no effect without low above 0 or high below 1")


@dataclass
class StageConfig:
    """A part of the run that differs from the file."""

    until_step: int = 0
    """The last step of the stage; 0 in the last one: to the end."""
    worlds: dict[str, dict[str, Any]] = field(default_factory=dict)
    filters: dict[str, dict[str, Any]] = field(default_factory=dict)
    rewards: dict[str, dict[str, Any]] = field(default_factory=dict)


def number(settings: RunConfig, version: int) -> int:
    """Index of the stage in force at a version; the number of stages where the last is over."""
    ends = [stage.until_step for stage in settings.stages]
    return next((n for n, end in enumerate(ends) if version < end or end == 0), len(ends))


def at(settings: RunConfig, version: int) -> RunConfig:
    """The configuration in force at a version: worlds, filters and rewards of the stage over those of the file."""
    n = number(settings, version)
    if n == len(settings.stages):
        return settings if not settings.stages else replace(settings, stages=[])
    stage, (begin, end) = settings.stages[n], _span(settings, n)
    done = min(1.0, max(0.0, (version - begin) / max(1, end - 1 - begin)))
    return replace(
        settings,
        stages=[],
        worlds={name: _world(world, stage.worlds.get(name, {})) for name, world in settings.worlds.items()},
        filters=_over(settings.filters, stage.filters, done),
        rewards=_over(settings.rewards, stage.rewards, done),
    )


def targets(settings: RunConfig, version: int) -> dict[str, float]:
    """Share of the trained tokens that each world should have at a version; worlds of weight 0 are left out."""
    weights = {name: world.weight for name, world in at(settings, version).worlds.items() if world.weight > 0}
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def views(settings: RunConfig, n: int) -> Iterator[RunConfig]:
    """A stage's configuration at its first and at its last version, to be checked."""
    begin, end = _span(settings, n)
    for version in sorted({begin, end - 1}):
        yield at(settings, version)


def check(settings: RunConfig) -> None:
    """Raises ValueError where the stages make no sequence, name what is not there, or would never begin."""
    before = 0
    for n, stage in enumerate(settings.stages):
        last = n == len(settings.stages) - 1
        if stage.until_step == 0 and not last:
            raise ValueError(f"stages[{n}] lasts to the end; expected until_step in every stage but the last")
        if stage.until_step and stage.until_step <= before:
            raise ValueError(f"got stages[{n}].until_step={stage.until_step}; expected more than {before}")
        if before >= settings.train.steps:
            raise ValueError(
                f"stages[{n}] begins after step {before} and has no effect; train.steps={settings.train.steps}"
            )
        before = stage.until_step
        for world, changes in stage.worlds.items():
            if world not in settings.worlds:
                raise ValueError(
                    f"stages[{n}].worlds has {world}, not among the run's worlds; available: "
                    f"{', '.join(settings.worlds)}"
                )
            names = [f.name for f in fields(settings.worlds[world]) if f.name != "world"]
            if unknown := sorted(set(changes) - set(names)):
                raise ValueError(f"unknown key stages[{n}].worlds.{world}.{unknown[0]}; available: {', '.join(names)}")


def _span(settings: RunConfig, n: int) -> tuple[int, int]:
    """First version of a stage, and the first that is no longer in it."""
    begin = settings.stages[n - 1].until_step if n else 0
    return begin, settings.stages[n].until_step or max(begin + 1, settings.train.steps)


def _world(world: Any, changes: Mapping[str, Any]) -> Any:
    """A world's settings with a stage's over them; `args` and `difficulty` are merged, not replaced."""
    difficulty = changes.get("difficulty", {})
    if not isinstance(difficulty, Mapping) or not isinstance(changes.get("args", {}), Mapping):
        raise ValueError(f"got {dict(changes)} for a world; expected keys and values in args and difficulty")
    names = [f.name for f in fields(world.difficulty)]
    if unknown := sorted(set(difficulty) - set(names)):
        raise ValueError(f"unknown key difficulty.{unknown[0]}; available: {', '.join(names)}")
    weight = changes.get("weight", world.weight)
    if not isinstance(weight, int | float):
        raise ValueError(f"got weight={weight!r} for a world; expected a number")
    return replace(
        world,
        weight=float(weight),
        args={**world.args, **changes.get("args", {})},
        difficulty=replace(world.difficulty, **difficulty),
    )


def _over(
    below: Mapping[str, Mapping[str, Any]], above: Mapping[str, Mapping[str, Any]], done: float
) -> dict[str, dict[str, Any]]:
    """Plug-ins by name with a stage's settings over the file's, ramps where they are when `done` of the stage is."""
    names = list(dict.fromkeys([*below, *above]))
    return {
        name: {
            key: _now(value, done, whole=key not in ("weight", "threshold"))
            for key, value in {**below.get(name, {}), **above.get(name, {})}.items()
        }
        for name in names
    }


def _now(value: Any, done: float, whole: bool) -> Any:
    """`whole`: between whole numbers it stays whole, as numbers of tokens do."""
    if not isinstance(value, Mapping) or set(value) != RAMP:
        return value
    start, end = value["from"], value["to"]
    if not all(isinstance(number, int | float) for number in (start, end)):
        raise ValueError(f"got a ramp from {start!r} to {end!r}; expected two numbers")
    now = start + (end - start) * done
    return round(now) if whole and isinstance(start, int) and isinstance(end, int) else now
