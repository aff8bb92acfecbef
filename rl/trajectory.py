"""Token-level records of what the policy did. `T` tokens of one trajectory, `G` members of a group.

Names by stage: a `Trajectory` is one episode in tokens; a `Group` is G attempts at one task; a batch (rl/batch.py) is
what the learner eats. Log-probabilities are natural logs under the policy that sampled the token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from envs import Episode, Outcome
from rewards import Score


@dataclass(slots=True)
class Trajectory:
    """Aligned lists, one entry a token: who spoke, how likely it was, which policy version spoke.

    World tokens have mask False, log-probability 0.0 and version -1.
    """

    ids: list[int] = field(default_factory=list)
    mask: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)

    def hear(self, ids: Sequence[int]) -> None:
        """Append tokens that the world wrote."""
        self.ids += ids
        self.mask += [False] * len(ids)
        self.logprobs += [0.0] * len(ids)
        self.versions += [-1] * len(ids)

    def speak(self, ids: Sequence[int], logprobs: Sequence[float], versions: Sequence[int]) -> None:
        """Append tokens that the policy sampled. Raises ValueError where the three lengths differ."""
        if not len(ids) == len(logprobs) == len(versions):
            raise ValueError(
                f"got {len(ids)} tokens, {len(logprobs)} logprobs, {len(versions)} versions; expected equal lengths"
            )
        self.ids += ids
        self.mask += [True] * len(ids)
        self.logprobs += logprobs
        self.versions += versions

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def spoken(self) -> int:
        """Number of tokens that the policy sampled."""
        return sum(self.mask)

    @property
    def turns(self) -> list[tuple[int, int]]:
        """Where each stretch of sampled tokens begins, and where the world speaks again."""
        edges = [at for at in range(len(self.mask)) if self.mask[at] != (at > 0 and self.mask[at - 1])]
        return list(zip(edges[::2], [*edges[1::2], len(self.mask)], strict=False))

    @property
    def oldest(self) -> int:
        """Policy version of the oldest sampled token."""
        return min((v for v in self.versions if v >= 0), default=-1)

    @property
    def newest(self) -> int:
        return max(self.versions, default=-1)


@dataclass(slots=True)
class Member:
    """One attempt of a group: the tokens, the episode and, where the outcome is the policy's doing, the score."""

    trajectory: Trajectory
    episode: Episode
    score: Score | None = None
    advantage: float = 0.0
    """Of each of its tokens; where there are `turn_advantages`, their mean over its tokens."""
    turn_advantages: tuple[float, ...] = ()
    """Of the tokens of each turn, where the algorithm tells turns apart."""
    caught: tuple[str, ...] = ()
    """Names of the filters that caught it (rl/filters)."""
    rejected: bool = False
    """One of them is enforced."""

    @property
    def advantages(self) -> list[float]:
        """One a token; by turn, 0.0 where the world spoke. Raises ValueError where turns and their number differ."""
        advantages = [self.advantage] * len(self.trajectory)
        if self.turn_advantages:
            advantages = [0.0] * len(self.trajectory)
            spoken = self.trajectory.turns
            if len(self.turn_advantages) != len(spoken):
                raise ValueError(
                    f"got {len(self.turn_advantages)} advantages of {len(spoken)} turns; expected one for each"
                )
            for (begin, end), advantage in zip(spoken, self.turn_advantages, strict=True):
                advantages[begin:end] = [advantage] * (end - begin)
        return advantages

    @property
    def teaches(self) -> bool:
        """Some of its tokens have an advantage."""
        return self.advantage != 0.0 or any(self.turn_advantages)

    @property
    def earned(self) -> bool:
        """The policy's doing: it earned its ending, it was scored, and it spoke."""
        return self.episode.outcome.valid and self.score is not None and self.trajectory.spoken > 0

    @property
    def valid(self) -> bool:
        """May be trained on: earned, and no filter rejects it."""
        return self.earned and not self.rejected


@dataclass(slots=True)
class Group:
    """G attempts at one task, admitted together while the policy was at `version`."""

    lease: int
    world: str
    version: int
    members: list[Member]

    @property
    def valid(self) -> list[Member]:
        return [m for m in self.members if m.valid]

    @property
    def earned(self) -> list[Member]:
        return [m for m in self.members if m.earned]

    def outcomes(self) -> dict[Outcome, int]:
        counts: dict[Outcome, int] = {}
        for member in self.members:
            counts[member.episode.outcome] = counts.get(member.episode.outcome, 0) + 1
        return counts


def rebase(group: Group, version: int) -> bool:
    """Go back to `version`: tokens of later ones belong to a branch that is given up, and are relabelled by how far
    that branch had gone from here, as one sampled as many versions earlier. Returns whether any was.

    The result may be negative: such a group is older than any version, and may not be used.
    """
    newest = max((member.trajectory.newest for member in group.members), default=-1)
    if max(newest, group.version) <= version:
        return False
    group.version = min(group.version, 2 * version - max(newest, group.version))
    for member in group.members:
        member.trajectory.versions = [v if v <= version else 2 * version - v for v in member.trajectory.versions]
    return True
