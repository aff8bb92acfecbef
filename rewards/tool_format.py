"""1 where no action of the policy was refused as malformed, 0 where one was."""

from envs import Episode, Outcome


def reward(episode: Episode) -> float:
    return 0.0 if episode.outcome is Outcome.INVALID_ACTION else 1.0
