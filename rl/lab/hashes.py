"""Digests of what decides a result: the code of rewards, algorithms and worlds with their graders, and the data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import rewards
from envs import find
from rl import config
from rl.check import result

ROOT = Path(rewards.__file__).parent.parent
ALGORITHMS = ("rl/algorithms", "rl/advantage.py")


def digest(*parts: bytes) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part + b"\0")
    return whole.hexdigest()[:16]


@cache
def code(*names: str) -> str:
    """Of the sources in these folders and files of the repository."""
    places = [ROOT / name for name in names]
    files = [file for place in places for file in (sorted(place.rglob("*.py")) if place.is_dir() else [place])]
    return digest(*(part for file in files for part in (file.name.encode(), file.read_bytes())))


def world(ref: str, args: Mapping[str, Any]) -> str:
    """Of a world as it is configured: its code and what the graders share, the files that its arguments name."""
    return digest(json.dumps([result.inputs(ref, args), dict(args)], sort_keys=True, default=str).encode())


def data(settings: Mapping[str, Any]) -> str:
    """Of the files that the settings of rewards name."""
    return digest(json.dumps(find.of_data(settings), sort_keys=True).encode())


def of_run(settings: config.RunConfig) -> dict[str, str]:
    """Of what a run is played with, beside its configuration."""
    found = {"rewards": code("rewards"), "algorithms": code(*ALGORITHMS), "data": data(settings.rewards)}
    return found | {f"world/{name}": world(settings.plays(name), own.args) for name, own in settings.worlds.items()}
