"""-1 for each turn whose tool answered with an error, or whose action was refused as malformed; by turn.

An error is told by its text: a line of the answer that `pattern` (a regular expression) matches at its beginning.
"""

from envs import Episode, Outcome
from rewards import expression, matches, rounds

PATTERN = r"exit code [1-9]|timed out after|bad edit:|no edit:|(?:[\w.]*(?:Error|Exception)|[Ee]rror):"


def turns(episode: Episode, *, pattern: str = PATTERN) -> list[float]:
    begins = f"(?m:^(?:{pattern}))"
    costs = [
        -float(any(message["role"] == "tool" and matches(begins, message["content"]) for message in own[1:]))
        for own in rounds(episode)
    ]
    if episode.outcome is Outcome.INVALID_ACTION and costs:
        costs[-1] = -1.0
    return costs


def check(*, pattern: str = PATTERN) -> None:
    expression(pattern)
