"""`rl train`: warm start, measure, learn, measure again. Two short loops: `overlapped` never waits for a whole wave of
rollouts, `lockstep` does nothing else; they differ in nothing but when they wait.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from rl import (
    algorithms,
    config,
    evaluate,
    filters,
    metrics,
    quarantine,
    resumed,
    rollout,
    selftest,
    stages,
    status,
    trackers,
    warmstart,
)
from rl.buffer import Buffer, tokens_of, useful
from rl.cluster import Cluster, leaked, preflight
from rl.config import RunConfig
from rl.difficulty import Difficulty
from rl.firewall import Firewall, LearnerDied, MachineryDown, Restarts, room_on
from rl.live import Page
from rl.local import Local
from rl.mix import Mix, Row
from rl.store import Lease, Run
from rl.trajectory import Group, Member

__all__ = ["MachineryDown", "Stopped", "Training", "train"]

T = TypeVar("T")
PASSED_OVER = 10_000
FLAT_WAVES = 4
"""After so many waves of groups without one that teaches, a person is told."""
LARGE_LR, LARGE_BYTES = 1e-4, 10**8
"""A higher rate, with more bytes of weights, is most likely the default, which is the small policy's."""
LOOK_S = 0.05
"""How often those who wait for a paused world look again."""


class Stopped(Exception):
    """Somebody asked the run to stop."""


