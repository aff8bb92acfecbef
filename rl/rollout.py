"""Plays one episode: world says, policy says, until done or a budget is spent. Then the facts, then the score.

Every way to end is an `Outcome`. What the machinery did is caught here, once, by type; a programming error is not caught.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import rewards
from envs import Env, Episode, Facts, MachineryError, Outcome, Task, World
from policy.chat import Chat
from policy.engines import Completion, Engine, EngineError, Sampling
from rl.trajectory import Member, Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Budgets of one episode."""

    context: int
    """Tokens of the whole episode."""
    turn_tokens: int
    turns: int
    timeout_s: float
    """Seconds of the policy's own acting: time spent waiting for the engine counts, for a sandbox slot does not end it early."""
    temperature: float = 1.0
    top_p: float = 1.0


async def play(
    world: World, task: Task, engine: Engine, chat: Chat, limits: Limits, judges: Mapping[str, Mapping[str, Any]]
) -> Member:
    """One attempt at one task, scored where the policy earned its ending."""
    trajectory = Trajectory()
    episode = Episode(task=task, messages=list(task.messages), outcome=Outcome.CANCELLED)
    env = world.open(task)
    try:
        episode.outcome, episode.facts = await _attempt(env, episode, trajectory, engine, chat, limits)
    except MachineryError as error:
        episode.outcome, episode.error = error.outcome, f"{type(error).__name__}: {error}"
    except EngineError as error:
        episode.outcome, episode.error = Outcome.ENGINE_LOST, f"{type(error).__name__}: {error}"
    finally:
        await _close(env, episode)
    score = rewards.score(episode, judges) if episode.outcome.valid else None
    return Member(trajectory=trajectory, episode=episode, score=score)


async def _attempt(
    env: Env, episode: Episode, trajectory: Trajectory, engine: Engine, chat: Chat, limits: Limits
) -> tuple[Outcome, Facts]:
    spent = _Clock(episode.seconds)
    unsolved: Facts = {"solved": False}
    with spent.on("env"):
        episode.messages = list(await env.start())
    trajectory.hear(chat.opening(episode.messages))
    while True:
        room = min(limits.turn_tokens, limits.context - len(trajectory))
        if room <= 0:
            return Outcome.TOKENS_SPENT, unsolved
        sampling = Sampling(
            max_tokens=room, stop_ids=tuple(chat.stop_ids), temperature=limits.temperature, top_p=limits.top_p
        )
        with spent.on("generate"):
            said: Completion = await engine.generate(trajectory.ids, sampling)
        trajectory.speak(said.ids, said.logprobs, said.versions)
        action = chat.decode(said.ids)
        episode.messages.append({"role": "assistant", "content": action})
        episode.turns += 1
        if not said.stopped:
            return Outcome.TOKENS_SPENT, unsolved
        with spent.on("env"):
            step = await env.step(action)
        if step.invalid:
            return Outcome.INVALID_ACTION, unsolved
        if step.done:
            break
        if episode.turns >= limits.turns:
            return Outcome.TURNS_SPENT, unsolved
        if spent.total > limits.timeout_s:
            return Outcome.TIME_SPENT, unsolved
        episode.messages += step.messages
        trajectory.hear(chat.answer(step.messages, said.ids))
    with spent.on("measure"):
        facts = await env.measure()
    return (Outcome.SOLVED if facts["solved"] else Outcome.FAILED), facts


async def _close(env: Env, episode: Episode) -> None:
    """A failed hand-back is the machinery's trouble, but the episode it follows is whole."""
    try:
        await env.close()
    except MachineryError as error:
        episode.error = episode.error or f"on close: {error}"


class _Clock:
    """Adds up seconds by what was waited for."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds
        self._name, self._began = "", 0.0

    def on(self, name: str) -> _Clock:
        self._name = name
        return self

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.seconds[self._name] = self.seconds.get(self._name, 0.0) + time.monotonic() - self._began

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


async def play_group(
    world: World,
    task: Task,
    size: int,
    engine: Engine,
    chat: Chat,
    limits: Limits,
    judges: Mapping[str, Mapping[str, Any]],
    replace_lost: int,
) -> list[Member]:
    """`size` attempts at one task, side by side; each that the machinery lost is played again up to `replace_lost` times."""

    async def member() -> list[Member]:
        tries = [await play(world, task, engine, chat, limits, judges)]
        while not tries[-1].episode.outcome.valid and len(tries) <= replace_lost:
            tries.append(await play(world, task, engine, chat, limits, judges))
        return tries

    played = await asyncio.gather(*(member() for _ in range(size)))
    return [attempt for tries in played for attempt in tries]
