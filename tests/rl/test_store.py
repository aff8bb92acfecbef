"""The run folder: leases that are neither lost nor given twice, rows that are read back as they were written."""

import json
import sqlite3
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from envs import Episode, Outcome, Task
from rewards import Score
from rl.episodes import SHARD_ROWS
from rl.store import Lease, Run
from rl.trajectory import Group, Member, Trajectory


def attempt(outcome: Outcome = Outcome.SOLVED, *, score: float | None = 1.0) -> Member:
    trajectory = Trajectory()
    trajectory.hear([1, 70_000, 3])
    trajectory.speak([9, 8], [-0.25, -1.5], [4, 5])
    task = Task(world="math", key="sum/1+2", family="sum", level=2, messages=())
    messages = [{"role": "user", "content": "1+2?\nżółw"}, {"role": "assistant", "content": '"3"'}]
    facts = {"solved": outcome is Outcome.SOLVED, "answer": "3", "seen": [1, None]}
    episode = Episode(
        task=task, messages=messages, outcome=outcome, facts=facts, turns=1, tokens=2, seconds={"env": 0.5}
    )
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


def played(run: Run, count: int, version: int = 4) -> list[Group]:
    """Finished groups of so many new leases."""
    groups = [group(run.grant("math", version)) for _ in range(count)]
    for each in groups:
        each.version = version
        run.keep(each, "train")
    return groups


def row(step: int) -> dict[str, int]:
    return {"step": step, "tokens": 10 * step}


