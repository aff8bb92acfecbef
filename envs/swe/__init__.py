"""Software engineering: a small package with a bug and an issue; tools `bash`, `edit`, `submit`; graded elsewhere.

The attempt works in one sandbox. Grading (grade.py) takes the package's source files out of it, puts them into a
second, clean sandbox and calls the functions there; the values come back as claims and are compared here. Neither
sandbox ever holds an expected value.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from envs import Env, Facts, Message, Split, Step, Task, tool_call
from envs.sandboxes import Sandbox, SandboxPool, Snapshot
from envs.swe import attempt, edits, grade, problems, real

COMMAND_TIMEOUT_S = 10.0
OBSERVATION_CHARS = 2000


class World:
    name = "swe"

    def __init__(
        self,
        sandboxes: SandboxPool,
        *,
        seed: int = 0,
        tasks: str | None = None,
        families: Sequence[str] | None = None,
        levels: Sequence[int] = (0, 1, 2),
        max_turns: int = 5,
    ) -> None:
        if max_turns < 2:
            raise ValueError(f"world swe: got max_turns={max_turns}; expected at least 2, an edit and a submit")
        self.real = real.Stream(tasks, seed, families, levels, max_turns) if tasks else None
        self.stream = self.real or problems.Stream(seed, problems.FAMILIES if families is None else families, levels)
        self.sandboxes = sandboxes
        self.max_turns = max_turns

    def task(self, split: Split, index: int) -> Task:
        return self.stream.task(split, index)

    def size(self, split: Split) -> int | None:
        return len(self.real.splits[split]) if self.real else None

    def secrets(self, task: Task) -> dict[str, str]:
        return self.real.secrets(task) if self.real else {}

    def paths(self, task: Task) -> list[str]:
        return self.real.paths(task) if self.real else []

    def open(self, task: Task) -> Env:
        return attempt.RealEnv(task, self.real, self.sandboxes) if self.real else SweEnv(task, self.sandboxes)

    def demonstrate(self, task: Task, rng: random.Random, *, err: bool) -> list[Message]:
        return self.real.demonstrate(task, err=err) if self.real else problems.demonstrate(task, rng, err=err)

    async def close(self) -> None:
        return None


class SweEnv:
    def __init__(self, task: Task, sandboxes: SandboxPool) -> None:
        self.task, self.sandboxes = task, sandboxes
        self.sandbox: Sandbox | None = None
        self.submitted = False
        self.edits = 0

    async def start(self) -> Sequence[Message]:
        return self.task.messages

    async def step(self, action: str) -> Step:
        call = tool_call(action)
        if call is None or call.name not in ("bash", "edit", "submit"):
            return Step(done=True, invalid=True)
        if call.name == "submit":
            self.submitted = True
            return Step(done=True)
        sandbox = await self._working()
        if call.name == "bash":
            text, seconds = await self._bash(sandbox, call.body)
        else:
            text, seconds = await self._edit(sandbox, call.body), 0.0
        return Step(messages=({"role": "tool", "name": call.name, "content": text},), seconds=seconds)

    async def _working(self) -> Sandbox:
        """The attempt's sandbox with the package in it, taken at the first tool call."""
        if self.sandbox is None:
            files = {path: text.encode() for path, text in self.task.given["files"].items()}
            self.sandbox = await self.sandboxes.acquire(Snapshot.of(files))
        return self.sandbox

    async def _bash(self, sandbox: Sandbox, command: str) -> tuple[str, float]:
        result = await sandbox.exec(command, timeout_s=COMMAND_TIMEOUT_S, max_output=OBSERVATION_CHARS)
        text = (result.stdout + result.stderr).decode(errors="replace").rstrip("\n")[:OBSERVATION_CHARS]
        if result.timed_out:
            text = f"{text}\ntimed out after {COMMAND_TIMEOUT_S:g} s".lstrip()
        elif result.exit_code != 0:
            text = f"{text}\nexit code {result.exit_code}".lstrip()
        return text, result.duration_s

    async def _edit(self, sandbox: Sandbox, body: str) -> str:
        edit = parse_edit(body)
        if edit is None:
            return "bad edit: expected FILE, <<<<, old lines, ====, new lines, >>>>"
        path, old, new = edit
        try:
            text = (await sandbox.read(f"/work/{path}", limit=grade.MAX_FILE_BYTES)).decode(errors="replace")
            if text.count(old) != 1:
                return f"no edit: the old lines occur {text.count(old)} times in {path}, expected once"
            await sandbox.write(f"/work/{path}", text.replace(old, new).encode())
        except OSError as error:
            return f"no edit: {path}: {error.strerror}"
        self.edits += 1
        return "edited"

    async def measure(self) -> Facts:
        if not self.submitted or self.sandbox is None:
            return {"solved": False, "submitted": self.submitted, "edits": self.edits}
        files, left_out = await grade.taken(self.sandbox, list(self.task.given["files"]))
        await self.close()
        grader = await self.sandboxes.acquire()
        try:
            found, refused = await grade.checks(grader, files, self.task.hidden["tests"])
        finally:
            await grader.close()
        kinds = {t["id"]: t["kind"] for t in self.task.hidden["tests"]}
        passed = {test: check is grade.Check.PASSED for test, check in found.items()}
        return {
            "solved": bool(passed) and all(passed.values()),
            "submitted": True,
            "edits": self.edits,
            "checks": {test: str(check) for test, check in found.items()},
            "tampered": grade.Check.TAMPERED in found.values(),
            "fail_to_pass": [ok for test, ok in passed.items() if kinds[test] == "fail_to_pass"],
            "pass_to_pass": [ok for test, ok in passed.items() if kinds[test] == "pass_to_pass"],
            "left_out": (left_out + refused)[: grade.TOLD],
            **self._similarity(files),
        }

    def _similarity(self, files: Mapping[str, bytes]) -> Facts:
        """Of what the attempt made of the given files to the expert's patch, where the task has one."""
        hidden, given = self.task.hidden, self.task.given["files"]
        if "new" not in hidden:
            return {}
        path, old, new = f"{hidden['module']}.py", hidden["old"].rstrip("\n"), hidden["new"].rstrip("\n")
        gold = edits.patch(given, {**given, path: given[path].replace(old, new)})
        mine = {path: files[path].decode(errors="replace") for path in given if path in files}
        return {"similarity": edits.similarity(edits.patch(given, mine), gold)}

    async def close(self) -> None:
        sandbox, self.sandbox = self.sandbox, None
        if sandbox is not None:
            await sandbox.close()


def parse_edit(body: str) -> tuple[str, str, str] | None:
    """File, old text and new text of `FILE\\n<<<<\\nOLD\\n====\\nNEW\\n>>>>`, else None."""
    path, opened, rest = body.strip("\n").partition("\n<<<<\n")
    old, middle, rest = rest.partition("\n====\n")
    new, closed, tail = (rest + "\n").rpartition("\n>>>>\n")
    if not (opened and middle and closed) or tail or not path or not old or path.startswith("/") or ".." in path:
        return None
    return path, old, new
