"""The run folder, a public contract: what a run leaves behind, and all that report, eval and resume read.

runs/<name>/config.yaml       as resolved
            ledger.db         SQLite (WAL): one row a lease, and what became of it
            metrics.jsonl     one row a step
            evals.jsonl       one row a measurement on held-out tasks
            episodes/*.parquet  every episode, messages and tokens, by shard
            checkpoints/<step>  Hugging Face layout, and the trainer's state
            logs/             one file an actor
            summary.json      written at the end
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rl.trajectory import Group

SHARD_ROWS = 512


@dataclass(frozen=True, slots=True)
class Lease:
    """The ledger's promise that one group is being worked on."""

    id: int
    world: str
    index: int
    """Position in the world's stream of training tasks."""


class Run:
    """One run folder. Exactly one process writes it: the driver."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.episodes = folder / "episodes"
        self.checkpoints = folder / "checkpoints"
        self.logs = folder / "logs"
        self._rows: list[dict[str, Any]] = []
        self._shard = len(list(self.episodes.glob("*.parquet"))) if self.episodes.exists() else 0

    @staticmethod
    def check_new(folder: Path) -> None:
        """Raises ValueError where there is something already."""
        if folder.exists():
            raise ValueError(
                f"there is already a run at {folder}; expected a new name (name=...), or --resume to go on with it"
            )

    @staticmethod
    def check_resumable(folder: Path) -> None:
        """Raises ValueError where there is no run."""
        if not (folder / "ledger.db").is_file():
            raise ValueError(f"there is no run at {folder} to resume; expected a folder with a ledger.db")

    @classmethod
    def create(cls, folder: Path) -> Run:
        cls.check_new(folder)
        run = cls(folder)
        for path in (run.episodes, run.checkpoints, run.logs):
            path.mkdir(parents=True)
        run._open()
        return run

    @classmethod
    def reopen(cls, folder: Path) -> Run:
        cls.check_resumable(folder)
        run = cls(folder)
        run._open()
        return run

    def _open(self) -> None:
        self.db = sqlite3.connect(self.folder / "ledger.db", isolation_level=None)
        self.db.execute("pragma journal_mode = wal")
        self.db.execute(
            "create table if not exists lease ("
            "id integer primary key, world text not null, task_index integer not null, task_key text, "
            "version integer not null, state text not null check (state in ('open', 'trained', 'flat', 'lost')), "
            "step integer, outcomes text, unique (world, task_index))"
        )

    # -- leases ---------------------------------------------------------------------------------------------------

    def grant(self, world: str, version: int, barred: Callable[[str, int], bool] = lambda world, index: False) -> Lease:
        """Promise the next task of a world's stream that is not barred."""
        (index,) = self.db.execute(
            "select coalesce(max(task_index) + 1, 0) from lease where world = ?", (world,)
        ).fetchone()
        while barred(world, index):
            index += 1
        cursor = self.db.execute(
            "insert into lease (world, task_index, version, state) values (?, ?, ?, 'open')", (world, index, version)
        )
        return Lease(int(cursor.lastrowid or 0), world, index)

    def renew(self, lease: Lease, version: int) -> None:
        """An open lease of an interrupted run is worked on again, from this version on."""
        self.db.execute("update lease set version = ? where id = ?", (version, lease.id))

    def granted(self) -> dict[str, int]:
        """Leases ever granted, by world."""
        return dict(self.db.execute("select world, count(*) from lease group by world").fetchall())

    def rewind(self, version: int) -> list[Lease]:
        """Back to a checkpoint: what was settled after it is open again. Returns every open lease, oldest first."""
        self.db.execute("update lease set state = 'open', step = null where step > ?", (version,))
        rows = self.db.execute("select id, world, task_index from lease where state = 'open' order by id").fetchall()
        return [Lease(*row) for row in rows]

    def settle(self, groups: Iterable[Group], state: str, step: int) -> None:
        """Record what became of groups, in one transaction: `trained`, `flat` (no advantage) or `lost` at a step."""
        with self.db:
            self.db.execute("begin")
            for group in groups:
                key = group.members[0].episode.task.key if group.members else None
                outcomes = json.dumps({str(k): v for k, v in group.outcomes().items()})
                self.db.execute(
                    "update lease set state = ?, step = ?, task_key = ?, outcomes = ? where id = ?",
                    (state, step, key, outcomes, group.lease),
                )

    # -- rows -----------------------------------------------------------------------------------------------------

    def append(self, file: str, row: Mapping[str, Any]) -> None:
        """Add one row to a .jsonl file of the run."""
        with (self.folder / file).open("a") as out:
            out.write(json.dumps(row) + "\n")

    def rows(self, file: str) -> list[dict[str, Any]]:
        path = self.folder / file
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

    def truncate(self, file: str, version: int) -> None:
        """Drop the rows of steps after a checkpoint, which a resumed run writes again."""
        kept = [row for row in self.rows(file) if row["step"] <= version]
        if (self.folder / file).is_file():
            draft = self.folder / f".{file}"
            draft.write_text("".join(json.dumps(row) + "\n" for row in kept))
            draft.rename(self.folder / file)

    def keep(self, group: Group, purpose: str) -> None:
        """Store every attempt of a group; shards are written when full and at `flush`."""
        for number, member in enumerate(group.members):
            episode, trajectory = member.episode, member.trajectory
            self._rows.append(
                {
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
            )
        if len(self._rows) >= SHARD_ROWS:
            self.flush()

    def flush(self) -> None:
        if self._rows:
            table = pa.Table.from_pylist(self._rows, schema=EPISODE_SCHEMA)
            draft = self.episodes / f".{self._shard:05d}.parquet"
            pq.write_table(table, draft, compression="zstd")
            draft.rename(self.episodes / f"{self._shard:05d}.parquet")
            self._shard += 1
            self._rows = []

    # -- checkpoints and the end ----------------------------------------------------------------------------------

    def checkpoint(self, version: int) -> Path:
        return self.checkpoints / f"{version:06d}"

    def latest(self) -> Path | None:
        """The newest whole checkpoint."""
        return max((p for p in self.checkpoints.glob("[0-9]*") if (p / "config.json").is_file()), default=None)

    def summarise(self, row: Mapping[str, Any]) -> None:
        (self.folder / "summary.json").write_text(json.dumps(row, indent=2) + "\n")

    def summary(self) -> dict[str, Any]:
        path = self.folder / "summary.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    def close(self) -> None:
        self.flush()
        self.db.close()


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
