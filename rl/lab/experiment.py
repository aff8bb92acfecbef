"""EXPERIMENT.yaml: K shapings x N seeds of one base configuration, checked whole before anything starts.

    base: configs/quickstart.yaml
    overrides: [train.steps=12]         # of every cell
    seeds: [0, 1, 2, 3, 4]
    shapings:
      outcome: {rewards: {outcome: {}}}
      dense: {rewards: {outcome: {}, tests: {weight: 0.5}}, algorithm: {name: rloo}}
    reference: outcome                  # what the others are compared with; the first, where it is not said
    threshold: 0.7                      # of true success, for "steps to"; halfway up, where it is not said

A cell is one shaping under one seed: the base configuration with that shaping's rewards (and algorithm) in place of its
own. Cells of one seed play the same tasks; all cells start from the same weights.
"""

from __future__ import annotations

import copy
import difflib
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from rl import config
from rl.config import AlgorithmConfig, ConfigError, RunConfig

KEYS = ("name", "base", "overrides", "seeds", "shapings", "reference", "threshold")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
TRUE = "outcome"
"""The reward that is the true score: logged in every cell, with weight 0 where the shaping does not pay it."""
OTHER = "true_outcome"
"""Its name where the shaping calls another reward so."""


@dataclass(frozen=True, slots=True)
class Shaping:
    rewards: dict[str, dict[str, Any]]
    algorithm: AlgorithmConfig | None
    """None: the base configuration's."""


@dataclass(frozen=True, slots=True)
class Cell:
    shaping: str
    seed: int
    settings: RunConfig

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def folder(self) -> Path:
        """Of its run."""
        return self.settings.folder

    @property
    def written(self) -> Path:
        """Its configuration, as it was when the cell began."""
        return self.folder.parent.parent / "configs" / f"{self.name}.yaml"

    @property
    def log(self) -> Path:
        return self.folder.parent.parent / "logs" / f"{self.name}.log"


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    name: str
    base: RunConfig
    """With the overrides; its name, seed, rewards and model are those of no cell."""
    seeds: tuple[int, ...]
    shapings: Mapping[str, Shaping]
    reference: str
    threshold: float | None

    @property
    def folder(self) -> Path:
        return Path(self.base.runs) / "lab" / self.name

    def cells(self, model: str | None) -> list[Cell]:
        """Seed by seed, so that what is finished is always comparable. `model`: what all start from."""
        return [Cell(name, seed, self._settings(name, seed, model)) for seed in self.seeds for name in self.shapings]

    def _settings(self, name: str, seed: int, model: str | None) -> RunConfig:
        shaping = self.shapings[name]
        settings = copy.deepcopy(self.base)
        settings.name, settings.seed, settings.runs = f"{name}-{seed}", seed, str(self.folder / "cells")
        settings.rewards = copy.deepcopy(shaping.rewards)
        settings.algorithm = copy.deepcopy(shaping.algorithm or settings.algorithm)
        settings.policy = replace(settings.policy, model=model)
        return settings


