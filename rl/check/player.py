"""The process that plays a world for `rl check`: it may be killed at any time, and says all it sees as JSON lines.

Started as `python -m rl.check.player`; its order comes on stdin, its lines go to what was stdout. The first tasks of
each split are played one by one with every probe; of the others, as many at a time as there are sandboxes, each shows
that its gold scores twice and that an empty and a wrong answer do not. What fails beside others is played again alone.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from envs import MachineryError, Split, Task, World, sandboxes
from envs.define import Defined
from envs.sandboxes import SandboxLost
from rl.check import trials
from rl.check.episodes import Calls, named
from rl.check.kept import Kept
from rl.check.kinds import Fault
from rl.check.lent import UNIT, Pool
from rl.check.probes import Probes
from rl.check.result import config_digest
from rl.check.streams import At, find, leaks_together
from rl.check.worlds import build

SAMPLE = 8
"""Tasks of each split where a stream has no end and nobody says how many."""
ALONE = 8
"""Tasks of each split that get every probe, one by one."""
AT_ONCE = 4
MOST_HUNG = 3
"""Tasks that never end before the check ends: waiting for each would take hours, and say nothing new."""
MALFORMED_TASKS = 4
"""Of each split: what is not understood hardly depends on the task."""
OF_LOAD = ("judge-fails", "never-ends", "raises")
"""Kinds that a busy machine could bring about: where they do not show again, they are no fault of the world."""

Unit = tuple[str, str, Any]
Work = tuple[Unit, Callable[[], Awaitable[None]]]


@dataclass(frozen=True)
class Order:
    world: str
    args: dict[str, Any]
    tasks: int | None
    deadline_s: float
    backend: str
    image: str
    exploits: bool
    run: str
    skip: list[list[Any]]
    """Units that are done: not to be played again."""
    hung: list[list[Any]]
    """Split and index of tasks that never ended."""
    alone: list[list[Any]]
    """Units that were being played when an earlier process was lost: first, and one by one."""
    only: list[list[Any]]
    """Units to play and no others, where any are named."""
    kept: list[list[Any]] = field(default_factory=list)
    """What earlier processes left: name, place, value."""


class Player:
    def __init__(self, order: Order, say: Callable[..., None]) -> None:
        self.order, self.say = order, say
        self.backend = sandboxes.load(order.backend)
        # One more than are played at once: what a look into one is compared with.
        self.pool = Pool(self.backend.Pool(run=order.run, size=AT_ONCE + 1, image=order.image))
        self.tasks: dict[At, Task] = {}
        self.calls = Calls(self._announce, order.deadline_s)
        self.kept = Kept(say, order.kept)
        self.hung = {*map(tuple, order.hung), *self.kept["hung"]}
        self.skip = {json.dumps(unit) for unit in order.skip}
        self.again: list[tuple[Work, Fault]] = []

    def _announce(self, call: str) -> None:
        phase, split, index = UNIT.get()
        task = self.tasks.get((split, index))
        self.say("call", unit=[phase, split, index], call=call, key=task.key if task else "")

    async def run(self) -> None:
        """Says all; what keeps the tasks from being made is a fault like others, and ends it."""
        try:
            await self._run()
        except Fault as fault:
            self._fault(fault, ("", 0), None)

    async def _run(self) -> None:
        world = self._build()
        self.calls.names = {"measure": "grade"} if isinstance(world, Defined) else {}
        self.say("config", digest=config_digest(self.order.world, self.order.args))
        report = getattr(getattr(world, "stream", None), "report", None)
        if report is not None:
            self.say("rows", report=asdict(report), words=str(report))
        self._find(world)
        self.probes = Probes(world, self.tasks, self.pool, self.calls, self.kept, self.say, self._fault)
        alone, together = self._work(world)
        self.say("plan", total=len(alone) + len(together) + 1)
        first = {json.dumps(unit) for unit in self.order.alone}
        suspects = [work for work in (*alone, *together) if json.dumps(work[0]) in first]
        for work in (*suspects, *alone):
            await self._one(work)
        await self._together([work for work in together if work not in suspects])
        UNIT.set(("together", "", 0))
        for fault, at in leaks_together(self.tasks, self.kept["heard"]):
            self._fault(fault, at, self.tasks[at])
        if set(self.kept["ended"]) == {("turns",)}:
            self.say("note", words="no attempt came to its end: step never said done=True, so nothing was scored")
        if unseen := [at for at in self.kept["took"] if at not in self.kept["looked"]]:
            key = self.tasks[unseen[0]].key
            words = "no sandbox stood open when it could be looked into"
            self.say("note", words=f"{len(unseen)} task{'s' * (len(unseen) > 1)}, e.g. {key}: {words}")
        self.say("longest", chars=self.kept["longest"].get((), 0))
        self.say("done", unit=["together", "", 0])
        await self._close(world)

    def _build(self) -> World:
        try:
            world = build(self.order.world, self.pool, self.order.args)
        except (ValueError, TypeError, OSError, MachineryError):
            raise
        except Exception as error:  # a world is a plug-in: what its code raises cannot be foreseen
            raise Fault("raises", f"World(...) raised {named(error)}") from None
        if type(world.max_turns) is not int or world.max_turns < 1:
            raise Fault("wrong-type", f"the world has max_turns={world.max_turns!r:.40}; expected 1 or more")
        return world

    def _find(self, world: World) -> None:
        def size(split: Split) -> int | None:
            return world.size(split) if hasattr(world, "size") else None

        wanted = {split: self.order.tasks or size(split) or SAMPLE for split in ("train", "heldout")}
        self.tasks, counts = find(self.calls, world, wanted, self.say, self._fault)  # type: ignore[arg-type]
        for split, count in counts.items():
            self.say("whole", split=split, whole=count == size(split))
        if size("train") is None and self.order.tasks is None:
            self.say("note", words="the tasks have no end, so a sample was played; --tasks N plays more")

    def _work(self, world: World) -> tuple[list[Work], list[Work]]:
        """What is played one by one, in order, and what is played beside other things."""
        first = [at for split in ("train", "heldout") for at in [a for a in self.tasks if a[0] == split][:ALONE]]
        few = [at for split in ("train", "heldout") for at in [a for a in first if a[0] == split][:MALFORMED_TASKS]]
        rest = [at for at in self.tasks if at not in set(first)]
        probes = self.probes
        phases = [
            ("open", probes.apart, first[:1]),
            ("empty", probes.empty, first),
            ("malformed", probes.malformed, few),
            ("called", probes.called, few),
            ("wrong", probes.wrong, first),
            ("gold", probes.gold, first),  # after those that must fail, so that what it leaves behind is told apart
            ("afterwards", probes.afterwards, first),
        ]
        alone = [self._unit(phase, probe, at) for phase, probe, places in phases for at in places]
        together = [self._unit("each", probes.each, at) for at in rest]
        if self.order.exploits and self.tasks:
            played = trials.Trials(world, self.order.world, self.probes.play, self.say, self._fault)
            together += [(("exploit", "exploits", e.name), lambda e=e: played.exploit(e)) for e in played.exploits]  # type: ignore[misc]
            at = next(iter(self.tasks))
            together += [
                ((f"limit {limit.name}", *at), lambda limit=limit: played.limit(limit, at, self.tasks[at]))  # type: ignore[misc]
                for limit in played.limits
            ]
        if self.order.only:
            only = {json.dumps(unit) for unit in self.order.only}
            return [work for work in (*alone, *together) if json.dumps(work[0]) in only], []
        return alone, together

    def _unit(self, phase: str, probe: Callable[[At, Task], Awaitable[None]], at: At) -> Work:
        return (phase, *at), lambda: probe(at, self.tasks[at])

    async def _together(self, work: Sequence[Work]) -> None:
        waiting = list(reversed(work))

        async def take() -> None:
            while waiting:
                await self._one(waiting.pop(), beside=True)

        await asyncio.gather(*(take() for _ in range(AT_ONCE)))
        for unit, fault in self.again:
            await self._one(unit, first=fault)

    async def _one(self, work: Work, *, beside: bool = False, first: Fault | None = None) -> None:
        """Play one unit. Beside others, a fault is kept for later; `first`: what it was then."""
        unit, probe = work
        at = unit[1:]
        if json.dumps(unit) in self.skip or at in self.hung or self.kept["over"]:
            return
        if len(self.hung) >= MOST_HUNG:
            self.say("note", words=f"ended early: {len(self.hung)} tasks never ended, the rest was not played")
            for split in ("train", "heldout"):
                self.say("whole", split=split, whole=False)
            return
        UNIT.set(unit)
        try:
            try:
                await probe()
            except SandboxLost:  # the machinery's doing: once more
                await probe()
        except Fault as fault:
            if beside:
                self.again.append((work, fault))
                return
            self._fault(fault, at, self.tasks.get(at))  # type: ignore[arg-type]
            if fault.kind == "never-ends":
                self.hung.add(at)
                self.kept.put("hung", at)
            if unit[0] == "open" and fault.kind == "state-shared":
                self.kept.put("over", ())
                self.say("note", words="nothing was played, since no attempt is one of its own")
        else:
            if first is not None and first.kind in OF_LOAD:
                self.say("note", words=f"once, beside other attempts and not again: {first.kind}, {first.words}")
            elif first is not None:
                words = f"beside other attempts, not alone: {first.kind}, {first.words}"
                self._fault(Fault("not-repeatable", words), at, self.tasks.get(at))  # type: ignore[arg-type]
        self.skip.add(json.dumps(unit))
        self.say("done", unit=list(unit))

    def _fault(self, fault: Fault, at: tuple[str, Any], task: Task | None) -> None:
        """`at` without a task: a position that gave none, an exploit by its name, or nothing that there is."""
        index = at[1] if isinstance(at[1], int) else 0
        key = task.key if task else "" if isinstance(at[1], int) else at[1]
        phase = UNIT.get()[0]
        self.say("fault", kind=fault.kind, words=fault.words, split=at[0], index=index, key=key, phase=phase)

    async def _close(self, world: World) -> None:
        """Twice, as it may be called; then nothing of this process may be left in the engine."""
        UNIT.set(("close", "", 0))
        for _ in range(2):
            try:
                await self.calls("world.close", world.close)
            except Fault as fault:
                self._fault(fault, ("", 0), None)
        await self.pool.close()
        if self.pool.used and (left := self.backend.count(self.order.run)):
            self._fault(Fault("container-left", f"{left} sandboxes are left after the end"), ("", 0), None)


def main() -> None:
    lines = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a world prints is no line of ours

    def say(said: str, **more: Any) -> None:
        lines.write(json.dumps({"said": said, **more}, default=str) + "\n")
        lines.flush()

    order = Order(**json.loads(sys.stdin.readline()))

    async def run() -> None:
        player = Player(order, say)
        try:
            await player.run()
        except (ValueError, TypeError, OSError, MachineryError) as error:
            say("bad", words=" ".join(str(error).split()))
        await player.pool.close()
        say("end")
        os._exit(0)  # whatever a world left running must not keep us

    asyncio.run(run())


if __name__ == "__main__":
    main()
