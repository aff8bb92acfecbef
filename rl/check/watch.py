"""Starts the process that plays, hears what it says, and kills it where it falls silent; another goes on after it.

What was being played when a process was lost is played again, one at a time, so that the blame falls on the right task.
All that was heard is kept in a file beside the result until the check has ended, for a check that is stopped to go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rl.check.result import Result

MAX_DEATHS = 3
"""How often the playing process may be lost to a known task before the check ends."""
START_S = 600.0
"""How long a world may take to be made, e.g. to read a large file of tasks."""
PLAIN_EVERY_S = 10.0
LINE_BYTES = 64 * 2**20


class Watch:
    def __init__(self, order: dict[str, Any], result: Result, page: Page, part: Path | None) -> None:
        self.order, self.result, self.page, self.part = order, result, page, part
        self.busy: dict[str, dict[str, Any]] = {}
        """Units begun and not done, each with its last call."""
        self.done: list[list[Any]] = []
        self.suspects: list[list[Any]] = []
        self.at: dict[str, Any] = {"unit": ["", "", 0], "call": "start"}
        self.ended = False
        self.hung: list[list[Any]] = []
        self.kept: dict[str, list[Any]] = {}
        """What a later process needs of an earlier one (kept.py)."""
        self.silence_s = 2 * order["deadline_s"] + 5.0

    async def run(self) -> None:
        """To the end. What was heard stays on the disk only where somebody stops it."""
        try:
            self._go_on()
            await self._to_the_end()
        except (asyncio.CancelledError, KeyboardInterrupt):
            raise
        except BaseException:
            self._forget()
            raise
        self._forget()

    def _forget(self) -> None:
        if self.part is not None:
            self.part.unlink(missing_ok=True)

    async def _to_the_end(self) -> None:
        deaths = 0
        for _ in range(3 * MAX_DEATHS):
            with tempfile.TemporaryFile() as errors:
                lost = await self._play(errors)
            if self.ended:
                break
            named = len(self.busy) <= 1
            if named:
                self._lost(*lost)
                deaths += 1
                if self.at["unit"][0] in ("", "tasks", "close"):
                    break
            if deaths == MAX_DEATHS:
                self._stopped_early()
                break
            suspects = self.suspects if named else [line["unit"] for line in self.busy.values()]
            self.suspects = [unit for unit in suspects if unit not in self.done]
            self.busy = {}
        else:
            self._stopped_early()

    def _stopped_early(self) -> None:
        self.result.notes.append("stopped, since the playing process was lost again and again; there may be more")
        self.result.whole = {}

    def _go_on(self) -> None:
        """What an earlier check of the same things had heard before it was stopped."""
        if self.part is None:
            return
        header = json.dumps({"of": self.order}, sort_keys=True)
        lines = self.part.read_text(errors="replace").splitlines() if self.part.is_file() else []
        if lines[:1] == [header]:
            for text in lines[1:]:
                with contextlib.suppress(ValueError):  # the last one may be half a line
                    line = json.loads(text)
                    if line["said"] in ("done", "fault", "undemonstrated", "exploit", "kept", "note"):
                        self._hear(line)
            self.page.show(len(self.done), said=True)
        else:
            self.part.parent.mkdir(parents=True, exist_ok=True)
            self.part.write_text(header + "\n")

    async def _play(self, errors: IO[bytes]) -> tuple[str, str]:
        """One process, to its end. Returns the kind and words of what it was lost to, if it was."""
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(p or str(Path.cwd()) for p in sys.path)}
        pipe = asyncio.subprocess.PIPE
        player = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "rl.check.player"),
            stdin=pipe,
            stdout=pipe,
            stderr=errors,
            env=env,
            limit=LINE_BYTES,
            start_new_session=True,
        )
        assert player.stdin and player.stdout
        own = {"run": f"check-{secrets.token_hex(4)}", "skip": self.done, "hung": self.hung, "alone": self.suspects}
        own |= {"kept": list(self.kept.values())}
        try:
            player.stdin.write(json.dumps({**self.order, **own}).encode() + b"\n")
            self.at = {"unit": ["", "", 0], "call": "start"}
            while line := await asyncio.wait_for(
                player.stdout.readline(), self.silence_s if self.at["unit"][0] else START_S
            ):
                self._keep(line)
                self._hear(json.loads(line))
                if self.ended:
                    await asyncio.wait_for(player.wait(), self.silence_s)
                    return "", ""
            code = await player.wait()
            errors.seek(max(0, errors.seek(0, os.SEEK_END) - 2000))
            last = errors.read().decode(errors="replace").strip().rpartition("\n")[2]
            return "dies", f"{self.at['call']} ended the process (exit code {code}) {last[:200]}".rstrip()
        except TimeoutError:
            return "never-ends", f"{self.at['call']} did not end and let nothing else run"
        finally:
            if player.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(player.pid, signal.SIGKILL)  # with what it started, e.g. a verifier
                await player.wait()
            # Both pipes to their end while the loop still runs: else their transports complain when they are collected.
            player.stdin.close()
            with contextlib.suppress(TimeoutError, OSError, ValueError):
                await asyncio.wait_for(player.stdout.read(), 5.0)

    def _keep(self, line: bytes) -> None:
        if self.part is not None and not line.startswith(b'{"said": "call"'):
            with self.part.open("ab") as file:
                file.write(line)

    def _hear(self, line: dict[str, Any]) -> None:
        match line.pop("said"):
            case "call":
                self.at = line
                if line["unit"][0] not in ("tasks", "close"):
                    self.busy[json.dumps(line["unit"])] = line
            case "fault":
                self.result.add(line)
            case "task":
                self.result.tasks[f"{line['split']}/{line['key']}"] = line["hash"]
            case "whole":
                self.result.whole[line["split"]] = line["whole"]
            case "config":
                self.result.config = line["digest"]
            case "exploit":
                self.result.tried[line["name"]] = line["attack"], line["honest"]
            case "kept":
                name = json.dumps([line["what"], line["at"]])
                if line["what"] == "looked" and name not in self.kept:
                    self.result.looked.update(line["value"])
                self.kept[name] = [line["what"], line["at"], line["value"]]
            case "longest":
                self.result.longest = max(self.result.longest, line["chars"])
            case "plan":
                self.page.total = line["total"]
            case "done":
                self.busy.pop(json.dumps(line["unit"]), None)
                self._done(line["unit"])
                self.page.show(len(self.done))
            case "rows":
                self.result.rows, self.result.rows_words = line["report"], line["words"]
            case "undemonstrated":
                self.result.undemonstrated[line["key"]] = line["words"]
            case "note":
                if line["words"] not in self.result.notes:
                    self.result.notes.append(line["words"])
            case "bad":
                raise ValueError(line["words"])
            case "end":
                self.ended = True

    def _done(self, unit: list[Any]) -> None:
        phase, split, index = unit
        self.done.append(unit)
        if split in ("train", "heldout"):
            self.result.played.setdefault(phase, set()).add((split, index))

    def _lost(self, kind: str, told: str) -> None:
        phase, split, index = self.at["unit"]
        self.hung.append([split, index])
        self._done(self.at["unit"])
        key = self.at.get("key", "")
        where = f" (in the probe `{phase}`)" if phase else ""
        self.result.add(
            {"kind": kind, "split": split, "index": index, "key": key, "words": told + where, "phase": phase}
        )


class Page:
    """Progress and the time left: a bar on a terminal, a plain line now and then elsewhere. On stderr."""

    def __init__(self, world: str) -> None:
        self.world, self.total, self.before = world, 0, 0
        self.console = Console(stderr=True)
        columns = (TextColumn("check {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=self.console, transient=True)
        self._began = self._said = time.monotonic()

    def __enter__(self) -> Page:
        if self.console.is_terminal:
            self._bar.start()
            self._task = self._bar.add_task(self.world, total=None)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, done: int, *, said: bool = False) -> None:
        if said:
            self.before = done
        if self.console.is_terminal:
            self._bar.update(self._task, completed=done, total=self.total or None)
            return
        now = time.monotonic()
        if now - self._said >= PLAIN_EVERY_S and self.total and done > self.before:
            left = (now - self._began) / (done - self.before) * (self.total - done)
            print(f"check {self.world}: {done}/{self.total}, about {left:.0f} s left", file=sys.stderr, flush=True)
            self._said = now
