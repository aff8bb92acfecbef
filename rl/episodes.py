"""The attempts of a run, each one row: in the ledger until its group is settled, then in a Parquet shard.

A row in the ledger is one Arrow record batch, compressed; a shard is many of them as Parquet, by the same schema. A
shard counts where the ledger names it. What a task was given and what it hid are not in a row: an attempt read back
can be trained on, and scored again by rewards that look at messages, facts and outcome.
"""

from __future__ import annotations

import json
import os
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from envs import Episode, Outcome, Task
from rewards import Score
from rl.trajectory import Group, Member, Trajectory

SHARD_ROWS = 512
TABLE = (
    "create table episode ("
    "purpose text not null check (purpose in ('train', 'eval')), lease integer not null, member integer not null, "
    "outcome text not null, tokens integer not null, shard integer, row blob, "
    "primary key (purpose, lease, member), check ((shard is null) <> (row is null)))"
)
SETTLED = "(purpose = 'eval' or lease in (select id from lease where step is not null))"
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
        ("turn_scores", pa.list_(pa.float64())),
        ("turn_advantages", pa.list_(pa.float64())),
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


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    with db:
        db.execute("begin immediate")
        yield


class Attempts:
    """The table `episode` of a ledger, and the shards in `folder`."""

    def __init__(self, db: sqlite3.Connection, folder: Path) -> None:
        self.db, self.folder = db, folder

    def clean(self) -> None:
        """Remove files that a dying driver left and the ledger does not name."""
        named = self.db.execute("select distinct shard from episode where shard is not null").fetchall()
        for path in set(self.folder.iterdir()) - {self.shard(number) for (number,) in named}:
            path.unlink()

    def shard(self, number: int) -> Path:
        return self.folder / f"{number:05d}.parquet"

    def add(self, group: Group, purpose: str) -> None:
        """Within a transaction of the caller's, as are the others but `flush`."""
        rows = write(group, purpose)
        self.db.executemany(
            "insert into episode (purpose, lease, member, outcome, tokens, row) values (?, ?, ?, ?, ?, ?)",
            [
                (purpose, group.lease, number, str(m.episode.outcome), m.trajectory.spoken if m.earned else 0, row)
                for number, (m, row) in enumerate(zip(group.members, rows, strict=True))
            ],
        )

    def replace(self, group: Group, purpose: str) -> None:
        self.db.execute("delete from episode where purpose = ? and lease = ?", (purpose, group.lease))
        self.add(group, purpose)

    def group(self, purpose: str, lease: int) -> Group:
        found = self.db.execute(
            "select row, shard, member from episode where purpose = ? and lease = ? order by member", (purpose, lease)
        ).fetchall()
        shards = {shard: _batches(self.shard(shard)) for _, shard, _ in found if shard is not None}
        return read([row or pack(shards[shard][purpose, lease, member]) for row, shard, member in found])

    def flush(self) -> None:
        """Move the attempts of settled groups from the ledger to shards."""
        query = f"select rowid, row from episode where row is not null and {SETTLED} order by rowid limit ?"
        while rows := self.db.execute(query, (SHARD_ROWS,)).fetchall():
            (number,) = self.db.execute("select coalesce(max(shard) + 1, 0) from episode").fetchone()
            path = self.shard(number)
            draft = path.with_name(f".{path.name}")
            pq.write_table(pa.Table.from_batches([unpack(row) for _, row in rows]), draft, compression="zstd")
            sync(draft)
            draft.rename(path)
            with transaction(self.db):
                self.db.executemany(
                    "update episode set shard = ?, row = null where rowid = ?", [(number, id) for id, _ in rows]
                )

    def recall(self, where: str, *values: Any) -> list[Path]:
        """Take shards that hold such attempts back into the ledger, whole. Returns their files, to be removed after."""
        found = self.db.execute(f"select distinct shard from episode where shard is not null and {where}", values)
        paths = [self.shard(number) for (number,) in found.fetchall()]
        for path in paths:
            self.db.executemany(
                "update episode set shard = null, row = ? where (purpose, lease, member) = (?, ?, ?)",
                [(pack(batch), *key) for key, batch in _batches(path).items()],
            )
        return paths


def _batches(path: Path) -> dict[tuple[str, int, int], pa.RecordBatch]:
    """The rows of a shard by purpose, lease and member."""
    table = pq.read_table(path, schema=EPISODE_SCHEMA)
    rows = [table.slice(i, 1).combine_chunks().to_batches()[0] for i in range(table.num_rows)]
    return {(row["purpose"][0].as_py(), row["lease"][0].as_py(), row["member"][0].as_py()): row for row in rows}


def sync(path: Path) -> None:
    """Wait until a file is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
        "turn_scores": list(member.score.turns) if member.score else [],
        "turn_advantages": list(member.turn_advantages),
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
        tokens=sum(row["mask"]),
        seconds=json.loads(row["seconds"]),
    )
    parts, turns = json.loads(row["parts"]), tuple(row["turn_scores"] or ())
    score = None if row["score"] is None else Score(row["score"], parts, turns)
    trajectory = Trajectory(row["ids"], row["mask"], row["logprobs"], row["versions"])
    return Member(trajectory, episode, score, row["advantage"], tuple(row["turn_advantages"] or ()))
