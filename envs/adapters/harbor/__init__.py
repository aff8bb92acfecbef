"""Harbor task folders, read directly: tools `bash` and `submit` in a sandbox, graded by tests/test.sh in a second one.

    python -m envs.adapters.harbor.build TASKS                                   # once: the images
    worlds: {tasks: {world: harbor, args: {tasks: TASKS}}}
    rewards: {fact: {name: reward}}                                              # the number that test.sh writes

A sandbox has no network and no root, whatever a task asks for; what that changes is said when the tasks are read, and a
task that cannot be played so is left out with its reason. How an attempt is graded: grading.py.
"""

from __future__ import annotations

import asyncio
import base64
import io
import logging
import random
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from envs import Env, Facts, JudgeFailed, Message, Split, Step, Task, heldout
from envs.adapters.harbor import grading
from envs.adapters.harbor.folder import Folder, folders, read
from envs.sandboxes import Need, Sandbox, SandboxPool, SandboxUnavailable, Snapshot
from envs.tools import BadCall, Tool, call

log = logging.getLogger(__name__)
LONGEST_COMMAND = 96 * 1024
"""Bytes of a command that a shell takes in one piece, with room to spare."""
TOLD = 5

_COMMAND = {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]}
TOOLS = {
    "bash": Tool("bash", "Runs a command in a shell of its own.", _COMMAND),
    "submit": Tool("submit", "Hands the work in.", {"type": "object", "properties": {}}),
}
HOW = """\
You work in a Linux sandbox, as a user without privileges and without a network. Each answer is one tool call, either
<tool: bash>
a command
</tool>
or, when the work is done,
<tool: submit>
</tool>
Every command is a shell of its own; no process goes on after it. Your work is tested once it is submitted."""


@dataclass(slots=True, kw_only=True)
class Report:
    """What was read, and what of it is not as its authors asked."""

    source: str
    read: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    overridden: dict[str, list[str]] = field(default_factory=dict)
    """Wishes that are not met, and the tasks that have them."""

    def __str__(self) -> str:
        said = [f"{self.source}: {self.read - len(self.refused)} of {self.read} Harbor tasks taken"]
        said += [f"left out {key}: {why}" for key, why in list(self.refused.items())[:TOLD]]
        said += [f"and {len(self.refused) - TOLD} more left out"] if len(self.refused) > TOLD else []
        said += [f"not met: {wish} ({len(keys)} tasks)" for wish, keys in self.overridden.items()]
        return "; ".join(said)


class Stream:
    """Both splits of the tasks below a folder: by key, or as `held` names them; neither is empty if there are two."""

    def __init__(self, source: str, seed: int, held: Sequence[str]) -> None:
        self.seed = seed
        self.folders: dict[str, Folder] = {}
        self.report = Report(source=source)
        for path in folders(source):
            self.report.read += 1
            try:
                task = read(path, Path(source))
            except ValueError as problem:
                self.report.refused[str(path)] = str(problem)
                continue
            self.folders[task.key] = task
            for wish in task.overridden:
                self.report.overridden.setdefault(wish, []).append(task.key)
        if not self.folders:
            raise ValueError(f"world harbor can take no task of {self.report}")
        if self.report.refused or self.report.overridden:
            log.warning("world harbor: %s", self.report)
        if unknown := set(held) - self.folders.keys():
            raise ValueError(f"got heldout={sorted(unknown)}; available: {', '.join(sorted(self.folders))}")
        keys = sorted(self.folders)
        apart = set(held) or {key for key in keys if heldout(key)} or {keys[-1]}
        apart -= {keys[0]} if len(apart) == len(keys) > 1 else set()
        self.keys: dict[Split, list[str]] = {
            "train": [key for key in keys if key not in apart],
            "heldout": [key for key in keys if key in apart],
        }

    def key(self, split: Split, index: int) -> str:
        keys = self.keys[split]
        if not keys:
            raise ValueError(f"{self.report.source} has no {split} task; expected at least two tasks in all")
        turn, place = divmod(index, len(keys))
        order = list(keys)
        if split == "train":
            random.Random(f"harbor/{self.seed}/{turn}").shuffle(order)
        return order[place]


