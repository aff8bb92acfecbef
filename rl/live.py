"""What a person sees while it runs: a live page on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rl.config import RunConfig
from rl.metrics import Window
from rl.status import HELDOUT, Board
from rl.trackers import Trackers

PLAIN_EVERY_S = 15.0
PACE_OF, PACE_OF_S = 6, 60.0
"""The advances and the seconds, whichever are longer, from which the time left is told."""
SMOOTH = 0.7
"""Weight of the past in the success that is shown."""


class Pace:
    """Time left of what advances, from its last advances: a run that runs out of groups to learn from slows down."""

    def __init__(self, began: float) -> None:
        self.began, self.done, self.total = began, 0.0, 0.0
        self._points: deque[tuple[float, float]] = deque()

    def moved(self, now: float, done: float, total: float, begun_at: float = 0.0) -> None:
        """`begun_at`: what was done at `began`, for the first call; a run that goes on does not begin at 0."""
        self.done, self.total = done, total
        if not self._points:
            self._points.append((self.began, begun_at))
        self._points.append((now, done))
        while len(self._points) > PACE_OF and now - self._points[1][0] > PACE_OF_S:
            self._points.popleft()

    def left_s(self, now: float) -> float | None:
        """None where nothing is known, or nothing is left."""
        if not self._points or self.done >= self.total or self.done <= self._points[0][1]:
            return None
        (began, before), (at, done) = self._points[0], self._points[-1]
        return max(0.0, (self.total - done) * (at - began) / (done - before) - (now - at))


class Steady(Console):
    """Falls silent where nobody reads any more, as `tee` after Ctrl-C, which goes to both: no reason to end a run."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.file.fileno())
        os.close(nowhere)


