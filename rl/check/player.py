"""The process that plays a world for `rl check`: it may be killed at any time, and says all it sees as JSON lines.

Started as `python -m rl.check.player`; its order comes on stdin, its lines go to what was stdout.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import random
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any

from envs import MachineryError, Message, Split, Task, World, sandboxes
from envs.sandboxes import SandboxLost
from rl.check import leaks
from rl.check.episodes import Attempt, Calls, Fault, Played, Pool, play
from rl.check.worlds import build

SPLITS: tuple[Split, ...] = ("train", "heldout")
SCAN = 50
"""Positions of a stream to look through for each distinct task wanted."""
REPEATS = 3
MOST_HUNG = 3
"""Tasks that never end before the check ends: waiting for each would take hours, and say nothing new."""
MALFORMED_TASKS = 4
"""Of each split: what is not understood hardly depends on the task."""
MALFORMED = {
    "a tool call that is not closed": "<tool: python>\nprint(1)",
    "a tool that there is not": "<tool: nosuchtool>\nx\n</tool>",
    "a box that is not closed": "\\boxed{",
    "an empty box": "\\boxed{}",
    "a code block that is not closed": "```python\nprint(1)",
    "an empty code block": "```python\n```",
    "control characters": "\x00\x1b[2J\ufffd",
    "one hundred thousand letters": "a" * 100_000,
}


@dataclass(frozen=True)
class Order:
    world: str
    args: dict[str, Any]
    tasks: int
    deadline_s: float
    backend: str
    image: str
    run: str
    skip: list[list[Any]]
    """Units that an earlier process began: not to be played again."""
    hung: list[list[Any]]
    """Split and index of tasks that never ended there."""


class Player:
    def __init__(self, order: Order, say: Callable[..., None]) -> None:
        self.order, self.say = order, say
        self.backend = sandboxes.load(order.backend)
        self.pool = Pool(self.backend.Pool(run=order.run, size=4, image=order.image))
        self.world: World
        self.tasks: dict[tuple[Split, int], Task] = {}
        self.unit: list[Any] = []
        self.calls = Calls(self._announce, order.deadline_s)
        self.hung = {tuple(at) for at in order.hung}
        self.skip = {json.dumps(unit) for unit in order.skip}
        self.empty_failed: set[tuple[Split, int]] = set()
        self.heard: dict[tuple[Split, int], str] = {}

    def _announce(self, call: str) -> None:
        task = self.tasks.get((self.unit[1], self.unit[2]))
        self.say("call", unit=self.unit, call=call, key=task.key if task else "")

    async def run(self) -> None:
        self.world = build(self.order.world, self.pool, self.order.args)
        report = getattr(getattr(self.world, "stream", None), "report", None)
        if report is not None:
            self.say("rows", report=asdict(report), words=str(report))
        self._find()
        phases: list[tuple[str, Callable[[Split, int, Task], Awaitable[None]]]] = [
            ("empty", self._empty),
            ("malformed", self._malformed),
            ("wrong", self._wrong),
            ("gold", self._gold),  # after those that must fail, so that what it leaves behind is told apart
            ("afterwards", self._afterwards),
        ]
        units = [(phase, probe, at) for phase, probe in phases for at in self._of(phase)]
        self.say("plan", total=len(units) + 1)
        for phase, probe, at in units:
            if len(self.hung) >= MOST_HUNG:
                self.say("note", words=f"ended early: {len(self.hung)} tasks never ended, the rest was not played")
                break
            await self._one(phase, probe, at)
        self.unit = ["together", "", 0]
        self._leaks_together()
        self.say("done", unit=self.unit)
        await self._close()

    def _of(self, phase: str) -> list[tuple[Split, int]]:
        if phase != "malformed":
            return list(self.tasks)
        return [at for split in SPLITS for at in [a for a in self.tasks if a[0] == split][:MALFORMED_TASKS]]

    async def _one(
        self, phase: str, probe: Callable[[Split, int, Task], Awaitable[None]], at: tuple[Split, int]
    ) -> None:
        self.unit = [phase, *at]
        if json.dumps(self.unit) in self.skip or at in self.hung:
            return
        try:
            try:
                await probe(*at, self.tasks[at])
            except SandboxLost:  # the machinery's doing: once more
                await probe(*at, self.tasks[at])
        except Fault as fault:
            self._fault(fault, at, self.tasks[at])
            if fault.kind == "never-ends":
                self.hung.add(at)
        self.say("done", unit=self.unit)

    def _fault(self, fault: Fault, at: tuple[Split, int], task: Task) -> None:
        self.say("fault", kind=fault.kind, words=fault.words, split=at[0], index=at[1], key=task.key)

    # -- the tasks themselves -------------------------------------------------------------------------------------

    def _find(self) -> None:
        """The first distinct tasks of each split; what is wrong with the streams."""
        keys: dict[str, Split] = {}
        prompts: dict[str, Split] = {}
        for split in SPLITS:
            found: set[str] = set()
            self.unit = ["tasks", split, 0]
            for index in range(SCAN * self.order.tasks):
                task = self._task(split, index)
                if task.key in found:
                    continue
                found.add(task.key)
                self.tasks[split, index] = task
                self.say("task", split=split, key=task.key, hash=task.content_hash)
                for kind, known, value in (("keys", keys, task.key), ("prompts", prompts, _prompt(task))):
                    if known.setdefault(value, split) != split:
                        words = f"the splits overlap: this task's {kind[:-1]} is in both"
                        self._fault(Fault("splits-overlap", words), (split, index), task)
                        break
                if len(found) == self.order.tasks:
                    break
            if len(found) < self.order.tasks:
                self.say("note", words=f"there are only {len(found)} distinct {split} tasks")

    def _task(self, split: Split, index: int) -> Task:
        made = [self.calls.plain("task", lambda: self.world.task(split, index)) for _ in range(2)]
        if not all(isinstance(task, Task) for task in made):
            raise Fault("wrong-type", f"task({split!r}, {index}) gave {type(made[0]).__name__}; expected envs.Task")
        task: Task = made[0]
        for words in _malformed_task(task, made[1]):
            self._fault(Fault(*words), (split, index), task)
        return task

    def _leaks_together(self) -> None:
        by_family: dict[str, list[tuple[Split, int]]] = {}
        for at, task in self.tasks.items():
            if at in self.heard:
                by_family.setdefault(task.family, []).append(at)
        everything = [at for found in by_family.values() for at in found]
        for found in (everything, *by_family.values()):
            where = leaks.at_one_place([(self.heard[at], leaks.golds(self.tasks[at])) for at in found])
            if where:
                self._fault(Fault("leak", where), found[0], self.tasks[found[0]])
                return

    # -- the probes: one task each --------------------------------------------------------------------------------

    async def _play(self, task: Task, actions: list[str], repeat: bool = False) -> Played:
        return await play(self.calls, self.world, task, self.pool, actions, repeat)

    async def _empty(self, split: Split, index: int, task: Task) -> None:
        """The answer without a word; and what the world says before any answer."""
        played = await self._play(task, [""], repeat=True)
        self.heard[split, index] = "\n".join([_prompt(task), *played.heard])
        if told := leaks.in_task(task, self.heard[split, index]):
            self._fault(Fault("leak", told), (split, index), task)
        if played.solved:
            self.empty_failed.add((split, index))
            raise Fault("empty-scores", "the empty answer counts as solved")

    async def _gold(self, split: Split, index: int, task: Task) -> None:
        await self._readable(task)
        actions = self._demonstration(task, err=False)
        if actions is None:
            return
        played = [await self._play(task, actions) for _ in range(REPEATS)]
        right = sum(p.solved for p in played)
        if 0 < right < REPEATS:
            raise Fault("not-repeatable", f"the same right answer was solved {right} times of {REPEATS}")
        if not right:
            said = json.dumps(played[0].facts)[:200] if played[0].facts else f"it ended for: {played[0].ended}"
            raise Fault("gold-fails", f"the right answer does not count as solved; {said}")

    async def _readable(self, task: Task) -> None:
        """Where a world's judge can check a gold answer by itself, it does: equal text alone does not make it one."""
        check = getattr(getattr(self.world, "judge", None), "check", None)
        if check is None or task.hidden.get("kind") == "literal":
            return
        for gold in task.hidden.get("answers") or [task.hidden.get("answer")]:
            if isinstance(gold, str):
                await self.calls("judge.check", functools.partial(check, gold))

    async def _wrong(self, split: Split, index: int, task: Task) -> None:
        actions = self._demonstration(task, err=True)
        if actions is None:
            return
        played = [await self._play(task, actions) for _ in range(2)]
        if played[0].solved != played[1].solved:
            raise Fault("not-repeatable", "the same wrong answer was solved once and once not")
        if played[0].solved:
            raise Fault("wrong-scores", f"a wrong answer counts as solved: {actions[-1][:100]!r}")

    async def _afterwards(self, split: Split, index: int, task: Task) -> None:
        """After and beside a right attempt, an empty one must still fail, and the right one still be right."""
        if (split, index) in self.empty_failed:
            return
        if (await self._play(task, [""], repeat=True)).solved:
            raise Fault("state-shared", "the empty answer counts as solved after another attempt was right")
        actions = self._demonstration(task, err=False)
        if actions is None or not (await self._play(task, actions)).solved:
            return
        first, second = (Attempt(self.calls, self.world, task, self.pool) for _ in range(2))
        try:
            await first.start()
            await second.start()
            goes_on = [True, True]
            for at in range(len(actions)):
                goes_on = [goes_on[0] and await first.act(actions[at]), goes_on[1] and await second.act("")]
            for attempt, going in zip((second, first), reversed(goes_on), strict=True):
                if not going and not attempt.played.ended:
                    await attempt.measured()
        finally:
            for attempt in (first, second):
                await self.calls("close", attempt.env.close)
        if second.played.solved or not first.played.solved:
            if not all([(await self._play(task, actions)).solved for _ in range(REPEATS)]):
                raise Fault("not-repeatable", "the same right answer is not always solved")
            which = "the empty one" if second.played.solved else "the right one"
            raise Fault("state-shared", f"of two attempts side by side, {which} got the other's verdict")

    async def _malformed(self, split: Split, index: int, task: Task) -> None:
        """What no world understands, and the prompt itself, are never solved; nothing raises or hangs."""
        for what, action in {**MALFORMED, "the prompt itself": _prompt(task)}.items():
            try:
                played = await self._play(task, [action], repeat=True)
            except Fault as fault:
                raise Fault(fault.kind, f"{fault.words}, after {what}") from None
            if played.solved:
                raise Fault("malformed-scores", f"{what} counts as solved")

    def _demonstration(self, task: Task, *, err: bool) -> list[str] | None:
        """The actions of the scripted expert, or the hidden answer in a box; None, and a note, where there is none."""
        rng = random.Random(f"{task.key}/{err}")
        try:
            messages: list[Message] = self.world.demonstrate(task, rng, err=err)
            return [m["content"] for m in messages if m["role"] == "assistant"]
        except (ValueError, NotImplementedError, AttributeError) as error:
            answer = task.hidden.get("answer")
            if not err and isinstance(answer, str | int | float) and not isinstance(error, ValueError):
                return [f"\\boxed{{{answer}}}"]
            self.say("undemonstrated", key=task.key, err=err, words=" ".join(str(error).split())[:200])
            return None
        except Exception as error:
            raise Fault("raises", f"demonstrate raised {type(error).__name__}: {error}") from None

    async def _close(self) -> None:
        """Twice, as it may be called; then nothing of this process may be left in the engine."""
        self.unit = ["close", "", 0]
        for _ in range(2):
            try:
                await self.calls("world.close", self.world.close)
            except Fault as fault:
                self.say("fault", kind=fault.kind, words=fault.words, split="", index=0, key="")
        await self.pool.close()
        if self.pool.used and (left := self.backend.count(self.order.run)):
            words = f"{left} sandboxes are left after the end"
            self.say("fault", kind="container-left", words=words, split="", index=0, key="")


