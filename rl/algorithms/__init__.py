"""The contract of learning algorithms: scores to advantages, log-probabilities to a loss. One file, one algorithm.

`B` rows, `T` tokens of a packed row (rl/batch.py). An algorithm file exports `Config`, a dataclass of its knobs, and
`Algorithm`, built from one. To add one, write `rl/algorithms/<name>.py`; `load("<name>")` finds it.

    grpo = load("grpo", clip_high=0.28)
    grpo.advantages(group)                     # sets member.advantage over the valid members
    divisor = denominator(grpo, members, constant=16_384)
    loss, sums = grpo.loss(now_BT, behaviour_BT, advantage_BT, mask_BT, entropy_BT, document_BT, denominator=divisor)

Every quantity is a sum over sampled tokens, never a mean, so that micro-batches add up to the loss, the gradient and
the metrics of the whole batch, however it was packed and over however many ranks it was split. What the sum is divided
by is known before there are micro-batches.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from rl.trajectory import Group, Member

Per = Literal["run", "token", "member"]
"""What a loss is a sum per: a constant of the run, the sampled tokens of the batch, or its members."""


class Algorithm(Protocol):
    """What turns the scores of a group into advantages, and advantages into a loss."""

    per: Per

    def advantages(self, group: Group) -> None:
        """Set `member.advantage` of the valid members; the invalid are neither read nor written.

        A group that teaches nothing (all scores equal, fewer than two valid members) gets exact zeros, and the caller
        leaves it out of the batch.
        """
        ...

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
        """The scalar to minimise, and metrics as sums over sampled tokens; `tokens` is their count.

        `logprob_BT` carries the gradient; `behaviour_BT` is under the policy that sampled the token; `mask_BT` is True
        where a token was sampled. `document_BT` is the member that a token belongs to, -1 in padding; all tokens of a
        member are in the same call. `denominator` is that of the whole batch (see `denominator` below), also where this
        is a part of it; a part without sampled tokens has loss 0.
        """
        ...


def available() -> list[str]:
    """Names of the algorithms in this package."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__))


def load(name: str, **knobs: Any) -> Algorithm:
    """One algorithm with its knobs set. Raises ValueError (got, available) on an unknown name or knob."""
    if name not in available():
        raise ValueError(f"there is no algorithm {name!r}; available: {', '.join(available())}")
    module = importlib.import_module(f"rl.algorithms.{name}")
    known = [f.name for f in fields(module.Config)]
    if unknown := sorted(set(knobs) - set(known)):
        raise ValueError(f"algorithm {name!r} has no knob {', '.join(unknown)}; available: {', '.join(known)}")
    algorithm: Algorithm = module.Algorithm(module.Config(**knobs))
    return algorithm


def denominator(algorithm: Algorithm, members: Sequence[Member], constant: float) -> float:
    """What the loss of a batch is divided by. A function of the whole batch: packing and ranks cannot change it."""
    if algorithm.per == "run":
        return constant
    return float(len(members) if algorithm.per == "member" else sum(member.trajectory.spoken for member in members))
