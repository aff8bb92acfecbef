"""`rl check`: is a world fit to be trained on? Plays it without a model, names every fault and the task it shows on.

The world runs in a process of its own (`player.py`), which is killed where it stops answering; neither Ray nor an
engine is started. What it looks for is in `KINDS`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from envs import sandboxes
from rl.check import worlds

KINDS = {
    "gold-fails": "the right answer is not scored as right",
    "empty-scores": "an empty answer is scored as right",
    "wrong-scores": "a wrong answer is scored as right",
    "malformed-scores": "an answer that cannot be understood is scored as right",
    "leak": "the task tells its own answer",
    "splits-overlap": "training and held-out tasks are not apart",
    "not-repeatable": "the same thing done twice has two results",
    "state-shared": "one attempt changes the verdict of another",
    "never-ends": "a call does not end",
    "raises": "a call raises, which would lose the episode",
    "data-error": "the hidden answer cannot be read",
    "judge-fails": "the verifier gives no verdict",
    "huge-output": "a message or the facts are too large",
    "wrong-type": "a call answers with something else than the contract says",
    "not-json": "a task or its facts cannot be stored",
    "sandbox-kept": "an attempt does not hand its sandbox back",
    "container-left": "containers are left after the end",
    "dies": "the world ends its whole process",
}
"""Every fault there is, by its name in the result, in plain words."""

MAX_DEATHS = 3
"""How often the playing process may be lost before the check ends."""
START_S = 600.0
"""How long a world may take to be made, e.g. to read a large file of tasks."""
SHOWN = 5
PLAIN_EVERY_S = 10.0
LINE_BYTES = 64 * 2**20


@dataclass
class Result:
    world: str
    args: dict[str, Any]
    faults: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    undemonstrated: dict[str, str] = field(default_factory=dict)
    """By key why a task has no right demonstration, so that its gold was not checked."""
    tasks: dict[str, str] = field(default_factory=dict)
    """Content hash by `split/key`."""
    rows: dict[str, Any] | None = None
    rows_words: str = ""
    seconds: float = 0.0

    @property
    def fit(self) -> bool:
        return not self.faults

    def add(self, fault: Mapping[str, Any]) -> None:
        same = ("kind", "split", "key")
        if not any(all(old[name] == fault[name] for name in same) for old in self.faults):
            self.faults.append({name: fault[name] for name in ("kind", "split", "index", "key", "words")})

    def to_json(self) -> dict[str, Any]:
        """All of it, with digests of the world's sources, of data files, of each task, and of the findings."""
        files = {name: worlds.file_digest(v) for name, v in self.args.items() if isinstance(v, str)}
        findings = json.dumps([self.faults, self.tasks], sort_keys=True)
        unfit = {f"{fault['split']}/{fault['key']}" for fault in self.faults if fault["key"]}
        return {
            "world": self.world,
            "args": self.args,
            "fit": self.fit,
            "faults": self.faults,
            "unfit_tasks": sorted(unfit),
            "undemonstrated": self.undemonstrated,
            "notes": self.notes,
            "rows": self.rows,
            "seconds": round(self.seconds, 1),
            "hashes": {
                "world": worlds.digest(self.world),
                "files": {name: digest for name, digest in files.items() if digest},
                "tasks": self.tasks,
                "findings": hashlib.sha256(findings.encode()).hexdigest()[:16],
            },
        }


def check(
    world: str,
    args: dict[str, Any],
    *,
    tasks: int = 8,
    deadline_s: float = 120.0,
    image: str = "touchstone-sandbox:bookworm",
    as_json: bool = False,
    out: str | None = None,
) -> int:
    """Exit code 0 where the world is fit, 1 where it is not. Raises ValueError for what the user got wrong."""
    if tasks < 1 or deadline_s <= 0:
        raise ValueError(f"got --tasks {tasks} and --deadline {deadline_s:g}; expected more than 0 of both")
    if out is not None and not Path(out).resolve().parent.is_dir():
        raise ValueError(f"there is no folder for --out {out}")
    began = time.monotonic()
    result = Result(world, args)
    order = {"world": world, "args": args, "tasks": tasks, "deadline_s": deadline_s, "image": image}
    order["backend"] = sandboxes.choose("auto", image)
    with _Page(world) as page:
        asyncio.run(_Watch(order, result, page).run())
    result.seconds = time.monotonic() - began
    if out is not None:
        Path(out).write_text(json.dumps(result.to_json(), indent=2) + "\n")
    if as_json:
        print(json.dumps(result.to_json()))
    else:
        print("\n".join(words(result)))
    return 0 if result.fit else 1