def _prompt(task: Task) -> str:
    return "\n".join(message["content"] for message in task.messages)


def _malformed_task(task: Task, again: Task) -> list[tuple[str, str]]:
    """Kinds and words of what is wrong with a task, before anything is played."""
    found = []
    if not all(isinstance(m, dict) and isinstance(m.get("content"), str) for m in task.messages) or not task.messages:
        raise Fault("wrong-type", f"task {task.key!r} has messages {task.messages!r:.100}; expected texts with a role")
    try:
        json.dumps([dict(task.given), dict(task.hidden)], allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        found.append(("not-json", f"`given` or `hidden` is no JSON: {error}"))
    if (task.key, _prompt(task)) != (again.key, _prompt(again)) or task.content_hash != again.content_hash:
        found.append(("not-repeatable", "the same split and index gave two different tasks"))
    return found


def main() -> None:
    lines = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a world prints is no line of ours

    def say(said: str, **more: Any) -> None:
        lines.write(json.dumps({"said": said, **more}, default=str) + "\n")
        lines.flush()

    order = Order(**json.loads(sys.stdin.readline()))

    async def run() -> None:
        player = Player(order, say)
        try:
            await player.run()
        except Fault as fault:  # in making the tasks: there is nothing to play
            say("fault", kind=fault.kind, words=fault.words, split="", index=0, key="")
        except (ValueError, TypeError, OSError, MachineryError) as error:
            say("bad", words=" ".join(str(error).split()))
        await player.pool.close()
        say("end")
        os._exit(0)  # whatever a world left running must not keep us

    asyncio.run(run())


if __name__ == "__main__":
    main()
