"""TRL reward functions as they are, on the attempts of any world: `{trl: {functions: ["mine.py:short"]}}`.

The valid attempts of a group come in one call. `prompts` is what was said before the policy spoke, `completions` all
from its first word on, as conversations or, with `conversational: false`, as the texts of the policy alone. Columns are
what the task holds under its own names (`hidden`, `given`, a data set's columns); `columns` adds others, as in
`{solution: answer}`, which hands the task's `answer` over as `solution`. The weighted sum leaves out what is None for
an attempt; where all functions say so, the reward does not apply. They run in a process of their own, and the caller
waits for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from envs import Episode
from envs.adapters.shared.functions import Functions


def group(
    episodes: Sequence[Episode],
    *,
    functions: Sequence[str],
    weights: Sequence[float] | None = None,
    columns: Mapping[str, str] | None = None,
    conversational: bool = True,
    timeout_s: float = 60.0,
) -> list[float | None]:
    judges = _running(tuple(functions), timeout_s)
    spoken = [(*_sides(episode, conversational), _columns(episode, columns or {})) for episode in episodes]
    by_name = judges.weights(weights)
    return [judged.total(by_name) if judged.parts else None for judged in judges.judge_all(spoken)]


def check(
    *,
    functions: Sequence[str],
    weights: Sequence[float] | None = None,
    columns: Mapping[str, str] | None = None,
    conversational: bool = True,
    timeout_s: float = 60.0,
) -> None:
    Functions(functions, None, timeout_s).weights(weights)


@lru_cache(maxsize=32)
def _running(functions: tuple[str, ...], timeout_s: float) -> Functions:
    """One process for the same functions, kept until this one ends."""
    return Functions(functions, None, timeout_s)


def _sides(episode: Episode, conversational: bool) -> tuple[Any, Any]:
    spoke = [at for at, message in enumerate(episode.messages) if message["role"] == "assistant"]
    at = spoke[len(spoke) - episode.turns] if 0 < episode.turns <= len(spoke) else len(episode.messages)
    before, after = episode.messages[:at], episode.messages[at:]
    if conversational:
        return before, after
    own = [message["content"] for message in after if message["role"] == "assistant"]
    return "\n\n".join(message["content"] for message in before), "\n\n".join(own)


def _columns(episode: Episode, renamed: Mapping[str, str]) -> dict[str, Any]:
    hidden = episode.task.hidden
    own = hidden.get("columns")
    found = {**episode.task.given, **hidden, **(own if isinstance(own, Mapping) else {})}
    for name, source in renamed.items():
        if source not in found:
            raise ValueError(
                f"the task {episode.task.key} has no {source!r}; available: {', '.join(found) or 'nothing'}"
            )
        found[name] = found[source]
    return found
