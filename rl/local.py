"""A run in one process, without Ray: what `rl/cluster.py` spreads over actors, behind the same methods.

For engines that need no process of their own (policy/engines/scripted.py, drawn.py), and for trying out the loops.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from envs import MachineryError, Split, World
from policy.chat import Chat
from policy.engines import Canary, Engine, Swapped
from policy.weights import Weights
from rl import rollout, selftest, stages
from rl.config import RunConfig
from rl.learner import Learner
from rl.trajectory import Group, Member


class Local:
    """Worlds, one engine and the learner. Steps run in a thread, so that episodes go on beside them."""

    def __init__(
        self, config: RunConfig, worlds: Mapping[str, World], engine: Engine, chat: Chat, learner: Learner
    ) -> None:
        self.config, self.worlds, self.engine, self.chat, self.learner = config, worlds, engine, chat, learner
        self.say: Callable[[str], None] = logging.getLogger(__name__).warning
        """As `Cluster.say`; nothing here dies without the driver, so nothing is said."""

    async def start(self, model: str, logs: Path, *, learn: bool, checkpoint: str | None = None) -> None:
        if checkpoint is not None:
            self.learner.restore(checkpoint)

    async def play(self, world: str, split: Split, index: int, lease: int, version: int, size: int) -> Group:
        """One group: `size` attempts at the task at `index`."""
        now = stages.at(self.config, version) if split == "train" else self.config
        place, settings = self.worlds[world], self.config.rollout
        try:
            task = rollout.task_of(place, split, index, world)
        except MachineryError as error:
            return Group(lease, world, version, rollout.unplayed(world, split, index, error))
        limits = rollout.limits(self.config, place)
        seed = f"{self.config.seed}/{world}/{split}/{index}" if self.config.train.sync else None
        members = await rollout.play_group(
            place, task, size, self.engine, self.chat, limits, now.rewards, settings.replace_lost, seed
        )
        return Group(lease=lease, world=world, version=version, members=members)

    async def expert(self, world: str, index: int) -> Member:
        return await selftest.play_expert(self.worlds[world], self, index)

    async def score(self, members: Sequence[Member]) -> tuple[list[list[float]], dict[str, float]]:
        ours = [self.learner.logprobs(member.trajectory.ids) for member in members]
        return ours, self.learner.rehearse(members)

    async def look(self) -> dict[str, int]:
        return dict(rollout.STAGES)

    async def step(self, groups: Sequence[Group]) -> dict[str, float]:
        members = [member for group in groups for member in group.valid]
        return await asyncio.to_thread(self.learner.step, members)

    async def publish(self) -> Swapped:
        """Give the learner's weights to the engine."""
        weights = Weights.pack(self.learner.state(), self.learner.version)
        canary: Canary | None = None  # engines for one process have no model to ask
        return await self.engine.swap(weights.check(), weights.version, canary)

    async def save(self, folder: Path) -> None:
        await asyncio.to_thread(self.learner.save, folder)

    async def close(self) -> None:
        for world in self.worlds.values():
            await world.close()
        await self.engine.close()
