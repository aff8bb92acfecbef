"""The ranks of one learner: whose rows are whose, and what the ranks tell each other. Weights are sharded by FSDP2.

A rank is a process with a device of its own. All ranks are given the same members and call the same methods in the same
order; each then does its own rows. With one rank, the default, nothing of torch.distributed starts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

T = TypeVar("T")
TIMEOUT_S = 600.0
"""How long a rank waits for another that does not come, before it raises."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """One of `count` processes that are one learner."""

    rank: int = 0
    count: int = 1
    address: str = ""
    """`host:port` where rank 0 listens."""

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.count:
            raise ValueError(f"got rank {self.rank} of {self.count}; expected 0 to {self.count - 1}")
        if self.count > 1 and not self.address:
            raise ValueError(f"got {self.count} ranks and no address; expected host:port, where rank 0 is to listen")

    @property
    def first(self) -> bool:
        return self.rank == 0

    def join(self, device: torch.device) -> None:
        """Wait until all ranks are there: over gloo on CPU, over NCCL on GPUs."""
        if self.count == 1:
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            init_method=f"tcp://{self.address}",
            rank=self.rank,
            world_size=self.count,
            timeout=timedelta(seconds=TIMEOUT_S),
        )

    def shard(self, root: nn.Module, units: Sequence[nn.Module], device: torch.device) -> None:
        """Leave this rank its part of every parameter; gradients become sums over the ranks, as the loss is one.

        A unit is whole only while it computes; the root's own parameters (embeddings, head) are a unit, too.
        """
        if self.count > 1:
            mesh = init_device_mesh(device.type, (self.count,))
            for module in (*units, root):
                sharded = fully_shard(module, mesh=mesh, reshard_after_forward=True)
                sharded.set_gradient_divide_factor(1.0)
                sharded.set_force_sum_reduction_for_comms(True)  # gloo cannot scale while it sums

    def deal(self, items: Sequence[T]) -> list[T | None]:
        """This rank's share, in turn; None where others have one more, so that all ranks run the same number."""
        rounds = -(-len(items) // self.count)
        mine: list[T | None] = list(items[self.rank :: self.count])
        return mine + [None] * (rounds - len(mine))

    def sum(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Sums over all ranks; a name may be missing where a rank had no rows."""
        if self.count == 1:
            return dict(sums)
        told: list[Mapping[str, float]] = [{} for _ in range(self.count)]
        dist.all_gather_object(told, dict(sums))
        names = dict.fromkeys(name for one in told for name in one)
        return {name: sum(one.get(name, 0.0) for one in told) for name in names}

    def gather(self, tensors: Mapping[T, Tensor]) -> dict[T, Tensor]:
        """Whole copies on the CPU, one after the other; empty on all ranks but the first."""
        gathered = {}
        for name, tensor in tensors.items():
            copy = whole(tensor.detach())
            if self.first:
                gathered[name] = copy.to("cpu", copy=True)
        return gathered


ALONE = Ranks()


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or all parts of a sharded one together: then every rank has to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part(tensor: Tensor, like: Tensor) -> Tensor:
    """Of a whole tensor what this rank keeps where `like` is sharded; anything of another shape stays as it is."""
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
