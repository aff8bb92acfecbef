"""An engine without a model that recites whole conversations, e.g. scripted experts', from memory or a JSON file.

    engine = RecitedEngine(chat)
    engine.learn("<opening, as the tokenizer decodes it>", ["first turn", "second turn"])

Of several conversations with one opening, the next in turn is begun; one that was begun is gone on with. To a prompt
that it does not know it says nothing. The file is a list of `[opening, [turn, ...]]`; `engine.args={file: PATH}`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from policy.chat import Chat
from policy.engines import Canary, Completion, Sampling, Swapped
from policy.engines.scripted import LOGPROB


async def start(path: str, *, args: dict[str, Any] | None = None, **_: Any) -> RecitedEngine:
    """An engine that knows what is in `args["file"]`, by the tokenizer in `path`; other settings do nothing."""
    engine = RecitedEngine(Chat.load(path))
    for opening, turns in json.loads(Path((args or {})["file"]).read_text()):
        engine.learn(opening, turns)
    return engine


class RecitedEngine:
    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self.version = 0
        self.known: dict[str, list[list[str]]] = {}
        self._begun: dict[str, int] = {}

    def learn(self, opening: str, turns: Sequence[str]) -> None:
        self.known.setdefault(opening, []).append(list(turns))

    async def generate(self, ids: Sequence[int], sampling: Sampling) -> Completion:
        await asyncio.sleep(0)
        said = [*self.chat.encode(self._reply(self.chat.tokenizer.decode(list(ids)))), self.chat.stop_ids[0]]
        stopped = len(said) <= sampling.max_tokens
        said = said[: sampling.max_tokens]
        return Completion(
            ids=said, logprobs=[LOGPROB] * len(said), versions=[self.version] * len(said), stopped=stopped
        )

    def _reply(self, prompt: str) -> str:
        opening = max((o for o in self.known if prompt.startswith(o)), key=len, default=None)
        if opening is None:
            return ""
        told = prompt[len(opening) :]
        if told:
            return max((self._next(turns, told) for turns in self.known[opening]), key=lambda found: found[0])[1]
        self._begun[opening] = self._begun.get(opening, -1) + 1
        return self.known[opening][self._begun[opening] % len(self.known[opening])][0]

    def _next(self, turns: Sequence[str], told: str) -> tuple[int, str]:
        """How many of the turns were told so far, one after another, and the turn that follows."""
        for number, turn in enumerate(turns):
            _, found, told = told.partition(turn)
            if not found:
                return number, turn
        return 0, ""

    async def swap(self, blob: bytes, version: int, canary: Canary | None) -> Swapped:
        """There are no weights: only the version rises."""
        self.version = version
        return Swapped(0.0, bytes=len(blob))

    async def close(self) -> None:
        return None
