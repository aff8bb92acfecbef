"""The price of a long answer: 0 up to `soft_tokens`, falling in a line to -1 at `hard_tokens` and beyond.

With weight 1 beside `outcome` a right answer is worth 1 when short and, at the hard limit, as little as a wrong one.
CWM (arXiv 2510.02387) charges right answers only, from 1 down to -1 (weight 2), and lets the soft limit grow until
nothing is charged: see `stages` in the configuration. `only_solved: false` charges every attempt, as DAPO's overlong
punishment does (arXiv 2503.14476).
"""

from envs import Episode


def reward(episode: Episode, *, soft_tokens: float, hard_tokens: float, only_solved: bool = True) -> float:
    if only_solved and not episode.facts["solved"]:
        return 0.0
    return -min(1.0, max(0.0, (episode.tokens - soft_tokens) / (hard_tokens - soft_tokens)))


def check(*, soft_tokens: float, hard_tokens: float, only_solved: bool = True) -> None:
    numbers = all(isinstance(limit, int | float) for limit in (soft_tokens, hard_tokens))
    if not numbers or not 0 <= soft_tokens < hard_tokens:
        raise ValueError(
            f"got soft_tokens={soft_tokens}, hard_tokens={hard_tokens}; expected numbers, 0 <= soft < hard"
        )
