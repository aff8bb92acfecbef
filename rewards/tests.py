"""Share of the hidden tests that passed, 1 where solved; where a world has no tests, its verdict.

Programs: the share of cases, or with `groups` the points of a contest (a group of cases pays where all of it is right).
Repairs: the share of tests that the fault broke and that pass again, 0 where one that passed before is broken.
"""

from envs import Episode


def reward(episode: Episode, *, groups: bool = False) -> float:
    facts = episode.facts
    if facts["solved"] or facts.get("tampered"):
        return float(facts["solved"])
    if "passed" in facts:
        return float(facts["points" if groups else "passed"])
    mended = facts.get("fail_to_pass")
    if not mended or not all(facts["pass_to_pass"]):
        return 0.0
    return sum(mended) / len(mended)
