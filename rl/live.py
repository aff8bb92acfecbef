"""What a person sees while it runs: a live page on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
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
SMOOTH = 0.7
"""Weight of the past in the success that is shown."""


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
        self.console = console or Console(file=sys.stdout)
        self.began = time.monotonic()
        self.first_step_s: float | None = None
        self._phase, self._phase_began = "starting", self.began
        self._done, self._total = 0, 0
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
        self._phase, self._phase_began = name, time.monotonic()
        self._done = self._total = 0
        self.board.phase(name)
        self._line(name, always=True)

    def say(self, text: str) -> None:
        """One line that stays."""
        if self._live is None:
            self._line(text, always=True)
        else:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def progress(self, done: int, total: int, note: str = "") -> None:
        self._done, self._total = done, total
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
        self._done, self._total = row["step"], budget.steps
        if budget.tokens and row["tokens"] * budget.steps > row["step"] * budget.tokens:  # the budget that ends the run
            self._done, self._total = row["tokens"], budget.tokens
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
        """Time left in this phase, from its own pace."""
        if not self._done or self._done >= self._total:
            return ""
        seconds = (time.monotonic() - self._phase_began) * (self._total - self._done) / self._done
        return f", {_clock(seconds)} left"

    def _page(self) -> Panel:
        head = Text.assemble((self._phase, "bold"), self._left())
        parts: list[Any] = [head]
        if self._total:
            parts.append(ProgressBar(total=self._total, completed=self._done, width=None))
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
