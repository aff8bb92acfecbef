"""A run that is killed at random points and resumed: nothing is lost, nothing stands twice, and in lockstep it ends in
the same parameters, bit for bit, as the run that nobody killed."""

import itertools
import json
import multiprocessing
import os
import random
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from rl.learner import TRAINER_STATE
from tests.rl import driven
from tests.rl.driven import Kill

pytestmark = pytest.mark.slow
STEPS = 9
PLACES = {
    "playing": ("rl/rollout.py", ("play", "_attempt", "_score"), 900),
    "storing": ("rl/store.py", ("keep",), 60),
    "rows": ("rl/episodes.py", ("add", "write", "_row", "pack"), 400),
    "settling": ("rl/store.py", ("settle", "trained", "_settle"), 60),
    "batching": ("rl/buffer.py", ("arrive", "take"), 150),
    "gradient": ("rl/learner.py", ("step", "_backward", "_set_rate"), 130),
    "publishing": ("policy/weights.py", ("pack", "check"), 12),
    "metrics": ("rl/store.py", ("append",), 6),
    "checkpoint": ("rl/learner.py", ("save", "_flush"), 60),
    "shards": ("rl/episodes.py", ("flush", "sync", "transaction"), 60),
    "resuming": ("rl/store.py", ("reopen", "rewind", "_choose", "_export"), 40),
    "recalling": ("rl/episodes.py", ("clean", "recall", "_batches"), 30),
    "restoring": ("rl/learner.py", ("restore",), 9),
    "stored": ("rl/episodes.py", ("group", "read", "_member"), 60),
    "measuring": ("rl/evaluate.py", ("one", "measure", "played", "summary"), 40),
    "measured": ("rl/store.py", ("heldout", "evaluated"), 12),
}
"""By name: lines of which functions of which file, and how many of them to die within."""
PATIENCE_S = 120.0
KEPT = "select lease from episode where purpose = 'train'"


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, ForkServerContext]]:
    """A folder with a model, and a process that has imported everything, to be forked."""
    folder = tmp_path_factory.mktemp("resume")
    driven.prepare(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]))
        patch.setenv("OMP_NUM_THREADS", "1")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.rl.driven"])
        yield folder, context


def live(
    warm: tuple[Path, ForkServerContext], name: str, overrides: list[str], kill: Kill | float | None = None
) -> bool:
    """One life of a run, ended by itself, at a line, or after so many seconds. True where it was killed."""
    folder, context = warm
    at_line = kill if isinstance(kill, Kill) else None
    process = context.Process(target=driven.drive, args=(folder, name, overrides, at_line))
    process.start()
    process.join(kill if isinstance(kill, float) else PATIENCE_S)
    if process.is_alive():
        assert isinstance(kill, float), f"no end within {PATIENCE_S:g} s"
        process.kill()
        process.join()
    assert process.exitcode in (0, -9), (folder / f"{name}.out").read_text()[-2000:]
    return process.exitcode == -9


def deaths(seed: int) -> Iterator[tuple[str, Kill | float]]:
    """Random points to die at: lines of the places in turn, and after every fourth any moment."""
    rng = random.Random(seed)
    while True:
        for number, name in enumerate(rng.sample(list(PLACES), len(PLACES))):
            file, functions, most = PLACES[name]
            yield name, Kill(file, functions, rng.randint(1, most))
            if number % 4 == 3:
                yield "any moment", rng.uniform(0.05, 1.0)


def rows(folder: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(folder / "ledger.db")) as db:
        return db.execute(query).fetchall()


def told(folder: Path) -> list[list[Any]]:
    log = folder.with_name(f"{folder.name}.log")
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def killed_and_resumed(
    warm: tuple[Path, ForkServerContext], name: str, overrides: list[str], seed: int, count: int
) -> list[Path]:
    """Runs that died `count` times in all and were resumed each time, to their ends. One that ends before it has come
    to the line where it should die is followed by a new one."""
    folders, died = [warm[0] / f"{name}-0"], Counter[str]()
    for place, point in itertools.islice(deaths(seed), 4 * count):
        folder = folders[-1]
        kept = set(rows(folder, KEPT)) if folder.exists() else set()
        before = len(told(folder))
        if live(warm, folder.name, overrides, point):
            died[place] += 1
            again = {(said[1],) for said in told(folder)[before:] if said[0] == "played"} & kept
            assert "train.sync=true" not in overrides or not again, f"{again} were finished, and were played again"
        else:
            folders.append(warm[0] / f"{name}-{len(folders)}")
        if died.total() == count:
            assert len(died) >= count // 2, f"not spread: {died}"
            live(warm, folders[-1].name, overrides)
            return folders
    raise AssertionError(f"only {died} of {count}")


