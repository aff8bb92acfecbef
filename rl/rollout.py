"""Plays one episode: world says, policy says, until done or a budget is spent. Then the facts, then the score.

Every way to end is an `Outcome`. What the machinery did is caught here, once, by type. Worlds and rewards are plug-ins:
whatever they raise, and a call that never ends, is their failure and no reward; an error in our own code is not caught.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import rewards
from envs import Env, EnvCrashed, Episode, Facts, JudgeTimedOut, MachineryError, Outcome, Split, Task, World
from policy.chat import Chat
from policy.engines import Completion, EngineError, Sampler, Sampling
from rl.check import answers
from rl.check.kinds import Fault
from rl.config import RunConfig
from rl.trajectory import Member, Trajectory

WORLD_TIMEOUT_S = 900.0
"""A single call into a world that takes longer, waiting for a sandbox included, will never end."""
EPISODE_TIMEOUT_S = 4 * 3600.0
"""An attempt that takes longer, all its waits included, is cancelled."""

STAGES: Counter[str] = Counter()
"""Attempts of this process by what they wait for at this moment: `generate`, `env`, `measure`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Budgets of one episode."""

    context: int
    """Tokens of the whole episode."""
    turn_tokens: int
    turns: int
    timeout_s: float
    """Seconds that the policy's actions may run in all; queues, engines and measuring are the machinery's time."""
    temperature: float = 1.0
    top_p: float = 1.0


def limits(config: RunConfig, world: World) -> Limits:
    """The budgets of a run's episodes in one of its worlds."""
    return Limits(
        context=config.policy.context,
        turn_tokens=config.policy.turn_tokens,
        turns=world.max_turns,
        timeout_s=config.rollout.episode_timeout_s,
        temperature=config.policy.temperature,
        top_p=config.policy.top_p,
    )


async def play(
    world: World,
    task: Task,
    engine: Sampler,
    chat: Chat,
    limits: Limits,
    judges: Mapping[str, Mapping[str, Any]],
    seed: str | None = None,
) -> Member:
    """One attempt at one task, scored by itself where the policy earned its ending. `seed` seeds its sampling."""
    member = await _played(world, task, engine, chat, limits, seed)
    await _judge([member], judges)
    return member


async def _played(
    world: World, task: Task, engine: Sampler, chat: Chat, limits: Limits, seed: str | None = None
) -> Member:
    trajectory = Trajectory()
    episode = Episode(task=task, messages=list(task.messages), outcome=Outcome.CANCELLED)
    env: Env | None = None
    try:
        async with asyncio.timeout(EPISODE_TIMEOUT_S) as deadline:
            async with _of_the_world():
                env = world.open(task)
            episode.outcome, episode.facts = await _attempt(env, episode, trajectory, engine, chat, limits, seed)
    except TimeoutError:
        if not deadline.expired():  # not ours: a mistake of an engine's, which is not hidden
            raise
        episode.error = f"cancelled: no end within {EPISODE_TIMEOUT_S:g} s, of which {_spelt(episode.seconds)}"
    except MachineryError as error:
        episode.outcome, episode.error = error.outcome, f"{type(error).__name__}: {error}"
    except EngineError as error:
        episode.outcome, episode.error = Outcome.ENGINE_LOST, f"{type(error).__name__}: {error}"
    finally:
        if env is not None:
            await _close(env, episode)
    return Member(trajectory=trajectory, episode=episode)


