"""The processes: generators, rollout workers and learner as Ray actors. The only door to Ray; thin shells, no logic.

One machine or many, same code: an actor asks for GPUs by configuration and Ray finds them a place.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError

import envs
from envs import Split, sandboxes
from policy import engines
from policy.engines import Canary, Completion, EngineLost, Sampling
from policy.weights import Weights
from rl import rollout
from rl.config import RunConfig
from rl.trajectory import Group, Member

GENERATE_TIMEOUT_S = 600.0
START_TIMEOUT_S = 600.0
CLOSE_TIMEOUT_S = 30.0
CANARY_TOKENS = 24


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
        return await self.engine.generate(ids, sampling)

    async def swap(self, weights: Weights, canary: Canary) -> float:
        return await self.engine.swap(weights.check(), weights.version, canary)

    async def close(self) -> None:
        await self.engine.close()


class RemoteEngine:
    """The generators as one engine, seen from a rollout worker: each request goes to the next in turn."""

    def __init__(self, generators: Sequence[Any]) -> None:
        self._next = itertools.cycle(generators)

    async def generate(self, ids: Sequence[int], sampling: Sampling) -> Completion:
        try:
            return await asyncio.wait_for(next(self._next).generate.remote(ids, sampling), GENERATE_TIMEOUT_S)
        except RayActorError as error:
            raise EngineLost(f"a generator is gone: {error}") from None
        except TimeoutError:
            raise EngineLost(f"a generator gave no answer within {GENERATE_TIMEOUT_S:g} s") from None


class RolloutWorker:
    """Plays many episodes at once and owns the sandboxes of its node."""

    async def start(self, config: RunConfig, model: str, generators: Sequence[Any], log: Path, run: str) -> None:
        _log_to(log)
        from policy.chat import Chat

        settings = config.rollout
        self.config = config
        self.chat = Chat.load(model)
        self.engine = RemoteEngine(generators)
        backend = sandboxes.load(settings.backend)
        self.pool = backend.Pool(run=run, size=settings.sandboxes, image=settings.image, memory_mb=settings.memory_mb)
        self.worlds = {
            name: envs.load(name).World(self.pool, seed=config.seed, **world.args)
            for name, world in config.worlds.items()
        }

    async def play(self, world: str, split: Split, index: int, lease: int, version: int, size: int) -> Group:
        """One group: `size` attempts at the task at `index`."""
        place = self.worlds[world]
        settings, policy = self.config.rollout, self.config.policy
        limits = rollout.Limits(
            context=policy.context,
            turn_tokens=policy.turn_tokens,
            turns=place.max_turns,
            timeout_s=settings.episode_timeout_s,
            temperature=policy.temperature,
            top_p=policy.top_p,
        )
        task = place.task(split, index)
        members = await rollout.play_group(
            place, task, size, self.engine, self.chat, limits, self.config.rewards, settings.replace_lost
        )
        return Group(lease=lease, world=world, version=version, members=members)

    async def close(self) -> None:
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

        settings = config.learner
        self.learner = Learner(
            Settings(
                model=model,
                lr=settings.lr,
                loss_denominator=settings.batch_tokens,
                algorithm=config.algorithm.name,
                algorithm_args=config.algorithm.args,
                warmup_steps=settings.warmup_steps,
                weight_decay=settings.weight_decay,
                betas=(settings.beta1, settings.beta2),
                grad_clip=settings.grad_clip,
                row_tokens=settings.row_tokens,
                dtype="bfloat16" if config.policy.dtype == "bfloat16" else "float32",
                attention=settings.attention,
                recompute=settings.recompute,
                threads=settings.threads,
                seed=config.seed,
            ),
            Ranks(rank, settings.ranks, address),
        )
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
            world = envs.load(name).World(pool, **given.args)
            if hasattr(world, "ready"):
                await world.ready()
            await world.close()
    finally:
        await pool.close()


def leaked(config: RunConfig, run: str) -> int:
    """Sandboxes of a run that are still there."""
    return int(sandboxes.load(config.rollout.backend).count(run))


class Cluster:
    """Every process of a run, started together and closed together."""

    def __init__(self, config: RunConfig, run: str) -> None:
        self.config, self.run = config, run
        self.generators: list[Any] = []
        self.workers: list[Any] = []
        self.learners: list[Any] = []
        self._turn = itertools.count()

    async def start(self, model: str, logs: Path, *, learn: bool, checkpoint: str | None = None) -> None:
        """Start Ray and the actors. `model` is what the engines load; the learner restores `checkpoint` where given."""
        config, logs = self.config, logs.resolve()
        model = str(Path(model).resolve())
        self._folder = tempfile.mkdtemp(prefix="touchstone-ray-")
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

        def actor(cls: type, threads: int, gpus: float, *args: Any, concurrency: int | None = None) -> Any:
            options: dict[str, Any] = {"num_cpus": 0, "num_gpus": gpus}
            options["runtime_env"] = {"env_vars": {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}}
            if concurrency:
                options["max_concurrency"] = concurrency
            return ray.remote(cls).options(**options).remote(*args)

        self.generators = [
            actor(Generator, config.engine.threads, config.engine.gpus, concurrency=4096)
            for _ in range(config.engine.count)
        ]
        self.workers = [actor(RolloutWorker, 1, 0, concurrency=4096) for _ in range(config.rollout.workers)]
        if learn:
            self.learners = [
                actor(LearnerWorker, config.learner.threads, config.train.learner_gpus)
                for _ in range(config.learner.ranks)
            ]
        started = [g.start.remote(config, model, logs / f"generator-{i}.log") for i, g in enumerate(self.generators)]
        started += [
            w.start.remote(config, model, self.generators, logs / f"rollout-{i}.log", self.run)
            for i, w in enumerate(self.workers)
        ]
        address = await self.learners[0].address.remote() if len(self.learners) > 1 else ""
        for rank, learner in enumerate(self.learners):
            log = logs / ("learner.log" if rank == 0 else f"learner-{rank}.log")
            started.append(learner.start.remote(config, model, checkpoint, log, rank, address))
        await asyncio.wait_for(asyncio.gather(*started), START_TIMEOUT_S)

    async def play(self, world: str, split: Split, index: int, lease: int, version: int, size: int) -> Group:
        worker = self.workers[next(self._turn) % len(self.workers)]
        return await worker.play.remote(world, split, index, lease, version, size)

    async def step(self, groups: Sequence[Group]) -> dict[str, float]:
        members = ray.put([member for group in groups for member in group.valid])
        return (await self._on_all_ranks("step", members))[0]

    async def _on_all_ranks(self, method: str, *args: Any) -> list[Any]:
        """Call every rank before waiting for one: each waits for the others within."""
        return await asyncio.gather(*(getattr(learner, method).remote(*args) for learner in self.learners))

    async def publish(self) -> float:
        """Swap the learner's weights into every engine, verified. Returns the longest pause of one, in seconds."""
        weights, *_ = [learner.weights.remote() for learner in self.learners]
        canary, *_ = [learner.canary.remote() for learner in self.learners]
        return max(await asyncio.gather(*(g.swap.remote(weights, canary) for g in self.generators)))

    async def save(self, folder: Path) -> None:
        await self._on_all_ranks("save", folder.resolve())

    async def close(self) -> None:
        """Close what was started, politely and then not; remove Ray's own files."""
        if ray.is_initialized():
            closing = [actor.close.remote() for actor in (*self.workers, *self.generators)]
            _, late = await asyncio.to_thread(ray.wait, closing, num_returns=len(closing), timeout=CLOSE_TIMEOUT_S)
            if late:
                logging.getLogger(__name__).warning("%d actors did not close within %g s", len(late), CLOSE_TIMEOUT_S)
            for actor in (*self.workers, *self.generators, *self.learners):
                ray.kill(actor)
            ray.shutdown()
        shutil.rmtree(self._folder, ignore_errors=True)
