"""Environments of Gymnasium, of its predecessor Gym, and of SkyRL-Gym as worlds of text.

    worlds: {lake: {world: gymnasium, args: {env: FrozenLake-v1, actions: [left, down, right, up], max_turns: 30}}}

`env` is a registered id, or the class itself as `module:Class` or `file.py:Class`. `reset` and `step` may answer with
4- and 5-tuples, or `init` and `step` with SkyRL-Gym's messages and dicts; the latter take rows of `data`, which must
have a column `prompt`. A task is a seed, or a row. The policy answers with one action, in the last
`<action>…</action>` or as all that it says: a number or a name of a discrete space, JSON for spaces of numbers, any
text otherwise.

An action that cannot be read costs a turn, and earns `misread_reward`: by default the least that a turn of this
attempt, or of a few played by chance when the world is built, has paid, and 0 at most. So where each step costs,
refusing to act does not pay; where a dearer turn is rarer than that, state it.

`facts["rewards"]` are those by turn, `facts["reward"]` is their sum. Solved is what the last info says under `success`
or `is_success`, else a sum of `solved_at` and more. `facts["ended"]` is `terminated`, `truncated` or `turns`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from envs import Env, EnvCrashed, Facts, Message, Split, Step, Task, heldout
from envs.adapters.shared import rows, spaces
from envs.adapters.shared.played import Heard, Played, Simulator, maker
from envs.adapters.shared.reference import resolve
from envs.adapters.shared.thread import Thread
from envs.rows.deck import Deck
from envs.sandboxes import SandboxPool

TRIES = 20
PROBES = 5
"""Attempts by chance that tell what a turn may cost."""


class World:
    """`args`: those of the environment. `actions`: names of a discrete space's actions, in order. `prompt`: what is
    said before the first observation. `render` shows the environment's own drawing (`ansi`) beside the observation.
    `expert`: `expert(observation, info, env)` gives the right next action; without it there is no right demonstration.
    `split_by`: columns that decide a row's split, by default `prompt`.
    """

    name = "gymnasium"

    def __init__(
        self,
        sandboxes: SandboxPool,
        *,
        env: str,
        args: Mapping[str, Any] | None = None,
        seed: int = 0,
        actions: Sequence[str] | None = None,
        prompt: str = "",
        render: bool = False,
        solved_at: float = 1.0,
        max_turns: int = 20,
        misread_reward: float | None = None,
        data: str | None = None,
        split_by: Sequence[str] | None = None,
        expert: str | None = None,
    ) -> None:
        if max_turns < 1:
            raise ValueError(f"world {self.name}: got max_turns={max_turns}; expected 1 or more")
        if misread_reward is not None and not math.isfinite(misread_reward):
            raise ValueError(f"world {self.name}: got misread_reward={misread_reward}; expected a finite number")
        self.make = maker(env, dict(args or {}), render)
        self.env = env.rpartition(":")[2]
        self.seed, self.solved_at, self.max_turns = seed, solved_at, max_turns
        self.render, self.actions = render, tuple(map(str, actions)) if actions else ()
        self.expert: Any = resolve(expert, "expert") if expert else None
        self.stream: Deck | None = None
        if (data is not None) != self.make.wants_rows:
            words = (
                "begins with a row; expected `data`" if data is None else "begins with a seed, so `data` has no effect"
            )
            raise ValueError(f"world {self.name}: {env} {words}")
        if split_by is not None and data is None:
            raise ValueError(f"world {self.name}: `split_by` has no effect without `data`; leave it out")
        if data is not None:
            read = rows.read(data, self.name)
            if "prompt" not in read.columns:
                raise ValueError(
                    f"world {self.name}: {data} has no column 'prompt'; available: {', '.join(read.columns)}"
                )
            made = rows.tasks(read, self.name, self._row_task, same=dict)
            side = rows.side(read, self.name, split_by)
            self.stream = Deck(self.name, data, made, seed, read.report, side)
        elif self.make.wants_rows:
            raise ValueError(
                f"world {self.name}: {env} is one of SkyRL-Gym's, which begins with a row; expected `data`"
            )
        try:
            self.reader = spaces.reader(self.make.space(), self.actions)
        except ValueError as error:
            raise ValueError(f"world {self.name}: {env}: {error}") from None
        self.opening = prompt or f"You play {self.env}."
        if self.reader.how:
            self.opening = f"{self.opening}\n{self.reader.how}"
        self.stated = misread_reward is not None
        self.misread_reward = self._least() if misread_reward is None else float(misread_reward)

    def _least(self) -> float:
        """The lowest reward of a turn that chance came by, and 0 at most. Raises ValueError where it cannot play."""
        rng, least = random.Random(0), 0.0
        if self.reader.any is None:  # any text is an action
            return least
        try:
            for number in range(PROBES):
                least = min(least, *self._demonstrated(self._seeded(number, str(number)), rng, True)[1].rewards)
        except Exception as error:  # whatever the user's class raises is told, not traced
            raise ValueError(
                f"world {self.name}: {self.env} could not be played by chance, to learn what a turn costs: "
                f"{type(error).__name__}: {error}; fix it, or state `misread_reward`"
            ) from None
        return least

    def task(self, split: Split, index: int) -> Task:
        if self.stream is not None:
            return self.stream.task(split, index)
        own = f"{self.seed}/" if split == "train" else ""
        rng = random.Random(f"{self.env}/{split}/{own}{index}")
        while True:
            number = rng.randrange(2**31)
            key = f"{self.env}/{number}"
            if heldout(key) == (split == "heldout"):
                break
        return self._seeded(number, key)

    def _seeded(self, number: int, key: str) -> Task:
        return Task(
            world=self.name,
            key=key,
            family=self.env,
            level=0,
            messages=({"role": "user", "content": self.opening},),
            given={"seed": number},
        )

    def _row_task(self, row: dict[str, Any], key: str) -> Task:
        return Task(
            world=self.name,
            key=key,
            family=self.env,
            level=0,
            messages=rows.messages(row["prompt"]),
            given={"row": key},
            hidden={"columns": row},
        )

    def size(self, split: Split) -> int | None:
        return None if self.stream is None else self.stream.size(split)

    def open(self, task: Task) -> Env:
        return Attempt(self, task)

    def demonstrate(self, task: Task, rng: random.Random, *, err: bool) -> list[Message]:
        if self.expert is None and (not err or self.reader.any is None):
            raise ValueError(f"nobody here knows the right actions of {self.env}: give `expert`, a function that does")
        for _ in range(TRIES):
            talk, played = self._demonstrated(task, rng, err)
            if played.solved(self.solved_at) != err:
                return talk
        right = "fail" if err else "solve it"
        raise ValueError(f"the demonstration of {task.key} does not {right} in {TRIES} tries")

    def _demonstrated(self, task: Task, rng: random.Random, err: bool) -> tuple[list[Message], Played]:
        simulator = Simulator(self.make, task, self.render)
        played = Played()
        try:
            heard = simulator.start()
            talk = opening(task, heard)
            while not played.ended:
                chance = self.reader.any if err else None
                action = chance(rng) if chance else self.expert(heard.observation, heard.info, simulator.env)
                heard = simulator.step(action)
                played.count(heard, self.max_turns)
                talk.append({"role": "assistant", "content": self.reader.write(action)})
                talk += [] if played.ended else heard.messages
            return talk, played
        finally:
            simulator.close()

    async def close(self) -> None:
        return None


def opening(task: Task, heard: Heard) -> list[Message]:
    """What the policy reads first: the prompt, and below it the first observation where that is a text."""
    if heard.replaces:
        return heard.messages
    *before, last = [dict(message) for message in task.messages]
    first = "\n\n".join(message["content"] for message in heard.messages)
    return [*before, {**last, "content": f"{last['content']}\n\n{first}" if first else last["content"]}]


class Attempt:
    def __init__(self, world: World, task: Task) -> None:
        self.world, self.task = world, task
        self.thread = Thread()
        self.played = Played()
        self.simulator: Simulator | None = None

    async def start(self) -> Sequence[Message]:
        try:
            self.simulator = await self.thread(Simulator, self.world.make, self.task, self.world.render)
            return opening(self.task, await self.thread(self.simulator.start))
        except Exception as error:
            raise EnvCrashed(f"{self.world.env} at its start: {type(error).__name__}: {error}") from error

    async def step(self, action: str) -> Step:
        assert self.simulator is not None
        try:
            meant = self.world.reader.read(action)
        except ValueError as error:
            self.played.misread += 1
            earned = self.world.misread_reward
            if not self.world.stated:
                earned = min(earned, *self.played.rewards, 0.0)
            self.played.turn(earned, self.world.max_turns)
            said: list[Message] = [{"role": "user", "content": str(error)}]
            return Step(done=True) if self.played.ended else Step(messages=tuple(said))
        try:
            heard = await self.thread(self.simulator.step, meant)
            self.played.count(heard, self.world.max_turns)
        except Exception as error:
            raise EnvCrashed(
                f"{self.world.env} at turn {self.played.turns + 1}: {type(error).__name__}: {error}"
            ) from error
        return Step(done=True) if self.played.ended else Step(messages=tuple(heard.messages))

    async def measure(self) -> Facts:
        return self.played.facts(self.world.solved_at)

    async def close(self) -> None:
        simulator, self.simulator = self.simulator, None
        try:
            if simulator is not None:
                await self.thread(simulator.close)
        finally:
            self.thread.close()
