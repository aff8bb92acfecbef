"""GRPO as CWM runs it (arXiv 2510.02387): length-weighted mean, no deviation, asymmetric clip, constant denominator.

`B` rows, `T` tokens. With R_i the score of member i and L_i the number of tokens it sampled, over the valid members:

    mu  = sum_i R_i L_i / sum_i L_i            A_i = R_i - mu            so that sum_i A_i L_i = 0
    r_t = exp(logprob_t - behaviour_t)
    loss = -sum_t min(r_t A, clip(r_t, 1 - clip_low, 1 + clip_high) A) / denominator

No division by the group's deviation (it would favour tasks that are nearly always or never solved), none by a
trajectory's length (it would favour long failures), no KL term, no entropy bonus.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rl.trajectory import Group


@dataclass(frozen=True, slots=True)
class Config:
    """The ratio is held within [1 - clip_low, 1 + clip_high]; the higher upper bound keeps entropy from collapsing."""

    clip_low: float = 0.2
    clip_high: float = 0.25

    def __post_init__(self) -> None:
        if not 0 < self.clip_low < 1:
            raise ValueError(f"got clip_low {self.clip_low}; expected a number between 0 and 1")
        if self.clip_high <= 0:
            raise ValueError(f"got clip_high {self.clip_high}; expected a positive number")


class Algorithm:
    def __init__(self, config: Config) -> None:
        self.config = config

    def advantages(self, group: Group) -> None:
        """Score minus the length-weighted mean of the valid members; exact zeros where their scores are equal."""
        scored = [(member, member.score.value) for member in group.valid if member.score is not None]
        if len({value for _, value in scored}) < 2:
            for member, _ in scored:
                member.advantage = 0.0
            return
        tokens = sum(member.trajectory.spoken for member, _ in scored)
        mean = sum(value * member.trajectory.spoken for member, value in scored) / tokens
        for member, value in scored:
            member.advantage = value - mean

    def loss(
        self,
        logprob_BT: Tensor,
        behaviour_BT: Tensor,
        advantage_BT: Tensor,
        mask_BT: Tensor,
        entropy_BT: Tensor,
        *,
        denominator: float,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Token-level clipped surrogate (PPO, arXiv 1707.06347, eq. 7), summed and divided by the constant.

        Metrics: `clip_low` and `clip_high` count tokens whose gradient the clip removed, `ratio` sums r, `kl` sums
        r - 1 - ln r (estimates KL(behaviour || now), never negative), `gap` sums |ln r|, `entropy` in nats.
        """
        log_ratio = (logprob_BT - behaviour_BT)[mask_BT]
        advantage = advantage_BT[mask_BT]
        low, high = 1 - self.config.clip_low, 1 + self.config.clip_high
        ratio = log_ratio.exp()
        surrogate = torch.min(ratio * advantage, ratio.clamp(low, high) * advantage)
        loss = -surrogate.sum() / denominator
        with torch.no_grad():
            sums = {
                "tokens": mask_BT.sum(),
                "clip_low": ((ratio < low) & (advantage < 0)).sum(),
                "clip_high": ((ratio > high) & (advantage > 0)).sum(),
                "ratio": ratio.sum(),
                "kl": (ratio - 1 - log_ratio).sum(),
                "gap": log_ratio.abs().sum(),
                "entropy": entropy_BT[mask_BT].sum(),
            }
        return loss, sums
