"""The processes of a run: started together, asked by the driver, closed together. With rl/workers.py the door to Ray.

One machine or many, same code: an actor asks for GPUs by configuration and Ray finds them a place.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayTaskError

import envs
from envs import Split, sandboxes
from policy.engines import Canary, EngineDied, EngineError, Swapped
from rl import rollout
from rl.config import RunConfig
from rl.firewall import ActorDied, LearnerDied, post_mortem
from rl.supervise import PING_TIMEOUT_S, Hung, Seat, Supervisor, how
from rl.trajectory import Group, Member
from rl.workers import GONE, YOUNG, Generator, LearnerWorker, RolloutWorker

# Each wait has an owner, the process that is asked, and a deadline that only a process that hangs lets pass.
START_TIMEOUT_S = 1800.0
STEP_TIMEOUT_S = 3600.0
SWAP_TIMEOUT_S = 1800.0
SAVE_TIMEOUT_S = 3600.0
CLOSE_TIMEOUT_S = 30.0
LOOK_TIMEOUT_S = 1.0
LAST_WORDS_S = 10.0
AT_ONCE = 2**16
"""Calls that one actor works on, so that a ping never waits behind turns."""


def preflight(config: RunConfig) -> None:
    """Before any actor starts: does the model speak chat, are there sandboxes? Settles `rollout.backend`, saying in one
    line what isolates less than Docker. Clears up after runs that died. Raises ValueError or SandboxUnavailable.
    """
    from policy.chat import Chat

    if config.policy.model is not None:
        Chat.load(config.policy.model)
    config.rollout.backend = sandboxes.choose(config.rollout.backend, config.rollout.image)
    if weaker := sandboxes.load(config.rollout.backend).WEAKER:
        print(f"sandboxes: {weaker}", file=sys.stderr)
    asyncio.run(_worlds_ready(config))


async def _worlds_ready(config: RunConfig) -> None:
    """Let each world that has needs of its own check the image, in a sandbox of it."""
    settings = config.rollout
    pool = sandboxes.load(settings.backend).Pool(
        run="preflight", size=1, image=settings.image, memory_mb=settings.memory_mb
    )
    try:
        for name, given in config.worlds.items():
            world = envs.load(config.plays(name)).World(pool, **given.args)
            if hasattr(world, "ready"):
                await world.ready()
            await world.close()
    finally:
        await pool.close()


def leaked(config: RunConfig, run: str) -> int:
    """Sandboxes of a run that are still there."""
    return int(sandboxes.load(config.rollout.backend).count(run))


class Cluster:
    """Every process of a run, started together and closed together. A generator or rollout worker that dies is started
    again, a few times; where that is in vain every call raises ActorDied, where the learner died LearnerDied.
    """

    def __init__(self, config: RunConfig, run: str) -> None:
        self.config, self.run = config, run
        self.say: Callable[[str], None] = logging.getLogger(__name__).warning
        self.generators: list[Seat] = []
        self.workers: list[Seat] = []
        self.learners: list[Any] = []
        self._turn = itertools.count()
        self.supervisor: Supervisor

    async def start(self, model: str, logs: Path, *, learn: bool, checkpoint: str | None = None) -> None:
        """Start Ray and the actors. `model` is what the engines load; the learner restores `checkpoint` where given."""
        config, self._logs = self.config, logs.resolve()
        self._model = str(Path(model).resolve())
        self._folder = tempfile.mkdtemp(prefix="touchstone-ray-")
        gc.set_threshold(YOUNG)
        self.supervisor = Supervisor(
            gone=(*GONE, EngineDied), kill=ray.kill, ready=self._ready, taken=self._taken, log=self._log
        )
        self.supervisor.say = self.say
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        ray.init(
            address=os.environ.get("RAY_ADDRESS"),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
            **({} if "RAY_ADDRESS" in os.environ else {"_temp_dir": self._folder, "object_store_memory": 256 * 2**20}),
        )
        self.generators = [Seat(f"generator-{i}", self._generator()) for i in range(config.engine.count)]
        self.workers = [Seat(f"rollout-{i}", self._worker()) for i in range(config.rollout.workers)]
        starting = [self._started(seat, seat.actor) for seat in (*self.generators, *self.workers)]
        if learn:
            self.learners = [
                _actor(LearnerWorker, config.learner.threads, config.train.learner_gpus)
                for _ in range(config.learner.ranks)
            ]
            address = ""
            if len(self.learners) > 1:
                asked = self.learners[0].address.remote()
                address = await self.supervisor.answer(asked, "learner", START_TIMEOUT_S)
            for rank, learner in enumerate(self.learners):
                name = f"learner-{rank}" if rank else "learner"
                asked = learner.start.remote(config, self._model, checkpoint, self._log(name), rank, address)
                starting.append(self._first(asked, name))
        await asyncio.gather(*starting)
        for seat in (*self.generators, *self.workers):
            self.supervisor.watch(seat)

    def _generator(self) -> Any:
        return _actor(Generator, self.config.engine.threads, self.config.engine.gpus, concurrency=AT_ONCE)

    def _worker(self) -> Any:
        return _actor(RolloutWorker, 1, 0, concurrency=AT_ONCE)

    def _log(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    async def _started(self, seat: Seat, actor: Any) -> Any:
        """Bring a new actor to where it can take this seat."""
        if seat in self.generators:
            asked = actor.start.remote(self.config, self._model, self._log(seat.name))
        else:
            serving = [generator.actor for generator in self.generators]
            asked = actor.start.remote(self.config, self._model, serving, self._log(seat.name), self.run)
        try:
            await self._first(asked, seat.name)
        except BaseException:  # cancelled, too: nobody else knows of it, and it would keep its GPU
            ray.kill(actor)
            raise
        return actor

    async def _first(self, asked: Any, name: str) -> None:
        """The first answer of a new actor. One that does not even start is not worth another try."""
        try:
            await self.supervisor.answer(asked, name, START_TIMEOUT_S)
        except (*GONE, Hung) as error:
            raise ActorDied(post_mortem(name, f"{how(error)} while it started", self._log(name))) from None

    async def _learner(self, method: str, *args: Any, deadline_s: float) -> Any:
        """What the first rank answers. Every rank is called before one is waited for: each waits for the others within.
        A learner is not started again alone: its state is in its last checkpoint.
        """
        asked = [asyncio.ensure_future(getattr(learner, method).remote(*args)) for learner in self.learners]
        try:
            return (await self.supervisor.answer(asyncio.gather(*asked), "learner", deadline_s))[0]
        except (*GONE, Hung, RayTaskError) as error:
            if len(asked) > 1:  # the others of a dead rank fail, too, and perhaps before it is known to be dead
                await asyncio.wait(asked, timeout=LAST_WORDS_S)
            died = {rank: one.exception() for rank, one in enumerate(asked) if one.done() and not one.cancelled()}
            rank, cause = next(((r, e) for r, e in died.items() if isinstance(e, GONE)), (0, error))
            if isinstance(cause, RayTaskError):
                raise
            name = f"learner-{rank}" if rank else "learner"
            raise LearnerDied(post_mortem(name, how(cause), self._log(name))) from None

    async def _ready(self, seat: Seat) -> Any:
        """A new actor for this seat; a generator serves the learner's weights, verified, before anybody can ask it."""
        if seat in self.workers:
            return await self._started(seat, self._worker())
        generator = await self._started(seat, self._generator())
        if self.learners:
            try:
                swapping = generator.swap.remote(*await self._current())
                await self.supervisor.answer(swapping, seat.name, SWAP_TIMEOUT_S)
            except BaseException:  # as above
                ray.kill(generator)
                raise
        return generator

    async def _taken(self, seat: Seat) -> None:
        """Tell the workers of a new generator, or a new worker of those that there are by now. One that cannot be told
        is dead, and hears it when started again.
        """
        serving = [generator.actor for generator in self.generators]
        told = self.workers if seat in self.generators else [seat]
        telling = (self.supervisor.answer(w.actor.serve.remote(serving), w.name, PING_TIMEOUT_S) for w in told)
        await asyncio.gather(*telling, return_exceptions=True)

    # -- what the driver asks for -----------------------------------------------------------------------------------

    async def play(self, world: str, split: Split, index: int, lease: int, version: int, size: int) -> Group:
        """Have a group played, from its beginning where the worker that played it died."""
        seat = self.workers[next(self._turn) % len(self.workers)]
        deadline_s = (1 + self.config.rollout.replace_lost) * rollout.EPISODE_TIMEOUT_S + START_TIMEOUT_S
        group: Group = await self.supervisor.ask(
            seat, lambda actor: actor.play.remote(world, split, index, lease, version, size), deadline_s
        )
        return group

    async def step(self, groups: Sequence[Group]) -> dict[str, float]:
        members = ray.put([member for group in groups for member in group.valid])
        learnt: dict[str, float] = await self._learner("step", members, deadline_s=STEP_TIMEOUT_S)
        return learnt

    async def publish(self) -> Swapped:
        """Swap the learner's weights into every engine, verified. Returns the swap with the longest pause."""
        current = await self._current()
        swaps = (
            self.supervisor.ask(seat, lambda actor: actor.swap.remote(*current), SWAP_TIMEOUT_S)
            for seat in self.generators
        )
        try:
            return max(await asyncio.gather(*swaps))
        except RayTaskError as error:
            if isinstance(error.cause, EngineError):
                raise error.cause from None  # its sentence says it all
            raise

    async def _current(self) -> tuple[Any, Canary]:
        """The learner's weights, by reference, and what they say of the canary."""
        weights, *_ = [learner.weights.remote() for learner in self.learners]
        return weights, await self._learner("canary", deadline_s=SWAP_TIMEOUT_S)

    async def save(self, folder: Path) -> None:
        await self._learner("save", folder.resolve(), deadline_s=SAVE_TIMEOUT_S)

    async def expert(self, world: str, index: int) -> Member:
        seat = self.workers[next(self._turn) % len(self.workers)]
        member: Member = await self.supervisor.ask(
            seat, lambda actor: actor.expert.remote(world, index), rollout.EPISODE_TIMEOUT_S
        )
        return member

    async def score(self, members: Sequence[Member]) -> tuple[list[list[float]], dict[str, float]]:
        scored: tuple[list[list[float]], dict[str, float]]
        scored = await self._learner("score", ray.put(members), deadline_s=STEP_TIMEOUT_S)
        return scored

    async def look(self) -> dict[str, int]:
        """Attempts by what they do at this moment, in the workers that answer at once."""
        asked = (asyncio.wait_for(worker.actor.look.remote(), LOOK_TIMEOUT_S) for worker in self.workers)
        seen = await asyncio.gather(*asked, return_exceptions=True)
        attempts: Counter[str] = Counter()
        for row in seen:
            attempts.update(row if isinstance(row, dict) else {})
        return attempts

    async def close(self) -> None:
        """Close what was started, politely and then not; remove Ray's own files."""
        if ray.is_initialized():
            await self.supervisor.close()
            actors = [seat.actor for seat in (*self.workers, *self.generators)]
            closing = [actor.close.remote() for actor in actors]
            _, late = await asyncio.to_thread(ray.wait, closing, num_returns=len(closing), timeout=CLOSE_TIMEOUT_S)
            if late:
                logging.getLogger(__name__).warning("%d actors did not close within %g s", len(late), CLOSE_TIMEOUT_S)
            for actor in (*actors, *self.learners):
                ray.kill(actor)
            ray.shutdown()
        shutil.rmtree(self._folder, ignore_errors=True)


def _actor(cls: type, threads: int, gpus: float, *args: Any, concurrency: int | None = None) -> Any:
    options: dict[str, Any] = {"num_cpus": 0, "num_gpus": gpus}
    options["runtime_env"] = {"env_vars": {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}}
    if concurrency:
        options["max_concurrency"] = concurrency
    return ray.remote(cls).options(**options).remote(*args)
