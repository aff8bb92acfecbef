"""Plays the cells of an experiment, each an ordinary run of `rl train` in a process of its own.

A finished cell is kept and a begun one goes on with `--resume`. A cell whose process survived the lab's own end is
waited for. A cell in which no group has an advantage any more would never end: it is stopped and measured as it is.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

from rl import config, resumed, status
from rl.lab import hashes
from rl.lab.experiment import Cell

TRAIN = (sys.executable, "-m", "rl.cli", "train")
LOOK_S = 0.5
TELL_S = 30.0
STOP_S = 300.0
"""Longest that a cell may take to stop; then it is killed, and has lost what came after its last checkpoint."""
STARVED_WAVES = 10
"""A cell starves when so many times `train.groups` groups without an advantage came back one after another, and no step
came of those before."""
TRIES = 2
"""Of a cell, before it counts as failed."""

Say = Callable[[str], None]


def done(folder: Path) -> bool:
    """The run came to its end: it wrote its summary, and nobody had stopped it."""
    path = folder / "summary.json"
    return path.is_file() and not json.loads(path.read_text())["stopped"]


def steps(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def begun(folder: Path) -> bool:
    return (folder / "ledger.db").is_file()


def write(cells: Sequence[Cell]) -> None:
    """Write each cell's configuration, and digests of its code and data. Raises ValueError where a cell was begun under
    another configuration, or, while some are to be played, with other code: they would not compare."""
    cells[0].written.parent.mkdir(parents=True, exist_ok=True)
    drafts = []
    for cell in cells:
        drafts.append(cell.written.with_suffix(".new"))
        config.save(cell.settings, drafts[-1])
        if not begun(cell.folder) or not cell.written.is_file():
            continue
        now, then = config.mapping(drafts[-1]), config.mapping(cell.written)
        for key, *_ in resumed.changed(then, now):
            for draft in drafts:
                draft.unlink()
            raise ValueError(
                f"{cell.folder} was begun under another {key}; expected the same experiment, or a new name (name=…)"
            )
    found = {cell.name: hashes.of_run(cell.settings) for cell in cells}
    kept = [cell for cell in cells if begun(cell.folder) and _hashes(cell).is_file()]
    for cell in kept if not all(done(cell.folder) for cell in cells) else []:
        then, now = json.loads(_hashes(cell).read_text()), found[cell.name]
        if other := [name for name in now if then.get(name) != now[name]]:
            for draft in drafts:
                draft.unlink()
            raise ValueError(
                f"{cell.folder} was begun with other code or data of {', '.join(other)}; expected the same, as cells "
                "of both would not compare, or a new name (name=…)"
            )
    for cell, draft in zip(cells, drafts, strict=True):
        draft.replace(cell.written)
        if cell not in kept:
            _hashes(cell).write_text(json.dumps(found[cell.name], indent=1) + "\n")


def _hashes(cell: Cell) -> Path:
    return cell.written.with_suffix(".hashes.json")


@dataclass(slots=True)
class Player:
    """Works through the cells, `at_once` of them at a time."""

    cells: Sequence[Cell]
    say: Say
    train: Sequence[str] = TRAIN
    at_once: int = 1
    seconds: list[float] = field(default_factory=list)
    """What each finished cell took, over all its lives."""
    failed: dict[str, str] = field(default_factory=dict)

    def play(self) -> None:
        """To the end of all cells. Raises ValueError where some could not be finished; the others are kept."""
        waiting = [cell for cell in self.cells if not done(cell.folder)]
        for cell in self.cells:
            if cell not in waiting:
                self._finished(cell)
        if kept := len(self.cells) - len(waiting):
            self.say(f"{kept} of {len(self.cells)} cells are finished already")
        playing: list[_Life] = []
        try:
            while (waiting and len(self.failed) < 2) or playing:
                while waiting and len(playing) < self.at_once and len(self.failed) < 2:
                    playing.append(_Life(waiting.pop(0), self.train, self.say))
                time.sleep(LOOK_S)
                for life in [life for life in playing if life.over()]:
                    playing.remove(life)
                    self._over(life, waiting, playing)
                self._tell(waiting, playing)
        finally:
            for life in playing:
                life.stop()
        if self.failed:
            name, why = next(iter(self.failed.items()))
            raise ValueError(
                f"{len(self.failed)} of {len(self.cells)} cells failed, first {name}: {why}; what is finished is kept: "
                "mend it and give the same command again"
            )

    def _over(self, life: _Life, waiting: list[Cell], playing: list[_Life]) -> None:
        cell = life.cell
        if done(cell.folder):
            self._finished(cell)
            left = self._left(waiting, playing)
            self.say(f"{self._count()} {cell.name}: done in {self.seconds[-1]:.0f} s, {_result(cell.folder)}{left}")
        elif life.tries < TRIES:
            life.start()
            playing.append(life)
        else:
            self.failed[cell.name] = f"exit code {life.code}, see {cell.log}"
            self.say(f"{cell.name}: failed, {self.failed[cell.name]}")

    def _finished(self, cell: Cell) -> None:
        self.seconds.append(float(json.loads((cell.folder / "summary.json").read_text())["wall_s"]))

    def _count(self) -> str:
        return f"[{len(self.seconds)}/{len(self.cells)}]"

    def _tell(self, waiting: Sequence[Cell], playing: Sequence[_Life]) -> None:
        for life in playing:
            if time.monotonic() - life.told >= TELL_S:
                life.told = time.monotonic()
                of = life.cell.settings.train.steps
                left = self._left(waiting, playing)
                self.say(f"{self._count()} {life.cell.name}: step {steps(life.cell.folder)} of {of}{left}")

    def _left(self, waiting: Sequence[Cell], playing: Sequence[_Life]) -> str:
        if not self.seconds:
            return ""
        a_cell = sum(self.seconds) / len(self.seconds)
        begun = sum(max(0.0, a_cell - (time.monotonic() - life.began)) for life in playing)
        left = (len(waiting) * a_cell + begun) / self.at_once
        return f"; {a_cell:.0f} s a cell, about {left / 60:.0f} min left"


class _Life:
    """The processes of one cell while this lab works on it."""

    def __init__(self, cell: Cell, train: Sequence[str], say: Say) -> None:
        self.cell, self.train, self.say = cell, train, say
        self.began = self.told = time.monotonic()
        self.tries = 0
        self.code: int | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.starved = False
        cell.log.parent.mkdir(parents=True, exist_ok=True)
        if not self._taken():
            self.start()
        else:
            say(f"{cell.name}: a process of an earlier start is still at work on it; waiting for that")

    def start(self) -> None:
        """Begin the cell, or go on with it; a starved one only to be measured."""
        folder = self.cell.folder
        argv = [*self.train, str(self.cell.written)]
        if self.starved:
            saved = max((int(path.name) for path in (folder / "checkpoints").glob("[0-9]*")), default=0)
            argv.append(f"train.steps={saved}")
        if begun(folder):
            argv.append("--resume")
        self.say(f"{self.cell.name}: {'goes on at step ' + str(steps(folder)) if begun(folder) else 'begins'}")
        with self.cell.log.open("ab") as log:
            self.process = subprocess.Popen(  # a session of its own: Ctrl-C comes to the lab, which passes it on
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.tries += 1

    def over(self) -> bool:
        """True once no process works on the cell."""
        if not self._ended() and not self.starved and self._starves():
            self.say(f"{self.cell.name}: no group of the last waves had an advantage; it is measured as it is")
            self.starved = True
            self.stop()
            self.tries -= self.process is not None
        return self._ended()

    def stop(self) -> None:
        """Ask the trainer to save and stop, and wait until it has; also where an earlier lab started it."""
        for sign in (signal.SIGINT, signal.SIGKILL):
            if self._ended() or (pid := self._pid()) is None:
                return
            with suppress(ProcessLookupError):
                os.kill(pid, sign)
            until = time.monotonic() + STOP_S
            while not self._ended() and time.monotonic() < until:
                time.sleep(0.05)

    def _ended(self) -> bool:
        if self.process is None:
            return not self._taken()
        self.code = self.process.poll()
        return self.code is not None

    def _pid(self) -> int | None:
        """Of the trainer. One of an earlier lab wrote its number, and when it began, into the run folder."""
        if self.process is not None:
            return self.process.pid
        with suppress(OSError, ValueError, KeyError):
            told = json.loads((self.cell.folder / "status.json").read_text())
            if status.process_began(told["pid"]) == told["process_began"]:
                return int(told["pid"])
        self.say(f"{self.cell.name}: the process of an earlier start is not known; it works on, and cannot be stopped")
        return None

    def _taken(self) -> bool:
        """Some process holds the run's lock."""
        lock = self.cell.folder / ".lock"
        if not lock.is_file():
            return False
        with lock.open("w") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def _starves(self) -> bool:
        """So many flat groups after the last that is useful, which waits for a batch or was trained on."""
        ledger = self.cell.folder / "ledger.db"
        if not ledger.is_file():
            return False
        with closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True, timeout=60)) as db:
            sql = (
                "select count(*) from lease where state = 'flat' "
                "and step > (select coalesce(max(version), 0) from step) "
                "and id > (select coalesce(max(id), 0) from lease where state = 'played')"
            )
            (flat,) = db.execute(sql).fetchone()
        return bool(flat >= STARVED_WAVES * self.cell.settings.train.groups)


def _result(folder: Path) -> str:
    """True success before and after, the mean over worlds."""
    rows = [json.loads(line) for line in (folder / "evals.jsonl").read_text().splitlines()]
    found = []
    for row in (rows[0], rows[-1]):
        seen = [world["pass@1"] for world in row["worlds"].values()]
        found.append(f"{sum(seen) / len(seen):.2f}")
    return f"true success {' to '.join(found)}"
