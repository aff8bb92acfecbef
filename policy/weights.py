"""Weights on their way from the learner to the engines: one safetensors blob with a digest, checked wherever it
arrives, and compared with what an engine holds after it has loaded it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from safetensors.torch import save
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Weights:
    """Parameters of one policy version by Hugging Face name, serialised."""

    version: int
    blob: bytes
    digest: str

    @classmethod
    def pack(cls, state: Mapping[str, Tensor], version: int) -> Weights:
        blob = save({name: tensor.detach().contiguous().cpu() for name, tensor in state.items()})
        return cls(version, blob, digest(blob))

    def check(self) -> bytes:
        """The blob, where it is what was packed. Raises ValueError where it is not."""
        got = digest(self.blob)
        if got != self.digest:
            raise ValueError(
                f"weights of version {self.version} arrived damaged: got digest {got[:12]}, expected {self.digest[:12]}"
            )
        return self.blob


def digest(blob: bytes) -> str:
    return hashlib.sha256(blob).hexdigest()


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


def read_back(sent: Mapping[str, Tensor], held: Mapping[str, Tensor]) -> tuple[int, list[str]]:
    """Bytes of `sent` that an engine's parameters hold unchanged, and the names of those that it holds otherwise.

    An engine may shard, repack or rename parameters: what it holds in another shape, or under a name that says nothing,
    is neither. Rows beyond those sent are an engine's padding of the vocabulary.
    """
    equal, differ = 0, []
    for name, tensor in _fused(sent).items():
        there = next((held[known] for known in _aliases(name) if known in held), None)
        if there is None or there.dim() == 0 or there.shape[1:] != tensor.shape[1:] or len(there) < len(tensor):
            continue
        if torch.equal(there.detach()[: len(tensor)], tensor.to(device=there.device, dtype=there.dtype)):
            equal += tensor.numel() * tensor.element_size()
        else:
            differ.append(name)
    return equal, differ


_FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""What vLLM's own models hold as one matrix, rows after rows."""


def _fused(sent: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, with those of _FUSED joined where all parts are there."""
    joined = dict(sent)
    for whole, parts in _FUSED.items():
        for name in sent:
            names = [name.replace(f".{parts[0]}.", f".{part}.") for part in parts]
            if f".{parts[0]}." in name and all(part in sent for part in names):
                joined[name.replace(f".{parts[0]}.", f".{whole}.")] = torch.cat([joined.pop(part) for part in names])
    return joined


def _aliases(name: str) -> tuple[str, ...]:
    """Names that engines give to a Hugging Face parameter."""
    return (name, f"model.{name}", name.removeprefix("model."), f"language_model.{name}")
