"""CISPO (MiniMax-M1, arXiv 2506.13585): the weight is clipped, not the gradient: every token goes on learning.

    A_i  = (R_i - mean_j R_j) / deviation_j R_j
    w_t  = min(exp(logprob_t - behaviour_t), ratio_max), without gradient
    loss = -sum_t w_t A logprob_t / tokens of the batch

No lower bound, as in the paper, which tunes the upper and gives no number for it; 5 is what arXiv 2510.13786 found to
work. `truncated` in the metrics counts tokens whose weight was cut.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rl.advantage import assign, standardised
from rl.algorithms import Per
from rl.surrogate import Sampled, Terms, total
from rl.trajectory import Group


@dataclass(frozen=True, slots=True)
class Config:
    """The largest weight of a token, 1 + epsilon_high in the paper's notation."""

    ratio_max: float = 5.0

    def __post_init__(self) -> None:
        if self.ratio_max <= 0:
            raise ValueError(f"got ratio_max {self.ratio_max}; expected a positive number")


class Algorithm:
    per: Per = "token"

    def __init__(self, config: Config) -> None:
        self.config = config

    def advantages(self, group: Group) -> None:
        assign(group, standardised)

    def loss(
        self,
        logprob_BT: Tensor,
        behaviour_BT: Tensor,
        advantage_BT: Tensor,
        mask_BT: Tensor,
        entropy_BT: Tensor,
        document_BT: Tensor,
        *,
        denominator: float,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        tokens = Sampled.of(logprob_BT, behaviour_BT, advantage_BT, mask_BT, entropy_BT, document_BT)
        ratio_N = tokens.log_ratio_N.detach().exp()
        above_N = ratio_N > self.config.ratio_max
        nothing_N = torch.zeros_like(above_N)
        term_N = ratio_N.clamp(max=self.config.ratio_max) * tokens.advantage_N * tokens.logprob_N
        return total(tokens, Terms(term_N, nothing_N, nothing_N, above_N), denominator)
