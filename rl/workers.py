"""What runs in a process of its own: generators, rollout workers and learner, as Ray actors. Thin shells, no logic."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorDiedError, NodeDiedError, ObjectLostError, OutOfMemoryError, RayActorError

import envs
from envs import MachineryError, Split, sandboxes
from policy import engines
from policy.engines import Canary, Completion, EngineDied, EngineLost, Sampling, Swapped
from policy.weights import Weights
from rl import rollout, selftest, stages
from rl.config import RunConfig
from rl.supervise import first_line
from rl.trajectory import Group, Member

GONE = (RayActorError, OutOfMemoryError, NodeDiedError, ObjectLostError)
"""What a call to a process raises that is dead or out of reach; Ray itself kills for memory."""
GENERATE_TIMEOUT_S = 3600.0
CANARY_TOKENS = 24
LOOK_S = 0.1
YOUNG = 50_000
"""Objects made and not freed before Python looks for cycles among them. At its own 700 what thousands of attempts hold
counts as old before they end, and all that is old is gone through again for each quarter that is added."""


def _log_to(path: Path) -> None:
    """Send everything that this actor and its children print to a file of its own."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(name)s %(levelname)s %(message)s")


class Generator:
    """One inference engine."""

    async def start(self, config: RunConfig, model: str, log: Path) -> None:
        _log_to(log)
        settings = config.engine
        self.died: EngineDied | None = None
        self.engine = await engines.load(settings.name).start(
            model,
            max_model_len=config.policy.context,
            dtype=config.policy.dtype,
            seed=config.seed,
            threads=settings.threads,
            tensor_parallel=settings.tensor_parallel,
            max_sequences=settings.max_sequences,
            args=settings.args,
        )

    async def generate(self, ids: Sequence[int], sampling: Sampling) -> Completion:
        try:
            return await self.engine.generate(ids, sampling)
        except EngineDied as error:
            self.died = error
            raise

    async def ping(self) -> None:
        """Raises what the engine inside died of, where this process outlived it."""
        if self.died is not None:
            raise self.died

    async def swap(self, weights: Weights, canary: Canary) -> Swapped:
        return await self.engine.swap(weights.check(), weights.version, canary)

    async def close(self) -> None:
        await self.engine.close()


class RemoteEngine:
    """The generators as one engine, seen from a rollout worker: each request goes to the next in turn that lives."""

    def __init__(self, generators: Sequence[Any]) -> None:
        self.serve(generators)

    def serve(self, generators: Sequence[Any]) -> None:
        """From now on these; the driver says so whenever it has started one again."""
        self._live = list(generators)
        self._next = itertools.cycle(self._live)

    async def generate(self, ids: Sequence[int], sampling: Sampling) -> Completion:
        """Sample one turn, waiting for a generator where none lives. Raises EngineLost."""
        generator = None
        try:
            async with asyncio.timeout(GENERATE_TIMEOUT_S):
                while not self._live:
                    await asyncio.sleep(LOOK_S)
                generator = next(self._next)
                return await generator.generate.remote(ids, sampling)
        except (ActorDiedError, OutOfMemoryError, NodeDiedError, EngineDied) as error:
            self._forget(generator)
            raise EngineLost(f"a generator is gone: {first_line(error)}") from None
        except GONE as error:
            raise EngineLost(f"a generator did not answer: {first_line(error)}") from None
        except TimeoutError:
            raise EngineLost(f"a generator gave no answer within {GENERATE_TIMEOUT_S:g} s") from None

    def _forget(self, generator: Any) -> None:
        self._live = [other for other in self._live if other is not generator]
        self._next = itertools.cycle(self._live)