class World:
    """`tasks`: a task folder or a folder of them. `heldout`: the keys (paths below it) that are never trained on; by
    default a fifth. `solved_at`: the least reward that counts as solved. The timeouts are ours; a task's own verifier
    timeout counts where it is shorter.
    """

    name = "harbor"

    def __init__(
        self,
        sandboxes: SandboxPool,
        *,
        tasks: str,
        seed: int = 0,
        heldout: Sequence[str] = (),
        max_turns: int = 20,
        command_timeout_s: float = 60.0,
        grading_timeout_s: float = 300.0,
        observation_chars: int = 4000,
        solved_at: float = 1.0,
    ) -> None:
        if max_turns < 2:
            raise ValueError(f"world harbor: got max_turns={max_turns}; expected at least 2, a command and a submit")
        self.stream = Stream(tasks, seed, heldout)
        self.sandboxes, self.max_turns, self.solved_at = sandboxes, max_turns, solved_at
        self.command_timeout_s, self.grading_timeout_s = command_timeout_s, grading_timeout_s
        self.observation_chars = observation_chars
        self._gives: dict[str, bool] = {}
        self._asking = asyncio.Lock()

    def task(self, split: Split, index: int) -> Task:
        folder = self.stream.folders[self.stream.key(split, index)]
        return Task(
            world=self.name,
            key=folder.key,
            family=folder.key.rpartition("/")[0] or "harbor",
            level=0,
            messages=({"role": "user", "content": f"{folder.instruction}\n\n{HOW}"},),
            given={"image": folder.image},
            hidden={"digest": folder.digest, "solution": folder.solution.get("solve.sh", b"").decode(errors="replace")},
        )

    def size(self, split: Split) -> int:
        return len(self.stream.keys[split])

    def secrets(self, task: Task) -> dict[str, str]:
        folder = self.stream.folders[task.key]
        files = {f"tests/{path}": data for path, data in folder.tests.items()}
        files |= {f"solution/{path}": data for path, data in folder.solution.items()}
        return {path: data.decode(errors="replace") for path, data in files.items()}

    def open(self, task: Task) -> Env:
        return HarborEnv(self.stream.folders[task.key], task, self)

    def demonstrate(self, task: Task, rng: random.Random, *, err: bool) -> list[Message]:
        """solution/solve.sh as one command; where it errs, nothing is done at all."""
        command = "true" if err else gold(self.stream.folders[task.key])
        said = (f"<tool: bash>\n{command}\n</tool>", "<tool: submit>\n</tool>")
        heard = {"role": "tool", "name": "bash", "content": "no output"}
        turns = [{"role": "assistant", "content": text} for text in said]
        return [*task.messages, turns[0], heard, turns[1]]

    async def gives_reward(self, folder: Folder) -> bool:
        """Whether the verifier gives any reward where nothing was done: then an attempt without one broke it itself."""
        async with self._asking:
            if folder.key not in self._gives:
                graded = await grading.grade(self.sandboxes, folder, None, self.grading_timeout_s)
                self._gives[folder.key] = graded.reward is not None
            return self._gives[folder.key]

    async def close(self) -> None:
        return None


def gold(folder: Folder) -> str:
    """A command that does what solution/solve.sh does. Raises ValueError where there is none, or it is too large."""
    script = folder.solution.get("solve.sh")
    if script is None:
        raise ValueError(f"{folder.key} has no solution/solve.sh, so there is no right demonstration")
    exports = "".join(f"export {name}={_quoted(value)}\n" for name, value in folder.solution_env.items())
    text = script.decode(errors="replace")
    alone = len(folder.solution) == 1 and not any(
        word in text for word in ("$0", "BASH_SOURCE", "/solution", "</tool>")
    )
    if alone and text.startswith(("#!/bin/bash", "#!/usr/bin/env bash", "#!/bin/sh")):
        command = exports + text.strip()
    else:
        packed = base64.b64encode(_tar(folder.solution)).decode()
        unpack = (
            "import base64,io,sys,tarfile; tarfile.open(fileobj=io.BytesIO(base64.b64decode(sys.argv[1]))).extractall()"
        )
        command = (
            f"{exports}(mkdir -p /solution && cd /solution && python3 -I -c '{unpack}' {packed})\n/solution/solve.sh"
        )
    if len(command.encode()) > LONGEST_COMMAND:
        raise ValueError(f"the solution of {folder.key} is over {LONGEST_COMMAND} bytes: too large for one command")
    return command


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "'\\''") + "'"


