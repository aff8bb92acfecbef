"""1 where the hidden checks all passed, 0 where not: the true score."""

from envs import Episode


def reward(episode: Episode) -> float:
    return 1.0 if episode.facts["solved"] else 0.0
