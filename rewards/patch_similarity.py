"""How alike the attempt's patch and the known one are, from 0 to 1, by lines added and removed (SWE-RL, 2502.18449).

With `threshold: 0.5` and a weight, it is CWM's consolation for a failing patch that resembles the right one. An attempt
without a patch gets 0; where a world has no patches, it does not apply.
"""

from envs import Episode
from rewards import measured


def reward(episode: Episode) -> float | None:
    patchless = not measured(episode) or "submitted" in episode.facts
    return episode.facts.get("similarity", 0.0 if patchless else None)
