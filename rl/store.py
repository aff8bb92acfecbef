"""The run folder, a public contract: what a run leaves behind, and all that report, eval and resume read.

runs/<name>/config.yaml       as resolved; where a resume changed it, config-until-<step>.yaml is what it was
            ledger.db         SQLite (WAL): leases, episodes, batches, steps, each exactly once (docs/ledger.md)
            metrics.jsonl     one row a step
            evals.jsonl       one row a measurement on held-out tasks
            episodes/*.parquet  every attempt whose group is settled, messages and tokens, by shard
            checkpoints/<step>  Hugging Face layout, and the trainer's state
            logs/             one file an actor
            summary.json      written at the end

The ledger is the truth. The .jsonl files are copies of its rows, and a shard counts where the ledger names it.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rl.episodes import SETTLED, TABLE, Attempts, transaction
from rl.mix import Row
from rl.trajectory import Group, rebase

LAYOUT = 3
"""Of the ledger's tables, and of the rows in them."""
TABLES = (
    "create table lease ("
    "id integer primary key, world text not null, task_index integer not null, task_key text, "
    "version integer not null, "
    "state text not null check (state in ('open', 'played', 'trained', 'flat', 'lost')), "
    "step integer, outcomes text, tokens integer, account text, unique (world, task_index), "
    "check ((step is null) = (state in ('open', 'played'))))",
    "create table heldout ("
    "id integer primary key, version integer not null, world text not null, task_index integer not null, "
    "unique (version, world, task_index))",
    TABLE,
    "create table step (version integer primary key, tokens integer not null, metrics text not null)",
    "create table batch ("
    "lease integer primary key references lease, step integer not null references step, place integer not null, "
    "unique (step, place))",
    "create table evaluation (name text not null, version integer not null, row text not null, "
    "primary key (name, version))",
)


@dataclass(frozen=True, slots=True)
class Lease:
    """The ledger's promise that one group is being worked on. Those of held-out tasks have negative ids."""

    id: int
    world: str
    index: int
    """Position in the world's stream of tasks."""
    played: bool = False
    """Its group was finished before an interruption: `Run.stored` has it."""


