"""Competitive programming: one Python program that reads stdin and prints, run on hidden inputs in the sandbox.

The sandbox sees the program and the inputs. The expected outputs stay here, and the comparison happens here.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from envs import Env, Facts, Message, Split, Step, Task
from envs.code import problems
from envs.rows import tasks as rows
from envs.sandboxes import SandboxPool

CASE_TIMEOUT_S = 4.0
_BLOCK = re.compile(r"```(?:python|py)?\n(.*?)```", re.DOTALL)


class World:
    """`tasks`: a file or folder of problems (envs/rows) in place of the generated ones, whose settings it replaces."""

    name = "code"
    max_turns = 1

    def __init__(
        self,
        sandboxes: SandboxPool,
        *,
        seed: int = 0,
        aggregates: Sequence[str] = tuple(problems.AGGREGATES),
        levels: Sequence[int] = (0, 1, 2),
        cases: int = 4,
        tasks: str | None = None,
    ) -> None:
        self.stream: problems.Stream | rows.Stream
        if tasks is None:
            self.stream = problems.Stream(seed, aggregates, levels, cases)
        else:
            known = tuple(problems.AGGREGATES)
            rows.refuse_unused("code", aggregates=(aggregates, known), levels=(levels, (0, 1, 2)), cases=(cases, 4))
            self.stream = rows.Stream("code", tasks, seed, kinds=("stdin",))
        self.sandboxes = sandboxes

    def task(self, split: Split, index: int) -> Task:
        return self.stream.task(split, index)

    def open(self, task: Task) -> Env:
        return CodeEnv(task, self.sandboxes)

    def demonstrate(self, task: Task, rng: random.Random, *, err: bool) -> list[Message]:
        if "programs" in task.hidden:
            return rows.demonstrate_code(task, rng, err=err)
        return problems.demonstrate(task, rng, err=err)

    async def close(self) -> None:
        return None


class CodeEnv:
    def __init__(self, task: Task, sandboxes: SandboxPool) -> None:
        self.task, self.sandboxes = task, sandboxes
        self.program: str | None = None

    async def start(self) -> Sequence[Message]:
        return self.task.messages

    async def step(self, action: str) -> Step:
        blocks = _BLOCK.findall(action)
        self.program = blocks[-1] if blocks else None
        return Step(done=True)

    async def measure(self) -> Facts:
        """Run every case in one visit to a sandbox; the first failure does not hide the others."""
        if self.program is None:
            return {"solved": False, "verdicts": [], "error": "no code block"}
        sandbox = await self.sandboxes.acquire()
        try:
            await sandbox.write("/work/main.py", self.program.encode())
            verdicts = []
            for given, expected in zip(self.task.hidden["inputs"], self.task.hidden["outputs"], strict=True):
                result = await sandbox.exec(
                    ["python3", "-I", "main.py"], stdin=given.encode(), timeout_s=CASE_TIMEOUT_S
                )
                if result.timed_out:
                    verdicts.append("timed_out")
                elif result.exit_code != 0:
                    verdicts.append("crashed")
                else:
                    verdicts.append("right" if same_output(result.stdout, expected) else "wrong")
        finally:
            await sandbox.close()
        return {"solved": all(v == "right" for v in verdicts), "verdicts": verdicts}

    async def close(self) -> None:
        return None


def same_output(got: bytes, expected: str) -> bool:
    """Equal line by line after trimming trailing blanks and trailing empty lines."""

    def lines(text: str) -> list[str]:
        return [line.rstrip() for line in text.rstrip().split("\n")]

    return lines(got.decode(errors="replace")) == lines(expected)
