"""What `rl check` found, and its file: where it stands, and what of it is the world's fault and what a task's.

Training reads the file (rl/quarantine.py), so this imports nothing that plays.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import envs
from envs import find
from rl.check import worlds
from rl.check.kinds import KINDS

OF_THE_WORLD = {
    "exploit-passes",
    "honest-refused",
    "state-shared",
    "all-alike",
    "sandbox-kept",
    "container-left",
    "dies",
    "wrong-verdict",
}
"""Kinds of fault that are the world's, on whichever task they show."""
SCORES = ("empty-scores", "wrong-scores", "malformed-scores")
MOST_UNFIT = 0.5
"""Share of the tasks from which on what is wrong with each is wrong with the world."""
OF_A_TASK = ("empty", "wrong", "gold", "each")
"""Phases that every task is played in: the first tasks in three, all others in `each`."""
LIMIT = "limit "
"""What the phase of a limit begins with: played on one task, and no fault of it."""


@dataclass
class Result:
    world: str
    args: dict[str, Any]
    image: str = ""
    config: str = ""
    """Digest of the arguments with their defaults, as the playing process tells it."""
    faults: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    undemonstrated: dict[str, str] = field(default_factory=dict)
    """By key why a task has no right demonstration, so that its gold was not checked."""
    tasks: dict[str, str] = field(default_factory=dict)
    """Content hash by `split/key`."""
    played: dict[str, set[tuple[str, int]]] = field(default_factory=dict)
    """Split and index of the tasks that each phase was played on."""
    whole: dict[str, bool] = field(default_factory=dict)
    """By split: whether these are all the tasks there are."""
    tried: dict[str, tuple[str, str]] = field(default_factory=dict)
    """By exploit: `failed` or `passed`, and what became of its honest look-alike: `accepted` or `refused`."""
    looked: Counter[str] = field(default_factory=Counter)
    """Sandboxes looked into, files read there, repositories found, limits tried."""
    rows: dict[str, Any] | None = None
    rows_words: str = ""
    longest: int = 0
    """Characters of the longest opening: `policy.context` must hold it in tokens."""
    seconds: float = 0.0

    @property
    def fit(self) -> bool:
        return not self.faults

    def add(self, fault: Mapping[str, Any]) -> None:
        kept = {name: fault[name] for name in ("kind", "split", "index", "key", "words")}
        kept["phase"] = fault.get("phase", "")
        if not any(_same(old, kept) for old in self.faults):
            self.faults.append(kept)

    def fold(self) -> None:
        """Where anything is accepted, an empty and a wrong answer that score are the same fault, not two more."""
        if not any(fault["kind"] == "accepts-anything" for fault in self.faults):
            return
        faults, self.faults = self.faults, []
        for fault in sorted(faults, key=lambda fault: fault["kind"] != "accepts-anything"):
            self.add({**fault, "kind": "accepts-anything"} if fault["kind"] in SCORES else fault)

    def exploits(self) -> dict[str, int]:
        attacks, honest = Counter(a for a, _ in self.tried.values()), Counter(h for _, h in self.tried.values())
        return {
            "attacks": attacks["failed"] + attacks["passed"],
            "failed": attacks["failed"],
            "honest": honest["accepted"] + honest["refused"],
            "accepted": honest["accepted"],
        }

    def unfit_tasks(self) -> dict[str, str]:
        """Content hash of each task with a fault of its own, by `split/key`."""
        faulty = {f"{fault['split']}/{fault['key']}" for fault in self.faults}
        return {at: digest for at, digest in sorted(self.tasks.items()) if at in faulty}

    def share(self, kind: str) -> tuple[int, int]:
        """Tasks with a kind of fault, and tasks looked at for it; of the phase in which the largest part has it."""
        found = [fault for fault in self.faults if fault["kind"] == kind and not fault["phase"].startswith(LIMIT)]
        at = {(fault["split"], fault["index"]) for fault in found}
        shares = [(len({(fault["split"], fault["key"]) for fault in found}), len(self.tasks))]
        for phase in {fault["phase"] for fault in found}:
            same = OF_A_TASK if phase in OF_A_TASK else (phase,)
            tried = set().union(*(self.played.get(name, ()) for name in same))
            shares += [(len(at & tried), len(tried))] if tried else []
        return max(shares, key=lambda share: share[0] / max(1, share[1]))

    def unfit_world(self) -> list[str]:
        """Why the world as a whole should not be trained on, a sentence each."""
        words: dict[str, str] = {}
        for fault in self.faults:
            words.setdefault(fault["kind"], fault["words"])
        whole = all(self.whole.get(split) for split in ("train", "heldout"))
        why = []
        for kind in words:
            count, tried = self.share(kind)
            if any(_of_the_world(fault) for fault in self.faults if fault["kind"] == kind):
                why.append(f"{kind} ({words[kind]})")
            elif count > MOST_UNFIT * tried:
                why.append(f"{kind} on {count} of {tried} tasks ({words[kind]})")
            elif not whole:  # nobody knows which of the tasks that were not drawn have it too
                why.append(f"{kind} on {count} of {tried} tasks of a stream without end, or cut short ({words[kind]})")
        for split in ("train", "heldout"):
            own, all_ = ([at for at in of if at.startswith(f"{split}/")] for of in (self.unfit_tasks(), self.tasks))
            if not why and len(own) > MOST_UNFIT * len(all_):
                why.append(f"{len(own)} of {len(all_)} {split} tasks have a fault")
        return why

    def to_json(self) -> dict[str, Any]:
        """All of it, with digests of what decides a verdict, of data, of each task, and of the findings."""
        findings = json.dumps([self.faults, self.tasks], sort_keys=True)
        return {
            "world": self.world,
            "args": self.args,
            "image": self.image,
            "fit": self.fit,
            "faults": self.faults,
            "kinds": {fault["kind"]: asdict(KINDS[fault["kind"]]) for fault in self.faults},
            "unfit_world": self.unfit_world(),
            "unfit_tasks": self.unfit_tasks(),
            "whole": self.whole,
            "exploits": self.exploits(),
            "looked": dict(self.looked),
            "longest_prompt_chars": self.longest,
            "undemonstrated": self.undemonstrated,
            "notes": self.notes,
            "rows": self.rows,
            "seconds": round(self.seconds, 1),
            "hashes": {
                **inputs(self.world, self.args),
                "config": self.config,
                "tasks": self.tasks,
                "findings": hashlib.sha256(findings.encode()).hexdigest()[:16],
            },
        }


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """One fault of one task, and not a limit's, which is the world's."""
    limits = one["phase"].startswith(LIMIT), other["phase"].startswith(LIMIT)
    return limits[0] == limits[1] and all(one[name] == other[name] for name in ("kind", "split", "key"))


