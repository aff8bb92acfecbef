"""DAPO (arXiv 2503.14476): clip-higher and a mean over all tokens of the batch. Over valid members i, sampled tokens t:

    A_i  = (R_i - mean_j R_j) / deviation_j R_j
    r_t  = exp(logprob_t - behaviour_t)
    loss = -sum_t min(r_t A, clip(r_t, 1 - clip_low, 1 + clip_high) A) / tokens of the batch

The paper writes the mean over the tokens of one group; its code, as others', takes it over the batch, as here. Its
dynamic sampling is what every run here does (groups whose scores are equal are left out before a batch is filled). Its
soft punishment of over-long answers is a matter of rewards.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from rl.advantage import assign, standardised
from rl.algorithms import Per
from rl.surrogate import Sampled, check, clipped, total, weighted
from rl.trajectory import Group


@dataclass(frozen=True, slots=True)
class Config:
    """The higher upper bound leaves unlikely tokens room to become likely."""

    clip_low: float = 0.2
    clip_high: float = 0.28
    correction: str = "none"
    """See docs/algorithms.md; weights take the place of the clip."""
    correction_cap: float = 2.0

    def __post_init__(self) -> None:
        check(self)


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
        knobs = self.config
        if knobs.correction == "none":
            terms = clipped(tokens.log_ratio_N.exp(), tokens.advantage_N, knobs.clip_low, knobs.clip_high)
        else:
            terms = weighted(tokens, knobs.correction, knobs.correction_cap)
        return total(tokens, terms, denominator)
