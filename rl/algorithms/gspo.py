"""GSPO (arXiv 2507.18071): one ratio for a whole answer, the geometric mean over its L_i sampled tokens.

    A_i  = (R_i - mean_j R_j) / deviation_j R_j
    s_i  = exp(sum_t (logprob_t - behaviour_t) / L_i)
    loss = -sum_i min(s_i A_i, clip(s_i, 1 - clip_low, 1 + clip_high) A_i) / members of the batch

A mean moves far less than a token's ratio, hence clips a thousand times smaller than PPO's. They cut whole answers:
`clip_low` and `clip_high` in the metrics count all tokens of such an answer. Each token carries its answer's term by
L_i, so that this, too, is a sum over tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from rl.advantage import assign, standardised
from rl.algorithms import Per
from rl.surrogate import Sampled, check, clipped, total
from rl.trajectory import Group


@dataclass(frozen=True, slots=True)
class Config:
    """For the ratio of an answer, not of a token."""

    clip_low: float = 3e-4
    clip_high: float = 4e-4

    def __post_init__(self) -> None:
        check(self)


class Algorithm:
    per: Per = "member"

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
        ratio_N = (tokens.log_product_N / tokens.length_N).exp()
        share_N = tokens.advantage_N / tokens.length_N
        return total(tokens, clipped(ratio_N, share_N, self.config.clip_low, self.config.clip_high), denominator)