class Page:
    """Takes what happens and shows it. Never decides anything."""

    def __init__(
        self,
        settings: RunConfig,
        console: Console | None = None,
        board: Board | None = None,
        trackers: Trackers | None = None,
    ) -> None:
        self.settings = settings
        self.board = board or Board(deadline_s=settings.train.deadline_s)
        self.trackers = trackers or Trackers()
        self.console = console or Steady(file=sys.stdout)
        self.began = time.monotonic()
        self.first_step_s: float | None = None
        self._phase = "starting"
        self._pace = Pace(self.began)
        self._row: dict[str, Any] = {}
        self._waiting = ""
        self._success: dict[str, float] = {}
        self._measured: dict[str, dict[str, Any]] = {}
        self._notes: list[str] = []
        self._live: Live | None = None
        self._said = 0.0

    def __enter__(self) -> Page:
        if self.console.is_terminal:
            self._live = Live(self._page(), console=self.console, refresh_per_second=4, get_renderable=self._page)
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.trackers.finish()
        if self._live is not None:
            self._live.__exit__(kind, error, trace)

    # -- what happens ---------------------------------------------------------------------------------------------

    def phase(self, name: str) -> None:
        self._phase, self._pace = name, Pace(time.monotonic())
        self.board.phase(name)
        self._line(name, always=True)

    def say(self, text: str) -> None:
        """One line that stays."""
        if self._live is None:
            self._line(text, always=True)
        else:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def progress(self, done: int, total: int, note: str = "") -> None:
        self._pace.moved(time.monotonic(), done, total)
        self.board.renew(HELDOUT)
        self.board.tick()
        self._line(f"{self._phase}: {done}/{total}{self._left()} {note}".rstrip())

    def waiting(self, reason: str, window: Window) -> None:
        self._waiting = reason

    def step(self, row: dict[str, Any]) -> None:
        self._row = row
        self.trackers.step(row)
        self._tell_of_trackers()
        if self.first_step_s is None:
            self.first_step_s = time.monotonic() - self.began
        for world, seen in row["worlds"].items():
            past = self._success.get(world, seen["success"])
            self._success[world] = SMOOTH * past + (1 - SMOOTH) * seen["success"] if seen["attempts"] else past
        budget = self.settings.train
        by_tokens = budget.tokens and row["tokens"] * budget.steps > row["step"] * budget.tokens  # what ends the run
        done, total = (row["tokens"], budget.tokens) if by_tokens else (row["step"], budget.steps)
        self._pace.moved(time.monotonic(), done, total, begun_at=done * (row["step"] - 1) / row["step"])
        success = "  ".join(f"{world} {value:.2f}" for world, value in self._success.items())
        self._line(
            f"step {row['step']}/{self.settings.train.steps}{self._left()}  {success}  "
            f"{row['sampled_tokens_per_s']:.0f} tokens/s  "
            f"staleness {row['staleness_mean']:.1f} (max {row['staleness_max']})  "
            f"waited {row['wait_s']:.1f} s of {row['wall_s']:.1f}"
        )

    def measured(self, when: str, row: dict[str, Any]) -> None:
        self._measured[when] = row
        self.trackers.measured(when, row)
        self._tell_of_trackers()
        found = "  ".join(f"{world} {seen['pass@1']:.2f} (n={seen['n']})" for world, seen in row["worlds"].items())
        self._line(f"held-out success {when}: {found}", always=True)

    def note(self, news: str) -> None:
        """Something a person should know: a world was paused, a process was started again."""
        self._notes = [*self._notes[-2:], f"[{_clock(time.monotonic() - self.began)}] {news}"]
        self._line(news, always=True)

    def _tell_of_trackers(self) -> None:
        while self.trackers.said:
            self.say(self.trackers.said.pop(0))

    # -- how it looks ---------------------------------------------------------------------------------------------

    def _line(self, text: str, *, always: bool = False) -> None:
        """One plain line, where there is no live page; not more than one in PLAIN_EVERY_S unless it matters."""
        now = time.monotonic()
        if self._live is None and (always or now - self._said >= PLAIN_EVERY_S):
            self._said = now
            self.console.print(f"[{_clock(now - self.began)}] {text}", markup=False, highlight=False, soft_wrap=True)

    def _left(self) -> str:
        """Time left in this phase."""
        seconds = self._pace.left_s(time.monotonic())
        return "" if seconds is None else f", {_clock(seconds)} left"

    def _page(self) -> Panel:
        head = Text.assemble((self._phase, "bold"), self._left())
        parts: list[Any] = [head]
        if self._pace.total:
            parts.append(ProgressBar(total=self._pace.total, completed=self._pace.done, width=None))
        if self._row or self._measured:
            parts.append(self._worlds())
        if self._row:
            row = self._row
            parts.append(
                Text(
                    f"step {row['step']}/{self.settings.train.steps}   "
                    f"{row['sampled_tokens_per_s']:,.0f} sampled tokens/s   "
                    f"staleness mean {row['staleness_mean']:.1f}, "
                    f"max {row['staleness_max']} of {self.settings.train.max_staleness}\n"
                    f"last step: waited {row['wait_s']:.1f} s, learnt {row['learn_s']:.1f} s, "
                    f"swapped weights {row['publish_s']:.2f} s"
                )
            )
        parts += [Text(note, "yellow") for note in self._notes]
        parts.append(Text(self._waits(), style="dim"))
        title = f"{self.settings.name}   {_clock(time.monotonic() - self.began)}"
        return Panel(Group(*parts), title=title, title_align="left", border_style="dim")

    def _waits(self) -> str:
        """What the driver waits for now, and since when where that is long."""
        facts = self.board.facts()
        waits = [f"{row['what']} from {row['owner']}, {_clock(row['for_s'])}" for row in facts["waits"]]
        if oldest := facts["oldest_lease"]:
            waits.append(f"{facts['leases']} leases, the oldest {_clock(oldest['for_s'])}")
        missing = f" ({self._waiting})" if self._waiting not in ("", "nothing") else ""
        return f"waits for {'; '.join(waits) or 'nothing'}{missing}"

    def _worlds(self) -> Table:
        table = Table(box=None, pad_edge=False, expand=True)
        table.add_column("world")
        table.add_column("before", justify="right")
        table.add_column("now", justify="right")
        table.add_column("", ratio=1)
        table.add_column("after", justify="right")
        for world in self.settings.worlds:
            now = self._success.get(world)
            table.add_row(
                world,
                self._held_out("before", world),
                f"{now:.2f}" if now is not None else "",
                ProgressBar(total=1.0, completed=now or 0.0),
                self._held_out("after", world),
            )
        return table

    def _held_out(self, when: str, world: str) -> str:
        return f"{self._measured[when]['worlds'][world]['pass@1']:.2f}" if when in self._measured else ""


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
