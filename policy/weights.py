"""Weights on their way from the learner to the engines: one safetensors blob with a digest, checked on arrival."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

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
        return cls(version, blob, hashlib.sha256(blob).hexdigest())

    def check(self) -> bytes:
        """The blob, where it is what was packed. Raises ValueError where it is not."""
        got = hashlib.sha256(self.blob).hexdigest()
        if got != self.digest:
            raise ValueError(
                f"weights of version {self.version} arrived damaged: got digest {got[:12]}, expected {self.digest[:12]}"
            )
        return self.blob
