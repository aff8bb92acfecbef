"""Decision processes small enough to enumerate: every path is an `Episode`, scored by the project's own rewards.

`S` states, `A` actions, `K` turns of an attempt (all attempts are of one length), `P` paths.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import rewards
from envs import Episode, Outcome, Task

Path = tuple[tuple[int, int], ...]
"""What was done and where it led, turn by turn. The beginning of one is a history."""
Shaping = Mapping[str, Mapping[str, Any]]
TINY = 1e-9
TASK = Task(world="toy", key="toy/0", family="toy", level=0, messages=({"role": "user", "content": "Go."},))


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """It starts in state 0 and ends after K turns."""

    chance_SAS: np.ndarray
    """Of the next state."""
    paid_SA: np.ndarray
    """What the process itself pays for an action, as the fact `paid`, a list by turn."""
    potential_S: np.ndarray
    """Stated after each turn as the fact `potential`."""
    bonus_KA: np.ndarray
    """Paid for an action in a turn, wherever it leads, as the fact `bonus`."""
    goal: int = -1
    """An attempt that ends in this state is solved."""

    @property
    def turns(self) -> int:
        return len(self.bonus_KA)

    def paths(self) -> list[Path]:
        """All that can happen."""
        found: list[Path] = [()]
        for _ in range(self.turns):
            found = [
                (*path, (action, int(state)))
                for path in found
                for action in range(self.chance_SAS.shape[1])
                for state in np.flatnonzero(self.chance_SAS[_at(path), action])
            ]
        return found

    def episode(self, path: Path) -> Episode:
        states = [0, *(state for _, state in path)]
        said = [
            message
            for action, state in path
            for message in (
                {"role": "assistant", "content": f"action {action}"},
                {"role": "tool", "name": "toy", "content": f"state {state}"},
            )
        ]
        solved = states[-1] == self.goal
        return Episode(
            task=TASK,
            messages=[*TASK.messages, *said[:-1]],
            outcome=Outcome.SOLVED if solved else Outcome.FAILED,
            facts={
                "solved": solved,
                "paid": [float(self.paid_SA[s, a]) for s, (a, _) in zip(states, path, strict=False)],
                "potential": [float(self.potential_S[s]) for s in states[1:]],
                "drift": [float(self.potential_S[b] - self.potential_S[a]) for a, b in itertools.pairwise(states)],
                "bonus": [float(self.bonus_KA[turn, a]) for turn, (a, _) in enumerate(path)],
            },
            turns=len(path),
            tokens=len(path),
        )


def _at(path: Path) -> int:
    return path[-1][1] if path else 0


def optimal(process: Process, shaping: Shaping, gamma: float = 1.0) -> dict[Path, frozenset[int]]:
    """The best actions after every history, by going back from the ends of all paths. Ties are all best."""
    return {history: best for history, (best, _) in _solved(process, shaping, gamma).items()}


def regret(process: Process, shaping: Shaping, history: Path = (), gamma: float = 1.0) -> dict[int, float]:
    """By how much each action after a history falls short of the best one."""
    values = _solved(process, shaping, gamma)[history][1]
    return {action: max(values.values()) - value for action, value in values.items()}


def _solved(process: Process, shaping: Shaping, gamma: float) -> dict[Path, tuple[frozenset[int], dict[int, float]]]:
    paths = process.paths()
    paid: dict[Path, float] = {}
    for path, score in zip(paths, scores(process, shaping), strict=True):
        by_turn = score.turns or (*[0.0] * (len(path) - 1), score.value)
        for turn, reward in enumerate(by_turn):
            known = paid.setdefault(path[: turn + 1], reward)
            assert abs(known - reward) < TINY, "what a turn is paid depends on what has happened, not on what follows"
    found: dict[Path, tuple[frozenset[int], dict[int, float]]] = {}
    worth: dict[Path, float] = dict.fromkeys(paths, 0.0)
    for turn in reversed(range(process.turns)):
        for history in dict.fromkeys(path[:turn] for path in paths):
            values: dict[int, float] = {}
            for action, chance_S in enumerate(process.chance_SAS[_at(history)]):
                after = [(*history, (action, int(state))) for state in np.flatnonzero(chance_S)]
                values[action] = sum(chance_S[_at(h)] * (paid[h] + gamma * worth[h]) for h in after)
            worth[history] = max(values.values())
            found[history] = frozenset(a for a, value in values.items() if value > worth[history] - TINY), values
    return found


def scores(process: Process, shaping: Shaping) -> list[rewards.Score]:
    """Of all paths, each by itself."""
    return [rewards.score(process.episode(path), shaping) for path in process.paths()]


def drawn(rng: np.random.Generator, *, states: int = 4, actions: int = 2, turns: int = 3) -> Process:
    """A random process: an action leads to one of two places; rewards are whole, so that there are ties."""
    chance_SAS = np.zeros((states, actions, states))
    for state, action in itertools.product(range(states), range(actions)):
        one, other = rng.choice(states, 2, replace=False)
        chance_SAS[state, action, one] = share = rng.uniform(0.2, 1.0)
        chance_SAS[state, action, other] = 1 - share
    return Process(
        chance_SAS=chance_SAS,
        paid_SA=rng.integers(0, 4, (states, actions)).astype(float),
        potential_S=rng.normal(0, 3, states),
        bonus_KA=np.zeros((turns, actions)),
    )


def walk(length: int = 3, turns: int = 4, bonus: float = 0.4) -> Process:
    """Go back, go on, or poke, and be `length` steps further after some turns. Poking leads nowhere, but is paid."""
    chance_SAS = np.zeros((length + 1, 3, length + 1))
    for state in range(length + 1):
        for action, after in enumerate((max(0, state - 1), min(length, state + 1), state)):
            chance_SAS[state, action, after] = 1.0
    return Process(
        chance_SAS=chance_SAS,
        paid_SA=np.zeros((length + 1, 3)),
        potential_S=np.arange(length + 1) / length,
        bonus_KA=np.tile([0.0, 0.0, bonus], (turns, 1)),
        goal=length,
    )


def visits(process: Process, paths: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """1 where a path takes an action in a turn and a state, `[P, K, S, A]`; and the chance of each path where the
    policy does its part."""
    states, actions = process.chance_SAS.shape[:2]
    seen_PKSA = np.zeros((len(paths), process.turns, states, actions))
    chance_P = np.ones(len(paths))
    for number, path in enumerate(paths):
        for turn, (action, after) in enumerate(path):
            state = _at(path[:turn])
            seen_PKSA[number, turn, state, action] = 1.0
            chance_P[number] *= process.chance_SAS[state, action, after]
    return seen_PKSA, chance_P
