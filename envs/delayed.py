"""Another world behind log-normal waits: long-tailed latencies like those of remote tools and test suites, anywhere.

    worlds: {delayed: {args: {world: math, median_s: 2.0, sigma: 1.2, args: {levels: [0]}}}}

Every action waits exp(N(ln median_s, sigma)) seconds before the inner world sees it. The draws follow from seed, task
and number of the attempt, so two runs wait alike. The waits count in no time budget; `facts["waited_s"]` is their sum.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import envs
from envs import Env, Facts, Message, Split, Step, Task
from envs.sandboxes import SandboxPool


class World:
    """`world` and `args`: the inner world and its arguments; `median_s` and `sigma` of the wait for one action."""

    name = "delayed"

    def __init__(
        self,
        sandboxes: SandboxPool,
        *,
        seed: int = 0,
        world: str = "math",
        args: Mapping[str, Any] | None = None,
        median_s: float = 1.0,
        sigma: float = 1.0,
    ) -> None:
        if median_s <= 0 or sigma < 0:
            raise ValueError(f"got median_s={median_s}, sigma={sigma}; expected more than 0, and 0 or more")
        if world == self.name:
            raise ValueError(f"got world={world!r} inside itself; expected another world")
        self.inner = envs.load(world).World(sandboxes, seed=seed, **(args or {}))
        self.seed, self.median_s, self.sigma = seed, median_s, sigma
        self.max_turns: int = self.inner.max_turns
        self._opened: Counter[str] = Counter()

    def task(self, split: Split, index: int) -> Task:
        return replace(self.inner.task(split, index), world=self.name)

    def open(self, task: Task) -> Env:
        self._opened[task.key] += 1
        rng = random.Random(f"{self.seed}/{task.key}/{self._opened[task.key]}")
        return DelayedEnv(self.inner.open(task), self, rng)

    def demonstrate(self, task: Task, rng: random.Random, *, err: bool) -> list[Message]:
        messages: list[Message] = self.inner.demonstrate(task, rng, err=err)
        return messages

    async def ready(self) -> None:
        if hasattr(self.inner, "ready"):
            await self.inner.ready()

    async def close(self) -> None:
        await self.inner.close()


class DelayedEnv:
    def __init__(self, inner: Env, world: World, rng: random.Random) -> None:
        self.inner, self.world, self.rng = inner, world, rng
        self.waited_s = 0.0

    async def start(self) -> Sequence[Message]:
        return await self.inner.start()

    async def step(self, action: str) -> Step:
        wait_s = self.rng.lognormvariate(math.log(self.world.median_s), self.world.sigma)
        await asyncio.sleep(wait_s)
        self.waited_s += wait_s
        return await self.inner.step(action)

    async def measure(self) -> Facts:
        return {**await self.inner.measure(), "waited_s": self.waited_s}

    async def close(self) -> None:
        await self.inner.close()
