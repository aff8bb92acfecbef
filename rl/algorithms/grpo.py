"""GRPO as CWM runs it (arXiv 2510.02387): length-weighted mean, no deviation, asymmetric clip, constant denominator.

With R_i the score of member i and L_i the number of tokens it sampled, over the valid members:

    mu  = sum_i R_i L_i / sum_i L_i            A_i = R_i - mu            so that sum_i A_i L_i = 0
    r_t = exp(logprob_t - behaviour_t)
    loss = -sum_t min(r_t A, clip(r_t, 1 - clip_low, 1 + clip_high) A) / constant of the run

No division by the group's deviation (it would favour tasks that are nearly always or never solved), none by a
trajectory's length (it would favour long failures), no KL term, no entropy bonus.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from rl.advantage import assign
from rl.algorithms import Per
from rl.surrogate import Sampled, check, clipped, total, weighted
from rl.trajectory import Group


@dataclass(frozen=True, slots=True)
class Config:
    """The ratio is held within [1 - clip_low, 1 + clip_high]; the higher upper bound keeps entropy from collapsing."""

    clip_low: float = 0.2
    clip_high: float = 0.25
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
        """Score minus the length-weighted mean of the valid members; exact zeros where their scores are equal."""
        assign(group, length_weighted)

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


def length_weighted(scores: Sequence[float], lengths: Sequence[int]) -> list[float]:
    """R_i minus the mean over tokens."""
    mean = sum(score * length for score, length in zip(scores, lengths, strict=True)) / sum(lengths)
    return [score - mean for score in scores]
