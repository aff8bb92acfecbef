"""A world with one planted fault, named by `fault`, for the tests of `rl check`; without one it is fit."""

import asyncio
import json
import os
import random
import time
from collections.abc import Sequence
from typing import Any

from envs import JudgeFailed, Message, Split, Step, Task, heldout
from envs.exploits import Exploit, Limit

FAULTS = (
    "",
    "leak-told",
    "leak-given",
    "leak-place",
    "leak-cases",
    "leak-long",
    "leak-heard",
    "any-answer",
    "any-wrong",
)
FAULTS += (
    "contains",
    "random",
    "random-tasks",
    "shared",
    "shared-world",
    "same-keys",
    "same-prompts",
    "hangs",
    "blocks",
)
FAULTS += ("raises", "raises-malformed", "huge", "huge-facts", "gold-fails", "solved-1", "no-step", "no-facts")
FAULTS += ("not-json", "task-not-json", "no-task", "unparsable-gold", "judge-fails", "exits", "no-gold", "keeps")
FAULTS += ("blocks-in-task", "needs-sandbox", "unsound-gold", "any-of-two", "strict", "no-verdict")
FAULTS += ("future", "remote", "dangling", "bad-3", "bad-row", "kills-late", "silence-scores", "late-sandbox")
GIT = "git init -q . && git config user.email a@b && git config user.name a && touch a && git add a && git commit -qm 1"
HISTORIES = {
    "future": f"{GIT} && echo 2 >a && git commit -qam 2 && git tag next && git reset -q --hard HEAD~",
    "remote": f"{GIT} && git remote add origin https://example.org/project",
    "dangling": f"{GIT} && echo future | git hash-object -w --stdin && git gc -q",
    "": GIT,
}
TASK = Task(
    world="planted",
    key="exploit",
    family="exploit",
    level=0,
    messages=({"role": "user", "content": "What is 50 + 50?"},),
    hidden={"answer": "100"},
)
EXPLOITS = (
    Exploit(name="two answers", tries="names two numbers", task=TASK, attack=("100 or 101",), honest=(" 100 ",)),
    Exploit(name="half", tries="says half a character, which is repeated", task=TASK, attack=("100\ud800",), honest=()),
    Exploit(name="words", tries="says so", task=TASK, attack=("the right one",), honest=()),
)
LIMITS = (Limit(name="silence", actions=("...",), says=("silent",)),)


class World:
    name = "planted"
    max_turns = 2

    def __init__(
        self,
        sandboxes: Any,
        *,
        seed: int = 0,
        fault: str = "",
        finite: int = 0,
        git: bool = False,
        unknown: Sequence[bool] = (),
    ) -> None:
        """`unknown`: which demonstrations there are not, the wrong one (true), the right one (false)."""
        if fault not in FAULTS:
            raise ValueError(f"got fault={fault}; available: {', '.join(FAULTS)}")
        self.sandboxes, self.seed, self.fault = sandboxes, seed, fault
        self.last = ""
        self.judge = Judge() if fault == "unsound-gold" else None
        self.solved: set[str] = set()
        self.finite, self.git, self.unknown = finite, git, unknown
        self.chance = random.Random(1)

    def size(self, split: Split) -> int | None:
        return self.finite or None

    def task(self, split: Split, index: int) -> Task:
        if self.fault == "no-task":
            return None  # type: ignore[return-value]
        if self.fault == "blocks-in-task":
            time.sleep(1000)
        if self.finite:
            index %= self.finite
        rng = random.Random(None if self.fault == "random-tasks" else f"{split}/{index}")
        while True:
            a, b = rng.randint(100, 999), rng.randint(100, 999)
            key = f"{a}+{b}"
            if self.fault == "same-keys":
                key = str(index)
            if self.fault == "same-keys" or heldout(key) == (split == "heldout"):
                break
        question, given, answer = f"What is {a} + {b}?", {}, str(a + b)
        hidden: dict[str, Any] = {"answer": answer}
        if self.fault == "same-prompts":
            question, hidden = f"Guess number {index}.", {"answer": "7"}
        if self.fault == "leak-told":
            question += f" (The answer is {answer}.)"
        if self.fault == "leak-place":
            question += f" Mind {answer} well."
        if self.fault == "leak-given":
            given = {"meta": {"n": 1}, "answer": answer}
        if self.fault == "leak-cases":
            question += " For 3 print 4. For 55 print 56."
            hidden |= {"inputs": ["3 print\n", "55 print\n"], "outputs": ["4\n", "56\n"]}
        if self.fault == "leak-long":
            hidden["program"] = f"def solve():\n    return sum([{a}, {b}])  # the way to do it\n"
            given = {"files": {"main.py": f"import os\n{hidden['program']}\n"}}
        if self.fault == "dangling":
            hidden |= {"outputs": [answer, key, "something long"]}
        if self.fault in ("bad-3", "kills-late"):
            hidden["number"] = index
        if self.fault == "task-not-json" or (self.fault == "bad-row" and index == 3):
            hidden["moment"] = {1, 2}
        return Task(
            world="planted",
            key=key,
            family="sum",
            level=0,
            messages=({"role": "user", "content": question},),
            given=given,
            hidden=hidden,
        )

    def open(self, task: Task) -> "Env":
        return Env(self, task)

    def demonstrate(self, task: Task, rng: random.Random, *, err: bool) -> list[Message]:
        if (self.fault == "no-gold" and not err) or err in self.unknown:
            raise ValueError("nobody knows")
        answer = int(task.hidden["answer"]) + (1 if err else 0)
        return [*task.messages, {"role": "assistant", "content": f"{answer}"}]

    async def close(self) -> None:
        return None


