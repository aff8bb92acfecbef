"""An engine without a model: what it says is a function of the prompt. For tests, and for trying a world by hand.

    engine = ScriptedEngine(lambda prompt: chat.encode("\\\\boxed{4}") + chat.stop_ids[:1])

A reply ends the turn where it holds a stop token, and is cut after `max_tokens` like any other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from policy.engines import Canary, Completion, Sampling, Swapped

LOGPROB = -0.5
"""Of every token that it says."""


async def start(path: str, **_: Any) -> ScriptedEngine:
    """An engine that ends each turn at once, by the tokenizer in `path`; other settings do nothing."""
    from policy.chat import Chat

    end = Chat.load(path).stop_ids[:1]
    return ScriptedEngine(lambda prompt: end)


class ScriptedEngine:
    def __init__(self, reply: Callable[[list[int]], Sequence[int]]) -> None:
        self.reply = reply
        self.version = 0

    async def generate(self, ids: Sequence[int], sampling: Sampling) -> Completion:
        await asyncio.sleep(0)
        said = list(self.reply(list(ids)))
        ends = [place for place, token in enumerate(said) if token in sampling.stop_ids][:1]
        said = said[: ends[0] + 1 if ends else len(said)]
        stopped = bool(ends) and len(said) <= sampling.max_tokens
        said = said[: sampling.max_tokens]
        return Completion(
            ids=said, logprobs=[LOGPROB] * len(said), versions=[self.version] * len(said), stopped=stopped
        )

    async def swap(self, blob: bytes, version: int, canary: Canary | None) -> Swapped:
        """There are no weights: only the version rises."""
        self.version = version
        return Swapped(0.0, bytes=len(blob))

    async def close(self) -> None:
        return None
