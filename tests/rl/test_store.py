"""The run folder: leases that are neither lost nor given twice, rows that are read back as they were written."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from envs import Episode, Outcome, Task
from rewards import Score
from rl.store import SHARD_ROWS, Lease, Run
from rl.trajectory import Group, Member, Trajectory


def attempt(outcome: Outcome = Outcome.SOLVED, *, score: float | None = 1.0) -> Member:
    trajectory = Trajectory()
    trajectory.hear([1, 70_000, 3])
    trajectory.speak([9, 8], [-0.25, -1.5], [4, 5])
    task = Task(world="math", key="sum/1+2", family="sum", level=2, messages=())
    messages = [{"role": "user", "content": "1+2?\nżółw"}, {"role": "assistant", "content": '"3"'}]
    facts = {"solved": outcome is Outcome.SOLVED, "answer": "3", "seen": [1, None]}
    episode = Episode(task=task, messages=messages, outcome=outcome, facts=facts, turns=1, seconds={"env": 0.5})
    return Member(trajectory, episode, None if score is None else Score(score, {"outcome": score}), 0.75)


def group(lease: Lease, *members: Member) -> Group:
    return Group(lease.id, lease.world, 4, list(members) or [attempt()])


def states(run: Run) -> dict[int, tuple[str, int | None]]:
    return {row[0]: (row[1], row[2]) for row in run.db.execute("select id, state, step from lease").fetchall()}


def test_leases_are_unique_and_in_order_by_world_also_after_reopening(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    first = [run.grant(world, 0) for world in ("math", "code", "math", "math")]
    run.close()
    run = Run.reopen(tmp_path / "run")
    leases = [*first, *(run.grant(world, 1) for world in ("code", "math"))]
    assert [lease.id for lease in leases] == sorted({lease.id for lease in leases})
    assert [lease.index for lease in leases if lease.world == "math"] == [0, 1, 2, 3]
    assert [lease.index for lease in leases if lease.world == "code"] == [0, 1]
    assert run.granted() == {"math": 4, "code": 2}


def test_settling_records_what_became_of_a_group(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    lease, other = run.grant("math", 0), run.grant("math", 0)
    run.settle([group(lease, attempt(), attempt(Outcome.SANDBOX_LOST, score=None))], "trained", 7)
    row = run.db.execute("select state, step, task_key, outcomes from lease where id = ?", (lease.id,)).fetchone()
    assert row[:3] == ("trained", 7, "sum/1+2")
    assert json.loads(row[3]) == {"solved": 1, "sandbox_lost": 1}
    assert states(run)[other.id] == ("open", None)


def test_what_each_lease_brought_is_told_again_after_reopening(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    trained, flat, again, _ = (run.grant("math", 4) for _ in range(4))
    lost = attempt(Outcome.SANDBOX_LOST, score=None)
    run.settle([group(trained, attempt(), attempt(Outcome.FAILED, score=0.0), lost)], "trained", 5)
    dull = attempt()
    dull.advantage = 0.0
    run.settle([group(flat, dull)], "flat", 5)
    run.settle([group(again)], "trained", 6)
    run.rewind(5)
    run.close()
    rows = Run.reopen(tmp_path / "run").history()
    assert [(row.lease, row.trained, row.useful, row.sampled, row.tried, row.solved) for row in rows] == [
        (trained.id, True, 4, 6, 2, 1),
        (flat.id, False, 0, 2, 1, 1),
    ]
    assert (rows[0].world, rows[0].version, rows[0].key, rows[0].family, rows[0].level) == (
        "math",
        4,
        "sum/1+2",
        "sum",
        2,
    )


def test_a_position_that_is_passed_over_is_never_granted(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    assert run.next_index("math") == 0
    assert [run.grant("math", 0, index).index for index in (None, 3, None, 9)] == [0, 3, 4, 9]
    assert run.next_index("math") == 10 and run.next_index("code") == 0


def test_settling_is_all_or_nothing(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    lease = run.grant("math", 0)
    broken = group(lease)
    broken.members[0].episode.task = None  # type: ignore[assignment]
    with pytest.raises(AttributeError):
        run.settle([group(lease), broken], "trained", 1)
    assert states(run) == {lease.id: ("open", None)}


def test_rewinding_opens_what_was_settled_after_the_checkpoint_and_loses_no_task(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    leases = [run.grant("math", 0) for _ in range(8)]
    run.settle([group(leases[0]), group(leases[3])], "trained", 1)
    run.settle([group(leases[1])], "flat", 1)
    run.settle([group(leases[2])], "lost", 2)  # the checkpoint holds version 2
    run.settle([group(leases[5])], "trained", 3)
    run.settle([group(leases[4])], "flat", 3)
    run.close()

    run = Run.reopen(tmp_path / "run")
    owed = run.rewind(2)
    assert owed == [leases[4], leases[5], leases[6], leases[7]], "settled at 3, or never; oldest first"
    run.renew(owed[0], 2)
    assert run.db.execute("select version from lease where id = ?", (owed[0].id,)).fetchone() == (2,)
    run.settle([group(lease) for lease in owed], "trained", 3)
    assert run.grant("math", 3).index == 8, "the stream goes on where it was"
    assert run.rewind(3) == [Lease(9, "math", 8)]
    assert sorted(states(run)) == list(range(1, 10))


def test_truncating_drops_the_rows_after_a_step(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    for step in (1, 2, 3, 4):
        run.append("metrics.jsonl", {"step": step, "loss": step / 10})
    run.truncate("metrics.jsonl", 2)
    run.append("metrics.jsonl", {"step": 3, "loss": 9.0})
    assert run.rows("metrics.jsonl") == [{"step": 1, "loss": 0.1}, {"step": 2, "loss": 0.2}, {"step": 3, "loss": 9.0}]
    run.truncate("nothing.jsonl", 2)
    assert not (run.folder / "nothing.jsonl").exists() and run.rows("nothing.jsonl") == []


def test_episodes_come_back_as_they_were_kept(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    members = [attempt(), attempt(Outcome.JUDGE_FAILED, score=None)]
    run.keep(group(Lease(5, "math", 0), *members), "train")
    run.close()
    rows = pq.read_table(run.episodes).to_pylist()
    assert [(row["lease"], row["member"], row["purpose"]) for row in rows] == [(5, 0, "train"), (5, 1, "train")]
    for row, member in zip(rows, members, strict=True):
        trajectory, episode = member.trajectory, member.episode
        assert row["ids"] == trajectory.ids and row["mask"] == trajectory.mask
        assert row["logprobs"] == trajectory.logprobs and row["versions"] == trajectory.versions
        assert json.loads(row["messages"]) == episode.messages and json.loads(row["facts"]) == episode.facts
        assert json.loads(row["seconds"]) == episode.seconds
        assert (row["key"], row["family"], row["level"]) == ("sum/1+2", "sum", 2)
        assert row["outcome"] == episode.outcome and row["advantage"] == 0.75
    assert [row["score"] for row in rows] == [1.0, None], "no score is not the score 0"


def test_shards_are_written_when_full_and_never_over_each_other(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    lease = Lease(1, "math", 0)
    run.keep(group(lease, *[attempt()] * SHARD_ROWS), "train")
    assert [path.name for path in run.episodes.iterdir()] == ["00000.parquet"]
    run.keep(group(lease), "train")
    run.close()
    run = Run.reopen(tmp_path / "run")
    run.keep(group(lease), "eval")
    run.close()
    assert sorted(path.name for path in run.episodes.iterdir()) == [f"0000{i}.parquet" for i in range(3)]
    assert pq.read_table(run.episodes).num_rows == SHARD_ROWS + 2


def test_an_existing_folder_and_a_missing_run_are_refused(tmp_path: Path) -> None:
    Run.create(tmp_path / "run").close()
    with pytest.raises(ValueError, match=r"already a run at .*run; expected a new name \(name=\.\.\.\), or --resume"):
        Run.create(tmp_path / "run")
    with pytest.raises(ValueError, match=r"no run at .*other to resume; expected a folder with a ledger\.db"):
        Run.reopen(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_the_latest_checkpoint_is_the_newest_whole_one(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    assert run.latest() is None
    for version in (2, 10):
        run.checkpoint(version).mkdir()
        (run.checkpoint(version) / "config.json").write_text("{}")
    run.checkpoint(20).mkdir()  # the process died before the last file
    (run.checkpoint(20) / "model.safetensors").write_text("")
    (run.checkpoints / ".000030.draft").mkdir()
    (run.checkpoints / ".000030.draft" / "config.json").write_text("{}")
    assert run.latest() == run.checkpoint(10)


def test_the_summary_is_read_back(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    assert run.summary() == {}
    run.summarise({"steps": 3})
    assert run.summary() == {"steps": 3}