def _of_the_world(fault: Mapping[str, Any]) -> bool:
    if fault["kind"] in OF_THE_WORLD or fault["phase"].startswith(LIMIT):
        return True
    return not fault["key"] or fault["split"] not in ("train", "heldout")


def inputs(world: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """Digests of all that a result stands on: the world's code, what the verifiers share, the check, the data."""
    return {
        "world": find.digest(world),
        "verifiers": worlds.shared_digest(),
        "files": find.of_data(args),
    }


def config_digest(world: str, args: Mapping[str, Any]) -> str:
    """Of a world's arguments, defaults included and the seed left out, which a run sets for all worlds."""
    signature = inspect.signature(envs.load(world).World)
    known = {name: p.default for name, p in signature.parameters.items() if p.default is not p.empty}
    given = {name: os.path.realpath(v) if isinstance(v, str) and Path(v).exists() else v for name, v in args.items()}
    whole = {name: value for name, value in {**known, **given}.items() if name != "seed"}
    return hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode()).hexdigest()[:8]


def place(runs: str | Path, world: str, config: str) -> Path:
    """The file of a world in one configuration, as `rl check` writes and `rl train` reads it."""
    return Path(runs) / "check" / f"{find.short(world)}-{config or 'unknown'}.json"


def write(result: Result, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}")
    draft.write_text(json.dumps(result.to_json(), indent=2) + "\n")
    draft.rename(path)
