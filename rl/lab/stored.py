"""The training attempts of a run, read again for the lab: whole groups in chunks, each with the task it was about.

A stored attempt has no task but its key. The task is made again by the run's own configuration (world, its arguments at
the version of the lease, place in the stream) and must be the one that was played: the same key, the same content where
the ledger has its digest, and the conversation that was stored must begin with its messages.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import envs
from envs import Episode, Outcome, Task, World
from rewards import Score
from rl import config, stages
from rl.episodes import unpack
from rl.store import LAYOUT
from rl.trajectory import Group, Member, Trajectory

CHUNK_ATTEMPTS = 512
"""About as many are read at a time."""
KEYS = ("purpose", "lease", "member")
NEEDED = (*KEYS, "world", "key", "family", "level", "outcome", "turns", "facts", "messages", "error", "seconds")
TOKENS = ("ids", "mask", "logprobs", "versions")


@dataclass(frozen=True, slots=True)
class Chunk:
    """Leases of one run, in order. `digest` is of all that was stored of them."""

    run: str
    leases: tuple[int, ...]
    attempts: int
    digest: str


@dataclass(frozen=True, slots=True)
class Granted:
    """A lease, and the digest of its task, where there is one."""

    id: int
    world: str
    index: int
    version: int
    digest: str


class Stored:
    """A run folder, read only: also of a run that goes on. Raises ValueError where it cannot be scored again."""

    def __init__(self, folder: Path) -> None:
        if not (folder / "ledger.db").is_file():
            raise ValueError(f"there is no run at {folder}; expected a folder with a ledger.db")
        self.folder = folder
        self.settings = config.load(folder / "config.yaml")
        self._worlds: dict[str, World] = {}
        self._db = sqlite3.connect(f"file:{quote(str((folder / 'ledger.db').resolve()))}?mode=ro", uri=True)
        try:
            (layout,) = self._db.execute("pragma user_version").fetchone()
        except sqlite3.Error as error:
            raise ValueError(f"the ledger of {folder} cannot be read: {error}") from None
        if layout != LAYOUT:
            raise ValueError(f"the ledger of {folder} has layout {layout}; expected {LAYOUT}: score a newer run")
        for shard in sorted((folder / "episodes").glob("*.parquet"))[:1]:
            if missing := sorted({*NEEDED, *TOKENS} - set(pq.read_schema(shard).names)):
                raise ValueError(
                    f"{shard} has no column {', '.join(missing)}; expected those of rl/episodes.py: "
                    "what an older version stored cannot be scored again"
                )

    def chunks(self) -> list[Chunk]:
        """All leases that were played to their end, some at a time; the same again while nothing was added."""
        rows = self._db.execute(
            "select lease, member, outcome, e.tokens, account from episode e join lease l on l.id = lease "
            "where purpose = 'train' and l.state <> 'open' order by lease, member"
        ).fetchall()
        size = max(1, CHUNK_ATTEMPTS // self.settings.rollout.group_size)
        split: dict[int, list[tuple[Any, ...]]] = {}
        for row in rows:
            split.setdefault(row[0] // size, []).append(row)
        whole = str(self.folder.resolve())
        return [
            Chunk(whole, tuple(dict.fromkeys(row[0] for row in part)), len(part), _digest([whole, part]))
            for part in split.values()
        ]

    def groups(self, leases: Sequence[int]) -> Iterator[Group]:
        """The groups of these leases. Raises ValueError where the task of one is not what it was."""
        granted = self._granted(leases)
        found: dict[int, list[tuple[int, Member]]] = {lease: [] for lease in leases}
        tasks: dict[int, Task] = {}
        for table in self._tables(leases):
            for lease, number, member in _members(table):
                if member.episode.outcome.valid:
                    if lease not in tasks:
                        tasks[lease] = self._task(member.episode, granted[lease])
                    member.episode.task = tasks[lease]
                found[lease].append((number, member))
        for lease, numbered in found.items():
            members = [member for _, member in sorted(numbered, key=lambda pair: pair[0])]
            yield Group(lease, granted[lease].world, granted[lease].version, members)

    def attempt(self, lease: int, number: int) -> dict[str, Any]:
        """One attempt as it was stored, by column."""
        for table in self._tables([lease]):
            for row in table.select(list(NEEDED)).to_pylist():
                if row["member"] == number:
                    return dict(row)
        raise ValueError(f"{self.folder} has no attempt {number} of lease {lease}")

    def at(self, version: int) -> config.RunConfig:
        """The configuration that was in force."""
        return stages.at(self.settings, version)

    def _granted(self, leases: Sequence[int]) -> dict[int, Granted]:
        marks = ",".join("?" * len(leases))
        rows = self._db.execute(
            f"select id, world, task_index, version, account from lease where id in ({marks})", tuple(leases)
        )
        return {
            id: Granted(id, world, index, version, json.loads(account or "{}").get("digest", ""))
            for id, world, index, version, account in rows.fetchall()
        }

    def _tables(self, leases: Sequence[int]) -> Iterator[pa.Table]:
        """The rows of these leases, from shards and from the ledger, asked for at once: a run that goes on moves rows
        from one to the other. Raises ValueError where a shard has not what the ledger says."""
        marks = ",".join("?" * len(leases))
        where = f"where purpose = 'train' and lease in ({marks})"
        rows = self._db.execute(f"select shard, row from episode {where}", tuple(leases)).fetchall()
        held = [row for _, row in rows if row is not None]
        columns = [*NEEDED, *TOKENS]
        wanted = pa.array(leases, pa.int64())
        for shard in sorted({shard for shard, _ in rows if shard is not None}):
            table = pq.read_table(self.folder / "episodes" / f"{shard:05d}.parquet", columns=columns)
            own = pc.and_(pc.is_in(table["lease"], wanted), pc.equal(table["purpose"], "train"))
            table = table.filter(own)
            if len(table) != (told := sum(place == shard for place, _ in rows)):
                raise ValueError(f"shard {shard} of {self.folder} has {len(table)} of these attempts; expected {told}")
            yield table
        if held:
            yield pa.Table.from_batches([unpack(row) for row in held]).select(columns)

    def _task(self, episode: Episode, lease: Granted) -> Task:
        """The task again, whole. Raises ValueError where it is another."""
        key = episode.task.key
        where = f"{self.folder}, lease {lease.id}: world {lease.world}"
        try:
            task = self._world(lease.world, lease.version).task("train", lease.index)
        except Exception as error:  # a world is a plug-in: what its code raises cannot be foreseen
            raise ValueError(f"{where} cannot make task {lease.index} again: {type(error).__name__}: {error}") from None
        task = replace(task, world=lease.world)
        told = [dict(message) for message in task.messages]
        if task.key != key:
            raise ValueError(f"{where} makes {task.key!r} again for {key!r}: its code or data are others now")
        if task.content_hash != lease.digest if lease.digest else episode.messages[: len(told)] != told:
            raise ValueError(f"{where} makes another {key!r} than was played: its code or data are others now")
        return task

    def _world(self, name: str, version: int) -> World:
        """A world as it was at a version, without sandboxes: made once for the same arguments."""
        world = self.at(version).worlds[name]
        known = json.dumps([name, world.args], sort_keys=True, default=str)
        if known not in self._worlds:
            self._worlds[known] = envs.load(self.settings.plays(name)).World(
                None, seed=self.settings.seed, **world.args
            )
        return self._worlds[known]


def _members(table: pa.Table) -> Iterator[tuple[int, int, Member]]:
    """Lease, number and attempt of each row. The attempt has a score of 0, which says that it had one."""
    tokens = [_lists(table[name]) for name in TOKENS]
    for place, row in enumerate(table.select(list(NEEDED)).to_pylist()):
        ids, mask, logprobs, versions = (column[place] for column in tokens)
        task = Task(world=row["world"], key=row["key"], family=row["family"], level=row["level"], messages=())
        episode = Episode(
            task=task,
            messages=json.loads(row["messages"]),
            outcome=Outcome(row["outcome"]),
            facts=json.loads(row["facts"]),
            turns=row["turns"],
            tokens=sum(mask),
            error=row["error"],
            seconds=json.loads(row["seconds"]),
        )
        score = Score(0.0) if episode.outcome.valid else None
        yield row["lease"], row["member"], Member(Trajectory(ids, mask, logprobs, versions), episode, score)


def _lists(column: pa.ChunkedArray) -> list[list[Any]]:
    """A column of lists, without an object of Arrow's for each number."""
    found: list[list[Any]] = []
    for chunk in column.chunks:
        ends, flat = chunk.offsets.to_numpy().tolist(), chunk.values.to_numpy(zero_copy_only=False)
        found += [flat[start:end].tolist() for start, end in itertools.pairwise(ends)]
    return found


def _digest(what: Any) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:16]
