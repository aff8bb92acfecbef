"""Chat messages to token ids and back, without ever encoding again what the policy sampled.

A conversation starts with `opening(messages)`; after each sampled turn, `answer(messages, sampled)` gives the tokens
that the world adds, up to where the policy speaks next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

_SAID = "SAID"
_BEFORE = [{"role": "user", "content": "ASKED"}, {"role": "assistant", "content": _SAID}]


class Chat:
    """One tokenizer with its chat template. Raises ValueError where the tokenizer has none."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.chat_template:
            raise ValueError(
                f"the tokenizer of {tokenizer.name_or_path} has no chat template; expected one in its folder"
            )
        self.tokenizer = tokenizer
        tail = self._text(_BEFORE).rpartition(_SAID)[2]
        self.stop_ids = sorted({tokenizer.eos_token_id, *self.encode(tail)[:1]})
        """Tokens that end the policy's turn."""

    @classmethod
    def load(cls, path: str | Path) -> Chat:
        return cls(AutoTokenizer.from_pretrained(path))

    def encode(self, text: str) -> list[int]:
        """Half a character, which no tokenizer takes, becomes a sign that says so."""
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return self.tokenizer.encode(text, add_special_tokens=False)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a sampled turn, control tokens left out."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def opening(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The conversation so far, ending where the policy speaks."""
        return self.encode(self._text(messages, add_generation_prompt=True))

    def answer(self, messages: Sequence[Mapping[str, str]], sampled: Sequence[int]) -> list[int]:
        """What follows a sampled turn: the rest of its end mark, the messages, and the start of the next turn."""
        text = self._text([*_BEFORE, *messages], add_generation_prompt=True)
        ids = self.encode(text.partition(_SAID)[2])
        return ids[1:] if sampled and ids and sampled[-1] == ids[0] else ids

    def conversation(self, messages: Sequence[Mapping[str, str]]) -> tuple[list[int], list[bool]]:
        """A whole written conversation, and which tokens an assistant wrote, end marks included."""
        ids: list[int] = []
        mask: list[bool] = []
        seen: list[Mapping[str, str]] = []
        for message in messages:
            if message["role"] == "assistant":
                heard = self.answer(seen, ids) if ids else self.opening(seen)
                spoken = [*self.encode(message["content"]), self.stop_ids[0]]
                ids += heard + spoken
                mask += [False] * len(heard) + [True] * len(spoken)
                seen = []
            else:
                seen.append(message)
        return ids, mask

    def _text(self, messages: Sequence[Mapping[str, str]], **kwargs: Any) -> str:
        return self.tokenizer.apply_chat_template([dict(m) for m in messages], tokenize=False, **kwargs)