def _tar(files: Mapping[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz") as archive:
        for path, data in files.items():
            about = tarfile.TarInfo(path)
            about.size, about.mode = len(data), 0o755
            archive.addfile(about, io.BytesIO(data))
    return packed.getvalue()


class HarborEnv:
    def __init__(self, folder: Folder, task: Task, world: World) -> None:
        self.folder, self.task, self.world = folder, task, world
        self.sandbox: Sandbox | None = None
        self.about: grading.About | None = None
        self.submitted = False
        world.sandboxes.plan([Need(image=folder.image)])

    async def start(self) -> Sequence[Message]:
        return self.task.messages

    async def step(self, action: str) -> Step:
        try:
            asked = call(action, TOOLS)
        except BadCall:
            asked = None
        if asked is None:
            return Step(done=True, invalid=True)
        if asked.name == "submit":
            self.submitted = True
            return Step(done=True)
        sandbox, about = await self._working()
        result = await sandbox.exec(
            asked.arguments["command"],
            cwd=about.workdir,
            env=about.env,
            timeout_s=self.world.command_timeout_s,
            max_output=self.world.observation_chars,
        )
        text = (result.stdout + result.stderr).decode(errors="replace").rstrip("\n")[: 2 * self.world.observation_chars]
        if cut := result.stdout_cut + result.stderr_cut:
            text += f"\n{cut} bytes were left out of the middle"
        if result.timed_out:
            text += f"\ntimed out after {self.world.command_timeout_s:g} s"
        elif result.exit_code != 0:
            text += f"\nexit code {result.exit_code}"
        said = {"role": "tool", "name": "bash", "content": text.strip() or "no output"}
        return Step(messages=(said,), seconds=result.duration_s)

    async def _working(self) -> tuple[Sandbox, grading.About]:
        """The attempt's sandbox with the task's files in it, taken at the first command."""
        if self.sandbox is None or self.about is None:
            try:
                self.sandbox = await self.world.sandboxes.acquire(image=self.folder.image)
            except SandboxUnavailable as problem:
                if self.folder.image not in str(problem):
                    raise
                source = self.world.stream.report.source
                hint = f"make the images with `python -m envs.adapters.harbor.build {source}`"
                raise SandboxUnavailable(f"{problem}; {hint}") from problem
            self.about = await grading.begin(self.sandbox, self.folder)
        return self.sandbox, self.about

    async def measure(self) -> Facts:
        if not self.submitted:
            return {"solved": False, "submitted": False}
        left: Snapshot | None = None
        if self.sandbox is not None:
            try:
                left = await self.sandbox.snapshot(limit=grading.SNAPSHOT_BYTES)
            except OSError as problem:
                verdict = f"what was left cannot be taken: {problem.strerror}"
                return {"solved": False, "submitted": True, "reward": 0.0, "parts": {}, "verdict": verdict}
            await self.close()
        graded = await grading.grade(self.world.sandboxes, self.folder, left, self.world.grading_timeout_s)
        if graded.reward is None and not await self.world.gives_reward(self.folder):
            last = graded.said.splitlines()[-1][:200] if graded.said else "nothing"
            raise JudgeFailed(f"{self.folder.key}: {graded.why}, and no reward where nothing was done; it said: {last}")
        return {"submitted": True, **graded.facts(self.world.solved_at)}

    async def close(self) -> None:
        sandbox, self.sandbox = self.sandbox, None
        if sandbox is not None:
            await sandbox.close()
