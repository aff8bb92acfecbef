"""Faults at the boundaries between rollouts and the machinery; which attempt is hit is drawn from a seed, once each.

    faults = Faults("sandbox_exec", rate=0.1, seed=0)
    world = FaultyWorld(envs.load("code").World(faults.pool(pool)), faults)
    engine = faults.engine(engine)

An attempt that is hit fails at its first call over that boundary; the others are not touched.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from envs import Env, Facts, JudgeFailed, Message, Split, Step, Task, World
from envs.sandboxes import ExecResult, Need, Sandbox, SandboxLost, SandboxPool, SandboxUnavailable, Service, Snapshot
from policy.engines import Completion, EngineLost, Sampler, Sampling

BOUNDARIES = ("sandbox_create", "sandbox_exec", "mid_episode_death", "grading", "judge_hang", "engine_crash")
Kill = Callable[[Sandbox], Awaitable[None]]


@dataclass(slots=True)
class _Fate:
    hit: bool
    done: bool = False


_fate: ContextVar[_Fate] = ContextVar("fate")


@dataclass(slots=True)
class Faults:
    boundary: str
    """One of BOUNDARIES."""
    rate: float
    seed: int
    kill: Kill | None = None
    """Really ends a sandbox; for `mid_episode_death`."""
    attempts: int = 0
    struck: int = 0
    _rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._rng = random.Random(f"{self.boundary}/{self.seed}")

    def draw(self) -> None:
        """The fate of the attempt that begins in this task."""
        self.attempts += 1
        _fate.set(_Fate(hit=self._rng.random() < self.rate))

    def strikes(self, boundary: str) -> bool:
        """Whether this call is the one that fails."""
        fate = _fate.get(None)
        if boundary != self.boundary or fate is None or fate.done or not fate.hit:
            return False
        fate.done = True
        self.struck += 1
        return True

    def pool(self, pool: SandboxPool) -> FaultyPool:
        return FaultyPool(pool, self)

    def engine(self, engine: Sampler) -> FaultyEngine:
        return FaultyEngine(engine, self)


class FaultyPool:
    def __init__(self, pool: SandboxPool, faults: Faults) -> None:
        self._pool, self._faults = pool, faults

    async def acquire(self, snapshot: Snapshot | None = None, *, image: str | None = None) -> Sandbox:
        if self._faults.strikes("sandbox_create"):
            raise SandboxUnavailable("injected: no sandbox could be made")
        return FaultySandbox(await self._pool.acquire(snapshot, image=image), self._faults)

    def service(self, program: bytes, *, workers: int = 2, memory_mb: int = 512) -> Service:
        return self._pool.service(program, workers=workers, memory_mb=memory_mb)

    def plan(self, needs: Sequence[Need]) -> None:
        self._pool.plan(needs)

    async def close(self) -> None:
        await self._pool.close()


class FaultySandbox:
    def __init__(self, sandbox: Sandbox, faults: Faults) -> None:
        self._sandbox, self._faults = sandbox, faults

    async def exec(self, argv: Sequence[str] | str, **options: Any) -> ExecResult:
        if self._faults.strikes("sandbox_exec"):
            raise SandboxLost("injected: the command was not answered")
        if self._faults.kill and self._faults.strikes("mid_episode_death"):
            dying = asyncio.ensure_future(self._faults.kill(self._sandbox))
            try:
                return await self._sandbox.exec("sleep 30", timeout_s=60.0)  # it dies under it
            finally:
                await dying
        return await self._sandbox.exec(argv, **options)

    async def write(self, path: str, data: bytes) -> None:
        await self._sandbox.write(path, data)

    async def read(self, path: str, *, limit: int = 1024 * 1024) -> bytes:
        return await self._sandbox.read(path, limit=limit)

    async def snapshot(self, *, limit: int = 32 * 1024 * 1024) -> Snapshot:
        return await self._sandbox.snapshot(limit=limit)

    async def close(self) -> None:
        await self._sandbox.close()


class FaultyWorld:
    def __init__(self, world: World, faults: Faults) -> None:
        self._world, self._faults = world, faults
        self.name, self.max_turns = world.name, world.max_turns

    def task(self, split: Split, index: int) -> Task:
        return self._world.task(split, index)

    def open(self, task: Task) -> Env:
        self._faults.draw()
        return FaultyEnv(self._world.open(task), self._faults)

    def demonstrate(self, task: Task, rng: random.Random, *, err: bool) -> list[Message]:
        return self._world.demonstrate(task, rng, err=err)

    async def close(self) -> None:
        await self._world.close()


class FaultyEnv:
    def __init__(self, env: Env, faults: Faults) -> None:
        self._env, self._faults = env, faults

    async def start(self) -> Sequence[Message]:
        return await self._env.start()

    async def step(self, action: str) -> Step:
        return await self._env.step(action)

    async def measure(self) -> Facts:
        if self._faults.strikes("grading"):
            raise JudgeFailed("injected: no verdict")
        if self._faults.strikes("judge_hang"):
            await asyncio.Event().wait()
        return await self._env.measure()

    async def close(self) -> None:
        await self._env.close()


class FaultyEngine:
    def __init__(self, engine: Sampler, faults: Faults) -> None:
        self._engine, self._faults = engine, faults

    async def generate(self, ids: Sequence[int], sampling: Sampling) -> Completion:
        if self._faults.strikes("engine_crash"):
            raise EngineLost("injected: the engine crashed")
        return await self._engine.generate(ids, sampling)
