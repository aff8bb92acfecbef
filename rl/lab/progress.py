"""Progress and the time left, on stderr: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_EVERY_S = 10.0


class Bar:
    def __init__(self, what: str, total: int) -> None:
        self.what, self.total, self.done = what, total, 0
        self.console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=self.console, transient=True)
        self._began = self._said = time.monotonic()
        self._before = 0
        """Done when the clock began: the first to be done also waited for processes to start."""

    def __enter__(self) -> Bar:
        if self.console.is_terminal:
            self._bar.start()
            self._task = self._bar.add_task(self.what, total=self.total)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def add(self, count: int, *, before: bool = False) -> None:
        """So many more are done; `before`: by an earlier try, which says nothing of the time left."""
        self.done += count
        if before or self._before == self.done - count == 0:
            self._before, self._began = self.done, time.monotonic()
        if self.console.is_terminal:
            self._bar.update(self._task, completed=self.done)
            return
        now = time.monotonic()
        if now - self._said >= PLAIN_EVERY_S and self.done > self._before:
            left = (now - self._began) / (self.done - self._before) * (self.total - self.done)
            print(f"{self.what}: {self.done}/{self.total}, about {left:.0f} s left", file=sys.stderr, flush=True)
            self._said = now
