"""An environment behind OpenEnv's protocol, by its URL: reset, steps and rewards over one WebSocket an attempt.

    worlds: {maze: {world: openenv, args: {url: "http://127.0.0.1:8000", sessions: 4}}}
    rewards: {fact: {name: reward}}                                      # the sum of what the steps paid

The server is the user's own and holds what an attempt changes; the policy's actions reach it as they are. A task is a
seed of its `reset`. The policy acts through one tool, `act`, whose arguments are the fields of the server's action. A
server that is lost, full or raises is the machinery's failure. It tells no right action: nothing can be demonstrated.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from envs import Env, EnvCrashed, Facts, Message, Split, Step, Task, heldout
from envs.sandboxes import SandboxPool
from envs.tools import BadCall, Tool, call, prompt

CONNECT_S = 30.0
LARGEST_BYTES = 16 * 2**20
"""Of one answer of the server's."""
REFUSED = ("VALIDATION_ERROR", "INVALID_JSON")
"""Errors of the server's that are about the action, which the policy may try again."""


class World:
    """`instructions` stand before the first observation. `sessions`: how many attempts the server takes at a time (by
    default it takes one). `solved_at`: the least sum of rewards that counts as solved. `reset`: what it takes beside a
    seed. `max_turns`: refused actions count too, and the last ends the attempt with what it has earned.
    """

    name = "openenv"

    def __init__(
        self,
        sandboxes: SandboxPool,
        *,
        url: str,
        seed: int = 0,
        instructions: str = "",
        sessions: int = 1,
        reset: dict[str, Any] | None = None,
        max_turns: int = 20,
        reply_timeout_s: float = 60.0,
        observation_chars: int = 4000,
        solved_at: float = 1.0,
    ) -> None:
        if not url.startswith(("http://", "https://")) or sessions < 1 or max_turns < 1:
            raise ValueError(
                f"world openenv: got url={url!r}, sessions={sessions}, max_turns={max_turns}; expected http:// or "
                "https://, and at least 1 of each"
            )
        self.url, self.seed, self.reset = url.rstrip("/"), seed, dict(reset or {})
        self.tools = {"act": _tool(self.url)}
        self.instructions = instructions or "Act in the environment, one call at a time, until it ends."
        self.max_turns, self.reply_timeout_s = max_turns, reply_timeout_s
        self.observation_chars, self.solved_at = observation_chars, solved_at
        self.free = asyncio.Semaphore(sessions)

    def task(self, split: Split, index: int) -> Task:
        """Seeds are drawn until one is of the split; the train split's depend on `seed`."""
        rng = random.Random(f"openenv/{self.seed if split == 'train' else 0}/{split}/{index}")
        while True:
            number = rng.randrange(2**31)
            if heldout(f"seed/{number}") == (split == "heldout"):
                break
        text = f"{self.instructions}\n{prompt(list(self.tools.values()))}"
        return Task(
            world=self.name,
            key=f"seed/{number}",
            family="openenv",
            level=0,
            messages=(
                {"role": "system", "content": text},
                {"role": "user", "content": f"[what the server shows after a reset with seed {number}]"},
            ),
            given={"seed": number},
        )

    def size(self, split: Split) -> None:
        return None

    def open(self, task: Task) -> Env:
        return OpenEnv(task, self)

    def demonstrate(self, task: Task, rng: random.Random, *, err: bool) -> list[Message]:
        raise ValueError("an OpenEnv server does not say which actions are right, so there is no demonstration")

    async def close(self) -> None:
        return None


def _tool(url: str) -> Tool:
    """The server's action as a tool. Raises ValueError where no such server answers."""
    try:
        with urllib.request.urlopen(f"{url}/schema", timeout=CONNECT_S) as reply:
            schema = json.loads(reply.read(LARGEST_BYTES))["action"]
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise ValueError(
            f"world openenv: {url}/schema does not tell the action of an OpenEnv server: {problem}"
        ) from None
    fields = {name: about for name, about in schema.get("properties", {}).items() if name != "metadata"}
    wanted = {**schema, "type": "object", "properties": fields, "additionalProperties": False}
    return Tool("act", schema.get("description") or "Acts in the environment.", wanted)


