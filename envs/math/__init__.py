"""Mathematics with a final boxed answer; a Python tool in the sandbox where the configuration allows one.

The answer is the content of the last complete `\\boxed{...}`. It is compared with the hidden one by a ladder of text,
exact arithmetic and, last, Math-Verify in a sandbox (envs/math/judge.py; the conventions are in docs/verifiers.md).
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from envs import Env, Facts, Message, Split, Step, Task, tool_call
from envs.math import problems
from envs.math.judge import Judge
from envs.math.text import MAX_CHARS, extract
from envs.rows import tasks as rows
from envs.sandboxes import Sandbox, SandboxPool

TOOL_TIMEOUT_S = 5.0
TOOL_OUTPUT_CHARS = 400


class World:
    """`python_tool` allows `<tool: python>` before the answer, so that an attempt may take `max_turns` turns.

    `tasks`: a file or folder of problems (envs/rows) in place of the generated ones, whose settings it replaces.
    Where nothing is boxed, what follows the last `answer_marker` (e.g. `####`) on its line is the answer.
    """

    name = "math"

    def __init__(
        self,
        sandboxes: SandboxPool,
        *,
        seed: int = 0,
        families: Sequence[str] = problems.FAMILIES,
        levels: Sequence[int] = (0, 1, 2),
        python_tool: bool = True,
        judge_timeout_s: float = 10.0,
        answer_marker: str = "",
        tasks: str | None = None,
    ) -> None:
        self.stream: problems.Stream | rows.Stream
        if tasks is None:
            self.stream = problems.Stream(seed, families, levels, python_tool)
        else:
            rows.refuse_unused("math", families=(families, problems.FAMILIES), levels=(levels, (0, 1, 2)))
            self.stream = rows.Stream("math", tasks, seed, ask=problems.ask(python_tool))
        self.sandboxes = sandboxes
        self.judge = Judge(sandboxes, timeout_s=judge_timeout_s)
        self.answer_marker = answer_marker
        self.python_tool = python_tool
        self.max_turns = 3 if python_tool else 1

    def task(self, split: Split, index: int) -> Task:
        return self.stream.task(split, index)

    def size(self, split: Split) -> int | None:
        return self.stream.size(split) if isinstance(self.stream, rows.Stream) else None

    def open(self, task: Task) -> Env:
        return MathEnv(task, self)

    def demonstrate(self, task: Task, rng: random.Random, *, err: bool) -> list[Message]:
        if "answers" in task.hidden:
            return rows.demonstrate_math(task, rng, err=err)
        return problems.demonstrate(task, rng, err=err, python_tool=self.python_tool)

    async def close(self) -> None:
        await self.judge.close()


class MathEnv:
    def __init__(self, task: Task, world: World) -> None:
        self.task, self.world = task, world
        self._judge = rows.judging(world.judge, task)
        self.sandbox: Sandbox | None = None
        self.last_action = ""
        self.tool_uses = 0

    async def start(self) -> Sequence[Message]:
        return self.task.messages

    async def step(self, action: str) -> Step:
        self.last_action = action
        call = tool_call(action)
        if call is None or not self.world.python_tool:
            return Step(done=True, invalid="<tool:" in action)
        if call.name != "python":
            return Step(done=True, invalid=True)
        self.tool_uses += 1
        said, seconds = await self._python(call.body)
        return Step(messages=({"role": "tool", "name": "python", "content": said},), seconds=seconds)

    async def _python(self, code: str) -> tuple[str, float]:
        if self.sandbox is None:
            self.sandbox = await self.world.sandboxes.acquire()
        result = await self.sandbox.exec(["python3", "-I", "-"], stdin=code.encode(), timeout_s=TOOL_TIMEOUT_S)
        if result.timed_out:
            return f"timed out after {TOOL_TIMEOUT_S:g} s", result.duration_s
        text = result.stdout if result.exit_code == 0 else result.stderr.strip().split(b"\n")[-1]
        return text.decode(errors="replace").strip()[:TOOL_OUTPUT_CHARS] or "no output", result.duration_s

    async def measure(self) -> Facts:
        answer = extract(self.last_action, self.world.answer_marker)
        verdict = "no_answer" if answer is None else await self._judge.verdict(answer, self.task.hidden["answer"])
        kept = answer and answer[: 2 * MAX_CHARS]
        return {"solved": verdict == "right", "verdict": verdict, "answer": kept, "tool_uses": self.tool_uses}

    async def close(self) -> None:
        sandbox, self.sandbox = self.sandbox, None
        if sandbox is not None:
            await sandbox.close()
