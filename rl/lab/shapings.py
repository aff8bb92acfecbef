"""A shaping: rewards as a run's configuration composes them, and the algorithm that makes advantages of them.

    rewards: {outcome: {weight: 1.0}, tool_format: {weight: 0.1}}
    algorithm: {name: dapo, args: {}}          # left out: the algorithm of the run that is scored

One YAML file each, named by its stem.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rewards
from rl import algorithms, config
from rl.lab import hashes

KEYS = ("rewards", "algorithm")


@dataclass(frozen=True, slots=True)
class Shaping:
    name: str
    rewards: dict[str, dict[str, Any]]
    algorithm: str = ""
    """Empty for that of the run."""
    knobs: dict[str, Any] | None = None
    digest: str = ""
    """Of the file, and of the files that its rewards' arguments name."""

    def rule(self, settings: config.RunConfig) -> algorithms.Algorithm:
        """What sets the advantages of a run's groups under this shaping."""
        chosen = settings.algorithm
        return algorithms.load(self.algorithm or chosen.name, **(self.knobs if self.algorithm else chosen.args) or {})

    def weight(self, part: str) -> float:
        """0 for a part that is a metric only; 1 for a gate."""
        return float(self.rewards[part].get("weight", 1.0))

    def gates(self) -> list[str]:
        return [name for name, settings in self.rewards.items() if settings.get("gate")]


def compares(parts: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """Parts that count and depend on the other attempts of the group."""
    found = []
    for name, settings in parts.items():
        of_groups = hasattr(importlib.import_module(f"rewards.{settings.get('reward', name)}"), "group")
        if (settings.get("normalise") or of_groups) and settings.get("weight", 1.0) != 0:
            found.append(name)
    return tuple(found)


def load(paths: Sequence[str]) -> list[Shaping]:
    """Raises ValueError for a file that is no shaping, and for two of one name."""
    found = [read(Path(path)) for path in paths]
    names = [shaping.name for shaping in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"got two shapings named {twice[0]!r}; expected files whose names differ")
    return found


def read(path: Path) -> Shaping:
    if not path.is_file():
        raise ValueError(f"there is no file {path}; expected a YAML file with {' and '.join(KEYS)}")
    given = config.mapping(path)
    if unknown := sorted(set(given) - set(KEYS)):
        raise ValueError(f"{path} has the key {unknown[0]!r}; a shaping has {' and '.join(KEYS)}")
    parts = given.get("rewards")
    if not isinstance(parts, dict) or not parts or not all(isinstance(v, dict | None) for v in parts.values()):
        raise ValueError(f"{path} has rewards {parts!r}; expected names with their settings, as outcome: {{weight: 1}}")
    parts = {name: dict(settings or {}) for name, settings in parts.items()}
    _check(path, parts)
    algorithm = given.get("algorithm") or {}
    if not isinstance(algorithm, dict) or set(algorithm) - {"name", "args"} or (algorithm and "name" not in algorithm):
        raise ValueError(f"{path} has algorithm {algorithm!r}; expected name and args")
    if algorithm:
        algorithms.load(algorithm["name"], **(algorithm.get("args") or {}))
    digest = hashes.digest(path.read_bytes(), hashes.data(parts).encode())
    return Shaping(path.stem, parts, algorithm.get("name", ""), algorithm.get("args") or {}, digest)


def _check(path: Path, parts: dict[str, dict[str, Any]]) -> None:
    """Refuse what a run's configuration would refuse."""
    name = ""
    try:
        for name, settings in parts.items():
            rewards.check(name, settings)
        name = ""
        rewards.check_sum(parts)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: rewards{'.' * bool(name)}{name}: {error}") from None
