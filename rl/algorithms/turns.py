"""Credit by turn: each turn's tokens get the rewards from there on, less what the group's members got from there on.

With r_ik the reward of turn k of member i (`Score.turns`; where no part pays by turn, the score at the last turn),
over the valid members:

    G_ik = r_ik + gamma G_i,k+1                  A_ik = G_ik - b_k

b_k is the mean of G_k over the members that have a turn k, counted from the first; where fewer than two have, the mean
of the whole returns G_i0. `baseline: group` takes the latter at every turn. Where only endings are rewarded and gamma
is 1, every turn of a member has the advantage that `dr_grpo` gives the whole: always with `baseline: group`, and by
turn where all members take equally many. The loss is grpo's. MT-GRPO (arXiv 2505.11821) adds weighted advantages of a
turn and of the outcome in place of returns.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from rl.algorithms import Per
from rl.surrogate import Sampled, check, clipped, total, weighted
from rl.trajectory import Group, Member

BASELINES = ("turn", "group")
ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Config:
    gamma: float = 1.0
    """What a reward loses with every turn before it."""
    baseline: str = "turn"
    clip_low: float = 0.2
    clip_high: float = 0.25
    correction: str = "none"
    """See docs/algorithms.md; weights take the place of the clip."""
    correction_cap: float = 2.0

    def __post_init__(self) -> None:
        check(self)
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"got gamma {self.gamma}; expected a number from 0 to 1")
        if self.baseline not in BASELINES:
            raise ValueError(f"there is no baseline {self.baseline!r}; available: {', '.join(BASELINES)}")


class Algorithm:
    per: Per = "run"

    def __init__(self, config: Config) -> None:
        self.config = config

    def advantages(self, group: Group) -> None:
        """One a turn; `member.advantage` is their mean over tokens. Exact zeros where members do not differ."""
        members = [member for member in group.valid if member.score is not None]
        returns = [to_go(rewards_by_turn(member), self.config.gamma) for member in members]
        firsts = [own[0] for own in returns]
        for member, own in zip(members, returns, strict=True):
            by_turn = []
            for turn, value in enumerate(own):
                others = [other[turn] for other in returns if len(other) > turn]
                compared = others if self.config.baseline == "turn" and len(others) > 1 else firsts
                by_turn.append(_less_mean(value, compared) if len(members) > 1 else 0.0)
            lengths = [end - begin for begin, end in member.trajectory.turns]
            member.turn_advantages = tuple(by_turn)
            member.advantage = math.fsum(a * n for a, n in zip(by_turn, lengths, strict=True)) / sum(lengths)

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


def rewards_by_turn(member: Member) -> list[float]:
    """As many as the trajectory has turns. Raises ValueError where the score tells of another number."""
    assert member.score is not None
    count = len(member.trajectory.turns)
    if not member.score.turns:
        return [0.0] * (count - 1) + [member.score.value]
    if len(member.score.turns) != count:
        raise ValueError(f"got rewards for {len(member.score.turns)} turns, of an attempt of {count}; expected as many")
    return list(member.score.turns)


def to_go(rewards: Sequence[float], gamma: float) -> list[float]:
    """The discounted sum from each turn on."""
    returns: list[float] = []
    for reward in reversed(rewards):
        returns.append(reward + gamma * (returns[-1] if returns else 0.0))
    return returns[::-1]


def _less_mean(value: float, compared: Sequence[float]) -> float:
    """Exactly zero where the difference is one of rounding."""
    difference = value - statistics.fmean(compared)
    return difference if abs(difference) > ROUNDING else 0.0
