"""The vocabulary of worlds: what is tried, what was said, what happened, how it ended.

A world is one file (or folder) in this package that exports `World`. It states facts and never judges them, and it
knows nothing of tokens, models or rewards. To add one, write `envs/<name>.py`, shortest by `envs/define.py`;
`load("<name>")` finds it, as it does a dotted module or a Python file elsewhere.

    world = load("math").World(sandboxes=pool, python_tool=True)
    task = world.task("train", 17)            # deterministic: same split and index, same task
    env = world.open(task)                    # one attempt; single use
    messages = await env.start()              # what the policy reads first
    step = await env.step("\\boxed{4}")        # one action in, what the world answers out
    facts = await env.measure()               # run the hidden checks; `facts["solved"]` is always there
    await env.close()

Errors (a failure of the machinery, never a reward):

    MachineryError
    ├── EnvCrashed       the world's own code failed
    ├── JudgeFailed      the verifier could not give a verdict
    ├── JudgeTimedOut    the verifier did not answer in time
    └── SandboxError     (envs/sandboxes) the container or its engine failed
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Literal, Protocol

from envs.find import available as available
from envs.find import load as load
from envs.find import short as short

Message = dict[str, str]
"""One chat message: `role` (system, user, assistant, tool), `content`, and `name` where the role is tool."""

Facts = dict[str, Any]
"""What the world measured: JSON values by name. `solved` (bool) is always present; the rest is the world's own."""

Split = Literal["train", "heldout"]


class Outcome(StrEnum):
    """How an episode ended. The first six are the policy's doing and train; the rest, the machinery's, never do."""

    SOLVED = "solved"
    FAILED = "failed"
    TURNS_SPENT = "turns_spent"
    TOKENS_SPENT = "tokens_spent"
    TIME_SPENT = "time_spent"
    INVALID_ACTION = "invalid_action"

    SANDBOX_LOST = "sandbox_lost"
    ENV_CRASHED = "env_crashed"
    JUDGE_FAILED = "judge_failed"
    JUDGE_TIMED_OUT = "judge_timed_out"
    ENGINE_LOST = "engine_lost"
    CANCELLED = "cancelled"

    @property
    def valid(self) -> bool:
        """True where the policy earned this ending, so that it may be scored and trained on."""
        return self in _POLICY_OUTCOMES


_POLICY_OUTCOMES = frozenset(
    {
        Outcome.SOLVED,
        Outcome.FAILED,
        Outcome.TURNS_SPENT,
        Outcome.TOKENS_SPENT,
        Outcome.TIME_SPENT,
        Outcome.INVALID_ACTION,
    }
)


class MachineryError(Exception):
    """Something other than the policy failed. Carries the typed outcome that the episode ends in."""

    outcome = Outcome.ENV_CRASHED


class EnvCrashed(MachineryError):
    outcome = Outcome.ENV_CRASHED


class JudgeFailed(MachineryError):
    outcome = Outcome.JUDGE_FAILED


class JudgeTimedOut(MachineryError):
    outcome = Outcome.JUDGE_TIMED_OUT


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One problem. `given` is what the attempt may see; `hidden` never leaves the host that measures."""

    world: str
    key: str
    """Stable name of the problem within its world, e.g. `sum/17+5`."""
    family: str
    level: int
    """Difficulty within the family, 0 the easiest."""
    messages: tuple[Message, ...]
    given: Mapping[str, Any] = field(default_factory=dict)
    hidden: Mapping[str, Any] = field(default_factory=dict)

    @property
    def content_hash(self) -> str:
        """Hex digest over everything in the task, so that an edited problem is a different one."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True, default=str).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What the world answers to one action: new messages (none where `done`), and whether the attempt is over."""

    messages: tuple[Message, ...] = ()
    done: bool = False
    invalid: bool = False
    """The action could not be understood and the world ends the attempt for it."""
    seconds: float = 0.0
    """How long the action itself ran, without queues: all that a time budget counts; a slow machine spends none."""


@dataclass(slots=True, kw_only=True)
class Episode:
    """One attempt, complete enough to be scored again later without the world that played it."""

    task: Task
    messages: list[Message]
    outcome: Outcome
    facts: Facts = field(default_factory=lambda: {"solved": False})
    turns: int = 0
    tokens: int = 0
    """Length of what the policy said in all its turns, in the unit that its budgets count."""
    error: str = ""
    """One line on what failed, where the outcome is the machinery's."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Where the time went: `generate`, `env`, `measure`, in seconds."""


class Env(Protocol):
    """One attempt at one task. `close` may be called at any time, more than once."""

    async def start(self) -> Sequence[Message]: ...

    async def step(self, action: str) -> Step: ...

    async def measure(self) -> Facts: ...

    async def close(self) -> None: ...


class World(Protocol):
    """A family of tasks and the way to attempt them. Built once in each rollout worker from the configuration.

    A world may also have, for `rl check`: `size(split)`, how many different tasks there are, which the first as many
    positions hold, or None for no end; `secrets(task)`, texts that no sandbox of an attempt may hold, by what they are;
    `paths(task)`, ends of paths under which these could lie elsewhere in the image; `tools`, by name, each an
    `envs.tools.Tool`, to be called oddly.
    """

    name: str
    max_turns: int

    def task(self, split: Split, index: int) -> Task:
        """The task at `index` of an endless stream; the keys of the two splits never meet."""
        ...

    def open(self, task: Task) -> Env: ...

    def demonstrate(self, task: Task, rng: random.Random, *, err: bool) -> list[Message]:
        """A scripted expert's whole conversation, right or (where `err`) wrong in a way a policy could be."""
        ...

    async def close(self) -> None:
        """Give up what the world holds beyond single attempts. May be called more than once."""
        ...


def heldout(key: str, share: float = 0.2) -> bool:
    """True where a key belongs to the held-out split: decided by the key alone, so that the splits cannot overlap."""
    return int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) < share * 2**32


@dataclass(frozen=True, slots=True)
class ToolCall:
    name: str
    body: str


_TOOL_CALL = re.compile(r"<tool: ([\w.-]+)>\n(.*?)\n?</tool>", re.DOTALL)


def tool_call(action: str) -> ToolCall | None:
    """The single tool call of an action in CWM's syntax (`<tool: NAME>` newline, free text, `</tool>`), else None."""
    calls = _TOOL_CALL.findall(action)
    return ToolCall(*calls[0]) if len(calls) == 1 else None
