"""A world out of one small class: `@world` makes what `envs.World` asks for of the author's methods.

    @world                                      # or @world(max_turns=6, strict=True)
    class World:
        def task(self, rng): ...                # one problem: a dict with `prompt`, and all that stays hidden
        def grade(self, answer, gold): ...      # True or False, a number (solved from 1 on), or a dict of facts
        def right(self, gold): ...              # what a policy says that is right: a text, or several turns
        def wrong(self, gold, rng): ...

In place of `task`, `tasks` gives all there are. Optional are `start` and `close`, around an attempt. Every other public
method is a tool (envs/tools.py); an action without a call ends the attempt, and so does `self.done = True`. There is
one object for each attempt, so that `self` is its state and nobody else's.

A method is given what it names (`OFFERED`), and the fields of its task. A parameter with a default that is neither is
an argument of the world in the configuration. What the policy wrote is text: it may be run in a `sandbox` only.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any, overload

from envs import Env, EnvCrashed, Message, Split, Task, heldout, short
from envs.define.attempt import Attempt, at_once
from envs.sandboxes import SandboxPool
from envs.tools import Call, Tool, prompt

PLACES = ("sandbox", "task", "rng")
OFFERED: Mapping[str, tuple[str, ...]] = {
    "task": ("rng",),
    "tasks": (),
    "start": PLACES,
    "close": (),
    "grade": ("answer", "messages", "clean_sandbox", *PLACES),
    "right": ("task", "rng"),
    "wrong": ("task", "rng"),
}
"""What each method may ask for beside the task's fields. `answer`: the last that the policy said; `messages`: the whole
attempt; `sandbox`: the attempt's own, taken when it is first asked for; `clean_sandbox`: one it never had, in place of
its own, which is handed back before; `task`: the envs.Task; `rng`: random.Random, the same for every attempt at a task.
A tool may ask for `PLACES`."""
OF_TASK = ("prompt", "system", "key", "family", "level")
WITHOUT_FIELDS = ("task", "tasks", "close")
TRIES = 1000
"""Draws of `task` for one of the split that is asked for, before there seems to be none."""
TURNS = 8


@overload
def world(author: type, /) -> Made: ...
@overload
def world(*, max_turns: int = ..., strict: bool = ...) -> Callable[[type], Made]: ...
def world(author: type | None = None, /, *, max_turns: int = 0, strict: bool = False) -> Any:
    """`max_turns`: 1 without tools, else 8. `strict`: wrong arguments of a call end the attempt as an invalid action,
    as does always what cannot be read as a call; otherwise the policy is told in one sentence.
    """
    return Made(author, max_turns, strict) if author else lambda author: Made(author, max_turns, strict)


class Made:
    """What `World` of the author's file then is: called with a pool, a seed and settings, it gives the world."""

    def __init__(self, author: type, max_turns: int, strict: bool) -> None:
        self.author, self.strict = author, strict
        self.name = short(author.__module__.partition("@")[0])
        one = author()
        own = {n: getattr(one, n) for n, _ in inspect.getmembers(author, inspect.isroutine) if not n.startswith("_")}
        self.asked = {name: dict(inspect.signature(own[name]).parameters) for name in own}
        """By method, its parameters."""
        if ("task" in own) == ("tasks" in own):
            raise ValueError(f"world {self.name}: expected either `task`, one problem, or `tasks`, all there are")
        if "grade" not in own:
            raise ValueError(f"world {self.name} has no `grade`; it has {', '.join(own)}")
        if {"sandbox", "clean_sandbox"} <= self.asked["grade"].keys():
            raise ValueError(
                f"world {self.name}: grade asks for `sandbox` and `clean_sandbox`, and attempts that each hold one and "
                "want another would wait for ever; expected one of them, and what is needed of the other kept in `self`"
            )
        for name in ("task", "tasks", "right", "wrong"):
            if inspect.iscoroutinefunction(own.get(name)):
                raise ValueError(f"world {self.name}: `{name}` is async; expected a plain method")
        self.tools = {name: Tool.of(found, leave_out=PLACES) for name, found in own.items() if name not in OFFERED}
        self.max_turns = max_turns or (TURNS if self.tools else 1)
        self.settings = self._settings()
        keyword = inspect.Parameter.KEYWORD_ONLY
        self.__signature__ = inspect.Signature(
            [
                inspect.Parameter("sandboxes", inspect.Parameter.POSITIONAL_OR_KEYWORD),
                inspect.Parameter("seed", keyword, default=0),
                *(inspect.Parameter(name, keyword, default=value) for name, value in self.settings.items()),
            ]
        )

    def _settings(self) -> dict[str, Any]:
        """Parameters with a default that nothing else gives, by name."""
        found: dict[str, Any] = {}
        for name in OFFERED:
            for asked, parameter in self.asked.get(name, {}).items():
                if asked in OFFERED[name] or parameter.default is parameter.empty:
                    continue
                if asked in ("sandboxes", "seed"):
                    raise ValueError(f"world {self.name}: {name} cannot have a setting called {asked!r}")
                if found.setdefault(asked, parameter.default) != parameter.default:
                    raise ValueError(f"world {self.name}: two methods have different defaults for {asked!r}")
        return found

    def __call__(self, sandboxes: SandboxPool, *, seed: int = 0, **settings: Any) -> Defined:
        if unknown := sorted(set(settings) - set(self.settings)):
            known = ", ".join(self.settings) or "none"
            raise TypeError(f"got an unexpected argument {unknown[0]!r}; available: {known}")
        return Defined(self, sandboxes, seed, {**self.settings, **settings})