class OpenEnv:
    def __init__(self, task: Task, world: World) -> None:
        self.task, self.world = task, world
        self.line: ClientConnection | None = None
        self.holds = False
        self.rewards: list[float] = []
        self.refused = self.turns = 0
        self.spent = False

    async def start(self) -> Sequence[Message]:
        await self.world.free.acquire()
        self.holds = True
        line = f"ws{self.world.url.removeprefix('http')}/ws"
        try:
            self.line = await connect(line, open_timeout=CONNECT_S, max_size=LARGEST_BYTES)
        except (OSError, WebSocketException, TimeoutError) as problem:
            raise EnvCrashed(f"no OpenEnv server answers at {line}: {problem or 'too late'}") from problem
        seen = await self._ask("reset", {"seed": self.task.given["seed"], **self.world.reset})
        if "message" in seen:
            raise EnvCrashed(f"the OpenEnv server refused the reset: {seen['message']}")
        return [self.task.messages[0], {"role": "user", "content": self._told(seen)}]

    async def _ask(self, kind: str, data: dict[str, Any]) -> dict[str, Any]:
        """What the server answers: an observation, or a `message` where it refuses. Raises EnvCrashed."""
        assert self.line is not None
        try:
            async with asyncio.timeout(self.world.reply_timeout_s):
                await self.line.send(json.dumps({"type": kind, "data": data}))
                reply = json.loads(await self.line.recv())
                found = reply["data"]
        except TimeoutError:
            raise EnvCrashed(f"no answer to {kind} within {self.world.reply_timeout_s:g} s") from None
        except (OSError, WebSocketException) as problem:
            raise EnvCrashed(f"the OpenEnv server was lost during {kind}: {problem}") from problem
        except (ValueError, KeyError, TypeError, RecursionError) as problem:
            raise EnvCrashed(f"the OpenEnv server's answer to {kind} cannot be read: {problem}") from problem
        if reply.get("type") == "error" and found.get("code") not in REFUSED:
            raise EnvCrashed(f"the OpenEnv server failed at {kind}: {found.get('code')}: {found.get('message')}"[:400])
        return {"message": str(found.get("message"))} if reply.get("type") == "error" else dict(found)

    def _told(self, seen: dict[str, Any]) -> str:
        observation = seen.get("observation") or {}
        if isinstance(observation, dict):
            observation = {name: value for name, value in observation.items() if name != "metadata" or value}
            only = next(iter(observation.values())) if len(observation) == 1 else None
            text = only if isinstance(only, str) else json.dumps(observation, ensure_ascii=False)
        else:
            text = json.dumps(observation, ensure_ascii=False)
        limit = self.world.observation_chars
        if cut := max(0, len(text) - limit):
            text = f"{text[: limit - limit // 2]}\n[{cut} characters left out]\n{text[len(text) - limit // 2 :]}"
        return text

    async def step(self, action: str) -> Step:
        """The last turn ends the attempt, so that what the steps paid is measured."""
        self.turns += 1
        step = await self._stepped(action)
        self.spent = not step.done and self.turns >= self.world.max_turns
        return Step(done=True, seconds=step.seconds) if self.spent else step

    async def _stepped(self, action: str) -> Step:
        try:
            asked = call(action, self.world.tools)
        except BadCall as wrong:
            if not wrong.tool:
                return Step(done=True, invalid=True)
            return self._refusal(str(wrong))
        if asked is None:
            return Step(done=True, invalid=True)
        began = time.monotonic()
        seen = await self._ask("step", dict(asked.arguments))
        seconds = time.monotonic() - began
        if "message" in seen:
            return self._refusal(seen["message"])
        reward = seen.get("reward")
        if not (reward is None or (isinstance(reward, int | float) and math.isfinite(reward))):
            raise EnvCrashed(f"the OpenEnv server paid {reward!r:.40}; expected a finite number")
        self.rewards.append(float(reward or 0.0))
        if seen.get("done"):
            return Step(done=True, seconds=seconds)
        return Step(messages=({"role": "tool", "name": "act", "content": self._told(seen)},), seconds=seconds)

    def _refusal(self, words: str) -> Step:
        self.refused += 1
        said = {"role": "tool", "name": "act", "content": f"error: {words[: self.world.observation_chars]}"}
        return Step(messages=(said,))

    async def measure(self) -> Facts:
        reward = math.fsum(self.rewards)
        facts = {"solved": reward >= self.world.solved_at, "reward": reward, "rewards": self.rewards}
        return {**facts, "refused_calls": self.refused, "turns": self.turns, "truncated": self.spent}

    async def close(self) -> None:
        line, self.line = self.line, None
        try:
            if line is not None:
                await line.close()
        finally:
            if self.holds:
                self.holds = False
                self.world.free.release()
