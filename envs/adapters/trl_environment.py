"""Classes made for TRL's `environment_factory`, as they are: `reset(**row)`, perhaps `get_reward()`, and tools.

    worlds: {shop: {world: trl_environment, args: {factory: "shop.py:Shop", data: orders.jsonl}}}

Every other public method is a tool of the policy, described by its type hints and docstring. A new instance plays each
attempt, all on one thread. What `reset` returns is added to the row's `prompt`. A tool's exception is its answer to the
policy, as TRL has it; one of `reset` or `get_reward` loses the episode. The attempt ends with the first message
that calls no tool, or after `max_turns`; then `get_reward` is asked, and with it `functions`, which are handed the row
and the conversation. `facts["reward"]` is the sum, solved is a reward of `solved_at` and more.

Several classes: `factory: {shop: "shop.py:Shop", game: "game.py:Game"}`, and a column `environment` that names one.
Without `data` a task is a number, which `reset` must take as `seed`: else each attempt of a group had another task.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from envs import Env, EnvCrashed, Facts, JudgeFailed, MachineryError, Message, Split, Step, Task, heldout
from envs.adapters.shared import rows
from envs.adapters.shared.functions import Functions
from envs.adapters.shared.reference import resolve
from envs.adapters.shared.serve import accepted
from envs.adapters.shared.thread import Thread, wait
from envs.rows.deck import Deck
from envs.rows.records import Refused
from envs.sandboxes import SandboxPool
from envs.tools import BadCall, Tool, call, prompt

ROUNDING = 1e-9
NOTHING = "I do not know."
"""What the expert says where it errs: no tool is called."""
ALONE = ""
"""The name of the only class where no column names one."""


class World:
    """`demonstration`: `demonstration(row)` gives what the right attempt says, message by message, as texts or
    as pairs of a tool's name and its arguments; without it there is no right demonstration. `describe`: name the tools
    in a system message. `output_chars`: a longer answer of a tool is cut, and says so. `split_by`: columns that decide
    a row's split, by default `prompt`.
    """

    name = "trl_environment"

    def __init__(
        self,
        sandboxes: SandboxPool,
        *,
        factory: str | Mapping[str, str],
        data: str | None = None,
        split_by: Sequence[str] | None = None,
        seed: int = 0,
        functions: Sequence[str] = (),
        weights: Sequence[float] | None = None,
        solved_at: float = 1.0,
        max_turns: int = 8,
        task_prompt: str = "",
        describe: bool = True,
        demonstration: str | None = None,
        output_chars: int = 4000,
        timeout_s: float = 60.0,
    ) -> None:
        if max_turns < 1 or output_chars < 1:
            raise ValueError(
                f"world {self.name}: got max_turns={max_turns}, output_chars={output_chars}; expected 1 or more"
            )
        named = dict(factory) if isinstance(factory, Mapping) else {ALONE: factory}
        self.classes = {name: Class(reference) for name, reference in named.items()}
        self.seed, self.solved_at, self.max_turns, self.output_chars = seed, solved_at, max_turns, output_chars
        self.task_prompt, self.describe = task_prompt, describe
        self.demonstration = resolve(demonstration, "demonstration") if demonstration else None
        self.stream: Deck | None = None
        columns: tuple[str, ...] = ("seed",)
        if split_by is not None and data is None:
            raise ValueError(f"world {self.name}: `split_by` has no effect without `data`; leave it out")
        if data is not None:
            read = rows.read(data, self.name)
            columns = read.columns
            if isinstance(factory, Mapping) and "environment" not in columns:
                raise ValueError(
                    f"world {self.name}: {data} has no column 'environment' to choose among {', '.join(named)}"
                )
            for made in self.classes.values():
                made.check(columns)
            tasks = rows.tasks(read, self.name, self._row_task, same=dict)
            self.stream = Deck(self.name, data, tasks, seed, read.report, rows.side(read, self.name, split_by))
        elif isinstance(factory, Mapping) or not self.classes[ALONE].takes("seed"):
            raise ValueError(
                f"world {self.name}: without `data`, {factory} must be one class whose `reset` takes `seed`; "
                "else each attempt of a group would be another task"
            )
        self.functions = Functions(functions, columns, timeout_s) if functions else None
        self.weights = self.functions.weights(weights) if self.functions else {}
        if self.functions is None and not any(made.scores for made in self.classes.values()):
            raise ValueError(
                f"world {self.name}: nothing gives a reward; expected `get_reward` in the class or `functions`"
            )

    def task(self, split: Split, index: int) -> Task:
        if self.stream is not None:
            return self.stream.task(split, index)
        own = f"{self.seed}/" if split == "train" else ""
        rng = random.Random(f"{self.name}/{split}/{own}{index}")
        key, number = "", 0
        while not key or heldout(key) != (split == "heldout"):
            number = rng.randrange(2**31)
            key = f"{self.classes[ALONE].name}/{number}"
        return self._task({"seed": number}, key, ALONE)

    def _row_task(self, row: dict[str, Any], key: str) -> Task:
        chosen = ALONE if ALONE in self.classes else row["environment"]
        if chosen not in self.classes:
            raise Refused("`environment` names no class", f"got {chosen!r}; available: {', '.join(self.classes)}")
        return self._task(row, key, chosen)

    def _task(self, row: dict[str, Any], key: str, chosen: str) -> Task:
        asked = row.get("prompt")
        said = rows.messages(self.task_prompt if asked is None else asked)
        tools = prompt(list(self.classes[chosen].tools.values())) if self.describe else ""
        if tools and said[0]["role"] == "system":
            said = ({**said[0], "content": f"{said[0]['content']}\n\n{tools}"}, *said[1:])
        elif tools:
            said = ({"role": "system", "content": tools}, *said)
        return Task(
            world=self.name,
            key=key,
            family=self.classes[chosen].name,
            level=0,
            messages=said,
            given={"row": key},
            hidden={"columns": row, "class": chosen},
        )

    def size(self, split: Split) -> int | None:
        return None if self.stream is None else self.stream.size(split)

    def open(self, task: Task) -> Env:
        return Attempt(self, task)

    def demonstrate(self, task: Task, rng: random.Random, *, err: bool) -> list[Message]:
        if not err and self.demonstration is None:
            raise ValueError("a class of TRL's knows no right attempt: give `demonstration`, a function that does")
        said = [NOTHING] if err or self.demonstration is None else self.demonstration(dict(task.hidden["columns"]))
        tools = self.classes[task.hidden["class"]].tools
        return wait(
            self._played(task, [one if isinstance(one, str) else tools[one[0]].written(one[1]) for one in said])
        )

    async def _played(self, task: Task, texts: Sequence[str]) -> list[Message]:
        attempt = Attempt(self, task)
        try:
            talk = list(await attempt.start())
            for text in texts:
                step = await attempt.step(text)
                talk += [{"role": "assistant", "content": text}, *step.messages]
            return talk
        finally:
            await attempt.close()

    async def close(self) -> None:
        if self.functions is not None:
            self.functions.close()


class Class:
    """A user's class, looked at once: its tools, and what its `reset` takes."""

    def __init__(self, reference: str) -> None:
        self.make: Callable[[], Any] = resolve(reference, "factory")
        self.name = reference.rpartition(":")[2]
        try:
            probe = self.make()
        except Exception as error:  # whatever the user's class raises is told, not traced
            raise ValueError(f"factory {reference!r} cannot be called: {type(error).__name__}: {error}") from None
        methods = dict(inspect.getmembers(type(probe), predicate=inspect.isfunction))
        if "reset" not in methods:
            raise ValueError(f"factory {reference!r} makes a {type(probe).__name__} without a method `reset`")
        self.scores = "get_reward" in methods
        public = [name for name in methods if not name.startswith("_") and name not in ("reset", "get_reward")]
        self.tools = {name: Tool.of(getattr(probe, name)) for name in public}
        self._needed, self._named, self._open = accepted(probe.reset)

    def takes(self, name: str) -> bool:
        return self._open or name in self._named

    def check(self, columns: Collection[str]) -> None:
        if absent := sorted(self._needed - set(columns)):
            raise ValueError(f"{self.name}.reset demands {absent[0]!r}; the data has the columns {', '.join(columns)}")


