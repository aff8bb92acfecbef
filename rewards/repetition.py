"""The price of saying the same again: minus the share of phrases of `words` words that were said before, 0 to -1.

Phrases lie within one turn; one that occurs in two turns counts as said again (arXiv 2502.03373 has the n-grams).
"""

from envs import Episode
from rewards import rounds


def reward(episode: Episode, *, words: int = 4) -> float:
    said = [own[0]["content"].lower().split() for own in rounds(episode)]
    phrases = [tuple(text[at : at + words]) for text in said for at in range(len(text) - words + 1)]
    return len(set(phrases)) / len(phrases) - 1 if phrases else 0.0


def check(*, words: int = 4) -> None:
    if not isinstance(words, int) or words < 1:
        raise ValueError(f"got words={words!r}; expected a whole number of at least 1")
