"""1 where what was said matches a pattern (a regular expression, searched for), 0 where not.

`role: assistant` looks at the policy's messages, `tool` at what its tools answered. `where`: in the `last` of them, in
`any`, or in `every`. As a gate it takes the reward of an answer in another form; added, it can be earned without truth.
"""

from envs import Episode
from rewards import expression, matches, rounds

PLACES = ("last", "any", "every")


def reward(episode: Episode, *, pattern: str, role: str = "assistant", where: str = "last") -> float:
    texts = [message["content"] for own in rounds(episode) for message in own if message["role"] == role]
    found = [matches(pattern, text) for text in (texts[-1:] if where == "last" else texts)]
    return float(bool(found) and (any(found) if where == "any" else all(found)))


def check(*, pattern: str, role: str = "assistant", where: str = "last") -> None:
    if where not in PLACES:
        raise ValueError(f"got where={where!r}; available: {', '.join(PLACES)}")
    if role not in ("assistant", "tool", "user"):
        raise ValueError(f"got role={role!r}; available: assistant, tool, user")
    expression(pattern)