def words(result: Result) -> list[str]:
    """The result for a person: each kind of fault, and the tasks that show it."""
    counts = {split: sum(at.startswith(f"{split}/") for at in result.tasks) for split in ("train", "heldout")}
    lines = [f"{result.world}: {counts['train']} train and {counts['heldout']} held-out tasks, {result.seconds:.0f} s"]
    lines += [result.rows_words] if result.rows_words else []
    for kind, plain in KINDS.items():
        found = [fault for fault in result.faults if fault["kind"] == kind]
        if not found:
            continue
        lines.append(f"{kind}: {plain} ({len(found)})")
        for fault in found[:SHOWN]:
            where = f"{fault['split']} task {fault['index']}, {fault['key']}: " if fault["key"] else ""
            lines.append(f"  {where}{fault['words']}")
        lines += [f"  … and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
    if result.undemonstrated:
        key, why = next(iter(result.undemonstrated.items()))
        lines.append(
            f"{len(result.undemonstrated)} tasks without a right demonstration, not checked by it, e.g. {key}: {why}"
        )
    lines += result.notes
    kinds = len({fault["kind"] for fault in result.faults})
    lines.append("fit to train on" if result.fit else f"unfit: {kinds} kind{'s' * (kinds > 1)} of fault")
    return lines


class _Watch:
    """Starts the player, hears what it says, and kills it where it falls silent; then another goes on without the unit
    that it was busy with.
    """

    def __init__(self, order: dict[str, Any], result: Result, page: _Page) -> None:
        self.order, self.result, self.page = order, result, page
        self.begun: list[list[Any]] = []
        self.done = 0
        self.at: dict[str, Any] = {"unit": ["", "", 0], "call": "start"}
        self.ended = False
        self.hung: list[list[Any]] = []
        self.silence_s = 2 * order["deadline_s"] + 5.0

    async def run(self) -> None:
        for _ in range(MAX_DEATHS):
            with tempfile.TemporaryFile() as errors:
                await self._play(errors)
            if self.ended:
                return
            if self.at["unit"][0] in ("", "tasks", "close"):
                return
        self.result.notes.append(f"stopped after the playing process was lost {MAX_DEATHS} times; there may be more")

    async def _play(self, errors: IO[bytes]) -> None:
        command = [sys.executable, "-m", "rl.check.player"]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(p or str(Path.cwd()) for p in sys.path)}
        pipe = asyncio.subprocess.PIPE
        player = await asyncio.create_subprocess_exec(
            *command, stdin=pipe, stdout=pipe, stderr=errors, env=env, limit=LINE_BYTES, start_new_session=True
        )
        assert player.stdin and player.stdout
        run = f"check-{secrets.token_hex(4)}"
        try:
            player.stdin.write(
                json.dumps({**self.order, "run": run, "skip": self.begun, "hung": self.hung}).encode() + b"\n"
            )
            self.at = {"unit": ["", "", 0], "call": "start"}
            while line := await asyncio.wait_for(
                player.stdout.readline(), self.silence_s if self.at["unit"][0] else START_S
            ):
                self._hear(json.loads(line))
                if self.ended:
                    await asyncio.wait_for(player.wait(), self.silence_s)
                    return
            code = await player.wait()
            errors.seek(max(0, errors.seek(0, os.SEEK_END) - 2000))
            last = errors.read().decode(errors="replace").strip().rpartition("\n")[2]
            self._lost("dies", f"{self.at['call']} ended the process (exit code {code}) {last[:200]}".rstrip())
        except TimeoutError:
            self._lost("never-ends", f"{self.at['call']} did not end and let nothing else run")
        finally:
            if player.returncode is None:
                os.killpg(player.pid, signal.SIGKILL)  # with what it started, e.g. a verifier
                await player.wait()

    def _hear(self, line: dict[str, Any]) -> None:
        match line.pop("said"):
            case "call":
                self.at = line
                if line["unit"] not in self.begun:
                    self.begun.append(line["unit"])
            case "fault":
                self.result.add(line)
            case "task":
                self.result.tasks[f"{line['split']}/{line['key']}"] = line["hash"]
            case "plan":
                self.page.total = line["total"]
            case "done":
                self.done += 1
                self.page.show(self.done)
            case "rows":
                self.result.rows, self.result.rows_words = line["report"], line["words"]
            case "undemonstrated":
                if not line["err"]:
                    self.result.undemonstrated[line["key"]] = line["words"]
            case "note":
                if line["words"] not in self.result.notes:
                    self.result.notes.append(line["words"])
            case "bad":
                raise ValueError(line["words"])
            case "end":
                self.ended = True

    def _lost(self, kind: str, told: str) -> None:
        phase, split, index = self.at["unit"]
        self.hung.append([split, index])
        key = self.at.get("key", "")
        where = f" (while playing: {phase})" if phase else ""
        self.result.add({"kind": kind, "split": split, "index": index, "key": key, "words": told + where})


class _Page:
    """Progress and the time left: a bar on a terminal, a plain line now and then elsewhere. On stderr."""

    def __init__(self, world: str) -> None:
        self.world, self.total = world, 0
        self.console = Console(stderr=True)
        columns = (TextColumn("check {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=self.console, transient=True)
        self._began = self._said = time.monotonic()

    def __enter__(self) -> _Page:
        if self.console.is_terminal:
            self._bar.start()
            self._task = self._bar.add_task(self.world, total=None)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, done: int) -> None:
        if self.console.is_terminal:
            self._bar.update(self._task, completed=done, total=self.total or None)
            return
        now = time.monotonic()
        if now - self._said >= PLAIN_EVERY_S and self.total:
            left = (now - self._began) / done * (self.total - done)
            print(f"check {self.world}: {done}/{self.total}, about {left:.0f} s left", file=sys.stderr, flush=True)
            self._said = now
