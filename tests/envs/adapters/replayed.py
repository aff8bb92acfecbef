"""Plays given actions through a world's contract, as a rollout does."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from envs import Task


@dataclass
class Replayed:
    heard: list[str] = field(default_factory=list)
    invalid: bool = False
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def solved(self) -> bool:
        return bool(self.facts["solved"])


async def replay(world: Any, task: Task, actions: Sequence[str]) -> Replayed:
    """Until the world is done, then measured; an attempt that goes on is measured too."""
    env = world.open(task)
    played = Replayed()
    try:
        played.heard += [message["content"] for message in await env.start()]
        for action in actions:
            step = await env.step(action)
            played.heard += [message["content"] for message in step.messages]
            played.invalid = step.invalid
            if step.done:
                break
        played.facts = dict(await env.measure())
    finally:
        await env.close()
    return played


def gold(world: Any, task: Task, *, err: bool = False) -> list[str]:
    """What the scripted expert says."""
    messages = world.demonstrate(task, random.Random(0), err=err)
    return [message["content"] for message in messages if message["role"] == "assistant"]
