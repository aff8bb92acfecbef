"""An engine without a model whose replies are drawn from a list, by prompt, seed and the weights that it serves.

    engine = DrawnEngine([chat.encode(text) + chat.stop_ids[:1] for text in ("\\\\boxed{0}", "\\\\boxed{1}")])

So groups have advantages, and a run with seeds is repeated exactly where, and only where, its weights are the same.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Sequence
from typing import Any

from policy.engines import Canary, Completion, Sampling, Swapped

DIGITS = 10
"""The engine that `start` makes says one of so many answers, boxed."""


async def start(path: str, **_: Any) -> DrawnEngine:
    """An engine that guesses a boxed digit, in the tokens of the tokenizer in `path`; other settings do nothing."""
    from policy.chat import Chat

    chat = Chat.load(path)
    return DrawnEngine([chat.encode(f"\\boxed{{{digit}}}") + chat.stop_ids[:1] for digit in range(DIGITS)])


class DrawnEngine:
    """A request without a seed draws anew each time."""

    def __init__(self, replies: Sequence[Sequence[int]]) -> None:
        self.replies = [list(reply) for reply in replies]
        self.version = 0
        self._weights = ""
        self._requests = 0

    async def generate(self, ids: Sequence[int], sampling: Sampling) -> Completion:
        await asyncio.sleep(0)
        self._requests += 1
        seed = f"request {self._requests}" if sampling.seed is None else str(sampling.seed)
        drawn = hashlib.sha256(f"{list(ids)} {seed} {self._weights}".encode()).digest()
        said = self.replies[int.from_bytes(drawn[:8]) % len(self.replies)]
        stopped = len(said) <= sampling.max_tokens and said[-1] in sampling.stop_ids
        said = said[: sampling.max_tokens]
        logprobs = [-math.log(len(self.replies)), *[0.0] * (len(said) - 1)]
        return Completion(ids=said, logprobs=logprobs, versions=[self.version] * len(said), stopped=stopped)

    async def swap(self, blob: bytes, version: int, canary: Canary | None) -> Swapped:
        """What is drawn from here on depends on `blob`."""
        self._weights, self.version = hashlib.sha256(blob).hexdigest(), version
        return Swapped(0.0, bytes=len(blob))

    async def close(self) -> None:
        return None
