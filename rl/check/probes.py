"""What is done with one task: right, wrong, empty and senseless answers, again, beside each other; a look inside."""

from __future__ import annotations

import functools
import itertools
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from envs import JudgeFailed, Message, Task, World, find
from rl.check import answers, inside, leaks, odd
from rl.check.episodes import Attempt, Calls, Played, named, play
from rl.check.kept import Kept
from rl.check.kinds import Fault
from rl.check.lent import UNIT, Pool
from rl.check.streams import At, prompt

REPEATS = 3
SUSPECT_REPEATS = 8
"""More attempts before a wrong verdict is told: a grader that decides by chance looks the same at first."""
STEADY = 3
"""Tasks on which a kind of wrong verdict was steady, after which it is believed at once."""
NO_EXPERT = "the world has no `demonstrate`"
MARK = "nosuchtool"
"""Said in one senseless answer, and by no world of its own accord."""
MALFORMED = {
    "a tool call that is not closed": "<tool: python>\nprint(1)",
    "a tool that there is not": f"<tool: {MARK}>\nx\n</tool>",
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
        tasks: Mapping[At, Task],
        pool: Pool,
        calls: Calls,
        kept: Kept,
        say: Callable[..., None],
        fault: Callable[[Fault, At, Task], None],
    ) -> None:
        self.world, self.tasks, self.pool, self.calls = world, tasks, pool, calls
        self.kept, self.say, self.fault = kept, say, fault
        self.known = {at: (prompt(task), leaks.golds(task)) for at, task in tasks.items()}
        self.right: dict[At, list[str] | None] = {}
        self.untouched: inside.Seen | None = None

    async def play(self, task: Task, actions: list[str], repeat: bool = False, **how: Any) -> Played:
        played = await play(self.calls, self.world, task, self.pool, actions, repeat, **how)
        texts = [*(m["content"] for m in played.opening), *played.heard, *played.after, json.dumps(played.facts)]
        if MARK not in "".join(actions) and (told := next((text for text in texts if MARK in text), "")):
            at = told.index(MARK)
            words = f"an attempt was told what another had said: {told[max(0, at - 30) : at + 30]!r}"
            raise Fault("state-shared", words)
        size = sum(len(message["content"]) for message in played.opening)
        self.kept.put("longest", (), max(self.kept["longest"].get((), 0), size))
        self.kept.put("ended", (played.ended,))
        place: Any = UNIT.get()[1:]
        if place in self.pool.takers and place in self.tasks:
            self.kept.put("took", place)
        return played

    async def _again(self, what: str, task: Task, actions: list[str], before: list[bool], repeat: bool = False) -> None:
        """Raises Fault where a verdict that is about to be called wrong is not the same each time."""
        steady = self.kept["steady"].get((what,), 0)
        if len(set(before)) == 1 and steady >= STEADY:
            return
        verdicts = before + [(await self.play(task, actions, repeat)).solved for _ in range(SUSPECT_REPEATS)]
        if len(set(verdicts)) > 1:
            raise Fault("not-repeatable", f"{what}, played {len(verdicts)} times, was solved {_times(verdicts)}")
        self.kept.put("steady", (what,), steady + 1)

    # -- the first tasks, one by one ------------------------------------------------------------------------------

    async def apart(self, at: At, task: Task) -> None:
        """Two attempts opened at a time are two objects."""
        first, second = (Attempt(self.calls, self.world, task, self.pool) for _ in range(2))
        for attempt in (first, second):
            await attempt.close()
        if first.env is second.env:
            raise Fault("state-shared", "open gave the same object twice, while the first attempt was not closed")

    async def empty(self, at: At, task: Task) -> None:
        """The answer without a word; and what the world says before any answer."""
        played = await self.play(task, [""], repeat=True)
        heard = "\n".join([prompt(task), *played.heard])
        self.kept.put("heard", at, heard)
        others = [said for place, said in self.known.items() if place != at]
        if told := leaks.in_task(task, heard, self._right_texts(task), others):
            self.fault(Fault("leak", told), at, task)
        if played.solved:
            self.kept.put("empty-solved", at)
            await self._again("the empty answer", task, [""], [True], repeat=True)
            raise Fault("empty-scores", "the empty answer counts as solved")

    async def malformed(self, at: At, task: Task) -> None:
        """What no world understands, and the prompt itself, are never solved; nothing raises or hangs."""
        solved = []
        senseless = {**MALFORMED, "the prompt itself": prompt(task)}
        for what, action in senseless.items():
            try:
                if (await self.play(task, [action], repeat=True)).solved:
                    solved.append(what)
            except Fault as fault:
                raise Fault(fault.kind, f"{fault.words}, after {what}") from None
        if len(solved) == len(senseless):
            await self._again("the prompt itself", task, [prompt(task)], [True], repeat=True)
            words = f"all of {len(solved)} senseless answers count as solved, e.g. {', '.join(solved[-3:])}"
            raise Fault("accepts-anything", words)
        if solved:
            await self._again(solved[0], task, [senseless[solved[0]]], [True], repeat=True)
            raise Fault("malformed-scores", f"{' and '.join(solved[:3])} counts as solved")

    async def called(self, at: At, task: Task) -> None:
        """Calls of each tool that its schema admits and no task asks for: told to the policy, not raised."""
        for tool in odd.tools(self.world):
            for given in odd.calls(tool):
                try:
                    await self.play(task, [tool.written(given)])
                except Fault as fault:
                    raise Fault(fault.kind, f"{fault.words}, after {tool.name}({json.dumps(given)[1:-1]})") from None

    async def wrong(self, at: At, task: Task, times: int = 2) -> None:
        actions, _ = self._demonstration(task, err=True)
        if actions is None:
            return
        played = [await self.play(task, actions, look=lambda: self._look(at, task))]
        played += [await self.play(task, actions) for _ in range(times - 1)]
        verdicts = [p.solved for p in played]
        if any(verdicts):
            await self._again("the same wrong answer", task, actions, verdicts)
            raise Fault("wrong-scores", f"a wrong answer counts as solved: {actions[-1][:100]!r}")
        if (paid := played[0].facts.get("reward")) is not None:
            self.kept.put("paid", at, paid)

    async def gold(self, at: At, task: Task, times: int = REPEATS) -> None:
        await self._readable(task)
        actions = await self._right(at, task)
        # Where the wrong answer showed no sandbox; before the first action, since later ones write what is right.
        look: dict[str, Any] = {"look": lambda: self._look(at, task), "look_first": True}
        if actions is None:
            if at in self.kept["took"]:
                await self.play(task, [""], **look)
            return
        self.pool.watchers[UNIT.get()] = functools.partial(self._sent, at, task)
        try:
            played = [await self.play(task, actions, **look)]
        finally:
            del self.pool.watchers[UNIT.get()]
        played += [await self.play(task, actions) for _ in range(times - 1)]
        verdicts = [p.solved for p in played]
        if not all(verdicts):
            self.kept.put("right", at, actions)
            await self._again("the same right answer", task, actions, verdicts)
            ended, facts = played[0].ended, played[0].facts
            if ended == "turns":
                if len(actions) > self.world.max_turns:
                    words = f"the right answer takes {len(actions)} turns; max_turns is {self.world.max_turns}"
                else:
                    words = f"step says done=False to the right answer's last action: {actions[-1][:60]!r}"
                raise Fault("never-done", words)
            said = json.dumps(facts)[:200] if facts else f"it ended for: {ended}"
            raise Fault("gold-fails", f"the right answer does not count as solved; {said}")
        if played[0].facts.get("tool_errors"):
            self.say("note", words="tools refuse calls of a right answer: the policy would learn such calls from it")
        paid = played[0].facts.get("reward")
        if paid is not None and (wrong := self.kept["paid"].get(at)) is not None and paid <= wrong:
            raise Fault("flat-reward", f"the right answer is paid {paid:g}, a wrong one {wrong:g}")

    async def afterwards(self, at: At, task: Task) -> None:
        """After and beside a right attempt, an empty one must still fail; beside another task's, each be right."""
        if at in self.kept["empty-solved"]:
            return
        if (await self.play(task, [""], repeat=True)).solved:
            await self._again("the empty answer after a right one", task, [""], [True], repeat=True)
            raise Fault("state-shared", "the empty answer counts as solved after another attempt was right")
        actions = await self._right(at, task)
        if actions is None or not (await self.play(task, actions)).solved:
            return
        first, second = await self._side_by_side((task, actions), (task, [""]))
        if second.solved or not first.solved:
            await self._always_right(task, actions)
            which = "the empty one" if second.solved else "the right one"
            raise Fault("state-shared", f"of two attempts side by side, {which} got the other's verdict")
        await self._beside_another(at, task, actions)

    async def _beside_another(self, at: At, task: Task, actions: list[str]) -> None:
        """A right attempt, interleaved with a right one at the next task of the split."""
        places = [place for place in self.tasks if place[0] == at[0]]
        place = places[(places.index(at) + 1) % len(places)]
        other = self.tasks[place]
        others = await self._right(place, other) if other is not task else None
        if others is None or not (await self.play(other, others)).solved:
            return
        first, second = await self._side_by_side((task, actions), (other, others))
        if not (first.solved and second.solved):
            await self._always_right(task, actions)
            await self._always_right(other, others)
            raise Fault("state-shared", f"right alone, and not side by side with an attempt at {other.key}")

    async def _always_right(self, task: Task, actions: list[str]) -> None:
        verdicts = [(await self.play(task, actions)).solved for _ in range(SUSPECT_REPEATS)]
        if not all(verdicts):
            words = f"the same right answer, played {len(verdicts)} times, was solved {_times(verdicts)}"
            raise Fault("not-repeatable", words)

    async def _side_by_side(self, *pairs: tuple[Task, list[str]]) -> list[Played]:
        """Attempts action by action in turn, the last begun measured first."""
        attempts = [Attempt(self.calls, self.world, task, self.pool) for task, _ in pairs]
        try:
            for attempt in attempts:
                await attempt.start()
            going = [True] * len(pairs)
            for turn in range(max(len(actions) for _, actions in pairs)):
                for number, (_, actions) in enumerate(pairs):
                    if going[number] and (turn < len(actions) or actions == [""]):
                        going[number] = await attempts[number].act(actions[min(turn, len(actions) - 1)])
            for attempt, goes_on in reversed(list(zip(attempts, going, strict=True))):
                if not goes_on and not attempt.played.ended:
                    await attempt.measured()
        finally:
            for attempt in attempts:
                await self.calls("close", attempt.env.close)
        return [attempt.played for attempt in attempts]

    # -- all others -----------------------------------------------------------------------------------------------

    async def each(self, at: At, task: Task) -> None:
        """Right, twice; wrong; and empty."""
        await self.empty(at, task)
        await self.wrong(at, task, times=1)
        await self.gold(at, task, times=2)

    # -- a look inside --------------------------------------------------------------------------------------------

    async def _look(self, at: At, task: Task) -> None:
        """Into the sandboxes that an attempt holds: history, hidden texts, answers. Once for each task."""
        if at in self.kept["looked"]:
            return
        total: Counter[str] = Counter()
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
            total.update(sandboxes=1, files=len(seen.files), repositories=len(seen.repositories))
            if seen.cut:
                self.say("note", words=f"{seen.cut} files of a sandbox of {task.key} were too large to be read")
            for kind, words in inside.told(seen, self.untouched, task, hidden):
                self.fault(Fault(kind, words), at, task)
        if total:
            self.kept.put("looked", at, {name: count for name, count in total.items() if count})

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

    async def _right(self, at: At, task: Task) -> list[str] | None:
        """The right actions: the expert's, else the hidden answer as it stands or in a box, where one of them is right.
        How a world without an expert wants it written is not known: where neither is solved, that is no fault.
        """
        if at not in self.right and at in self.kept["right"]:
            self.right[at] = self.kept["right"][at]
        if at not in self.right:
            actions, why = self._demonstration(task, err=False)
            answer = task.hidden.get("answer") if why == NO_EXPERT else None
            if isinstance(answer, str | int | float) and not isinstance(answer, bool):
                for action in (str(answer), f"\\boxed{{{answer}}}"):
                    if actions is None and (await self.play(task, [action])).solved:
                        actions = [action]
            if actions is None:
                self.say("undemonstrated", key=task.key, words=why)
            self.right[at] = actions
        return self.right[at]

    def _demonstration(self, task: Task, *, err: bool) -> tuple[list[str] | None, str]:
        """The actions of the scripted expert; or None, and why there is none."""
        if not hasattr(self.world, "demonstrate"):
            return None, NO_EXPERT
        what = f"the demonstration of a {'wrong' if err else 'right'} answer"
        self.calls.announce(what)
        try:
            messages: list[Message] = self.world.demonstrate(task, random.Random(f"{task.key}/{err}"), err=err)
        except NotImplementedError:
            return None, NO_EXPERT
        except ValueError as error:
            return None, f"{' '.join(str(error).split())[:200]}{find.place(error)}"
        except Exception as error:
            raise Fault("raises", f"{what} raised {named(error)}") from None
        answers.messages("demonstrate", messages)
        if not (actions := [m["content"] for m in messages if m["role"] == "assistant"]):
            raise Fault("wrong-type", "demonstrate gave no message of an assistant; expected what the expert says")
        return actions, ""

    def _right_texts(self, task: Task) -> set[str]:
        """What the expert says last, as it stands and out of its box: short enough to be announced in a prompt."""
        try:
            last = (self._demonstration(task, err=False)[0] or [""])[-1].strip()
        except Fault:
            return set()
        return {
            text.strip() for text in (last, *re.findall(r"\\boxed\{([^{}]*)\}", last)) if 0 < len(text) < leaks.LONG
        }


def _times(verdicts: list[bool]) -> str:
    """How often, and where they change only once, where that is."""
    right, changes = sum(verdicts), sum(a != b for a, b in itertools.pairwise(verdicts))
    times = f"{right} time{'s' * (right > 1)}"
    return f"{times}, all at the {'beginning' if verdicts[0] else 'end'}" if changes == 1 else times
