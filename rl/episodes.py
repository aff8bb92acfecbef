"""One attempt as one row: how members of a group are written to the ledger and to Parquet, and read back.

A row in the ledger is one Arrow record batch, compressed; a shard is many of them as Parquet, by the same schema.
What a task was given and what it hid are not in a row: an attempt read back can be trained on, and scored again by
rewards that look at messages, facts and outcome.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from envs import Episode, Outcome, Task
from rewards import Score
from rl.trajectory import Group, Member, Trajectory

EPISODE_SCHEMA = pa.schema(
    [
        ("purpose", pa.string()),
        ("lease", pa.int64()),
        ("member", pa.int32()),
        ("version", pa.int64()),
        ("world", pa.string()),
        ("key", pa.string()),
        ("family", pa.string()),
        ("level", pa.int32()),
        ("outcome", pa.string()),
        ("solved", pa.bool_()),
        ("score", pa.float64()),
        ("advantage", pa.float64()),
        ("turns", pa.int32()),
        ("error", pa.string()),
        ("parts", pa.string()),
        ("facts", pa.string()),
        ("messages", pa.string()),
        ("seconds", pa.string()),
        ("ids", pa.list_(pa.int32())),
        ("mask", pa.list_(pa.bool_())),
        ("logprobs", pa.list_(pa.float32())),
        ("versions", pa.list_(pa.int32())),
    ]
)


def write(group: Group, purpose: str) -> list[bytes]:
    """The rows of a group's attempts, in their order."""
    return [
        pack(pa.RecordBatch.from_pylist([_row(group, number, member, purpose)], schema=EPISODE_SCHEMA))
        for number, member in enumerate(group.members)
    ]


def pack(batch: pa.RecordBatch) -> bytes:
    return zlib.compress(batch.serialize(), 1)


def unpack(row: bytes) -> pa.RecordBatch:
    return pa.ipc.read_record_batch(pa.py_buffer(zlib.decompress(row)), EPISODE_SCHEMA)


def read(rows: Sequence[bytes]) -> Group:
    """The group that `write` took apart. Raises ValueError where there is no row."""
    if not rows:
        raise ValueError("got no rows of a group; expected one for each attempt")
    attempts = [unpack(row).to_pylist()[0] for row in rows]
    first = attempts[0]
    return Group(first["lease"], first["world"], first["version"], [_member(row) for row in attempts])


def _row(group: Group, number: int, member: Member, purpose: str) -> dict[str, Any]:
    episode, trajectory = member.episode, member.trajectory
    return {
        "purpose": purpose,
        "lease": group.lease,
        "member": number,
        "version": group.version,
        "world": group.world,
        "key": episode.task.key,
        "family": episode.task.family,
        "level": episode.task.level,
        "outcome": str(episode.outcome),
        "solved": bool(episode.facts["solved"]),
        "score": member.score.value if member.score else None,
        "advantage": member.advantage,
        "turns": episode.turns,
        "error": episode.error,
        "parts": json.dumps(dict(member.score.parts) if member.score else {}),
        "facts": json.dumps(episode.facts),
        "messages": json.dumps(episode.messages),
        "seconds": json.dumps(episode.seconds),
        "ids": trajectory.ids,
        "mask": trajectory.mask,
        "logprobs": trajectory.logprobs,
        "versions": trajectory.versions,
    }


def _member(row: dict[str, Any]) -> Member:
    task = Task(world=row["world"], key=row["key"], family=row["family"], level=row["level"], messages=())
    episode = Episode(
        task=task,
        messages=json.loads(row["messages"]),
        outcome=Outcome(row["outcome"]),
        facts=json.loads(row["facts"]),
        turns=row["turns"],
        error=row["error"],
        seconds=json.loads(row["seconds"]),
    )
    score = None if row["score"] is None else Score(row["score"], json.loads(row["parts"]))
    trajectory = Trajectory(row["ids"], row["mask"], row["logprobs"], row["versions"])
    return Member(trajectory, episode, score, row["advantage"])
