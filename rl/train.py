"""`rl train`: warm start, measure, learn, measure again. Two short loops: `overlapped` never waits for a whole wave of
rollouts, `lockstep` does nothing else; they differ in nothing but when they wait.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from rl import algorithms, config, evaluate, metrics, quarantine, warmstart
from rl.buffer import Buffer, tokens_of, useful
from rl.config import RunConfig
from rl.live import Page
from rl.store import Lease, Run
from rl.trajectory import Group
from rl.workers import Cluster, leaked, preflight

T = TypeVar("T")
LOST_IN_A_ROW = 32
"""Groups without one valid member before the run stops: the machinery is down, and playing on would teach nothing."""


class MachineryDown(RuntimeError):
    pass


class Stopped(Exception):
    """Somebody asked the run to stop."""


class Training:
    """The state of a run in its driver."""

    def __init__(self, settings: RunConfig, run: Run, cluster: Cluster, page: Page) -> None:
        self.settings, self.run, self.cluster, self.page = settings, run, cluster, page
        self.algorithm = algorithms.load(settings.algorithm.name, **settings.algorithm.args)
        self.buffer = Buffer(settings.learner.batch_tokens, 0 if settings.train.sync else settings.train.max_staleness)
        self.window = metrics.Window()
        self.version = 0
        self.tokens = 0
        self.owed: list[Lease] = []
        """Open leases of an interrupted run: worked on first."""
        self.stop = asyncio.Event()
        self._lost_in_a_row = 0
        self.quarantine = quarantine.read(settings)[0]

    # -- the two loops --------------------------------------------------------------------------------------------

    async def overlapped(self) -> None:
        feeding = asyncio.create_task(self.feed())
        try:
            while not self.done:
                await self.step(await self.unless_stopped(self.buffer.take(self.version), feeding))
        finally:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)

    async def lockstep(self) -> None:
        while not self.done:
            while not self.buffer.full:
                wave = asyncio.gather(*(self.play() for _ in range(self.settings.train.groups)))
                await self.unless_stopped(wave)
            await self.step(await self.buffer.take(self.version))

    # -- their parts ----------------------------------------------------------------------------------------------

    @property
    def done(self) -> bool:
        budget = self.settings.train
        return self.version >= budget.steps or bool(budget.tokens and self.tokens >= budget.tokens)

    async def feed(self) -> None:
        """Keep `train.groups` groups in flight, except while a whole batch already waits for the learner."""
        playing: set[asyncio.Task[None]] = set()
        try:
            while True:
                while len(playing) < self.settings.train.groups and not self.buffer.full:
                    playing.add(asyncio.create_task(self.play()))
                finished = {task for task in playing if task.done()}
                playing -= finished
                failed = [error for task in finished if (error := task.exception())]
                if failed:
                    raise failed[0]
                await asyncio.sleep(0.01)
        finally:
            for task in playing:
                task.cancel()
            await asyncio.gather(*playing, return_exceptions=True)

    async def play(self) -> None:
        """Lease a task, have its group played, set the advantages, hand it on."""
        lease, version = self.lease(), self.version
        self.buffer.admit(lease.id, version)
        group = await self.cluster.play(
            lease.world, "train", lease.index, lease.id, version, self.settings.rollout.group_size
        )
        self.algorithm.advantages(group)
        self.run.keep(group, "train")
        self.window.add(group)
        self.count_lost(group)
        if not useful(group):
            self.run.settle([group], "flat" if group.valid else "lost", self.version)
        self.buffer.arrive(group, useful=useful(group))
        self.page.waiting(self.buffer.waiting_for(self.version), self.window)

    def lease(self) -> Lease:
        """An owed task, else the next one of the world that is furthest behind its weight."""
        if self.owed:
            lease = self.owed.pop(0)
            self.run.renew(lease, self.version)
            return lease
        granted = self.run.granted()
        weights = {name: world.weight for name, world in self.settings.worlds.items() if world.weight > 0}
        world = min(weights, key=lambda name: (granted.get(name, 0) + 1) / weights[name])
        return self.run.grant(world, self.version, lambda name, index: self.quarantine.holds(name, "train", index))

    def count_lost(self, group: Group) -> None:
        self._lost_in_a_row = 0 if group.valid else self._lost_in_a_row + 1
        if self._lost_in_a_row >= LOST_IN_A_ROW:
            raise MachineryDown(
                f"{LOST_IN_A_ROW} groups in a row were lost to the machinery, "
                f"the last with: {group.members[-1].episode.error}"
            )

    async def step(self, groups: Sequence[Group]) -> None:
        """One optimiser step; its weights in every engine; its rows in ledger and metrics."""
        began, trained_at = time.monotonic(), self.version
        learnt = await self.cluster.step(groups)
        version = int(learnt["version"])
        self.run.settle(groups, "trained", version)
        learnt_at = time.monotonic()
        pause_s = await self.cluster.publish()
        self.version = version  # only now: what is admitted from here on is sampled by these weights
        self.tokens += sum(tokens_of(group) for group in groups)
        seconds = {"learn": learnt_at - began, "publish": time.monotonic() - learnt_at, "pause": pause_s}
        row = self.window.row(groups, trained_at, learnt, seconds, self.tokens)
        self.run.append("metrics.jsonl", row)
        self.page.step(row)
        if self.version % self.settings.train.checkpoint_every == 0:
            await self.checkpoint()

    async def checkpoint(self) -> None:
        folder = self.run.checkpoint(self.version)
        if self.version and not folder.exists():
            await self.cluster.save(folder)
            self.run.flush()

    async def unless_stopped(self, work: Awaitable[T], *others: asyncio.Task[Any]) -> T:
        """The result of `work`. Raises Stopped where somebody asks to stop first, or what one of `others` died of."""
        working, stopping = asyncio.ensure_future(work), asyncio.create_task(self.stop.wait())
        try:
            await asyncio.wait({working, stopping, *others}, return_when=asyncio.FIRST_COMPLETED)
            for other in others:
                if other.done():
                    other.result()
            if stopping.done():
                raise Stopped
            return working.result()
        finally:
            stopping.cancel()
            if not working.done():
                working.cancel()

    # -- the whole run --------------------------------------------------------------------------------------------

    async def learn(self) -> None:
        """Measure, take steps until the budget is spent, measure. Ends on a checkpoint, also when stopped."""
        try:
            if not self.run.rows("evals.jsonl"):
                await self.measure("before")
            self.window.restart()
            self.page.phase("learning")
            await (self.lockstep() if self.settings.train.sync else self.overlapped())
            await self.checkpoint()
            await self.measure("after")
        except Stopped:
            await self.checkpoint()
            raise

    async def measure(self, when: str) -> None:
        self.page.phase(f"measuring held-out success {when}")
        row = await self.unless_stopped(
            evaluate.measure(self.cluster, self.settings, self.version, self.run, self.page)
        )
        self.run.append("evals.jsonl", {"when": when, **row})
        self.page.measured(when, row)


def train(settings: RunConfig, *, resume: bool) -> int:
    """Run to the end of the budget. Returns the exit code: 0 done, 130 stopped by a person."""
    began = time.monotonic()
    if (settings.policy.temperature, settings.policy.top_p) != (1.0, 1.0):
        raise ValueError(
            f"got policy.temperature={settings.policy.temperature} and policy.top_p={settings.policy.top_p}; "
            "training expects 1 and 1, since the recorded log-probabilities are the policy's own"
        )
    (Run.check_resumable if resume else Run.check_new)(settings.folder)
    preflight(settings)
    quarantine.tell(quarantine.read(settings)[1])
    run = Run.reopen(settings.folder) if resume else Run.create(settings.folder)
    try:
        if not resume:
            config.save(settings, run.folder / "config.yaml")
        with Page(settings) as page:
            model, warm_s = settings.policy.model, 0.0
            if model is None:
                folder, warm_s = warmstart.ensure(settings, page)
                model = str(folder)
            stopped = asyncio.run(_drive(settings, run, page, model))
        _summarise(run, settings, time.monotonic() - began, warm_s, page.first_step_s, stopped)
    finally:
        run.close()
    return 130 if stopped else 0


def _summarise(
    run: Run, settings: RunConfig, wall_s: float, warm_s: float, first_step_s: float | None, stopped: bool
) -> None:
    """Write the run's figures; those of a resumed run go on from where they were."""
    rows, before = run.rows("metrics.jsonl"), run.summary()
    run.summarise(
        {
            "wall_s": before.get("wall_s", 0.0) + wall_s,
            "warmstart_s": warm_s or before.get("warmstart_s", 0.0),
            "steps": rows[-1]["step"] if rows else 0,
            "tokens": rows[-1]["tokens"] if rows else 0,
            "first_step_s": before.get("first_step_s") or first_step_s,
            "leaked_containers": leaked(settings, run.folder.name),
            "stopped": stopped,
        }
    )


async def _drive(settings: RunConfig, run: Run, page: Page, model: str) -> bool:
    """Start the processes, learn, close them. True where a person stopped it."""
    cluster = Cluster(settings, run.folder.name)
    page.phase("starting engine, workers and learner")
    latest = run.latest()
    training = Training(settings, run, cluster, page)
    try:
        _on_signals(training.stop.set)
        starting = cluster.start(model, run.logs, learn=True, checkpoint=str(latest.resolve()) if latest else None)
        await training.unless_stopped(starting)
        _on_signals(training.stop.set)  # Ray has put its own handlers in place of ours
        if latest:
            training.version = int(latest.name)
            await cluster.publish()
        training.owed = run.rewind(training.version)
        run.truncate("metrics.jsonl", training.version)
        training.tokens = max((row["tokens"] for row in run.rows("metrics.jsonl")), default=0)
        await training.learn()
        return False
    except Stopped:
        return True
    finally:
        page.phase("closing")
        await cluster.close()


def _on_signals(stop: Callable[[], None]) -> None:
    for name in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(name, stop)
