"""Run folders with planted attempts at real tasks, written by the store itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import envs
from envs import Episode, Outcome
from rewards import Score
from rl import config
from rl.store import Run
from rl.trajectory import Group, Member, Trajectory

CONFIG = """
worlds: {math: {args: {python_tool: false, tasks: TASKS}}}
rollout: {group_size: SIZE}
runs: RUNS
"""


@dataclass(frozen=True)
class Said:
    """One attempt: what was said in each turn, whether it was right, and how long it was in all."""

    solved: bool = False
    text: str = "\\boxed{1}"
    tokens: int = 4
    turns: int = 1
    outcome: Outcome | None = None
    facts: dict[str, Any] = field(default_factory=dict)


RIGHT, WRONG = Said(solved=True), Said()


def write(folder: Path, groups: Sequence[Sequence[Said]], *, size: int = 8, extra: str = "") -> Path:
    """A run in `folder` whose leases are these groups, all settled and in shards."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"problem": f"Guess bit number {n}.", "answer": str(n % 2)} for n in range(2 * len(groups) + 8)]
    (folder / "bits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = CONFIG.replace("TASKS", str(folder / "bits.jsonl")).replace("SIZE", str(size)).replace("RUNS", str(folder))
    (folder / "run.yaml").write_text(text + extra)
    settings = config.load(folder / "run.yaml", ["name=run"])
    world = envs.load("math").World(None, seed=settings.seed, **settings.worlds["math"].args)
    run = Run.create(settings.folder)
    config.save(settings, run.folder / "config.yaml")
    for said in groups:
        lease = run.grant("math", 0)
        task = world.task("train", lease.index)
        group = Group(lease.id, "math", 0, [member(task, one) for one in said])
        run.keep(group, "train")
        run.settle([group], "flat", 1)
    run.close()
    return run.folder


def member(task: envs.Task, said: Said) -> Member:
    trajectory, messages = Trajectory(), [dict(message) for message in task.messages]
    for turn in range(said.turns):
        count = max(1, said.tokens - said.turns + 1) if turn == 0 else 1
        trajectory.hear([1, 5])
        trajectory.speak([7] * count, [-0.5] * count, [0] * count)
        messages.append({"role": "assistant", "content": said.text})
        if turn < said.turns - 1:
            messages.append({"role": "tool", "name": "python", "content": "0"})
    outcome = said.outcome or (Outcome.SOLVED if said.solved else Outcome.FAILED)
    facts = {"solved": said.solved, **said.facts}
    episode = Episode(task=task, messages=messages, outcome=outcome, facts=facts, turns=said.turns)
    episode.tokens = trajectory.spoken
    return Member(trajectory, episode, Score(float(said.solved)) if outcome.valid else None)


def shaping(folder: Path, name: str, text: str) -> str:
    """A shaping's file."""
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return str(path)