def test_keeping_records_that_a_lease_is_played_and_settling_what_became_of_it(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    lease, other = run.grant("math", 0), run.grant("math", 0)
    done = group(lease, attempt(), attempt(Outcome.SANDBOX_LOST, score=None))
    run.keep(done, "train")
    assert states(run) == {lease.id: ("played", None), other.id: ("open", None)}
    run.settle([done], "flat", 7)
    found = run.db.execute("select state, step, task_key, outcomes, tokens from lease where id = ?", (lease.id,))
    state, step, key, outcomes, tokens = found.fetchone()
    assert (state, step, key, tokens) == ("flat", 7, "sum/1+2", 2), "two sampled tokens may be trained on"
    assert json.loads(outcomes) == {"solved": 1, "sandbox_lost": 1}
    assert states(run)[other.id] == ("open", None)


def test_what_each_lease_brought_is_told_again_after_reopening(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    trained, flat, again, _ = (run.grant("math", 4) for _ in range(4))
    lost = attempt(Outcome.SANDBOX_LOST, score=None)
    first = group(trained, attempt(), attempt(Outcome.FAILED, score=0.0), lost)
    dull = attempt()
    dull.advantage = 0.0
    second, third = group(flat, dull), group(again)
    for each in (first, second, third):
        run.keep(each, "train")
    run.trained([first], 5, row(5))
    run.settle([second], "flat", 5)
    run.trained([third], 6, row(6))
    run.rewind(5, bound=8)
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


def test_keeping_and_training_are_all_or_nothing(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    lease = run.grant("math", 0)
    run.keep(group(lease), "train")
    with pytest.raises(sqlite3.IntegrityError):
        run.keep(group(lease, attempt(), attempt()), "train")
    first, second = played(run, 2)
    with pytest.raises(ValueError, match="got lease 2 to settle as trained; expected one that is not settled yet"):
        run.trained([first, second, first], 1, row(1))
    assert {state for state, _ in states(run).values()} == {"played"}
    assert run.db.execute("select count(*) from step").fetchone() == (0,) and run.rows("metrics.jsonl") == []
    run.trained([first, second], 1, row(1))
    with pytest.raises(sqlite3.IntegrityError):
        run.trained([group(lease)], 1, row(1))
    assert states(run)[lease.id] == ("played", None), "there is only one step 1"


def test_going_back_gives_finished_groups_again_and_the_others_to_be_played(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    groups = played(run, 6)
    run.trained([groups[0], groups[3]], 5, row(5))
    run.settle([groups[1]], "flat", 5)
    run.trained([groups[5]], 6, row(6))  # the checkpoint holds version 5
    run.settle([groups[4]], "flat", 6)
    waiting = run.grant("math", 5)
    lost = group(run.grant("math", 5), attempt(Outcome.SANDBOX_LOST, score=None))
    run.keep(lost, "train")
    run.settle([lost], "lost", 6)
    run.close()
    assert len(list(run.episodes.iterdir())) == 1

    run = Run.reopen(tmp_path / "run")
    owed = run.rewind(5, bound=8)
    assert [(lease.id, lease.played) for lease in owed] == [(3, True), (5, True), (6, True), (7, False), (8, False)]
    assert (owed[3].index, waiting.id) == (waiting.index, 7)
    assert [run.stored(lease) for lease in owed] == [group(Lease(i, "math", i - 1)) for i in (3, 5, 6)] + [None, None]
    assert run.rows("metrics.jsonl") == [row(5)]
    run.renew(owed[3], 4)
    for lease in owed[3:]:
        run.keep(group(lease), "train")
    run.trained([group(lease) for lease in owed], 6, row(6))
    assert run.grant("math", 5).index == 8, "the stream goes on where it was"
    run.close()
    table = pq.read_table(run.episodes).to_pylist()
    assert sorted(found["lease"] for found in table) == [1, 2, 3, 4, 5, 6, 7, 8], "each attempt once"


def test_going_back_overlapped_tokens_of_a_branch_that_is_given_up_count_as_old_as_they_are_far(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    run.trained(played(run, 1, 9), 10, row(10))
    for newest, admitted in ((10, 8), (11, 9), (12, 11), (13, 13)):
        done = group(run.grant("math", admitted))
        done.version, done.members[0].trajectory.versions = admitted, [-1, -1, -1, admitted, newest]
        run.keep(done, "train")
    owed = run.rewind(10, bound=2)
    assert [(lease.id, lease.played) for lease in owed] == [(2, True), (3, True), (4, True), (5, False)]
    found = [found for lease in owed if (found := run.stored(lease))]
    assert [g.version for g in found] == [8, 9, 8], "three steps away is too far"
    assert [g.members[0].trajectory.versions[3:] for g in found] == [[8, 10], [9, 9], [9, 8]]
    assert [lease.played for lease in run.rewind(10, bound=2)] == [True, True, True, False]
    run.close()


def test_going_back_in_lockstep_groups_after_one_that_is_played_again_are_played_again(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    first, second = played(run, 1, 4)[0], run.grant("math", 5)
    played(run, 1, 5)
    played(run, 1, 6)
    run.trained([first], 5, row(5))
    owed = run.rewind(0, bound=0)
    assert [(lease.id, lease.played) for lease in owed] == [(1, True), (2, False), (3, True), (4, False)]
    assert second.id == 2 and run.stored(owed[0], at=4) == group(Lease(1, "math", 0))
    assert run.stored(owed[2], at=6) is None, "admitted at another version: forgotten"
    run.keep(group(owed[2]), "train")
    run.close()


def test_a_checkpoint_ahead_of_its_ledger_is_refused(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    with pytest.raises(ValueError, match=r"got a checkpoint of step 3 .* its ledger ends at step 0"):
        run.rewind(3, bound=8)


def test_measured_attempts_are_found_again_at_their_version_only(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    lease = run.heldout("math", 7, 0)
    assert not lease.played and lease == run.heldout("math", 7, 0)
    run.keep(group(lease), "eval")
    run.evaluated("before", {"step": 0})
    assert run.stored(run.heldout("math", 7, 0)) == group(lease)
    assert not run.heldout("math", 7, 5).played
    assert run.has_evaluated("before", 0) and not run.has_evaluated("before", 5)
    run.close()
    assert pq.read_table(run.episodes).to_pylist()[0]["lease"] == lease.id


def test_files_of_rows_are_the_ledgers_after_going_back_and_half_a_line_is_none(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    for step in (1, 2, 3):
        run.trained(played(run, 1), step, row(step))
    run.evaluated("before", {"step": 0})
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "tok')
    assert run.rows("metrics.jsonl") == [row(1), row(2), row(3)]
    run.rewind(2, bound=8)
    run.trained(played(run, 1), 3, row(3))
    assert run.rows("metrics.jsonl") == [row(1), row(2), row(3)]
    assert run.rows("evals.jsonl") == [{"when": "before", "step": 0}] and run.rows("nothing.jsonl") == []


def test_episodes_come_back_as_they_were_kept(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    lease = run.grant("math", 0)
    members = [attempt(), attempt(Outcome.JUDGE_FAILED, score=None)]
    run.keep(group(lease, *members), "train")
    run.settle([group(lease)], "flat", 1)
    run.close()
    rows = pq.read_table(run.episodes).to_pylist()
    assert [(row["lease"], row["member"], row["purpose"]) for row in rows] == [(1, 0, "train"), (1, 1, "train")]
    for row, member in zip(rows, members, strict=True):
        trajectory, episode = member.trajectory, member.episode
        assert row["ids"] == trajectory.ids and row["mask"] == trajectory.mask
        assert row["logprobs"] == trajectory.logprobs and row["versions"] == trajectory.versions
        assert json.loads(row["messages"]) == episode.messages and json.loads(row["facts"]) == episode.facts
        assert json.loads(row["seconds"]) == episode.seconds
        assert (row["key"], row["family"], row["level"]) == ("sum/1+2", "sum", 2)
        assert row["outcome"] == episode.outcome and row["advantage"] == 0.75
    assert [row["score"] for row in rows] == [1.0, None], "no score is not the score 0"


def test_shards_hold_what_is_settled_and_are_never_written_over_each_other(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    big = group(run.grant("math", 0), *[attempt()] * (SHARD_ROWS + 1))
    waiting, after = group(run.grant("math", 0)), group(run.grant("math", 0))
    for each in (big, waiting):
        run.keep(each, "train")
    run.settle([big], "flat", 1)
    run.close()
    (run.episodes / "00007.parquet").write_text("left by a driver that died before the ledger knew")
    run = Run.reopen(tmp_path / "run")
    assert sorted(path.name for path in run.episodes.iterdir()) == ["00000.parquet", "00001.parquet"]
    run.keep(after, "train")
    run.settle([after, waiting], "flat", 2)
    run.close()
    assert sorted(path.name for path in run.episodes.iterdir()) == [f"0000{i}.parquet" for i in range(3)]
    assert pq.read_table(run.episodes).num_rows == SHARD_ROWS + 3


def test_two_processes_cannot_be_at_work_on_one_run(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    with pytest.raises(ValueError, match="another process is at work on the run"):
        Run.reopen(tmp_path / "run")
    run.close()
    Run.reopen(tmp_path / "run").close()


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
