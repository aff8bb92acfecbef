"""Terms of a loss that several algorithms share: the clipped ratio, importance weights, metrics.

`B` rows, `T` tokens of a row; `N` sampled tokens of a micro-batch, `D` documents (members) that they belong to. A whole
document lies in one row, so what is summed over one is never split by packing, micro-batches or ranks.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

CORRECTIONS = (
    "none",
    *(f"{level}_{action}" for level in ("token", "sequence", "geometric") for action in ("truncate", "mask")),
)
"""What a weight is the ratio of (a token; the product over a document; its geometric mean), and what is done to one
above the cap (it becomes the cap; it becomes zero)."""

LARGEST_LOG_RATIO = 20.0
"""A product of ratios is held below e^20; there it is far beyond any clip, and its gradient is zero."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """The sampled tokens of a micro-batch as flat lists; everything else is left behind and gets no gradient."""

    logprob_N: Tensor
    log_ratio_N: Tensor
    """ln of the policy now over the policy that sampled the token."""
    advantage_N: Tensor
    entropy_N: Tensor
    owner_N: Tensor
    """Which of the D documents a token belongs to."""
    length_D: Tensor
    """Sampled tokens of a document."""

    @classmethod
    def of(
        cls,
        logprob_BT: Tensor,
        behaviour_BT: Tensor,
        advantage_BT: Tensor,
        mask_BT: Tensor,
        entropy_BT: Tensor,
        document_BT: Tensor,
    ) -> Sampled:
        logprob_N = logprob_BT[mask_BT]
        _, owner_N, length_D = torch.unique(document_BT[mask_BT], return_inverse=True, return_counts=True)
        return cls(
            logprob_N, logprob_N - behaviour_BT[mask_BT], advantage_BT[mask_BT], entropy_BT[mask_BT], owner_N, length_D
        )

    @property
    def length_N(self) -> Tensor:
        """At each token, the sampled tokens of its document."""
        return self.length_D[self.owner_N]

    @property
    def log_product_N(self) -> Tensor:
        """At each token, the sum of log-ratios over its document."""
        total_D = self.log_ratio_N.new_zeros(self.length_D.shape).index_add(0, self.owner_N, self.log_ratio_N)
        return total_D[self.owner_N]


@dataclass(frozen=True, slots=True)
class Terms:
    """What each token adds to the objective, and which tokens were held back."""

    term_N: Tensor
    clip_low_N: Tensor
    clip_high_N: Tensor
    truncated_N: Tensor


def clipped(ratio_N: Tensor, advantage_N: Tensor, clip_low: float, clip_high: float) -> Terms:
    """min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) (PPO, arXiv 1707.06347, eq. 7)."""
    low, high = 1 - clip_low, 1 + clip_high
    return Terms(
        term_N=torch.min(ratio_N * advantage_N, ratio_N.clamp(low, high) * advantage_N),
        clip_low_N=(ratio_N < low) & (advantage_N < 0),
        clip_high_N=(ratio_N > high) & (advantage_N > 0),
        truncated_N=torch.zeros_like(ratio_N, dtype=torch.bool),
    )


def weighted(tokens: Sampled, correction: str, cap: float) -> Terms:
    """w A r, with w a weight without gradient and r the ratio to the policy at the start of the step.

    A batch gets one step, so r is 1 and only its gradient counts: the term's is w A times that of the log-probability.
    No clip can act; the cap on w bounds the step in its place.
    """
    level, action = correction.split("_")
    with torch.no_grad():
        if level == "token":
            log_weight_N = tokens.log_ratio_N
        elif level == "sequence":
            log_weight_N = tokens.log_product_N
        else:
            log_weight_N = tokens.log_product_N / tokens.length_N
        weight_N = log_weight_N.exp()
        above_N = weight_N > cap
        weight_N = weight_N.masked_fill(above_N, cap if action == "truncate" else 0.0)
    ratio_N = (tokens.logprob_N - tokens.logprob_N.detach()).exp()
    nothing_N = torch.zeros_like(above_N)
    return Terms(weight_N * tokens.advantage_N * ratio_N, nothing_N, nothing_N, above_N)


def total(tokens: Sampled, terms: Terms, denominator: float) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, and the metrics as sums over tokens.

    `clip_low` and `clip_high` count tokens whose gradient the clip removed, `truncated` those whose weight was above
    its cap, `ratio` sums r, `kl` sums r - 1 - ln r (estimates KL(behaviour || now), never negative), `gap` sums
    |ln r|, `entropy` in nats.
    """
    with torch.no_grad():
        log_ratio_N = tokens.log_ratio_N
        ratio_N = log_ratio_N.exp()
        sums = {
            "tokens": tokens.length_D.sum(),
            "clip_low": terms.clip_low_N.sum(),
            "clip_high": terms.clip_high_N.sum(),
            "truncated": terms.truncated_N.sum(),
            "ratio": ratio_N.sum(),
            "kl": (ratio_N - 1 - log_ratio_N).sum(),
            "gap": log_ratio_N.abs().sum(),
            "entropy": tokens.entropy_N.sum(),
        }
    return -terms.term_N.sum() / denominator, sums


def check(knobs: Any) -> None:
    """Raises ValueError where a knob (a field of a dataclass) is out of range, or set where it would do nothing."""
    if not 0 < knobs.clip_low < 1:
        raise ValueError(f"got clip_low {knobs.clip_low}; expected a number between 0 and 1")
    if knobs.clip_high <= 0:
        raise ValueError(f"got clip_high {knobs.clip_high}; expected a positive number")
    changed = [f.name for f in fields(knobs) if getattr(knobs, f.name) != f.default]
    correction = getattr(knobs, "correction", "none")
    if correction not in CORRECTIONS:
        raise ValueError(f"there is no correction {correction!r}; available: {', '.join(CORRECTIONS)}")
    inert = ("correction_cap",) if correction == "none" else ("clip_low", "clip_high")
    if wrong := [name for name in changed if name in inert]:
        raise ValueError(f"{' and '.join(wrong)} would have no effect where correction is {correction!r}; leave it out")
    if correction != "none" and knobs.correction_cap <= 0:
        raise ValueError(f"got correction_cap {knobs.correction_cap}; expected a positive number")
