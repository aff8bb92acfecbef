"""Dr. GRPO (arXiv 2503.20783): GRPO without its two biases. Over the valid members i and their sampled tokens t:

    A_i  = R_i - mean_j R_j
    r_t  = exp(logprob_t - behaviour_t)
    loss = -sum_t min(r_t A, clip(r_t, 1 - clip_low, 1 + clip_high) A) / constant of the run

No division by the deviation (bias to easy and hard tasks), a constant in place of each answer's length (bias to long
failures). `grpo` differs by its length-weighted mean and its wider upper clip.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from rl.advantage import assign, centred
from rl.algorithms import Per
from rl.surrogate import Sampled, check, clipped, total, weighted
from rl.trajectory import Group


@dataclass(frozen=True, slots=True)
class Config:
    """The clip is symmetric in the paper."""

    clip_low: float = 0.2
    clip_high: float = 0.2
    correction: str = "none"
    """See docs/algorithms.md; weights take the place of the clip."""
    correction_cap: float = 2.0

    def __post_init__(self) -> None:
        check(self)


class Algorithm:
    per: Per = "run"

    def __init__(self, config: Config) -> None:
        self.config = config

    def advantages(self, group: Group) -> None:
        assign(group, centred)

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