class Training:
    """The state of a run in its driver."""

    def __init__(self, settings: RunConfig, run: Run, cluster: Cluster | Local, page: Page) -> None:
        self.settings, self.run, self.cluster, self.page = settings, run, cluster, page
        self.algorithm = algorithms.load(settings.algorithm.name, **settings.algorithm.args)
        self.buffer = Buffer(settings.learner.batch_tokens, 0 if settings.train.sync else settings.train.max_staleness)
        self.window = metrics.Window()
        self.waits = page.board
        self.waits.describe = self.facts
        self.version = self.saved = 0
        """Optimiser steps that the engines' weights have seen, and those of the last checkpoint."""
        self.tokens = 0
        self.owed: list[Lease] = []
        """Open leases of an interrupted run: worked on first."""
        self.stop = asyncio.Event()
        self.firewall = Firewall(stages.targets(settings, 0))
        self.lost: dict[int, list[Member]] = {}
        """What earlier tries of a lease came to, where the machinery lost them all."""
        self.notes: list[str] = []
        """What was paused or started again since the last step."""
        self.flat = 0
        """Groups in a row without an advantage."""
        self.quarantine = quarantine.read(settings)[0]
        self.recall()

    # -- the two loops --------------------------------------------------------------------------------------------

    async def overlapped(self) -> None:
        while self.owed and self.owed[0].played:
            await self.play()
        feeding = asyncio.create_task(self.feed())
        try:
            while not self.done:
                async with self.waits.on(status.BATCH, owner="rollouts"):
                    groups = await self.unless_stopped(self.buffer.take(self.version), feeding)
                await self.step(groups)
        finally:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)

    async def lockstep(self) -> None:
        while not self.done:
            while not self.buffer.full:
                wave = asyncio.gather(*(self.play() for _ in range(self.settings.train.groups)))
                async with self.waits.on(status.BATCH, owner="rollouts"):
                    await self.unless_stopped(wave)
            await self.step(await self.buffer.take(self.version))

    def recall(self) -> None:
        """Take up what the ledger knows of the leases that are settled."""
        history = self.run.history()
        self.mix, self.difficulty = Mix(self.settings, history), Difficulty(self.settings, history)

    # -- their parts ----------------------------------------------------------------------------------------------

    @property
    def done(self) -> bool:
        budget = self.settings.train
        return self.version >= budget.steps or bool(budget.tokens and self.tokens >= budget.tokens)

    @property
    def open(self) -> bool:
        """A group may be leased now."""
        return not self.buffer.closed and bool(self.firewall.open(stages.targets(self.settings, self.version)))

    async def feed(self) -> None:
        """Keep `train.groups` groups in flight, except while a whole batch already waits for the learner."""
        playing: set[asyncio.Task[None]] = set()
        finished: list[asyncio.Task[None]] = []
        try:
            while True:
                while len(playing) < self.settings.train.groups and not self.buffer.full and self.open:
                    playing.add(task := asyncio.create_task(self.play()))
                    task.add_done_callback(finished.append)
                while finished:
                    playing.discard(task := finished.pop())
                    if error := task.exception():
                        raise error
                await asyncio.sleep(0.01)
        finally:
            for task in playing:
                task.cancel()
            await asyncio.gather(*playing, return_exceptions=True)

    async def play(self) -> None:
        """Lease a task, have its group played unless it was finished before an interruption, hand it on."""
        while not self.open:
            await asyncio.sleep(LOOK_S)
        lease, version = self.lease(), self.version
        group = stored = self.run.stored(lease, at=version if self.settings.train.sync else None)
        version = stored.version if stored else version
        self.buffer.admit(lease.id, version)
        self.mix.admit(lease.id, lease.world, version)
        if group is None:
            self.firewall.leased(lease.world, lease.id)
            longest_s = 4 * (1 + self.settings.rollout.replace_lost) * rollout.EPISODE_TIMEOUT_S  # it may be begun anew
            async with self.waits.on(
                f"task {lease.index} of {lease.world}", owner="rollouts", lease=lease.id, deadline_s=longest_s
            ):
                group = await self.cluster.play(
                    lease.world, "train", lease.index, lease.id, version, self.settings.rollout.group_size
                )
        self.waits.renew(status.BATCH)
        self.window.add(group)
        if stored is None:
            group = self.with_earlier(group)
            if self.firewall.again(group):  # the machinery lost it whole: its lease is owed again
                self.lost[lease.id] = group.members
                self.owed.append(lease)
                return self.buffer.arrive(group, useful=False)
        filters.screen(group, stages.at(self.settings, version).filters)
        self.algorithm.advantages(group)
        self.count_flat(group)
        self.mix.arrive(row := Row.of(group))
        self.difficulty.add(row)
        if stored is None:
            self.run.keep(group, "train")
        if not useful(group):
            self.run.settle([group], "flat" if group.earned else "lost", self.version + 1)
        self.buffer.arrive(group, useful=useful(group))
        self.page.waiting(self.buffer.waiting_for(self.version), self.window)

    def lease(self) -> Lease:
        """An owed task, else the next wanted one of the world that is furthest behind its weight."""
        for lease in self.owed:
            if self.firewall.allows(lease.world):
                self.owed.remove(lease)
                if not lease.played:
                    self.run.renew(lease, self.version)
                return lease
        world = self.mix.next(self.version, without=[w for w in self.settings.worlds if not self.firewall.allows(w)])
        index = self.difficulty.next(world, self.run.next_index(world), self.version)
        args = stages.at(self.settings, self.version).worlds[world].args
        for _ in range(PASSED_OVER):
            if not self.quarantine.holds(world, "train", index, args):
                break
            index = self.difficulty.next(world, index + 1, self.version)
        else:
            raise ValueError(f"{PASSED_OVER} tasks of world {world} in a row failed rl check; expected one to train on")
        return self.run.grant(world, self.version, index)

    def with_earlier(self, group: Group) -> Group:
        """The group with what earlier tries of its lease came to. Raises MachineryDown."""
        if news := self.firewall.arrived(group):
            self.note(news)
        return replace(group, members=self.lost.pop(group.lease, []) + group.members)

    def count_flat(self, group: Group) -> None:
        """Where nothing can be learnt no step follows: say so, rather than play on in silence."""
        if not group.earned:  # lost to the machinery: that is told elsewhere
            return
        self.flat = 0 if useful(group) else self.flat + 1
        if self.flat and self.flat % (FLAT_WAVES * self.settings.train.groups) == 0:
            solved = [f"{world} {seen['success']:.2f}" for world, seen in self.window.worlds().items()]
            self.note(
                f"the last {self.flat} groups carry no gradient, as the attempts of each scored alike (solved: "
                f"{', '.join(solved)}); expected tasks that are solved sometimes, or a finer reward"
            )

    def note(self, news: str) -> None:
        """Say what a person should know, now and in the row of the next step."""
        self.notes.append(news)
        self.page.note(news)

    async def step(self, groups: Sequence[Group]) -> None:
        """One optimiser step; its weights in every engine; its rows in ledger and metrics."""
        began, trained_at = time.monotonic(), self.version
        async with self.waits.on(status.STEP, owner="learner"):
            learnt = await self.cluster.step(groups)
        version = int(learnt["version"])
        learnt_at = time.monotonic()
        async with self.waits.on(status.PUBLISH, owner="engines"):
            swapped = await self.cluster.publish()
        self.version, self.buffer.learning = version, False  # only now: what is admitted is sampled by these weights
        self.tokens += sum(tokens_of(group) for group in groups)
        seconds = {"learn": learnt_at - began, "publish": time.monotonic() - learnt_at, "pause": swapped.pause_s}
        self.waits.swap = swapped.row(seconds["publish"])
        self.mix.train(groups)
        figures = self.difficulty.told(self.mix.shares(trained_at))
        row = self.window.row(groups, trained_at, learnt, seconds, self.tokens, figures)
        row |= {"swap": self.waits.swap, "notes": self.notes, "paused": self.firewall.paused()}
        self.notes = []
        self.run.trained(groups, version, row)
        self.page.step(row)
        if self.version % self.settings.train.checkpoint_every == 0:
            await self.checkpoint()

    async def checkpoint(self) -> None:
        """Ledger, then checkpoint, then shards: a kill in between leaves nothing ahead of the ledger."""
        if self.version > self.saved:
            folder = self.run.checkpoint(self.version)
            shutil.rmtree(folder, ignore_errors=True)  # of a learner that outlived its driver: another branch
            self.run.secure()
            async with self.waits.on(status.SAVE, owner="learner"):
                await self.cluster.save(folder)
            self.saved = self.version
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

    def facts(self) -> dict[str, Any]:
        """For `status.json`."""
        ready = {"ready": self.buffer.tokens, "wanted": self.buffer.batch_tokens}
        return {
            "step": self.version,
            "steps": self.settings.train.steps,
            "tokens": self.tokens,
            "batch": {**ready, "reason": self.buffer.waiting_for(self.version)},
        }

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
        if self.run.has_evaluated(when, self.version):
            return
        self.page.phase(f"measuring held-out success {when}")
        async with self.waits.on(status.HELDOUT, owner="rollouts"):
            row = await self.unless_stopped(
                evaluate.measure(self.cluster, self.settings, self.version, self.run, self.page, self.quarantine)
            )
        self.run.evaluated(when, row)
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
    trackers.check(settings.train.trackers)
    preflight(settings)
    barred, lines = quarantine.read(settings)
    quarantine.tell(lines)
    for world in settings.worlds:  # too few held-out tasks are told before anything starts
        evaluate.indices(settings, world, settings.eval.tasks, barred)
    with room_on(settings.folder):
        run = Run.reopen(settings.folder) if resume else Run.create(settings.folder)
        board = status.Board(run.folder, settings.train.deadline_s)
        try:
            latest = run.latest()
            at = (int(latest.name) if latest else 0) if resume else None
            other = resumed.renew(settings, run.folder, at or 0)
            tracked = trackers.start(settings.train.trackers, run.folder, settings.name, config.plain(settings), at)
            with Page(settings, board=board, trackers=tracked) as page:
                for news in other:
                    page.note(news)
                model, warm_s = settings.policy.model, 0.0
                if model is None:
                    folder, warm_s = warmstart.ensure(settings, page)
                    model = str(folder)
                elif news := rate_of_another(settings.learner.lr, Path(model)):
                    page.note(news)
                stopped = _drive_on(settings, run, page, model)
            _summarise(run, settings, time.monotonic() - began, warm_s, page.first_step_s, stopped)
            board.end("stopped" if stopped else "done")
        except BaseException as error:
            board.end("failed", f"{type(error).__name__}: {error}")
            raise
        finally:
            run.close()
    return 130 if stopped else 0


