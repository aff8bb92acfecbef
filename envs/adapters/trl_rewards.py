"""A data set and the reward functions that TRL's GRPO trainer would be given, as they are, as a world of one turn.

    worlds:
      sums:
        world: trl_rewards
        args: {data: sums.jsonl, functions: ["trl.rewards:accuracy_reward", "mine.py:short"], weights: [1.0, 0.2]}

The column `prompt` is text or a conversation; completions come in the same form. All other columns go to the functions
by name, each in a list of one, for one completion is judged at a time. `facts["reward"]` is the weighted sum of what
applies (not None), `facts["parts"]` each function's number; solved is a reward of `solved_at` and more.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from envs import Env, Facts, JudgeFailed, Message, Split, Step, Task
from envs.adapters.shared import rows
from envs.adapters.shared.functions import Functions
from envs.rows.deck import Deck
from envs.sandboxes import SandboxPool

NEVER_RIGHT = "I do not know."
"""What the expert says where it errs."""
ROUNDING = 1e-9


class World:
    """`gold`: the column with a completion that earns `solved_at`, put into `answer` in place of `{}`; without it there
    is no right demonstration. `columns`: the only ones to take of the file. `timeout_s`: of all functions together.
    """

    name = "trl_rewards"
    max_turns = 1

    def __init__(
        self,
        sandboxes: SandboxPool,
        *,
        data: str,
        functions: Sequence[str],
        seed: int = 0,
        weights: Sequence[float] | None = None,
        solved_at: float = 1.0,
        gold: str = "",
        answer: str = "{}",
        system: str = "",
        columns: Sequence[str] | None = None,
        timeout_s: float = 60.0,
    ) -> None:
        read = rows.read(data, self.name, columns)
        for name in ["prompt", gold] if gold else ["prompt"]:
            if name not in read.columns:
                raise ValueError(
                    f"world {self.name}: {data} has no column {name!r}; available: {', '.join(read.columns)}"
                )
        self.functions = Functions(functions, [n for n in read.columns if n not in ("prompt", "completion")], timeout_s)
        self.weights = self.functions.weights(weights)
        self.solved_at, self.gold, self.answer, self.system = solved_at, gold, answer, system
        made = rows.tasks(read, self.name, self._task, same=lambda row: row["prompt"])
        self.stream = Deck(self.name, data, made, seed, read.report)

    def _task(self, row: dict[str, Any], key: str) -> Task:
        given = {name: value for name, value in row.items() if name not in ("prompt", "completion", "completion_ids")}
        hidden: dict[str, Any] = {"columns": given, "prompt": row["prompt"]}
        if self.gold and row[self.gold] is not None:
            hidden["answer"] = row[self.gold]
        return Task(
            world=self.name,
            key=key,
            family=self.name,
            level=0,
            messages=rows.messages(row["prompt"], self.system),
            hidden=hidden,
        )

    def task(self, split: Split, index: int) -> Task:
        return self.stream.task(split, index)

    def size(self, split: Split) -> int:
        return self.stream.size(split)

    def open(self, task: Task) -> Env:
        return Attempt(self, task)

    def demonstrate(self, task: Task, rng: random.Random, *, err: bool) -> list[Message]:
        if err:
            said = NEVER_RIGHT
        elif "answer" in task.hidden:
            said = self.answer.replace("{}", str(task.hidden["answer"]))
        else:
            raise ValueError("the data set names no column with a right completion: give `gold`")
        return [*task.messages, {"role": "assistant", "content": said}]

    async def close(self) -> None:
        self.functions.close()


class Attempt:
    def __init__(self, world: World, task: Task) -> None:
        self.world, self.task = world, task
        self.said = ""

    async def start(self) -> Sequence[Message]:
        return self.task.messages

    async def step(self, action: str) -> Step:
        self.said = action
        return Step(done=True)

    async def measure(self) -> Facts:
        world, prompt = self.world, self.task.hidden["prompt"]
        talk = not isinstance(prompt, str)
        completion: Any = [{"role": "assistant", "content": self.said}] if talk else self.said
        judged = await world.functions.judge(prompt, completion, self.task.hidden["columns"])
        if not judged.parts:
            raise JudgeFailed(f"no reward function applies to {self.task.key}: all returned None")
        reward = judged.total(world.weights)
        facts: Facts = {"solved": reward >= world.solved_at - ROUNDING, "reward": reward, "parts": judged.parts}
        told = {"metrics": judged.metrics, "extra": judged.extra}
        return {**facts, **{name: value for name, value in told.items() if value}}

    async def close(self) -> None:
        return None
