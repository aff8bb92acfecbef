"""Members to packed rows: several trajectories side by side in one row, first-fit-decreasing, within a token budget.

`B` rows, `T` tokens of a row. Positions restart at 0 with every trajectory, which is how attention tells them apart
(policy/model.py). Padding is a document of its own: index -1, never sampled, at the end of a row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from rl.trajectory import Member


@dataclass(frozen=True, slots=True)
class Batch:
    """Aligned tensors, one entry a token. `document_BT` is the index of the member a token came from, -1 in padding."""

    ids_BT: Tensor
    position_BT: Tensor
    document_BT: Tensor
    mask_BT: Tensor
    """True where the policy sampled the token."""
    behaviour_BT: Tensor
    """Log-probability under the policy that sampled it, 0.0 elsewhere."""
    advantage_BT: Tensor
    """That of the token's member, or of its turn."""

    @property
    def tokens(self) -> int:
        """Number of tokens that are no padding."""
        return int((self.document_BT >= 0).sum())

    def to(self, device: torch.device) -> Batch:
        return Batch(*(getattr(self, f.name).to(device) for f in fields(self)))

    def split(self, rows: int = 1) -> Iterator[Batch]:
        """Micro-batches of at most `rows` rows, each cut to its own longest row."""
        for first in range(0, self.ids_BT.shape[0], rows):
            used = int((self.document_BT[first : first + rows] >= 0).sum(dim=1).max())
            yield Batch(*(getattr(self, f.name)[first : first + rows, :used] for f in fields(self)))


def pack(members: Sequence[Member], row_tokens: int) -> Batch:
    """Pack whole trajectories into rows of at most `row_tokens` by first-fit-decreasing, the fullest row first.

    Raises ValueError where a member may not be trained on, is longer than a row, or holds a number that is not finite.
    """
    if not members:
        raise ValueError("got no members to pack; expected at least one")
    for member in members:
        _check(member, row_tokens)
    rows = _first_fit_decreasing([len(member.trajectory) for member in members], row_tokens)
    fill = [sum(len(members[index].trajectory) for index in row) for row in rows]
    shape = (len(rows), max(fill))
    batch = Batch(
        ids_BT=torch.zeros(shape, dtype=torch.int64),
        position_BT=torch.arange(shape[1]).expand(shape).clone(),
        document_BT=torch.full(shape, -1, dtype=torch.int64),
        mask_BT=torch.zeros(shape, dtype=torch.bool),
        behaviour_BT=torch.zeros(shape),
        advantage_BT=torch.zeros(shape),
    )
    for b, row in enumerate(rows):
        start = 0
        for index in row:
            trajectory = members[index].trajectory
            here = slice(start, start + len(trajectory))
            batch.ids_BT[b, here] = torch.tensor(trajectory.ids)
            batch.position_BT[b, here] -= start
            batch.document_BT[b, here] = index
            batch.mask_BT[b, here] = torch.tensor(trajectory.mask)
            batch.behaviour_BT[b, here] = torch.tensor(trajectory.logprobs)
            batch.advantage_BT[b, here] = torch.tensor(members[index].advantages)
            start = here.stop
        batch.position_BT[b, start:] -= start
    return batch


def _check(member: Member, row_tokens: int) -> None:
    trajectory = member.trajectory
    if not member.valid:
        raise ValueError(f"got a member that ended as {member.episode.outcome}; expected one that may be trained on")
    if len(trajectory) > row_tokens:
        raise ValueError(f"got a trajectory of {len(trajectory)} tokens; expected at most {row_tokens} (row_tokens)")
    if trajectory.mask[0]:
        raise ValueError("got a trajectory whose first token was sampled; expected one of the world, to condition on")
    advantages = (member.advantage, *member.turn_advantages)
    if not all(map(math.isfinite, (*advantages, *trajectory.logprobs))):
        raise ValueError(
            f"got advantages {advantages}, logprobs from {min(trajectory.logprobs)}; expected finite numbers"
        )


def _first_fit_decreasing(lengths: Sequence[int], row_tokens: int) -> list[list[int]]:
    """Indices by row. Equal lengths keep their order, so the same members always give the same rows."""
    rows: list[list[int]] = []
    free: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((r for r, room in enumerate(free) if lengths[index] <= room), len(rows))
        if row == len(rows):
            rows.append([])
            free.append(row_tokens)
        rows[row].append(index)
        free[row] -= lengths[index]
    return [rows[r] for r in sorted(range(len(rows)), key=lambda r: free[r])]
