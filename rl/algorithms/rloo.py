"""RLOO (arXiv 2402.14740): REINFORCE, each member against the mean of the others; the whole answer is one action.

    A_i  = R_i - sum_{j != i} R_j / (G - 1)            over the G valid members
    p_i  = exp(sum_t (logprob_t - behaviour_t))        the product over the answer's sampled tokens
    loss = -sum_i min(p_i A_i, clip(p_i, 1 - clip_low, 1 + clip_high) A_i) / members of the batch

The paper samples afresh for each step, where p_i is 1 and the gradient is that of A_i logprob(answer_i). The clipped
product is its form for samples of an older policy, as TRL has it: it leaves the clip within a few hundred tokens of a
policy that moved a little. For long or stale answers set `correction`, whose weights bound the step instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from rl.advantage import assign, centred
from rl.algorithms import Per
from rl.surrogate import LARGEST_LOG_RATIO, Sampled, check, clipped, total, weighted
from rl.trajectory import Group


@dataclass(frozen=True, slots=True)
class Config:
    """For the ratio of an answer, not of a token."""

    clip_low: float = 0.2
    clip_high: float = 0.2
    correction: str = "none"
    """See docs/algorithms.md; weights take the place of the clip."""
    correction_cap: float = 2.0

    def __post_init__(self) -> None:
        check(self)


class Algorithm:
    per: Per = "member"

    def __init__(self, config: Config) -> None:
        self.config = config

    def advantages(self, group: Group) -> None:
        assign(group, leave_one_out)

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
            ratio_N = tokens.log_product_N.clamp(max=LARGEST_LOG_RATIO).exp()
            terms = clipped(ratio_N, tokens.advantage_N / tokens.length_N, knobs.clip_low, knobs.clip_high)
        else:
            terms = weighted(tokens, knobs.correction, knobs.correction_cap)
        return total(tokens, terms, denominator)


def leave_one_out(scores: Sequence[float], lengths: Sequence[int]) -> list[float]:
    """R_i minus the mean of the others, which is G / (G - 1) times R_i minus the mean of all."""
    count = len(scores)
    return [count / (count - 1) * advantage for advantage in centred(scores, lengths)]