class RolloutWorker:
    """Plays many episodes at once and owns the sandboxes of its node."""

    async def start(self, config: RunConfig, model: str, generators: Sequence[Any], log: Path, run: str) -> None:
        _log_to(log)
        gc.set_threshold(YOUNG)
        from policy.chat import Chat

        settings = config.rollout
        self.config = config
        self.chat = Chat.load(model)
        self.engine = RemoteEngine(generators)
        self.playing: set[asyncio.Task[list[Member]]] = set()
        backend = sandboxes.load(settings.backend)
        self.pool = backend.Pool(run=run, size=settings.sandboxes, image=settings.image, memory_mb=settings.memory_mb)
        self.worlds: dict[str, envs.World] = {}
        for name, world in config.worlds.items():
            self.world(name, world.args)

    def world(self, name: str, args: Mapping[str, Any]) -> envs.World:
        """The world with these arguments, built once: stages may change them."""
        known = f"{name} {dict(args)!r}"
        if known not in self.worlds:
            place = envs.load(self.config.plays(name))
            self.worlds[known] = place.World(self.pool, seed=self.config.seed, **args)
        return self.worlds[known]

    async def play(self, world: str, split: Split, index: int, lease: int, version: int, size: int) -> Group:
        """One group: `size` attempts at the task at `index`."""
        now = stages.at(self.config, version) if split == "train" else self.config
        place = self.world(world, now.worlds[world].args)
        try:
            task = rollout.task_of(place, split, index, world)
        except MachineryError as error:
            return Group(lease, world, version, rollout.unplayed(world, split, index, error))
        limits, replace_lost = rollout.limits(self.config, place), self.config.rollout.replace_lost
        seed = f"{self.config.seed}/{world}/{split}/{index}" if self.config.train.sync else None
        playing = asyncio.create_task(
            rollout.play_group(place, task, size, self.engine, self.chat, limits, now.rewards, replace_lost, seed)
        )
        self.playing.add(playing)
        try:
            return Group(lease, world, version, await playing)
        finally:
            self.playing.discard(playing)

    async def ping(self) -> None:
        return None

    async def serve(self, generators: Sequence[Any]) -> None:
        self.engine.serve(generators)

    async def expert(self, world: str, index: int) -> Member:
        """The scripted expert's attempt at a training task, played and scored like any other."""
        return await selftest.play_expert(self.world(world, self.config.worlds[world].args), self, index)

    def look(self) -> dict[str, int]:
        """Attempts by what they do at this moment."""
        return {**rollout.STAGES, "sandbox": self.pool.stats["waiting"]}

    async def close(self) -> None:
        """Whoever asked for what still plays is not there any more to hear of it."""
        for playing in self.playing:
            playing.cancel()
        await asyncio.gather(*self.playing, return_exceptions=True)
        for world in self.worlds.values():
            await world.close()
        await self.pool.close()


class LearnerWorker:
    """One rank of the learner. What all ranks take part in is called on all of them, in the same order."""

    def address(self) -> str:
        """Where the other ranks find this one: a port that is free now."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return f"{ray.util.get_node_ip_address()}:{probe.getsockname()[1]}"

    def start(
        self, config: RunConfig, model: str, checkpoint: str | None, log: Path, rank: int = 0, address: str = ""
    ) -> None:
        _log_to(log)
        from rl.learner import Learner, Settings
        from rl.ranks import Ranks

        self.learner = Learner(Settings.of(config, model), Ranks(rank, config.learner.ranks, address))
        if checkpoint is not None:
            self.learner.restore(checkpoint)
        vocabulary = self.learner.model.config.vocab_size
        self.canary_ids = [(7919 * (i + 1)) % vocabulary for i in range(CANARY_TOKENS)]

    def step(self, members: Sequence[Member]) -> dict[str, float]:
        return self.learner.step(members)

    def weights(self) -> Weights | None:
        """On the first rank; the others only give it their parts."""
        state = self.learner.state()
        return Weights.pack(state, self.learner.version) if self.learner.ranks.first else None

    def canary(self) -> Canary:
        tolerance = 1e-3 if self.learner.settings.dtype == "float32" else 0.2
        return Canary(self.canary_ids, self.learner.logprobs(self.canary_ids)[1:], tolerance)

    def save(self, folder: Path) -> None:
        self.learner.save(folder)

    def score(self, members: Sequence[Member]) -> tuple[list[list[float]], dict[str, float]]:
        """For the self-tests: log-probabilities of each member's tokens, and what a step on all would report."""
        return [self.learner.logprobs(member.trajectory.ids) for member in members], self.learner.rehearse(members)