class Defined:
    """The world. Made only where its methods ask for nothing that its tasks do not have."""

    def __init__(self, made: Made, sandboxes: SandboxPool, seed: int, settings: Mapping[str, Any]) -> None:
        self.made, self.sandboxes, self.seed, self.settings = made, sandboxes, seed, settings
        self.name, self.max_turns, self.tools = made.name, made.max_turns, made.tools
        self.splits: dict[Split, list[Task]] | None = None
        self._order: tuple[int, list[int]] = (-1, [])
        if "tasks" in made.asked:
            found = {task.key: task for task in map(self._task, self._said("tasks", {}))}
            tasks = sorted(found.values(), key=lambda task: random.Random(task.key).random())
            self.splits = {
                "train": [task for task in tasks if not heldout(task.key)],
                "heldout": [task for task in tasks if heldout(task.key)],
            }
        self._check(self.task("train", 0))
        self._check(self.task("heldout", 0))

    def _check(self, task: Task) -> None:
        for name, own in OFFERED.items():
            known = [*own, *(() if name in WITHOUT_FIELDS else task.hidden), *self.settings]
            for asked in self.made.asked.get(name, {}):
                if asked not in known:
                    raise ValueError(f"world {self.name}: {name} asks for {asked!r}; available: {', '.join(known)}")

    def size(self, split: Split) -> int | None:
        return None if self.splits is None else len(self.splits[split])

    def task(self, split: Split, index: int) -> Task:
        if self.splits is None:
            return self._drawn(split, index)
        tasks = self.splits[split]
        if not tasks:
            count = sum(map(len, self.splits.values()))
            raise ValueError(
                f"world {self.name}: none of its {count} tasks is for {split}; a fifth is held out, by its key: "
                "expected more tasks"
            )
        turn, place = divmod(index, len(tasks))
        if split == "heldout":
            return tasks[place]
        if self._order[0] != turn:
            order = list(range(len(tasks)))
            random.Random(f"{self.name}/{self.seed}/{turn}").shuffle(order)
            self._order = (turn, order)
        return tasks[self._order[1][place]]

    def _drawn(self, split: Split, index: int) -> Task:
        place = f"{self.seed}/{split}/{index}" if split == "train" else f"{split}/{index}"
        for attempt in range(TRIES):
            task = self._task(self._said("task", {"rng": random.Random(f"{self.name}/{place}/{attempt}")}))
            if heldout(task.key) == (split == "heldout"):
                return task
        raise ValueError(f"world {self.name}: {TRIES} draws gave no task for {split}; expected more different ones")

    def _task(self, fields: Any) -> Task:
        if not isinstance(fields, Mapping) or not fields.get("prompt"):
            raise ValueError(f"world {self.name}: got the task {str(fields)[:80]}; expected a dict with `prompt`")
        hidden = {name: value for name, value in fields.items() if name not in OF_TASK}
        if taken := sorted({*hidden} & {*OFFERED["grade"], *self.settings}):
            raise ValueError(
                f"world {self.name}: a task cannot have a field called {taken[0]!r}, which is given otherwise; "
                "expected another name, as `gold` for what is right"
            )
        asked = fields["prompt"]
        messages = [{"role": "user", "content": asked}] if isinstance(asked, str) else [dict(m) for m in asked]
        told = [fields["system"]] if fields.get("system") else []
        told += [prompt(list(self.made.tools.values()))] if self.made.tools else []
        if told:
            messages.insert(0, {"role": "system", "content": "\n".join(told)})
        return Task(
            world=self.name,
            key=str(fields.get("key", hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:12])),
            family=str(fields.get("family", self.name)),
            level=int(fields.get("level", 0)),
            messages=tuple(messages),
            hidden=hidden,
        )

    def _said(self, name: str, offered: Mapping[str, Any], task: Task | None = None) -> Any:
        """What a plain method gives, called on an object of its own."""
        return getattr(self.made.author(), name)(**self.given(name, task, offered))

    def given(self, name: str, task: Task | None, offered: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a method: what it asks for of settings, a task's fields, and what else is offered."""
        everything = dict(offered)
        if name in OFFERED:  # a tool's arguments are the policy's to give
            fields = task.hidden if task and name not in WITHOUT_FIELDS else {}
            everything = {**self.settings, **fields, **offered}
        for asked, parameter in self.made.asked[name].items():
            if asked not in everything and parameter.default is parameter.empty:
                raise EnvCrashed(f"world {self.name}: {name} asks for {asked!r}, which this task has not")
        return {asked: everything[asked] for asked in self.made.asked[name] if asked in everything}

    def open(self, task: Task) -> Env:
        return Attempt(self, task)

    def demonstrate(self, task: Task, rng: random.Random, *, err: bool) -> list[Message]:
        """What tools answer is found by calling them, so they must need no sandbox and wait for nothing; otherwise the
        author gives it, as messages among the turns. Raises ValueError where there is no demonstration.
        """
        name = "wrong" if err else "right"
        if name not in self.made.asked:
            raise ValueError(f"world {self.name} has no `{name}`, so there is no {name} demonstration")
        own = copy.deepcopy(task)
        said = self._said(name, {"task": own, "rng": rng}, own)
        several = isinstance(said, Iterable) and not isinstance(said, str | Mapping)
        turns = list(said) if several else [said]
        if isinstance(said, Mapping) or not all(isinstance(turn, str | Call | Mapping) for turn in turns):
            raise TypeError(f"{name} answered with {str(said)[:80]!r}; expected a text, a Call, or a list of these")
        told = any(isinstance(turn, Mapping) for turn in turns)
        attempt = Attempt(self, task, alone=True)
        messages = list(task.messages if told else at_once(attempt.start(), self.name))
        for turn in turns:
            if isinstance(turn, Mapping):
                messages.append(dict(turn))
                continue
            if isinstance(turn, Call) and turn.name not in self.made.tools:
                known = ", ".join(self.made.tools) or "none"
                raise TypeError(f"{name} calls {turn.name!r}, which is no tool; available: {known}")
            action = self.made.tools[turn.name].written(turn.arguments) if isinstance(turn, Call) else turn
            messages.append({"role": "assistant", "content": action})
            if not told:
                messages += at_once(attempt.step(action), self.name).messages
        at_once(attempt.close(), self.name)
        return messages

    async def close(self) -> None:
        return None
