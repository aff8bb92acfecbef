"""Attempts for an audit, played by the rollout's own code without a model: right, wrong, empty, nearly right, exploits.

What an attempt truly is, is known by how it was made, not by what the grader says: a gold is right, an exploit is not.
Only of a near miss the hidden checks decide, since an edit may leave an answer right.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import envs
from envs import Episode, Task, World, exploits
from policy.engines import Completion, Sampling
from rl import rollout
from rl.check.streams import SCAN, prompt

if TYPE_CHECKING:
    from policy.chat import Chat

PIECE = 4
"""Characters of a token, where there is no tokenizer: about what a token of English or code is."""
ROOM = 10**7
AT_ONCE = 4
WRONG_KINDS = ("wrong", "empty", "echo", "exploit")


@dataclass(frozen=True, slots=True)
class Planned:
    """One attempt to be played."""

    world: str
    kind: str
    """gold, wrong, empty, echo, near-miss, exploit, or honest: what looks like an exploit and is none."""
    name: str
    task: Task
    actions: tuple[str, ...]
    group: str
    """Attempts at one task that are scored together."""


@dataclass(frozen=True, slots=True)
class Played:
    plan: Planned
    episode: Episode

    @property
    def right(self) -> bool:
        """The truth."""
        if self.plan.kind == "near-miss":
            return bool(self.episode.facts["solved"])
        return self.plan.kind not in WRONG_KINDS


def plan(name: str, ref: str, world: World, tasks: int) -> list[Planned]:
    """All attempts at the first `tasks` training tasks of a world, and all exploits that apply to it."""
    found: list[Planned] = []
    for task in _tasks(world, tasks):
        found += [Planned(name, kind, what, task, actions, task.key) for kind, what, actions in _at(world, task)]
    for exploit in _exploits(ref, world):
        for kind, actions in (("exploit", exploit.attack), ("honest", exploit.honest)):
            if actions:
                found.append(Planned(name, kind, exploit.name, exploit.task, tuple(actions), exploit.name))
    return found


def _tasks(world: World, count: int) -> list[Task]:
    found: dict[str, Task] = {}
    for index in range(SCAN * count):
        task = world.task("train", index)
        found.setdefault(task.key, task)
        if len(found) == count:
            break
    return list(found.values())


def _exploits(ref: str, world: World) -> Sequence[exploits.Exploit]:
    if ref in exploits.available():
        return exploits.against(ref, world)
    return tuple(getattr(envs.load(ref), "EXPLOITS", ()))


def _at(world: World, task: Task) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Kind, name and actions of every attempt at one task."""
    gold = _demonstrated(world, task, err=False)
    if gold:
        yield "gold", "gold", gold
    if wrong := _demonstrated(world, task, err=True):
        yield "wrong", "wrong", wrong
    yield "empty", "empty", ("",)
    yield "echo", "echo", (prompt(task),)
    for name, edit in EDITS.items():
        if near := _edited(gold, edit):
            yield "near-miss", name, near


def _demonstrated(world: World, task: Task, *, err: bool) -> tuple[str, ...]:
    """The actions of the scripted expert, or the hidden answer in a box; none where there is none."""
    try:
        messages = world.demonstrate(task, random.Random(f"{task.key}/{err}"), err=err)
        return tuple(message["content"] for message in messages if message["role"] == "assistant")
    except Exception:  # a world is a plug-in, and `rl check` says what is wrong with its experts
        answer = task.hidden.get("answer")
        return (f"\\boxed{{{answer}}}",) if not err and isinstance(answer, str | int | float) else ()


def _edited(actions: Sequence[str], edit: Callable[[str], str]) -> tuple[str, ...]:
    """The last action that the edit changes, changed; none where it changes none."""
    for place in range(len(actions) - 1, -1, -1):
        if (changed := edit(actions[place])) != actions[place]:
            return (*actions[:place], changed, *actions[place + 1 :])
    return ()


def _next_number(text: str) -> str:
    found = list(re.finditer(r"(?<![\w.])\d+(?![\w.])", text))
    return text if not found else text[: (m := found[-1]).start()] + str(int(m[0]) + 1) + text[m.end() :]


def _other_sign(text: str) -> str:
    swaps = {"+": "-", "-": "+", "<": "<=", ">": ">=", "<=": "<", ">=": ">", "==": "!=", "!=": "=="}
    found = list(re.finditer(r"(?<= )([+\-]|[<>]=?|[=!]=)(?= )", text))
    return text if not found else text[: (m := found[-1]).start()] + swaps[m[0]] + text[m.end() :]


EDITS: Mapping[str, Callable[[str], str]] = {
    "number": _next_number,
    "operator": _other_sign,
    "cut": lambda text: text[: len(text) // 2],
    "doubled": lambda text: text if len(text) < 2 else text + text,
}


async def play(planned: Sequence[Planned], places: Mapping[str, World], done: Callable[[], None]) -> list[Played]:
    """Play them, some at a time, as many turns as each world allows. One that the machinery loses is tried again."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(plan: Planned) -> Played:
        async with gate:
            episode = await _episode(places[plan.world], plan)
            if not episode.outcome.valid:
                episode = await _episode(places[plan.world], plan)
        done()
        return Played(plan, episode)

    return list(await asyncio.gather(*(one(plan) for plan in planned)))


async def _episode(world: World, plan: Planned) -> Episode:
    limits = rollout.Limits(context=ROOM, turn_tokens=ROOM, turns=world.max_turns, timeout_s=3600.0)
    chat = Pieces()
    member = await rollout.play(
        world, plan.task, _Said(plan.actions, chat), cast("Chat", chat), limits, {"outcome": {}}
    )
    return member.episode


class Pieces:
    """A chat without a tokenizer: texts as pieces of at most PIECE characters."""

    def __init__(self) -> None:
        self.stop_ids = [0]
        self._pieces = [""]
        self._ids: dict[str, int] = {"": 0}

    def encode(self, text: str) -> list[int]:
        return [self._id(text[at : at + PIECE]) for at in range(0, len(text), PIECE)]

    def _id(self, piece: str) -> int:
        if piece not in self._ids:
            self._ids[piece] = len(self._pieces)
            self._pieces.append(piece)
        return self._ids[piece]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self._pieces[id] for id in ids)

    def opening(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        return self.encode("".join(message["content"] for message in messages))

    def answer(self, messages: Sequence[Mapping[str, str]], sampled: Sequence[int]) -> list[int]:
        return self.opening(messages)


class _Said:
    """Says given actions, the last one again and again: an engine for one attempt."""

    def __init__(self, actions: Sequence[str], chat: Pieces) -> None:
        self.actions, self.chat = actions, chat
        self.turn = 0

    async def generate(self, ids: Sequence[int], sampling: Sampling) -> Completion:
        said = [*self.chat.encode(self.actions[min(self.turn, len(self.actions) - 1)]), self.chat.stop_ids[0]]
        self.turn += 1
        return Completion(ids=said, logprobs=[0.0] * len(said), versions=[0] * len(said), stopped=True)
