"""What is done with one task: right, wrong, empty and senseless answers, again, beside each other; a look inside."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Callable
from typing import Any

from envs import JudgeFailed, Message, Task, World
from rl.check import inside, leaks
from rl.check.episodes import UNIT, Attempt, Calls, Fault, Played, Pool, play
from rl.check.streams import At, prompt

REPEATS = 3
SUSPECT_REPEATS = 8
"""Before one attempt is said to change another's verdict: a grader that decides by chance looks the same at first."""
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
FEWEST_SENT = 12
"""Characters of expected values as JSON from which on they are not sent to a sandbox by accident."""


class Probes:
    def __init__(
        self,
        world: World,
        pool: Pool,
        calls: Calls,
        say: Callable[..., None],
        fault: Callable[[Fault, At, Task], None],
    ) -> None:
        self.world, self.pool, self.calls, self.say, self.fault = world, pool, calls, say, fault
        self.heard: dict[At, str] = {}
        self.empty_failed: set[At] = set()
        self.untouched: inside.Seen | None = None

    async def play(self, task: Task, actions: list[str], repeat: bool = False, **how: Any) -> Played:
        return await play(self.calls, self.world, task, self.pool, actions, repeat, **how)

    # -- the first tasks, one by one ------------------------------------------------------------------------------

    async def empty(self, at: At, task: Task) -> None:
        """The answer without a word; and what the world says before any answer."""
        played = await self.play(task, [""], repeat=True)
        self.heard[at] = "\n".join([prompt(task), *played.heard])
        if told := leaks.in_task(task, self.heard[at]):
            self.fault(Fault("leak", told), at, task)
        if played.solved:
            self.empty_failed.add(at)
            raise Fault("empty-scores", "the empty answer counts as solved")

    async def malformed(self, at: At, task: Task) -> None:
        """What no world understands, and the prompt itself, are never solved; nothing raises or hangs."""
        for what, action in {**MALFORMED, "the prompt itself": prompt(task)}.items():
            try:
                played = await self.play(task, [action], repeat=True)
            except Fault as fault:
                raise Fault(fault.kind, f"{fault.words}, after {what}") from None
            if played.solved:
                raise Fault("malformed-scores", f"{what} counts as solved")

    async def wrong(self, at: At, task: Task, times: int = 2) -> None:
        actions = self._demonstration(task, err=True)
        if actions is None:
            return
        played = [await self.play(task, actions, look=lambda: self._look(at, task))]
        played += [await self.play(task, actions) for _ in range(times - 1)]
        if played[0].solved != played[-1].solved:
            raise Fault("not-repeatable", "the same wrong answer was solved once and once not")
        if played[0].solved:
            raise Fault("wrong-scores", f"a wrong answer counts as solved: {actions[-1][:100]!r}")

    async def gold(self, at: At, task: Task, times: int = REPEATS) -> None:
        await self._readable(task)
        actions = self._demonstration(task, err=False)
        if actions is None:
            return
        self.pool.watchers[UNIT.get()] = functools.partial(self._sent, at, task)
        try:
            played = [await self.play(task, actions)]
        finally:
            del self.pool.watchers[UNIT.get()]
        played += [await self.play(task, actions) for _ in range(times - 1)]
        right = sum(p.solved for p in played)
        if 0 < right < times:
            raise Fault("not-repeatable", f"the same right answer was solved {right} times of {times}")
        if not right:
            said = json.dumps(played[0].facts)[:200] if played[0].facts else f"it ended for: {played[0].ended}"
            raise Fault("gold-fails", f"the right answer does not count as solved; {said}")

    async def afterwards(self, at: At, task: Task) -> None:
        """After and beside a right attempt, an empty one must still fail, and the right one still be right."""
        if at in self.empty_failed:
            return
        if (await self.play(task, [""], repeat=True)).solved:
            raise Fault("state-shared", "the empty answer counts as solved after another attempt was right")
        actions = self._demonstration(task, err=False)
        if actions is None or not (await self.play(task, actions)).solved:
            return
        first, second = await self._side_by_side(task, actions)
        if second.solved or not first.solved:
            if not all([(await self.play(task, actions)).solved for _ in range(SUSPECT_REPEATS)]):
                raise Fault("not-repeatable", "the same right answer is not always solved")
            which = "the empty one" if second.solved else "the right one"
            raise Fault("state-shared", f"of two attempts side by side, {which} got the other's verdict")

    async def _side_by_side(self, task: Task, actions: list[str]) -> tuple[Played, Played]:
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
        return first.played, second.played

    # -- all others -----------------------------------------------------------------------------------------------

    async def each(self, at: At, task: Task) -> None:
        """Right, twice; wrong; and empty."""
        await self.empty(at, task)
        await self.wrong(at, task, times=1)
        await self.gold(at, task, times=2)

    # -- a look inside --------------------------------------------------------------------------------------------

    async def _look(self, at: At, task: Task) -> None:
        """Into the sandboxes that an attempt holds: history, hidden texts, answers."""
        for lent in self.pool.own():
            hidden = inside.secrets(self.world, task)
            names = sorted(self.world.paths(task)) if hasattr(self.world, "paths") else []
            if self.untouched is None:
                fresh = await self.pool.pool.acquire()
                try:
                    self.untouched = await inside.look(fresh, [])
                finally:
                    await fresh.close()
            try:
                seen = await inside.look(lent.sandbox, names)
            except JudgeFailed as error:
                raise Fault("judge-fails", str(error)) from None
            counts = {"sandboxes": 1, "files": len(seen.files), "repositories": len(seen.repositories)}
            self.say("looked", counts={name: count for name, count in counts.items() if count})
            if seen.cut:
                self.say("note", words=f"{seen.cut} files of a sandbox of {task.key} were too large to be read")
            for kind, words in inside.told(seen, self.untouched, task, hidden):
                self.fault(Fault(kind, words), at, task)

    def _sent(self, at: At, task: Task, data: bytes) -> None:
        """Expected values on their way into a sandbox that also runs the answer."""
        given = json.dumps([task.hidden.get(name) for name in ("inputs", "arguments")])
        for name in ("outputs", "expected", "answers"):
            value = task.hidden.get(name)
            for text in {json.dumps(value), json.dumps(value, separators=(",", ":"))}:
                if isinstance(value, list) and len(text) >= FEWEST_SENT and text not in given and text.encode() in data:
                    self.fault(Fault("sandbox-tells", f"the hidden `{name}` was sent to a sandbox"), at, task)

    # -- demonstrations -------------------------------------------------------------------------------------------

    async def _readable(self, task: Task) -> None:
        """Where a world's judge can check a gold answer by itself, it does: equal text alone does not make it one."""
        check = getattr(getattr(self.world, "judge", None), "check", None)
        if check is None or task.hidden.get("kind") == "literal":
            return
        for gold in task.hidden.get("answers") or [task.hidden.get("answer")]:
            if isinstance(gold, str):
                await self.calls("judge.check", functools.partial(check, gold))

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
