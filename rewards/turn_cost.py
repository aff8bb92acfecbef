"""-1 for each turn after the first `free` ones; by turn."""

from envs import Episode


def turns(episode: Episode, *, free: int = 1) -> list[float]:
    return [-float(turn >= free) for turn in range(episode.turns)]


def check(*, free: int = 1) -> None:
    if not isinstance(free, int) or free < 0:
        raise ValueError(f"got free={free!r}; expected a whole number of at least 0")
