"""Length against the others of the group: 0.5 for the shortest, in a line to -0.5 for the longest; a wrong answer gets
no more than 0. All 0 where they are equally long (Kimi k1.5, arXiv 2501.12599).
"""

from collections.abc import Sequence

from envs import Episode


def group(episodes: Sequence[Episode]) -> list[float]:
    lengths = [episode.tokens for episode in episodes]
    shortest, longest = min(lengths), max(lengths)
    if shortest == longest:
        return [0.0] * len(lengths)
    places = [0.5 - (length - shortest) / (longest - shortest) for length in lengths]
    return [p if e.facts["solved"] else min(0.0, p) for p, e in zip(places, episodes, strict=True)]
