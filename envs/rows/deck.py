"""The tasks of a file as an endless stream: both splits, each in an order of its own."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from operator import attrgetter

from envs import Split, Task, heldout
from envs.rows.records import Report


class Deck:
    """The train split is shuffled anew in every round through it, by the seed; the held-out one always has the same
    order, which does not depend on the order in the file. `side`: a text that decides the split of a task; tasks of
    one text are on one side. By default its key.
    """

    def __init__(
        self,
        world: str,
        source: str,
        tasks: Sequence[Task],
        seed: int,
        report: Report,
        side: Callable[[Task], str] = attrgetter("key"),
    ) -> None:
        self.world, self.source, self.seed, self.report = world, source, seed, report
        ordered = sorted(tasks, key=lambda task: random.Random(task.key).random())
        self.tasks: dict[Split, list[Task]] = {
            "train": [task for task in ordered if not heldout(side(task))],
            "heldout": [task for task in ordered if heldout(side(task))],
        }
        self._round: tuple[int, list[Task]] = (-1, [])

    def size(self, split: Split) -> int:
        return len(self.tasks[split])

    def task(self, split: Split, index: int) -> Task:
        tasks = self.tasks[split]
        if not tasks:
            taken = sum(map(len, self.tasks.values()))
            raise ValueError(
                f"world {self.world}: {self.source} has no {split} task among {taken}, of which a fifth is held out "
                "by its key or its prompt; expected more different ones"
            )
        if split == "heldout":
            return tasks[index % len(tasks)]
        turn, place = divmod(index, len(tasks))
        if self._round[0] != turn:
            order = list(tasks)
            random.Random(f"rows/{self.seed}/{turn}").shuffle(order)
            self._round = (turn, order)
        return self._round[1][place]