def whole(folder: Path) -> None:
    """Each lease, batch, step and attempt of a finished run stands once."""
    assert [v for (v,) in rows(folder, "select version from step order by version")] == list(range(1, STEPS + 1))
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in metrics] == list(range(1, STEPS + 1))
    assert metrics == [json.loads(row) for (row,) in rows(folder, "select metrics from step order by version")]
    evals = [json.loads(line) for line in (folder / "evals.jsonl").read_text().splitlines()]
    assert [(row["when"], row["step"]) for row in evals] == [("before", 0), ("after", STEPS)]
    indices = [index for (index,) in rows(folder, "select task_index from lease order by task_index")]
    assert indices == list(range(len(indices))), "no task of the stream was passed over"

    batches: dict[int, list[int]] = {}
    for step, lease in rows(folder, "select step, lease from batch order by step, place"):
        batches.setdefault(step, []).append(lease)
    learnt = {said[1]: said[2] for said in told(folder) if said[0] == "learnt"}
    assert batches == learnt, "what the ledger says is what the learner got, the last time it took the step"
    assert sorted(lease for leases in batches.values() for lease in leases) == [
        lease for (lease,) in rows(folder, "select id from lease where state = 'trained' order by id")
    ]
    shards = [(row["purpose"], row["lease"], row["member"]) for row in episodes(folder)]
    assert len(shards) == len(set(shards)) > 0
    assert sorted(shards) == rows(
        folder, "select purpose, lease, member from episode where shard is not null order by 1, 2, 3"
    )
    assert not rows(
        folder,
        "select id from lease where step is not null and id not in (select lease from episode where purpose = 'train')",
    )
    latest = max((folder / "checkpoints").iterdir())
    assert latest.name == f"{STEPS:06d}" and not list((folder / "checkpoints").glob(".*"))


def episodes(folder: Path) -> list[dict[str, Any]]:
    kept = pq.read_table(folder / "episodes").to_pylist()
    return sorted(
        ({k: v for k, v in row.items() if k != "seconds"} for row in kept),
        key=lambda row: (row["purpose"], row["lease"], row["member"]),
    )


def same(folder: Path, straight: Path) -> None:
    """The same leases in the same steps, the same attempts, measurements, parameters and optimiser."""
    for query in (
        "select id, world, task_index, task_key, version, state, step, outcomes, tokens from lease order by id",
        "select step, place, lease from batch order by step, place",
        "select version, tokens from step order by version",
        "select name, row from evaluation order by rowid",
    ):
        assert rows(folder, query) == rows(straight, query)
    assert episodes(folder) == episodes(straight)
    ended = [f / "checkpoints" / f"{STEPS:06d}" for f in (folder, straight)]
    got, expected = (load_file(path / "model.safetensors") for path in ended)
    assert got.keys() == expected.keys() and all(torch.equal(got[k], expected[k]) for k in got)
    got, expected = (torch.load(path / TRAINER_STATE)["optimizer"]["state"] for path in ended)
    for number, state in expected.items():
        assert all(torch.equal(got[number][k], state[k]) for k in state)


def test_in_lockstep_twenty_kills_change_no_bit(warm: tuple[Path, ForkServerContext]) -> None:
    assert not live(warm, "straight", ["train.sync=true"])
    whole(warm[0] / "straight")
    folders = killed_and_resumed(warm, "sync", ["train.sync=true"], seed=0, count=20)
    for folder in folders:
        whole(folder)
        same(folder, warm[0] / "straight")


def test_overlapped_kills_lose_nothing_and_train_on_nothing_twice(warm: tuple[Path, ForkServerContext]) -> None:
    overrides = ["train.max_staleness=2"]
    folders = killed_and_resumed(warm, "async", overrides, seed=1, count=8)
    for folder in folders:
        whole(folder)
        assert all(json.loads(row)["staleness_max"] <= 2 for (row,) in rows(folder, "select metrics from step"))