class Run:
    """One run folder. Exactly one process writes it: the driver."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.episodes = folder / "episodes"
        self.checkpoints = folder / "checkpoints"
        self.logs = folder / "logs"

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
        """A new run folder, which appears whole or not at all."""
        cls.check_new(folder)
        draft = cls(folder.with_name(f".{folder.name}.{os.getpid()}"))
        shutil.rmtree(draft.folder, ignore_errors=True)
        for path in (draft.episodes, draft.checkpoints, draft.logs):
            path.mkdir(parents=True)
        draft._open()
        draft.close()
        draft.folder.rename(folder)
        return cls.reopen(folder)

    @classmethod
    def reopen(cls, folder: Path) -> Run:
        """The run at `folder`, without what a dying driver left half-written. Raises ValueError."""
        cls.check_resumable(folder)
        run = cls(folder)
        run._open()
        run.attempts.clean()
        for path in run.checkpoints.glob(".*"):
            shutil.rmtree(path, ignore_errors=True)
        return run

    def _open(self) -> None:
        self._lock = (self.folder / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is at work on the run at {self.folder}; expected to be alone") from None
        self.db = sqlite3.connect(self.folder / "ledger.db", isolation_level=None)
        self.db.execute("pragma journal_mode = wal")
        self.db.execute("pragma synchronous = normal")  # a dead process loses nothing; `secure` is for a power cut
        self.db.execute("pragma foreign_keys = on")
        self.attempts = Attempts(self.db, self.episodes)
        with transaction(self.db):
            (tables,) = self.db.execute("select count(*) from sqlite_master").fetchone()
            if not tables:
                for table in TABLES:
                    self.db.execute(table)
                self.db.execute(f"pragma user_version = {LAYOUT}")
        (layout,) = self.db.execute("pragma user_version").fetchone()
        if layout != LAYOUT:
            raise ValueError(f"the ledger of {self.folder} has layout {layout}; expected {LAYOUT}: start a new run")

    # -- leases ---------------------------------------------------------------------------------------------------

    def next_index(self, world: str) -> int:
        """The first position of a world's stream after all that were ever granted."""
        sql = "select coalesce(max(task_index) + 1, 0) from lease where world = ?"
        return int(self.db.execute(sql, (world,)).fetchone()[0])

    def grant(self, world: str, version: int, index: int | None = None) -> Lease:
        """Promise the next task of a world's stream, or one further on: those passed over are never granted."""
        index = self.next_index(world) if index is None else index
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

    def heldout(self, world: str, index: int, version: int) -> Lease:
        """The lease of a held-out task that is measured at `version`; played where that was done already."""
        key = (version, world, index)
        self.db.execute("insert or ignore into heldout (version, world, task_index) values (?, ?, ?)", key)
        (id,) = self.db.execute("select id from heldout where (version, world, task_index) = (?, ?, ?)", key).fetchone()
        found = self.db.execute("select 1 from episode where purpose = 'eval' and lease = ?", (-id,)).fetchone()
        return Lease(-id, world, index, played=found is not None)

    def settle(self, groups: Iterable[Group], state: str, step: int) -> None:
        """Record that groups were `flat` (no advantage) or `lost` on the way to a step, in one transaction."""
        with transaction(self.db):
            self._settle(groups, state, step)

    def trained(self, groups: Sequence[Group], step: int, row: Mapping[str, Any]) -> None:
        """Record a step, its batch in order and its row of metrics, in one transaction."""
        with transaction(self.db):
            self.db.execute("insert into step values (?, ?, ?)", (step, row["tokens"], json.dumps(row)))
            self._settle(groups, "trained", step)
            self.db.executemany(
                "insert into batch (lease, step, place) values (?, ?, ?)",
                [(group.lease, step, place) for place, group in enumerate(groups)],
            )
        self.append("metrics.jsonl", row)

    def _settle(self, groups: Iterable[Group], state: str, step: int) -> None:
        for group in groups:
            changed = self.db.execute(
                "update lease set state = ?, step = ? where id = ? and step is null", (state, step, group.lease)
            )
            if changed.rowcount != 1:
                raise ValueError(f"got lease {group.lease} to settle as {state}; expected one that is not settled yet")

    # -- attempts -------------------------------------------------------------------------------------------------

    def keep(self, group: Group, purpose: str) -> None:
        """Store every attempt of a finished group, and that it is played, in one transaction."""
        key = group.members[-1].episode.task.key if group.members else None
        outcomes = json.dumps({str(k): v for k, v in group.outcomes().items()})
        tokens = sum(member.trajectory.spoken for member in group.valid)
        with transaction(self.db):
            self.attempts.add(group, purpose)
            if purpose == "train":
                self.db.execute(
                    "update lease set state = 'played', version = ?, task_key = ?, outcomes = ?, tokens = ?, "
                    "account = ? where id = ?",
                    (group.version, key, outcomes, tokens, json.dumps(asdict(Row.of(group))), group.lease),
                )

    def stored(self, lease: Lease, at: int | None = None) -> Group | None:
        """The group of a lease that was finished before an interruption. Where it was admitted at another version than
        `at`, it is forgotten and None.
        """
        purpose = "eval" if lease.id < 0 else "train"
        if not lease.played:
            return None
        group = self.attempts.group(purpose, lease.id)
        if at is None or group.version == at:
            return group
        with transaction(self.db):
            self.db.execute("update lease set state = 'open', version = ? where id = ?", (at, lease.id))
            self._forget_open()
        return None

    def _forget_open(self) -> None:
        """What is to be played again has no attempts yet."""
        self.db.execute(
            "delete from episode where purpose = 'train' and lease in (select id from lease where state = 'open')"
        )

    def flush(self) -> None:
        """Move the attempts of settled groups from the ledger to shards."""
        self.attempts.flush()

    def history(self) -> list[Row]:
        """What every settled lease brought, for rl/mix.py and rl/difficulty.py to go on from."""
        settled = self.db.execute(
            "select state, version, account from lease where step is not null order by id"
        ).fetchall()
        return [
            Row(**{**json.loads(account), "trained": state == "trained", "version": version})
            for state, version, account in settled
        ]

    # -- back to a checkpoint -------------------------------------------------------------------------------------

    def rewind(self, version: int, bound: int) -> list[Lease]:
        """Back to a checkpoint: what was settled after it is not. Returns every lease that is owed, oldest first;
        groups whose staleness can be kept within `bound` (0: lockstep; below: none) are stored and come first, or, in
        lockstep, where they came. docs/decisions/010 says which.
        """
        newest = self.db.execute("select max(version) from step").fetchone()[0] or 0
        if version > newest:
            raise ValueError(f"got a checkpoint of step {version} in {self.folder}; its ledger ends at step {newest}")
        with transaction(self.db):
            self.db.execute("delete from batch where step > ?", (version,))
            self.db.execute("delete from step where version > ?", (version,))
            self.db.execute("delete from evaluation where version > ?", (version,))
            self.db.execute("update lease set state = 'played', step = null where step > ?", (version,))
            late = "purpose = 'eval' and lease in (select -id from heldout where version > ?)"
            gone = self.attempts.recall(f"({late} or not {SETTLED})", version)
            self.db.execute(f"delete from episode where {late}", (version,))
            self.db.execute("delete from heldout where version > ?", (version,))
            self.db.execute(
                "update lease set state = 'open' where state = 'played' and id not in "
                "(select lease from episode where purpose = 'train' and tokens > 0)"
            )
            self._choose(version, bound)
            self._forget_open()
        for path in gone:
            path.unlink()
        self._export()
        order = "id" if bound == 0 else "state <> 'played', id"
        owed = self.db.execute(
            f"select id, world, task_index, state = 'played' from lease where step is null order by {order}"
        ).fetchall()
        return [Lease(id, world, index, bool(played)) for id, world, index, played in owed]

    def _choose(self, version: int, bound: int) -> None:
        """Open the leases of stored groups that may not be reused after going back to `version`."""
        if bound == 0:  # what is learnt from a group played again is not known: later groups saw another policy
            self.db.execute(
                "update lease set state = 'open' where state = 'played' and version > "
                "(select min(version) from lease where state = 'open')"
            )
            return
        for (id,) in self.db.execute("select id from lease where state = 'played'").fetchall():
            group = self.attempts.group("train", id)
            changed = rebase(group, version)
            if group.version < 0 or version - group.version > bound:
                self.db.execute("update lease set state = 'open' where id = ?", (id,))
            elif changed:
                self.db.execute("update lease set version = ? where id = ?", (group.version, id))
                self.attempts.replace(group, "train")

    def _export(self) -> None:
        """Write the .jsonl files anew, as the ledger has them."""
        for file, rows in (
            ("metrics.jsonl", "select metrics from step order by version"),
            ("evals.jsonl", "select row from evaluation order by rowid"),
        ):
            draft = self.folder / f".{file}"
            draft.write_text("".join(row + "\n" for (row,) in self.db.execute(rows)))
            draft.rename(self.folder / file)

    # -- rows -----------------------------------------------------------------------------------------------------

    def evaluated(self, name: str, row: Mapping[str, Any]) -> None:
        """Record one measurement of held-out success, e.g. `before`."""
        row = {"when": name, **row}
        self.db.execute("insert into evaluation values (?, ?, ?)", (name, row["step"], json.dumps(row)))
        self.append("evals.jsonl", row)

    def has_evaluated(self, name: str, version: int) -> bool:
        found = self.db.execute("select 1 from evaluation where name = ? and version = ?", (name, version))
        return found.fetchone() is not None

    def append(self, file: str, row: Mapping[str, Any]) -> None:
        """Add one row to a .jsonl file of the run."""
        with (self.folder / file).open("a") as out:
            out.write(json.dumps(row) + "\n")

    def rows(self, file: str) -> list[dict[str, Any]]:
        """Every whole row; the last line of a process that died may be a part of one."""
        path = self.folder / file
        lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    # -- checkpoints and the end ----------------------------------------------------------------------------------

    def secure(self) -> None:
        """Wait until the ledger is on the disk, so that after a power cut it is not behind a checkpoint.

        SQLite does it: to open and close its files here would drop its locks, and whoever read the ledger then would
        cut off the memory that this process shares with it.
        """
        self.db.execute("pragma synchronous = full")
        self.db.execute(f"pragma user_version = {LAYOUT}")  # a commit, with which all before it reach the disk
        self.db.execute("pragma synchronous = normal")

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
        self._lock.close()
