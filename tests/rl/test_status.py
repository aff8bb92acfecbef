"""`rl status`: what the driver says while it waits, and what its folder says of it afterwards."""

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rl import status
from rl.cli import main
from rl.status import Board, WaitedTooLong
from tests.rl.test_train import SlowCluster, trained


def folder(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    (run / "logs").mkdir(parents=True)
    (run / "logs" / "learner.log").write_text("first\n" * 20 + "out of memory\n\n")
    return run


def test_a_wait_has_an_owner_a_deadline_and_an_end(tmp_path: Path) -> None:
    board = Board(folder(tmp_path))

    async def waiting() -> dict[str, object]:
        async with (
            board.on("task 7 of code", owner="rollouts", lease=3),
            board.on(status.STEP, owner="learner", deadline_s=50),
        ):
            await asyncio.sleep(0.05)
            return board.facts()

    facts = asyncio.run(waiting())
    [wait] = facts["waits"]  # type: ignore[misc]
    assert (wait["what"], wait["owner"], wait["deadline_s"]) == (status.STEP, "learner", 50)  # type: ignore[index]
    assert facts["oldest_lease"]["lease"] == 3 and facts["oldest_lease"]["for_s"] >= 0.05  # type: ignore[index]
    assert board.facts()["waits"] == [] and board.facts()["oldest_lease"] is None
    assert board.last_minute()["trainer"]["learning"] == pytest.approx(0.05 / 60, rel=3)


def test_past_its_deadline_a_wait_ends_in_one_sentence_unless_something_came_in(tmp_path: Path) -> None:
    board = Board(folder(tmp_path))

    async def forever() -> None:
        async with board.on("a checkpoint", owner="learner", deadline_s=0.05):
            await asyncio.sleep(60)

    async def renewed() -> None:
        async with board.on(status.BATCH, owner="rollouts", deadline_s=3):
            for _ in range(8):
                await asyncio.sleep(0.5)
                board.renew(status.BATCH)

    with pytest.raises(
        WaitedTooLong, match=r"for a checkpoint, which learner should bring; expected it within 0\.05 s"
    ):
        asyncio.run(forever())
    assert not board.facts()["waits"]
    asyncio.run(renewed())


def test_a_timeout_of_the_work_itself_is_not_taken_for_the_waits(tmp_path: Path) -> None:
    async def fails() -> None:
        async with Board().on("a batch", owner="rollouts"):
            raise TimeoutError("of its own")

    with pytest.raises(TimeoutError, match="of its own"):
        asyncio.run(fails())


def test_the_last_minute_is_split_by_what_was_sampled_and_waited_for() -> None:
    board = Board()
    for generating in (4, 0, 2, 0):
        board.sample({"generate": generating, "env": 1, "measure": 0, "sandbox": 3})
    minute = board.last_minute()
    assert minute["engine_starved"] == 0.5 and minute["sandbox_queue"] == 1 and minute["judge_queue"] == 0
    assert minute["attempts"]["generate"] == 1.5 and minute["attempts"]["sandbox"] == 3


def test_a_live_run_is_told_from_the_folder_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = folder(tmp_path)
    board = Board(run)
    board.describe = lambda: {
        "step": 3,
        "steps": 40,
        "tokens": 12345,
        "batch": {"ready": 10, "wanted": 6144, "reason": "rollouts, 0% of a batch is here"},
    }

    async def waiting() -> None:
        async with board.on("task 7 of code", owner="rollouts", lease=3), board.on(status.BATCH, owner="rollouts"):
            board.sample({"generate": 3, "env": 1, "measure": 1, "sandbox": 0})
            board.write()

    asyncio.run(waiting())
    assert main(["status", str(run)]) == 0
    said = capsys.readouterr().out
    assert "step 3 of 40, 12,345 sampled tokens" in said
    assert "a batch, from rollouts: since 0 s, at most 2 h 0 min" in said
    assert "oldest of 1 leases: lease 3, task 7 of code, from rollouts" in said
    assert "engine starved 0%" in said and "3.0 generating" in said
    assert "learner.log" not in said


def test_a_driver_that_died_is_told_with_its_last_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = folder(tmp_path)
    code = f"""
import sys, time
sys.path.insert(0, {str(Path.cwd())!r})
from pathlib import Path
from rl.status import Board
Board(Path({str(run)!r})).phase("learning")
print("up", flush=True)
time.sleep(600)
"""
    driver = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None and driver.stdout.readline() == "up\n"
    assert main(["status", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["condition"] == "running"
    driver.kill()
    driver.wait()
    assert main(["status", str(run)]) == 1
    said = capsys.readouterr().out
    assert f"its driver (process {driver.pid}) is gone" in said and "it still wrote: learning" in said
    assert "out of memory" in said and f"rl train {run / 'config.yaml'} --resume" in said


def test_a_process_of_the_same_number_is_not_taken_for_the_driver(tmp_path: Path) -> None:
    run = folder(tmp_path)
    Board(run).phase("learning")
    facts = json.loads((run / status.FILE).read_text())
    (run / status.FILE).write_text(json.dumps({**facts, "process_began": 1}))
    assert status.read(run)["condition"] == "gone"


def test_a_driver_that_does_not_write_is_held_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = folder(tmp_path)
    Board(run).phase("learning")
    facts = json.loads((run / status.FILE).read_text())
    (run / status.FILE).write_text(json.dumps({**facts, "time": time.time() - 90}))
    assert main(["status", str(run)]) == 1
    said = capsys.readouterr().out
    assert "has not written for 1 min 30 s" in said and "out of memory" in said


@pytest.mark.parametrize(
    ("state", "why", "code", "words"),
    [
        ("done", "", 0, "rl report"),
        ("stopped", "", 0, "--resume"),
        ("failed", "SwapFailed: two\n lines", 1, "SwapFailed: two lines"),
    ],
)
def test_an_end_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], state: str, why: str, code: int, words: str
) -> None:
    run = folder(tmp_path)
    board = Board(run)
    board.phase("learning")
    board.end(state, why)
    board.phase("late words change nothing")
    assert main(["status", str(run)]) == code
    said = capsys.readouterr().out
    assert words in said and "late words" not in said
    assert ("out of memory" in said) == (state == "failed")


def test_no_run_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Board(folder(tmp_path)).phase("learning")
    assert main(["status", str(tmp_path / "nowhere")]) == 2
    assert "available beside it: run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("hangs", "words"),
    [
        ("play", "for (a batch|task 0 of math), which rollouts should bring"),
        ("step", "for an optimiser step, which learner should bring"),
        ("publish", "for new weights in the engines, which engines should bring"),
    ],
)
def test_whatever_hangs_in_the_loop_ends_the_run_and_is_named(
    tmp_path: Path, hangs: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = SlowCluster()

    async def never(*_: object) -> None:
        await asyncio.sleep(600)

    monkeypatch.setattr(cluster, hangs, never)
    with pytest.raises(WaitedTooLong, match=words):
        trained(tmp_path, cluster, "train.deadline_s=2")


def test_every_step_says_what_its_swap_cost(tmp_path: Path) -> None:
    trained(tmp_path, SlowCluster(), "train.steps=2")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["swap"]["publish_s"] >= 0.03 for row in rows] == [True, True]
    assert rows[0]["swap"].keys() >= {"pause_s", "bytes_per_s", "overlap", "read_back", "canary_gap"}
