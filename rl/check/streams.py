"""The tasks of a world, before anything is played: found, looked at one by one, and all together."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from envs import Split, Task, World
from rl.check import leaks
from rl.check.episodes import UNIT, Calls, Fault

At = tuple[Split, int]
SCAN = 50
"""Positions of a stream to look through for each distinct task wanted."""
ENOUGH = 2000
"""Positions without a new task after which a stream is taken to have no more."""


def find(
    calls: Calls,
    world: World,
    wanted: Mapping[Split, int],
    say: Callable[..., None],
    fault: Callable[[Fault, At, Task], None],
) -> dict[At, Task]:
    """The first distinct tasks of each split; tells what is wrong with the streams."""
    tasks: dict[At, Task] = {}
    keys: dict[str, Split] = {}
    prompts: dict[str, Split] = {}
    for split, count in wanted.items():
        found: set[str] = set()
        UNIT.set(("tasks", split, 0))
        last = 0
        for index in range(SCAN * count):
            task, wrong = _task(calls, world, split, index)
            for one in wrong:
                fault(one, (split, index), task)
            if index - last > ENOUGH:
                break
            if task.key in found:
                continue
            found.add(task.key)
            last = index
            tasks[split, index] = task
            say("task", split=split, key=task.key, hash=task.content_hash)
            for kind, known, value in (("key", keys, task.key), ("prompt", prompts, _shown(task))):
                if known.setdefault(value, split) != split:
                    words = f"the splits overlap: this task's {kind} is in both"
                    fault(Fault("splits-overlap", words), (split, index), task)
                    break
            if len(found) == count:
                break
        if len(found) < count:
            say("note", words=f"there are only {len(found)} distinct {split} tasks")
    return tasks


def _task(calls: Calls, world: World, split: Split, index: int) -> tuple[Task, list[Fault]]:
    made: list[Any] = [calls.plain("task", lambda: world.task(split, index)) for _ in range(2)]
    if not all(isinstance(task, Task) for task in made):
        raise Fault("wrong-type", f"task({split!r}, {index}) gave {type(made[0]).__name__}; expected envs.Task")
    return made[0], _wrong(made[0], made[1])


def _wrong(task: Task, again: Task) -> list[Fault]:
    """What is wrong with a task, before anything is played."""
    found = []
    if not all(isinstance(m, dict) and isinstance(m.get("content"), str) for m in task.messages) or not task.messages:
        raise Fault("wrong-type", f"task {task.key!r} has messages {task.messages!r:.100}; expected texts with a role")
    try:
        json.dumps([dict(task.given), dict(task.hidden)], allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        found.append(Fault("not-json", f"`given` or `hidden` is no JSON: {error}"))
    if (task.key, prompt(task)) != (again.key, prompt(again)) or task.content_hash != again.content_hash:
        found.append(Fault("not-repeatable", "the same split and index gave two different tasks"))
    return found


def _shown(task: Task) -> str:
    """All that an attempt may see of a task at first. Games of one text differ in `given` only, e.g. by their seed."""
    return f"{prompt(task)}\n{json.dumps(dict(task.given), sort_keys=True, default=str)}"


def prompt(task: Task) -> str:
    return "\n".join(message["content"] for message in task.messages)


def leaks_together(tasks: Mapping[At, Task], heard: Mapping[At, str]) -> tuple[Fault, tuple[At, Task]] | None:
    """Does the answer stand at one and the same place of all prompts, or of those of one family?"""
    by_family: dict[str, list[At]] = {}
    for at, task in tasks.items():
        by_family.setdefault(task.family, []).append(at)
    for found in (list(tasks), *by_family.values()):
        told = leaks.at_one_place([(heard.get(at) or prompt(tasks[at]), leaks.golds(tasks[at])) for at in found])
        if told:
            return Fault("leak", told), (found[0], tasks[found[0]])
    return None
