"""A rare token that was far less likely than chance, as CWM rejects it (arXiv 2510.02387).

Byte-pair vocabularies grow from frequent to rare, so a token is rare from some id on. CWM: `vocabulary` 128,256 and
`rare_from` 100,000. One such token is enough.
"""

import math

import numpy as np

from rl.trajectory import Member

NATS_BELOW_UNIFORM = 2.0


def caught(member: Member, *, vocabulary: int, rare_from: int) -> bool:
    trajectory = member.trajectory
    ids_T, logprob_T, mask_T = (np.asarray(x) for x in (trajectory.ids, trajectory.logprobs, trajectory.mask))
    unlikely_T = logprob_T < -math.log(vocabulary) - NATS_BELOW_UNIFORM
    return bool((mask_T & (ids_T > rare_from) & unlikely_T).any())


def check(*, vocabulary: int, rare_from: int) -> None:
    if not 0 <= rare_from < vocabulary:
        raise ValueError(
            f"got vocabulary={vocabulary}, rare_from={rare_from}; expected a token id within the vocabulary"
        )