def rate_of_another(lr: float, model: Path) -> str:
    """What to say where a large model is to learn at a rate that only the small policy bears; else nothing."""
    size = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    if lr <= LARGE_LR or size <= LARGE_BYTES:
        return ""
    return f"got learner.lr={lr:g}, the small policy's rate, and weights of {size / 1e9:.1f} GB; expected about 1e-6"


def _drive_on(settings: RunConfig, run: Run, page: Page, model: str) -> bool:
    """Drive the run to its end; where the learner dies, go back to the last checkpoint, as `--resume` does."""
    deaths = Restarts()
    while True:
        try:
            return asyncio.run(drive(settings, run, page, model, Cluster(settings, run.folder.name)))
        except LearnerDied as died:
            if not deaths.note("learner"):
                raise
            page.note(f"{str(died).splitlines()[0]} It is started again, from the last checkpoint.")
            run.flush()


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


async def drive(settings: RunConfig, run: Run, page: Page, model: str, cluster: Cluster | Local) -> bool:
    """Start the processes, learn, close them. True where a person stopped it."""
    page.phase("starting engine, workers and learner")
    latest = run.latest()
    training = Training(settings, run, cluster, page)
    cluster.say = training.note
    watching = asyncio.create_task(page.board.watch(cluster.look))
    try:
        _on_signals(training.stop.set)
        starting = cluster.start(model, run.logs, learn=True, checkpoint=str(latest.resolve()) if latest else None)
        async with page.board.on("the processes to start", owner="ray"):
            await training.unless_stopped(starting)
        _on_signals(training.stop.set)  # Ray has put its own handlers in place of ours
        if latest:
            training.version = training.saved = int(latest.name)
            async with page.board.on(status.PUBLISH, owner="engines"):
                await cluster.publish()
        bound = training.buffer.max_staleness
        training.owed = run.rewind(training.version, bound if bound or settings.train.sync else -1)
        training.recall()
        training.tokens = max((row["tokens"] for row in run.rows("metrics.jsonl")), default=0)
        if settings.train.selftest:
            async with page.board.on(status.SELFTEST, owner="engines, rollouts and learner"):
                await training.unless_stopped(selftest.run(cluster, settings, training.version, run, page))
        await training.learn()
        return False
    except Stopped:
        return True
    except LearnerDied:
        if training.stop.is_set():
            return True
        raise
    finally:
        page.phase("closing")
        await cluster.close()
        watching.cancel()


def _on_signals(stop: Callable[[], None]) -> None:
    for name in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(name, stop)
