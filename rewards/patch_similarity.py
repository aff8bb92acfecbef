"""How alike the attempt's patch and the known one are, from 0 to 1, by lines added and removed (SWE-RL, 2502.18449).

An attempt without a patch gets 0; where a world has no patches, it does not apply. `only_failed` gives solved ones 0 as
well: with `threshold: 0.5`, CWM's consolation for a failing patch that resembles the right one (arXiv 2510.02387).
"""

from envs import Episode
from rewards import measured


def reward(episode: Episode, *, only_failed: bool = False) -> float | None:
    if only_failed and episode.facts["solved"] and "similarity" in episode.facts:
        return 0.0
    patchless = not measured(episode) or "submitted" in episode.facts
    return episode.facts.get("similarity", 0.0 if patchless else None)
