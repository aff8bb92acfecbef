"""A right answer pays less the longer it is, a wrong one costs less, both along a cosine (arXiv 2502.03373).

`right` and `wrong` are the values at no tokens and at `max_tokens`: by default 1 to 0.5, and -1 to -0.5, so that the
hopeless think on and the able come to the point. From `max_tokens` on, right or wrong, it is `exceeded`.
"""

import math
from collections.abc import Sequence

from envs import Episode


def reward(
    episode: Episode,
    *,
    max_tokens: float,
    right: Sequence[float] = (1.0, 0.5),
    wrong: Sequence[float] = (-1.0, -0.5),
    exceeded: float = -1.0,
) -> float:
    if episode.tokens >= max_tokens:
        return exceeded
    short, long = right if episode.facts["solved"] else wrong
    return long + 0.5 * (short - long) * (1 + math.cos(math.pi * episode.tokens / max_tokens))


def check(
    *,
    max_tokens: float,
    right: Sequence[float] = (1.0, 0.5),
    wrong: Sequence[float] = (-1.0, -0.5),
    exceeded: float = -1.0,
) -> None:
    if not _number(max_tokens) or max_tokens <= 0:
        raise ValueError(f"got max_tokens={max_tokens!r}; expected a number above 0")
    for name, pair in (("right", right), ("wrong", wrong)):
        if not isinstance(pair, Sequence) or len(pair) != 2 or not all(map(_number, pair)):
            raise ValueError(f"got {name}={pair!r}; expected two numbers, at no tokens and at max_tokens")
    if not _number(exceeded):
        raise ValueError(f"got exceeded={exceeded!r}; expected a number")


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
