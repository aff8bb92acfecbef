"""The contract of inference engines. Every other file here is one engine, named by its file, exporting `start`.

    engine = await load("vllm").start(path, max_model_len=512, dtype="float32")
    completion = await engine.generate(prompt_ids, Sampling(max_tokens=64, stop_ids=(5,)))
    await engine.swap(blob, version=3, canary=canary)     # requests in flight go on under the new weights

Errors:

    EngineError
    ├── EngineLost       a request is lost
    │   └── EngineDied   with the engine: every later one would be lost too, until it is started again
    └── SwapFailed       after a swap the engine does not serve the weights that it was given
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Protocol


class EngineError(Exception):
    pass


class EngineLost(EngineError):
    pass


class EngineDied(EngineLost):
    pass


class SwapFailed(EngineError):
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    max_tokens: int
    stop_ids: tuple[int, ...]
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """Sampled tokens with, for each, its log-probability (natural log) and the policy version that sampled it."""

    ids: list[int]
    logprobs: list[float]
    versions: list[int]
    stopped: bool
    """False where `max_tokens` cut the turn."""


@dataclass(frozen=True, slots=True)
class Canary:
    """A fixed sequence and what the learner's weights say of it: `logprobs[i]` is of `ids[i + 1]`."""

    ids: Sequence[int]
    logprobs: Sequence[float]
    tolerance: float = 1e-3


@dataclass(frozen=True, slots=True, order=True)
class Swapped:
    """A verified swap of one engine. The largest of several is that with the longest pause."""

    pause_s: float
    """For which no request was served."""
    seconds: float = 0.0
    """From the arrival of the bytes to the verdict."""
    bytes: int = 0
    read_back: float = 0.0
    """Share of the bytes read from the engine's model after loading, and found equal; a canary vouches for the rest."""
    canary_gap: float = 0.0
    """Largest difference of log-probabilities on the canary, in nats."""

    def row(self, publish_s: float) -> dict[str, float]:
        """Figures of a whole publish, from the learner's state to the last engine's verdict."""
        return {
            "pause_s": self.pause_s,
            "publish_s": publish_s,
            "bytes": self.bytes,
            "bytes_per_s": self.bytes / publish_s if publish_s else 0.0,
            "overlap": 1 - min(1.0, self.pause_s / publish_s) if publish_s else 0.0,
            "read_back": self.read_back,
            "canary_gap": self.canary_gap,
        }


class Sampler(Protocol):
    """What playing needs of an engine, wherever the engine is."""

    async def generate(self, ids: Sequence[int], sampling: Sampling) -> Completion:
        """Sample one turn. Raises EngineLost, EngineDied."""
        ...


class Engine(Sampler, Protocol):
    version: int

    async def swap(self, blob: bytes, version: int, canary: Canary | None) -> Swapped:
        """Serve new weights (policy/weights.py) from the next token on. Raises SwapFailed, as then does `generate`."""
        ...

    async def close(self) -> None: ...


def available() -> list[str]:
    return sorted(m.name for m in pkgutil.iter_modules(__path__))


def load(name: str) -> ModuleType:
    """One engine's module. Raises ValueError (got, available) where there is none."""
    if name not in available():
        raise ValueError(f"there is no engine {name!r}; available: {', '.join(available())}")
    return importlib.import_module(f"policy.engines.{name}")
