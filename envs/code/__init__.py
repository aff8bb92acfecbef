"""Competitive programming: one program that reads stdin and prints, or one function, run on hidden inputs in a sandbox.

The sandbox sees the program and the inputs. The expected outputs stay here, and the comparison happens here. The last
fenced block of an answer in one of the world's languages is the program; the fence's tag says which (none: the first).
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from envs import Env, Facts, Message, Split, Step, Task
from envs.code import grade, problems
from envs.code.languages import Language, chosen
from envs.rows import tasks as rows
from envs.sandboxes import SandboxPool, SandboxUnavailable

_BLOCK = re.compile(r"```([\w+#-]*)[^\n`]*\n(.*?)```", re.DOTALL)


class World:
    """`languages` are names, or `name: {tags, file, compile, run, time_factor}`; see languages.py.

    `tasks`: a file or folder of problems (envs/rows) in place of the generated ones, whose settings it replaces.
    """

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
        languages: Sequence[str] | Mapping[str, Mapping[str, Any] | None] = ("python",),
        time_limit_s: float = 1.5,
        timeouts: int = 2,
    ) -> None:
        if time_limit_s <= 0 or timeouts < 1:
            raise ValueError(f"world code: got time_limit_s={time_limit_s}, timeouts={timeouts}; expected above zero")
        self.stream: problems.Stream | rows.Stream
        if tasks is None:
            self.stream = problems.Stream(seed, aggregates, levels, cases)
        else:
            known = tuple(problems.AGGREGATES)
            rows.refuse_unused("code", aggregates=(aggregates, known), levels=(levels, (0, 1, 2)), cases=(cases, 4))
            self.stream = rows.Stream("code", tasks, seed, kinds=("stdin", "function"))
        self.languages = chosen(languages)
        self.time_limit_s, self.timeouts = time_limit_s, timeouts
        self.sandboxes = sandboxes
        self.alone = asyncio.Lock()

    def task(self, split: Split, index: int) -> Task:
        return self.stream.task(split, index)

    def size(self, split: Split) -> int | None:
        return self.stream.size(split) if isinstance(self.stream, rows.Stream) else None

    def open(self, task: Task) -> Env:
        return CodeEnv(task, self)

    def demonstrate(self, task: Task, rng: random.Random, *, err: bool) -> list[Message]:
        if "programs" in task.hidden:
            return rows.demonstrate_code(task, rng, err=err)
        return problems.demonstrate(task, rng, err=err)

    async def ready(self) -> None:
        """Check that the sandboxes have what the languages need. Raises SandboxUnavailable: one sentence."""
        needed = {name: language for name, language in self.languages.items() if language.run}
        if not needed:
            return
        sandbox = await self.sandboxes.acquire()
        try:
            for name, language in needed.items():
                if (await sandbox.exec(f"command -v {language.needs}")).exit_code != 0:
                    raise SandboxUnavailable(
                        f"world code is to take answers in {name}, but the image of the sandboxes has no "
                        f"{language.needs!r}: take {name} from worlds.code.args.languages, or set rollout.image to an "
                        "image that has it (`make image-cpp` makes touchstone-sandbox:bookworm-cpp with g++ and gcc)"
                    )
        finally:
            await sandbox.close()

    async def close(self) -> None:
        return None


class CodeEnv:
    def __init__(self, task: Task, world: World) -> None:
        self.task, self.world = task, world
        self.answer: tuple[Language, str] | None = None

    async def start(self) -> Sequence[Message]:
        return self.task.messages

    async def step(self, action: str) -> Step:
        self.answer = program(action, self.world.languages)
        return Step(done=True)

    async def measure(self) -> Facts:
        """Run every case in one visit to a sandbox; the first failure does not hide the others."""
        world = self.world
        problem = grade.Problem.of(self.task.hidden, world.time_limit_s)
        if self.answer is None:
            return grade.no_code(problem, f"no code block in {' or '.join(world.languages)}")
        language, source = self.answer
        if problem.function and language.run:
            return grade.no_code(problem, "the problem asks for a Python function")
        return await grade.grade(source, language, problem, world.sandboxes, world.alone, world.timeouts)

    async def close(self) -> None:
        return None


def program(action: str, languages: Mapping[str, Language]) -> tuple[Language, str] | None:
    """The last fenced block with the tag of a language, or with none, which means the first language."""
    by_tag = {tag: language for language in languages.values() for tag in language.tags}
    by_tag[""] = next(iter(languages.values()))
    found = [(by_tag[tag.lower()], body) for tag, body in _BLOCK.findall(action) if tag.lower() in by_tag]
    return found[-1] if found else None