def load(path: Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read and check, every shaping with the base. `key=value` is a key of the experiment where it has one of this
    name, as seeds=[0,1], else one of every cell, as train.steps=2. Raises ConfigError."""
    own = [word for word in overrides if word.partition("=")[0] in KEYS]
    given = {**config.mapping(path), **config.values(own)}
    if unknown := [key for key in given if key not in KEYS]:
        near = difflib.get_close_matches(unknown[0], KEYS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"available: {', '.join(KEYS)}"
        raise ConfigError(f"{path}: unknown key {unknown[0]}; {hint}")
    if missing := [key for key in ("base", "seeds", "shapings") if not given.get(key)]:
        raise ConfigError(f"{path} has no {', '.join(missing)}; expected base, seeds and shapings")
    of_cells = [*_texts(path, "overrides", given), *(word for word in overrides if word not in own)]
    for key in ("seed", "rewards", "algorithm"):
        if any(word.partition("=")[0].split(".")[0] == key for word in of_cells):
            raise ConfigError(f"{key} is what the cells differ in; give it in {path}, as seeds or under shapings")
    base = config.load(str(given["base"]), of_cells)
    for number, stage in enumerate(base.stages):
        if stage.rewards:
            raise ConfigError(
                f"{given['base']}: stages[{number}].rewards would stand over every shaping; expected stages of worlds "
                "and filters only"
            )
    shapings = _shapings(path, given["shapings"])
    experiment = Experiment(
        name=_named(path, str(given.get("name", path.stem))),
        base=base,
        seeds=_seeds(path, given["seeds"]),
        shapings=shapings,
        reference=str(given.get("reference", next(iter(shapings)))),
        threshold=_threshold(path, given.get("threshold")),
    )
    if experiment.reference not in shapings:
        raise ConfigError(f"{path}: got reference {experiment.reference}; available: {', '.join(shapings)}")
    check(experiment)
    return experiment


def check(experiment: Experiment) -> None:
    """Each shaping makes a configuration that `rl train` takes. Raises ConfigError, naming the shaping."""
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "cell.yaml"
        for name in experiment.shapings:
            try:
                config.save(experiment._settings(name, experiment.seeds[0], experiment.base.policy.model), draft)
                config.load(draft)
            except ConfigError as error:
                raise ConfigError(f"shaping {name}: {error}") from None


def _shapings(path: Path, given: Any) -> dict[str, Shaping]:
    if not isinstance(given, dict):
        raise ConfigError(f"{path}: shapings holds {given!r}; expected a name for each, with its rewards")
    return {_named(path, str(name)): _shaping(path, str(name), value) for name, value in given.items()}


def _shaping(path: Path, name: str, value: Any) -> Shaping:
    if isinstance(value, str):  # a file, as rl lab score takes
        value = config.mapping(value)
    if not isinstance(value, dict) or not isinstance(value.get("rewards"), dict) or not value["rewards"]:
        raise ConfigError(f"{path}: shaping {name} has no rewards; expected {{rewards: {{outcome: {{}}}}}} or the like")
    if unknown := sorted(set(value) - {"rewards", "algorithm"}):
        raise ConfigError(f"{path}: shaping {name} has {', '.join(unknown)}; available: rewards, algorithm")
    rewards = {part: dict(settings or {}) for part, settings in value["rewards"].items()}
    algorithm = value.get("algorithm")
    known = [field.name for field in fields(AlgorithmConfig)]
    if algorithm is not None and (not isinstance(algorithm, dict) or set(algorithm) - set(known)):
        raise ConfigError(f"{path}: shaping {name} has algorithm {algorithm!r}; available: {', '.join(known)}")
    if not any(settings.get("reward", part) == TRUE for part, settings in rewards.items()):
        rewards |= {TRUE: {"weight": 0.0}} if TRUE not in rewards else {OTHER: {"reward": TRUE, "weight": 0.0}}
    return Shaping(rewards, None if algorithm is None else AlgorithmConfig(**algorithm))


def _seeds(path: Path, given: Any) -> tuple[int, ...]:
    seeds = given if isinstance(given, list) else [given]
    if not all(isinstance(seed, int) and not isinstance(seed, bool) for seed in seeds) or len(set(seeds)) < len(seeds):
        raise ConfigError(f"{path}: got seeds {given!r}; expected different integers")
    return tuple(seeds)


def _threshold(path: Path, given: Any) -> float | None:
    if given is None or (isinstance(given, int | float) and not isinstance(given, bool) and 0 < given <= 1):
        return given
    raise ConfigError(f"{path}: got threshold {given!r}; expected a success rate above 0, at most 1")


def _texts(path: Path, key: str, given: Mapping[str, Any]) -> list[str]:
    found = given.get(key) or []
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise ConfigError(f"{path}: {key} holds {found!r}; expected a list as [train.steps=12, eval.tasks=64]")
    return found


def _named(path: Path, name: str) -> str:
    if not NAME.fullmatch(name):
        raise ConfigError(f"{path}: got the name {name!r}; expected letters, digits, _, - and ., as it names a folder")
    return name