class Attempt:
    def __init__(self, world: World, task: Task) -> None:
        self.world, self.task = world, task
        self.made = world.classes[task.hidden["class"]]
        self.thread = Thread()
        self.env: Any = None
        self.opening: list[Message] = []
        self.talk: list[Message] = []
        self.turns = self.calls = self.tool_errors = 0
        self.spent = False

    async def start(self) -> Sequence[Message]:
        given = {name: value for name, value in self.task.hidden["columns"].items() if self.made.takes(name)}
        if ALONE not in self.world.classes:  # the column that chose the class is not the class's
            given.pop("environment", None)
        try:
            self.env = await self.thread(self.made.make)
            said = rows.text(await self.thread(self.env.reset, **given) or "")
        except Exception as error:
            raise EnvCrashed(f"{self.made.name}.reset: {type(error).__name__}: {error}") from error
        *before, last = [dict(message) for message in self.task.messages]
        self.opening = [*before, {**last, "content": last["content"] + said}]
        return self.opening

    async def step(self, action: str) -> Step:
        self.turns += 1
        self.talk.append({"role": "assistant", "content": action})
        try:
            found = call(action, self.made.tools)
            if found is None:
                return Step(done=True)
            name, said = found.name, await self._answer(found.name, found.arguments)
        except BadCall as wrong:
            self.tool_errors += 1
            name, said = wrong.tool or "error", str({"error": str(wrong)})
        message = {"role": "tool", "name": name, "content": self._short(said)}
        self.talk.append(message)
        self.spent = self.turns >= self.world.max_turns
        return Step(done=True) if self.spent else Step(messages=(message,))

    async def _answer(self, name: str, arguments: Mapping[str, Any]) -> str:
        """What a tool returned, as text; what it raised, as TRL words it, since classes tell the policy so."""
        self.calls += 1
        try:
            result = await self.thread(getattr(self.env, name), **arguments)
        except (MachineryError, BadCall):
            raise
        except Exception as error:
            self.tool_errors += 1
            return str({"error": str(error)})
        try:
            return rows.text(result) if isinstance(result, list) else str(result)
        except Refused:
            return str(result)

    def _short(self, said: str) -> str:
        most = self.world.output_chars
        return said if len(said) <= most else f"{said[:most]}… {len(said) - most} characters more"

    async def measure(self) -> Facts:
        parts: dict[str, float] = {}
        if self.made.scores:
            parts[self.made.name] = await self._own()
        reward = sum(parts.values())
        if self.world.functions is not None:
            row = {name: value for name, value in self.task.hidden["columns"].items() if name != "prompt"}
            judged = await self.world.functions.judge(self.opening, self.talk, row)
            reward += judged.total(self.world.weights)
            parts |= judged.parts
        if not parts:
            raise JudgeFailed(f"no reward function applies to {self.task.key}: all returned None")
        facts: Facts = {"solved": reward >= self.world.solved_at - ROUNDING, "reward": reward, "parts": parts}
        counts = {"calls": self.calls, "tool_errors": self.tool_errors, "turns": self.turns, "truncated": self.spent}
        return {**facts, **counts}

    async def _own(self) -> float:
        try:
            reward = float(await self.thread(self.env.get_reward))
        except Exception as error:
            raise JudgeFailed(f"{self.made.name}.get_reward: {type(error).__name__}: {error}") from error
        if not abs(reward) < float("inf"):
            raise JudgeFailed(f"{self.made.name}.get_reward gave {reward}; expected a finite number")
        return reward

    async def close(self) -> None:
        self.env = None
        self.thread.close()
