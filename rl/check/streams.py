"""The tasks of a world, before anything is played: found, looked at one by one, and all together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from envs import Split, Task, World
from rl.check import answers, leaks
from rl.check.episodes import Calls
from rl.check.kinds import Fault
from rl.check.lent import UNIT

At = tuple[Split, int]
SCAN = 50
"""Positions of a stream to look through for each distinct task wanted."""
ENOUGH = 2000
"""Positions without a new task after which a stream is taken to have no more."""
MOST_BROKEN = 3
"""Positions without a task after which no more of a split are asked for."""
UNPLAYABLE = ("wrong-type", "not-json", "huge-output")
"""What a task may be that is not played: its attempts would only show it again."""


def find(
    calls: Calls,
    world: World,
    wanted: Mapping[Split, int],
    say: Callable[..., None],
    fault: Callable[[Fault, At, Task | None], None],
) -> tuple[dict[At, Task], dict[Split, int]]:
    """The first distinct tasks of each split that can be played, and how many there were with those that cannot; tells
    what is wrong with the streams.
    """
    tasks: dict[At, Task] = {}
    counts: dict[Split, int] = dict.fromkeys(wanted, 0)
    for split, count in wanted.items():
        UNIT.set(("tasks", split, 0))
        found: dict[str, At] = {}
        last = broken = 0
        for index in range(SCAN * count):
            try:
                task, wrong = _task(calls, world, split, index)
            except Fault as none:
                fault(none, (split, index), None)
                broken += 1
                if broken == MOST_BROKEN:
                    break
                continue
            if index - last > ENOUGH:
                break
            if task.key in found:
                continue
            found[task.key], last = (split, index), index
            say("task", split=split, key=task.key, hash=task.content_hash)
            for one in wrong:
                fault(one, (split, index), task)
            if not any(one.kind in UNPLAYABLE for one in wrong):
                tasks[split, index] = task
            if len(found) == count:
                break
        counts[split] = len(found)
        if len(found) < count and not broken:
            say("note", words=f"there are only {len(found)} distinct {split} tasks")
        sound = [at for at in found.values() if at in tasks]
        alike = _alike([tasks[at] for at in sound], index + 1, hasattr(world, "size"))
        if alike and len(sound) == len(found) and not broken:
            fault(Fault("all-alike", alike), sound[0], tasks[sound[0]])
            return tasks, counts
    _overlap(tasks, fault)
    return tasks, counts


def _task(calls: Calls, world: World, split: Split, index: int) -> tuple[Task, list[Fault]]:
    """A task and what is wrong with it. Raises Fault where there is none."""
    made: list[Any] = [calls.plain("task", lambda: world.task(split, index)) for _ in range(2)]
    if not all(isinstance(task, Task) for task in made):
        raise Fault("wrong-type", f"task({split!r}, {index}) gave {type(made[0]).__name__}; expected envs.Task")
    task, again = made
    wrong = []
    try:
        answers.task(task)
    except Fault as fault:
        wrong.append(fault)
    if task.content_hash != again.content_hash:
        parts = [part for part in ("key", "messages", "given", "hidden") if getattr(task, part) != getattr(again, part)]
        words = f"task({split!r}, {index}), asked for twice, gave two tasks that differ in {', '.join(parts)}"
        wrong.append(Fault("task-changes", words))
    return task, wrong


def _alike(tasks: list[Task], positions: int, sized: bool) -> str:
    """Why all tasks of a split are one, in words, else empty."""
    if len(tasks) == 1 and positions > 1 and not sized:
        return f"each of the first {positions} positions gives the one task {tasks[0].key!r}"
    if len(tasks) > 1 and all(_same(task, tasks[0]) for task in tasks):
        return f"{len(tasks)} tasks with keys of their own ask the same: {prompt(tasks[0])[:60]!r}"
    return ""


def _overlap(tasks: Mapping[At, Task], fault: Callable[[Fault, At, Task | None], None]) -> None:
    """A key that both splits have, or one question with one answer."""
    keys: dict[str, At] = {}
    asked: dict[str, At] = {}
    for at, task in tasks.items():
        other = keys.setdefault(task.key, at)
        if other[0] != at[0]:
            fault(Fault("splits-overlap", f"the key {task.key!r} is also that of {other[0]} task {other[1]}"), at, task)
            continue
        other = asked.setdefault(" ".join(prompt(task).split()), at)
        if other[0] != at[0] and _same(tasks[other], task):
            fault(Fault("splits-overlap", f"{other[0]} task {other[1]} asks the same: {prompt(task)[:60]!r}"), at, task)


def _same(one: Task, other: Task) -> bool:
    """The same question with the same answer; where no answer is known by its name, with all the same hidden. Games
    begin alike, and differ in what they hide, or in a seed that is given.
    """
    if " ".join(prompt(one).split()) != " ".join(prompt(other).split()) or one.given != other.given:
        return False
    known = [leaks.golds(task) + [text for _, text in leaks.long_texts(task)] for task in (one, other)]
    return known[0] == known[1] if any(known) else one.hidden == other.hidden


def prompt(task: Task) -> str:
    return "\n".join(message["content"] for message in task.messages)


def leaks_together(tasks: Mapping[At, Task], heard: Mapping[At, str]) -> list[tuple[Fault, At]]:
    """Does the answer stand at one and the same place of all prompts, or of a family's? A fault of each of them."""
    by_family: dict[str, list[At]] = {}
    for at, task in tasks.items():
        by_family.setdefault(task.family, []).append(at)
    all_: dict[At, Fault] = {}
    for found in (list(tasks), *by_family.values()):
        known = [at for at in found if at not in all_ and leaks.golds(tasks[at])]
        told = leaks.at_one_place([(heard.get(at) or prompt(tasks[at]), leaks.golds(tasks[at])) for at in known])
        all_ |= dict.fromkeys(known, Fault("leak", told)) if told else {}
    return [(fault, at) for at, fault in all_.items()]
