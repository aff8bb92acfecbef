"""What training does with the results of `rl check`: tasks that failed are not drawn, an unfit world is refused.

A result counts where it stands in `<runs>/check/` under the world's configuration and everything it was made from is
still the same; otherwise that is said, and it is not trusted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import envs
from envs import Split, World
from rl import stages
from rl.check import result as results
from rl.config import RunConfig


class Quarantine:
    """Tasks that are not drawn, by the content that failed: a mended task, or another of its key, is."""

    def __init__(self, settings: RunConfig, barred: Mapping[str, frozenset[str]]) -> None:
        """`barred`: hashes by `_key`, since another stage's arguments make other tasks of the same index."""
        self.settings, self.barred = settings, {key: hashes for key, hashes in barred.items() if hashes}
        self._worlds: dict[str, World] = {}

    def holds(self, world: str, split: Split, index: int, args: Mapping[str, Any] | None = None) -> bool:
        """`args` of the world, where a stage gives it others than the file."""
        args = self.settings.worlds[world].args if args is None else args
        key = _key(world, args)
        if key not in self.barred:
            return False
        if key not in self._worlds:
            place = envs.load(self.settings.plays(world))
            self._worlds[key] = place.World(None, **{"seed": self.settings.seed, **args})
        return self._worlds[key].task(split, index).content_hash in self.barred[key]


def _key(world: str, args: Mapping[str, Any]) -> str:
    return f"{world} {json.dumps(args, sort_keys=True, default=str)}"


def read(settings: RunConfig) -> tuple[Quarantine, list[str]]:
    """What is barred, and a line on each world that has a result. Raises ValueError for a world that is unfit."""
    barred: dict[str, frozenset[str]] = {}
    lines = []
    views = [settings, *(view for n in range(len(settings.stages)) for view in stages.views(settings, n))]
    played = {_key(name, world.args): (name, world) for view in views for name, world in view.worlds.items()}
    for key, (name, world) in played.items():
        ref = world.world or name
        path = results.place(settings.runs, ref, results.config_digest(ref, world.args))
        if not path.is_file():
            continue
        found = _loaded(path)
        if changed := _changed(found, ref, world.args, settings):
            words = " ".join([ref, *(f"{key}={value}" for key, value in world.args.items())])
            again = f"rl check {words} --image {settings.rollout.image}"
            lines.append(f"{name}: {path} is not used, since {changed} changed; check again with: {again}")
            continue
        if found["unfit_world"]:
            raise ValueError(
                f"world {name} is unfit to train on: {found['unfit_world'][0]}; see {path}, mend it and check again, "
                "or remove the file to train all the same"
            )
        barred[key] = frozenset(found["unfit_tasks"].values())
        share = f"{len(found['unfit_tasks'])} of {len(found['hashes']['tasks'])} tasks quarantined"
        lines.append(f"{name}: {share} by {path}" + ("" if all(found["whole"].values()) else " (a sample)"))
    return Quarantine(settings, barred), lines


def tell(lines: list[str]) -> None:
    for line in lines:
        print(line, file=sys.stderr)


def _loaded(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        hashes = found["hashes"]
        if all(name in hashes for name in ("world", "verifiers", "files", "tasks")):
            _ = found["unfit_world"], found["unfit_tasks"], found["whole"], found["image"]
            return found
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError(f"{path} is no result of rl check; expected its JSON; remove it, or check again")


def _changed(found: Mapping[str, Any], ref: str, args: Mapping[str, Any], settings: RunConfig) -> str:
    """What a result was made from and is no longer so, in words; empty where nothing changed."""
    now = results.inputs(ref, dict(args))
    words = {"world": "the world's code", "verifiers": "the verifiers' code", "files": "its data"}
    changed = [plain for key, plain in words.items() if found["hashes"][key] != now[key]]
    if settings.rollout.backend != "bubblewrap" and found["image"] != settings.rollout.image:
        changed.append(f"the image ({found['image']} to {settings.rollout.image})")
    return " and ".join(changed)
