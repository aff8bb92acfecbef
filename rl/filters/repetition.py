"""The policy repeats itself: a long run of tokens that it was almost sure of, or the same words over and over.

Both are looked for within what it said in one breath: what the world says ends a run. A run counts `run_tokens` tokens
in a row of probability above `likelihood`; the same words are any `phrase_tokens` tokens in a row that occur `times`
times in one turn, none overlapping another.
"""

import math
from collections.abc import Iterator

import numpy as np

from rl.trajectory import Member

BASE = 0x9E3779B97F4A7C15
"""Odd, of the hash of a phrase modulo 2**64."""


def caught(
    member: Member,
    *,
    run_tokens: int = 3000,
    likelihood: float = 0.99,
    phrase_tokens: int = 32,
    times: int = 16,
) -> bool:
    for ids_T, logprob_T in _turns(member):
        if len(ids_T) >= run_tokens and _longest_run(logprob_T > math.log(likelihood)) >= run_tokens:
            return True
        if len(ids_T) >= phrase_tokens * times and _repeats(ids_T, phrase_tokens, times):
            return True
    return False


def check(*, run_tokens: int = 3000, likelihood: float = 0.99, phrase_tokens: int = 32, times: int = 16) -> None:
    if run_tokens < 1 or phrase_tokens < 1 or times < 2 or not 0 < likelihood < 1:
        raise ValueError(
            f"got run_tokens={run_tokens}, likelihood={likelihood}, phrase_tokens={phrase_tokens}, times={times}; "
            "expected counts of at least 1, times of at least 2, and a likelihood between 0 and 1"
        )


def _turns(member: Member) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Ids and log-probabilities of each stretch of sampled tokens."""
    trajectory = member.trajectory
    mask_T = np.asarray(trajectory.mask, dtype=np.int8)
    edges = np.flatnonzero(np.diff(mask_T, prepend=0, append=0))
    ids_T, logprob_T = np.asarray(trajectory.ids, dtype=np.uint64), np.asarray(trajectory.logprobs)
    for begin, end in edges.reshape(-1, 2):
        yield ids_T[begin:end], logprob_T[begin:end]


def _longest_run(true_T: np.ndarray) -> int:
    edges = np.flatnonzero(np.diff(true_T.astype(np.int8), prepend=0, append=0)).reshape(-1, 2)
    return int((edges[:, 1] - edges[:, 0]).max(initial=0))


def _repeats(ids_T: np.ndarray, length: int, times: int) -> bool:
    """True where some phrase of `length` tokens, told by its hash, occurs `times` times side by side or apart."""
    count = len(ids_T) - length + 1
    hash_N = np.zeros(count, dtype=np.uint64)
    for offset in range(length):
        hash_N = hash_N * np.uint64(BASE) + ids_T[offset : offset + count] + np.uint64(1)
    _, phrase_N, counts = np.unique(hash_N, return_inverse=True, return_counts=True)
    order = np.argsort(phrase_N, kind="stable")
    ends_N = np.cumsum(counts)
    often = np.flatnonzero(counts >= times)
    return any(_apart(order[ends_N[n] - counts[n] : ends_N[n]].tolist(), length) >= times for n in often)


def _apart(places: list[int], length: int) -> int:
    """How many of the places, in order, lie at least `length` from the one counted before."""
    count, free = 0, 0
    for place in places:
        if place >= free:
            count, free = count + 1, place + length
    return count
