"""A softmax policy in a table, trained on an enumerated process with the advantages that training uses.

`R` runs side by side, `P` paths, `K` turns, `S` states, `A` actions, `G` attempts of a group. Groups are drawn; success
and proxy are exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rl.lab.curves import Curve, HeldOut
from rl.lab.process import Process, Shaping, scores, visits

if TYPE_CHECKING:
    from rl.algorithms import Algorithm
    from rl.trajectory import Member

EXACT = 10**9
"""As good as this many held-out attempts."""


def curves(
    process: Process,
    shaping: Shaping,
    algorithm: Algorithm,
    *,
    runs: int,
    seed: int,
    steps: int = 30,
    group: int = 8,
    rate: float = 12.0,
) -> list[Curve]:
    """As many runs from the same start, each with its own luck; numbered from 0."""
    from rl.trajectory import Group

    attempts = members(process, shaping)
    value_P = np.array([member.score.value for member in attempts if member.score])
    solved_P = np.array([float(member.episode.facts["solved"]) for member in attempts])
    seen_PKSA, chance_P = visits(process, process.paths())
    rng = np.random.default_rng(seed)
    logits_RKSA = np.zeros((runs, *seen_PKSA.shape[1:]))
    history = []
    for step in range(steps + 1):
        policy_RKSA, prob_RP = _policy(logits_RKSA, seen_PKSA, chance_P)
        history.append([prob_RP @ column for column in (solved_P, value_P, solved_P**2, value_P**2)])
        if step == steps:
            break
        weight_RPK = np.zeros((*prob_RP.shape, process.turns))
        for run, drawn_G in enumerate(_draw(rng, prob_RP, group)):
            played = [attempts[path] for path in drawn_G]
            algorithm.advantages(Group(lease=0, world="toy", version=step, members=played))
            for path, member in zip(drawn_G, played, strict=True):
                weight_RPK[run, path] += by_turn(member)
        taken_RKSA = np.einsum("rpk,pksa->rksa", weight_RPK, seen_PKSA, optimize=True)
        gradient_RKSA = taken_RKSA - policy_RKSA * taken_RKSA.sum(-1, keepdims=True)
        logits_RKSA += rate * gradient_RKSA / (group * process.turns)
    return [_curve(run, np.array(history)[:, :, run], group * process.turns) for run in range(runs)]


def members(process: Process, shaping: Shaping) -> list[Member]:
    """Every path as an attempt that was scored, a token a turn."""
    from rl.trajectory import Member, Trajectory

    found = []
    for path, score in zip(process.paths(), scores(process, shaping), strict=True):
        trajectory = Trajectory()
        for _ in path:
            trajectory.hear([0])
            trajectory.speak([0], [0.0], [0])
        found.append(Member(trajectory, process.episode(path), score=score))
    return found


def by_turn(member: Member) -> Sequence[float]:
    """The advantage of each turn, as the learner takes it."""
    return member.turn_advantages or [member.advantage] * member.episode.turns


def _policy(logits_RKSA: np.ndarray, seen_PKSA: np.ndarray, chance_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The policy, and the chance of every path under it."""
    shifted = logits_RKSA - logits_RKSA.max(-1, keepdims=True)
    log_RKSA = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    log_RP = log_RKSA.reshape(len(log_RKSA), -1) @ seen_PKSA.reshape(len(seen_PKSA), -1).T
    return np.exp(log_RKSA), np.exp(log_RP) * chance_P


def _draw(rng: np.random.Generator, prob_RP: np.ndarray, group: int) -> np.ndarray:
    ends_RP = prob_RP.cumsum(-1)
    at_RG = rng.random((len(prob_RP), group)) * ends_RP[:, -1:]
    return np.minimum((at_RG[:, :, None] > ends_RP[:, None, :]).sum(-1), prob_RP.shape[1] - 1)


def _curve(run: int, history: np.ndarray, tokens: int) -> Curve:
    """`history`: by step, the means of truth and proxy, and of their squares."""
    true, proxy = history[:, 0], history[:, 1]
    spread = np.sqrt(np.maximum(0.0, history[:, 2:] - history[:, :2] ** 2))

    def held_out(step: int) -> HeldOut:
        return HeldOut(
            n=EXACT,
            worlds={"toy": float(true[step])},
            proxy=float(proxy[step]),
            true_deviation=float(spread[step, 0]),
            proxy_deviation=float(spread[step, 1]),
        )

    count = len(true) - 1
    return Curve(
        seed=run,
        steps=list(range(1, count + 1)),
        tokens=[tokens * step for step in range(1, count + 1)],
        seconds=[0.0] * count,
        true=[float(height) for height in true[1:]],
        proxy=[float(height) for height in proxy[1:]],
        before=held_out(0),
        after=held_out(count),
    )
