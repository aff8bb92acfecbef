"""The contract of learning algorithms: scores to advantages, log-probabilities to a loss. One file, one algorithm.

`B` rows, `T` tokens of a packed row (rl/batch.py). An algorithm file exports `Config`, a dataclass of its knobs, and
`Algorithm`, built from one. To add one, write `rl/algorithms/<name>.py`; `load("<name>")` finds it.

    grpo = load("grpo", clip_high=0.28)
    grpo.advantages(group)                     # sets member.advantage over the valid members
    loss, sums = grpo.loss(now_BT, behaviour_BT, advantage_BT, mask_BT, entropy_BT, denominator=16_384)

Every quantity is a sum over sampled tokens, never a mean, so that micro-batches add up to the loss, the gradient and
the metrics of the whole batch, however it was packed.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from rl.trajectory import Group


class Algorithm(Protocol):
    """What turns the scores of a group into advantages, and advantages into a loss."""

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
        *,
        denominator: float,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise, and metrics as sums over sampled tokens; `tokens` is their count.

        `logprob_BT` carries the gradient; `behaviour_BT` is under the policy that sampled the token; `mask_BT` is True
        where a token was sampled. `denominator` (tokens) is a constant of the run: not of the batch, row or sequence.
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