def _spelt(seconds: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {spent:.1f}" for name, spent in seconds.items()) or "nothing was measured"


async def _judge(members: Sequence[Member], judges: Mapping[str, Mapping[str, Any]]) -> None:
    """Score together those attempts of a group that the policy ended; one on which a reward fails is the machinery's.

    In a thread, as a reward is a plug-in and may take its time.
    """
    while valid := [member for member in members if member.episode.outcome.valid]:
        failed: Mapping[int, MachineryError] = {}
        try:
            async with asyncio.timeout(WORLD_TIMEOUT_S):
                scores = await asyncio.to_thread(rewards.score_group, [m.episode for m in valid], judges)
        except TimeoutError:
            late = JudgeTimedOut(f"rewards did not end within {WORLD_TIMEOUT_S:g} s")
            failed = dict.fromkeys(range(len(valid)), late)
        except rewards.Unscored as error:
            failed = error.failed
        else:
            for member, score in zip(valid, scores, strict=True):
                member.score = score
            return
        for number, failure in failed.items():
            member = valid[number]
            member.score, member.episode.outcome = None, failure.outcome
            member.episode.error = f"{type(failure).__name__}: {failure}"


async def _attempt(
    env: Env,
    episode: Episode,
    trajectory: Trajectory,
    engine: Sampler,
    chat: Chat,
    limits: Limits,
    seed: str | None,
) -> tuple[Outcome, Facts]:
    spent = _Clock(episode.seconds)
    unsolved: Facts = {"solved": False}
    acted_s = 0.0
    async with _of_the_world(spent.on("env")):
        opening = await env.start()
        _held(answers.messages, "start", opening)
        episode.messages = list(opening)
    trajectory.hear(chat.opening(episode.messages))
    if len(trajectory) >= limits.context:
        raise EnvCrashed(f"the prompt takes {len(trajectory)} tokens; policy.context={limits.context} leaves no answer")
    while True:
        room = min(limits.turn_tokens, limits.context - len(trajectory))
        if room <= 0:
            return Outcome.TOKENS_SPENT, unsolved
        sampling = Sampling(
            max_tokens=room,
            stop_ids=tuple(chat.stop_ids),
            temperature=limits.temperature,
            top_p=limits.top_p,
            seed=None if seed is None else _number(f"{seed}/{episode.turns}"),
        )
        with spent.on("generate"):
            said: Completion = await engine.generate(trajectory.ids, sampling)
        trajectory.speak(said.ids, said.logprobs, said.versions)
        episode.tokens = trajectory.spoken
        action = chat.decode(said.ids)
        episode.messages.append({"role": "assistant", "content": action})
        episode.turns += 1
        if not said.stopped:
            return Outcome.TOKENS_SPENT, unsolved
        async with _of_the_world(spent.on("env")):
            step = await env.step(action)
            _held(answers.step, step)
            _held(answers.messages, "step", step.messages)
        if step.invalid:
            return Outcome.INVALID_ACTION, unsolved
        if step.done:
            break
        if episode.turns >= limits.turns:
            return Outcome.TURNS_SPENT, unsolved
        acted_s += step.seconds
        if acted_s > limits.timeout_s:
            return Outcome.TIME_SPENT, unsolved
        episode.messages += step.messages
        heard = chat.answer(step.messages, said.ids)
        if len(trajectory) + len(heard) >= limits.context:  # not heard: a longer trajectory would not fit into a row
            return Outcome.TOKENS_SPENT, unsolved
        trajectory.hear(heard)
    async with _of_the_world(spent.on("measure")):
        facts = await env.measure()
        _held(answers.facts, facts)
        outcome = Outcome.SOLVED if facts["solved"] else Outcome.FAILED
    return outcome, facts


def _held(contract: Callable[..., Any], *given: Any) -> None:
    """Raises Fault where a world answered with what could not be stored, or would be taken for something else. Size is
    a matter of budgets here, and half a character may be the attempt's own.
    """
    try:
        contract(*given, odd=True)
    except Fault as fault:
        if fault.kind != "huge-output":
            raise


def _cancelled() -> bool:
    """Somebody cancelled this attempt, as against a world that raises what a cancelled one would."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


@asynccontextmanager
async def _of_the_world(clock: AbstractContextManager[None] | None = None) -> AsyncIterator[None]:
    """Around every call into a world. A world is a plug-in: what its code raises cannot be foreseen here, and must end
    this episode in a typed outcome rather than end the run, so the net is wide. Cancellation passes.
    """
    try:
        with clock or nullcontext():
            async with asyncio.timeout(WORLD_TIMEOUT_S) as deadline:
                yield
    except MachineryError:
        raise
    except (asyncio.CancelledError, SystemExit) as error:
        if isinstance(error, asyncio.CancelledError) and _cancelled():
            raise
        raise EnvCrashed(f"{type(error).__name__}: {error}") from error
    except Exception as error:
        if deadline.expired():
            raise EnvCrashed(f"a call into the world did not end within {WORLD_TIMEOUT_S:g} s") from None
        raise EnvCrashed(f"{type(error).__name__}: {error}") from error


async def _close(env: Env, episode: Episode) -> None:
    """A failed hand-back is the machinery's trouble, but the episode it follows is whole."""
    try:
        async with _of_the_world():
            await env.close()
    except MachineryError as error:
        episode.error = episode.error or f"on close: {error}"


def _number(seed: str) -> int:
    """63 bits that depend on all of the text."""
    return int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8]) >> 1


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
        STAGES[self._name] += 1

    def __exit__(self, *_: object) -> None:
        STAGES[self._name] -= 1
        self.seconds[self._name] = self.seconds.get(self._name, 0.0) + time.monotonic() - self._began


async def play_group(
    world: World,
    task: Task,
    size: int,
    engine: Sampler,
    chat: Chat,
    limits: Limits,
    judges: Mapping[str, Mapping[str, Any]],
    replace_lost: int,
    seed: str | None = None,
) -> list[Member]:
    """`size` attempts at one task, side by side, scored together. One that the machinery lost, or on which a reward
    failed, is played again, up to `replace_lost` times.
    """
    played: list[list[Member]] = [[] for _ in range(size)]

    def owed(number: int) -> bool:
        tries = played[number]
        return not tries or (len(tries) <= replace_lost and not tries[-1].episode.outcome.valid)

    async def fill(number: int) -> None:
        while owed(number):
            own = None if seed is None else f"{seed}/{number}/{len(played[number])}"
            played[number].append(await _played(world, task, engine, chat, limits, own))

    while any(owed(number) for number in range(size)):
        playing = [asyncio.create_task(fill(number)) for number in range(size)]
        try:
            await asyncio.gather(*playing)
        finally:  # where one raised, or the group was cancelled, none goes on unseen
            for task_of_one in playing:
                task_of_one.cancel()
            await asyncio.gather(*playing, return_exceptions=True)
        await _judge([one for tries in played for one in tries], judges)
    return [one for tries in played for one in tries]


def task_of(world: World, split: Split, index: int, name: str | None = None) -> Task:
    """The task at `index` of a world's stream, as one of what a run calls `name`. Raises EnvCrashed where the world's
    own code fails at it.
    """
    try:
        task = world.task(split, index)
        return task if name in (None, task.world) else replace(task, world=name)
    except Exception as error:
        raise EnvCrashed(f"task {index} of {split} could not be made: {type(error).__name__}: {error}") from error


def unplayed(world: str, split: Split, index: int, error: MachineryError) -> list[Member]:
    """The members, one, of a group that has no task to attempt."""
    task = Task(world=world, key=f"{split}/{index}", family="", level=0, messages=())
    episode = Episode(task=task, messages=[], outcome=error.outcome, error=f"{type(error).__name__}: {error}")
    return [Member(trajectory=Trajectory(), episode=episode)]