class Judge:
    async def check(self, gold: str) -> None:
        raise JudgeFailed(f"the gold answer {gold!r} does not equal itself")


class Env:
    def __init__(self, world: World, task: Task) -> None:
        self.world, self.task, self.fault, self.said = world, task, world.fault, ""
        self.sandbox: Any = None

    async def start(self) -> list[Message]:
        answer = self.task.hidden["answer"]
        commands = {
            **HISTORIES,
            "future": f"{HISTORIES['future']} && mkdir -p deep/er && echo {answer} >deep/er/note",
            "remote": f"{HISTORIES['remote']} && echo 'the answer: {answer}' >/tmp/log",
        }
        if self.fault in commands and (self.fault or self.world.git):
            self.sandbox = await self.world.sandboxes.acquire()
            stdin = json.dumps(self.task.hidden).encode() if self.fault == "dangling" else b""
            done = await self.sandbox.exec(commands[self.fault] or "true", stdin=stdin)
            assert done.exit_code == 0, done.stderr
        return list(self.task.messages)

    async def step(self, action: str) -> Any:
        self.said = self.world.last = action
        if self.fault == "hangs":
            await asyncio.sleep(1000)
        if self.fault == "blocks":
            while True:
                pass
        if self.fault == "exits" or (self.fault == "kills-late" and self.task.hidden.get("number") == 11):
            os._exit(0)
        if self.fault == "raises":
            raise KeyError("nothing here")
        if self.fault == "raises-malformed" and action.startswith("\\boxed{"):
            raise IndexError("no closing brace")
        if self.fault == "huge":
            return Step(messages=({"role": "tool", "content": "x" * 10_000_000},))
        if self.fault == "leak-heard" and not action:
            return Step(messages=({"role": "tool", "content": f"wrong; the answer is {self.task.hidden['answer']}"},))
        if self.fault == "no-step":
            return (True, [])
        if self.fault in ("keeps", "needs-sandbox", "late-sandbox"):
            self.sandbox = await self.world.sandboxes.acquire()
        return Step(done=True)

    async def measure(self) -> Any:
        answer = self.task.hidden["answer"]
        solved: Any = self.said.strip() == answer
        match self.fault:
            case "any-answer":
                solved = True
            case "any-wrong":
                solved = self.said.isdecimal()
            case "contains":
                solved = bool(self.said) and (self.said in answer or len(self.said) > 1000)
            case "random":
                solved = solved and self.world.chance.random() < 0.5
            case "any-of-two":
                solved = solved or self.said.startswith(f"{answer} or")
            case "silence-scores":
                solved = solved or self.said == "..."
            case "strict":
                solved = self.said == answer
            case "no-verdict":
                return {"solved": solved}
            case "bad-3":
                solved = solved and self.task.hidden.get("number") not in (3, 12)
            case "shared":
                solved = self.world.last == answer
            case "shared-world":
                self.world.solved |= {self.task.key} if solved else set()
                solved = self.task.key in self.world.solved
            case "gold-fails":
                solved = False
            case "solved-1":
                solved = int(solved)
            case "no-facts":
                return None
            case "not-json":
                return {"solved": solved, "answer": {1, 2}}
            case "huge-facts":
                return {"solved": solved, "log": "x" * 1_000_000}
            case "unparsable-gold":
                raise JudgeFailed(f"unparsable gold {answer!r}")
            case "judge-fails":
                raise JudgeFailed("it is gone")
        return {"solved": solved, "verdict": "silent" if self.said == "..." else "heard", "said": self.said[:9]}

    async def close(self) -> None:
        if self.sandbox is not None and self.fault != "keeps":
            await self.sandbox.close()
