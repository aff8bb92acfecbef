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
