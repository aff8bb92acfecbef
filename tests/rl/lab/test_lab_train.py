"""`rl lab train`: cells are ordinary runs that are killed, stopped, starved and go on; their folders say it all."""

import fcntl
import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from rl import status
from rl.lab import cells, curves, document, experiment, study, tables, train
from rl.lab.experiment import Cell, Experiment
from rl.store import Run
from tests.rl import driven

DRAWN = (sys.executable, "-m", "tests.rl.lab.drawn_cell")
EXPERIMENT = """
name: two
base: {base}
overrides: [train.steps=4, train.checkpoint_every=1, "runs={runs}"]
seeds: [3]
shapings:
  outcome: {{rewards: {{outcome: {{}}}}}}
  constant: {{rewards: {{tool_format: {{}}}}, algorithm: {{name: rloo}}}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a model, tasks, and an experiment."""
    folder = tmp_path_factory.mktemp("lab")
    driven.prepare(folder)
    written = EXPERIMENT.format(base=folder / "run.yaml", runs=folder / "runs")
    (folder / "two.yaml").write_text(written)
    return folder


class Heard(list[str]):
    """Progress as it is said; Ctrl-C when something is said."""

    def __init__(self, stop_at: str = "") -> None:
        super().__init__()
        self.stop_at = stop_at

    def __call__(self, line: str) -> None:
        self.append(line)
        if self.stop_at and self.stop_at in line:
            raise KeyboardInterrupt


def play(planned: Experiment, heard: Heard) -> None:
    of = planned.cells(planned.base.policy.model)
    cells.write(of)
    cells.Player(of, heard, DRAWN).play()


def test_an_experiment_is_stopped_killed_starved_and_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = experiment.load(folder / "two.yaml")
    outcome, constant = (cell.folder for cell in planned.cells(None))
    assert (outcome.name, constant.name) == ("outcome-3", "constant-3")
    monkeypatch.setenv("CELL_DIES", "outcome-3")

    heard = Heard(stop_at="outcome-3: done")
    with pytest.raises(KeyboardInterrupt):
        play(planned, heard)
    assert [line.partition(":")[2].partition(" step")[0] for line in heard[:2]] == [" begins", " goes on at"], heard
    assert cells.done(outcome) and not cells.begun(constant)
    written = (outcome / "summary.json").stat().st_mtime_ns

    found = train.train(planned, command=DRAWN)
    assert (outcome / "summary.json").stat().st_mtime_ns == written, "what is finished is kept"
    of = found.figures["shapings"]
    assert of["outcome"]["steps"] == [4] and of["outcome"]["starved_seeds"] == []
    assert of["constant"]["steps"] == [0] and of["constant"]["starved_seeds"] == [3]
    assert found.figures["cells"] == 2 and found.figures["seeds"] == [3]
    assert {warning.name for warning in found.warnings} >= {"few-seeds", "starved", "no-spread"}
    assert document.load(planned.folder) == document.load(document.save(found, folder / "again"))

    heard = Heard()
    play(planned, heard)
    assert heard == ["2 of 2 cells are finished already"]


def test_a_curve_is_what_the_run_folder_says(folder: Path) -> None:
    planned = experiment.load(folder / "two.yaml")
    cell = planned.cells(None)[0]
    curve = study.read(cell)
    rows = [json.loads(line) for line in (cell.folder / "metrics.jsonl").read_text().splitlines()]
    assert curve.true == [row["worlds"]["math"]["success"] for row in rows]
    assert curve.true == curve.proxy, "outcome is the truth"
    assert curve.tokens == [row["tokens"] for row in rows] and curve.seconds[-1] > 0
    before, after = (json.loads(line) for line in (cell.folder / "evals.jsonl").read_text().splitlines())
    assert curve.before.worlds == {"math": before["worlds"]["math"]["pass@1"]}
    assert curve.after.true == curve.after.proxy == after["worlds"]["math"]["pass@1"]
    assert curve.after.n == 3


def test_a_changed_experiment_is_refused_over_old_cells(folder: Path) -> None:
    planned = experiment.load(folder / "two.yaml", ["learner.lr=0.5"])
    with pytest.raises(ValueError, match=r"outcome-3 was begun under another learner.lr; expected the same experiment"):
        play(planned, Heard())
    changed = (folder / "two.yaml").read_text().replace("tool_format: {}", "tool_format: {weight: 2}")
    (folder / "changed.yaml").write_text(changed)
    with pytest.raises(ValueError, match=r"constant-3 was begun under another rewards.tool_format"):
        play(experiment.load(folder / "changed.yaml"), Heard())
    play(experiment.load(folder / "two.yaml"), Heard())


def test_a_cell_that_outlived_the_lab_is_waited_for(folder: Path) -> None:
    planned = experiment.load(folder / "two.yaml")
    cell = planned.cells(planned.base.policy.model)[0]
    summary = cell.folder / "summary.json"
    ended = summary.read_text()
    summary.unlink()
    with (cell.folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        class Ends(Heard):
            def __call__(self, line: str) -> None:
                super().__call__(line)
                if "still at work" in line:
                    summary.write_text(ended)
                    fcntl.flock(lock, fcntl.LOCK_UN)

        heard = Ends()
        cells.Player([cell], heard, DRAWN).play()
    assert "still at work" in heard[0] and "outcome-3: done" in heard[1] and len(heard) == 2, "no other was started"


def begun_elsewhere(folder: Path, name: str, states: str) -> tuple[Cell, subprocess.Popen[str]]:
    """A cell with leases in these states, and the process that an earlier lab began it with."""
    cell = experiment.load(folder / "two.yaml", [f"name={name}"]).cells(str(folder / "model"))[0]
    cell.folder.parent.mkdir(parents=True)
    ledger = Run.create(cell.folder)
    settled = {"f": ("flat", 1), "p": ("played", None)}
    rows = [("math", n, 0, *settled[state]) for n, state in enumerate(states)]
    sql = "insert into lease (world, task_index, version, state, step) values (?, ?, ?, ?, ?)"
    ledger.db.executemany(sql, rows)
    ledger.close()
    code = (
        "import fcntl, sys, time\nlock = open(sys.argv[1], 'w')\nfcntl.flock(lock, fcntl.LOCK_EX)\n"
        "try:\n    print('held', flush=True)\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    pass"
    )
    argv = [sys.executable, "-c", code, str(cell.folder / ".lock")]
    holder = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    told = {"pid": holder.pid, "process_began": status.process_began(holder.pid)}
    (cell.folder / "status.json").write_text(json.dumps(told))
    return cell, holder


def test_a_cell_starves_only_after_so_many_flat_groups_in_a_row(folder: Path) -> None:
    groups = experiment.load(folder / "two.yaml").base.train.groups
    enough = cells.STARVED_WAVES * groups
    for name, states, starves in (
        ("mixed", "ffffp" * enough, False),
        ("waiting", "f" * enough + "p", False),
        ("flat", "p" + "f" * enough, True),
    ):
        cell, holder = begun_elsewhere(folder, name, states)
        heard = Heard()
        life = cells._Life(cell, DRAWN, heard)
        try:
            assert life.over() is starves is life.starved, name
            assert starves or holder.poll() is None
            assert any("it is measured as it is" in line for line in heard) is starves
        finally:
            life.stop()
        assert holder.wait(30) == 0, f"{name}: Ctrl-C reaches the process of an earlier start"


def test_a_process_that_is_not_the_cell_s_is_not_ended(folder: Path) -> None:
    cell, holder = begun_elsewhere(folder, "stranger", "f")
    try:
        (cell.folder / "status.json").write_text(json.dumps({"pid": holder.pid, "process_began": 1}))
        heard = Heard()
        cells._Life(cell, DRAWN, heard).stop()
        assert holder.poll() is None and "cannot be stopped" in heard[-1]
    finally:
        holder.kill()
        holder.wait()


def test_changed_code_or_data_are_refused_over_old_cells(folder: Path) -> None:
    planned = experiment.load(folder / "two.yaml", ["name=code"])
    (first, second) = planned.cells(planned.base.policy.model)
    cells.write([first, second])
    first.folder.parent.mkdir(parents=True)
    Run.create(first.folder).close()
    cells.write([first, second])
    beside = first.written.with_suffix(".hashes.json")
    then = json.loads(beside.read_text())
    assert set(then) == {"rewards", "algorithms", "data", "world/math"}
    beside.write_text(json.dumps({**then, "rewards": "other"}))
    with pytest.raises(ValueError, match=r"outcome-3 was begun with other code or data of rewards; expected the same"):
        cells.write([first, second])
    for cell in (first, second):
        cell.folder.mkdir(exist_ok=True)
        (cell.folder / "summary.json").write_text('{"stopped": false}')
    cells.write([first, second])
    assert json.loads(beside.read_text())["rewards"] == "other", "what is finished stays what it was made of"


def test_stages_that_name_rewards_and_overrides_of_the_file_are_refused(folder: Path) -> None:
    base = (folder / "run.yaml").read_text() + "stages: [{until_step: 1, rewards: {outcome: {weight: 2}}}]\n"
    (folder / "staged.yaml").write_text(base)
    text = (folder / "two.yaml").read_text()
    (folder / "bad.yaml").write_text(text.replace("run.yaml", "staged.yaml"))
    with pytest.raises(ValueError, match=r"stages\[0\].rewards would stand over every shaping"):
        experiment.load(folder / "bad.yaml")
    (folder / "bad.yaml").write_text(text.replace("overrides: [", "overrides: [rewards.outcome.weight=2, "))
    with pytest.raises(ValueError, match="rewards is what the cells differ in"):
        experiment.load(folder / "bad.yaml")


def test_another_reward_called_outcome_keeps_its_name(folder: Path) -> None:
    text = (folder / "two.yaml").read_text().replace("outcome: {}", "outcome: {reward: tests}")
    (folder / "renamed.yaml").write_text(text)
    found = experiment.load(folder / "renamed.yaml").shapings["outcome"].rewards
    assert found == {"outcome": {"reward": "tests"}, "true_outcome": {"reward": "outcome", "weight": 0.0}}


def test_what_compares_a_group_is_no_proxy_on_held_out_tasks(folder: Path) -> None:
    planned = experiment.load(folder / "two.yaml")
    cell = planned.cells(None)[0]
    cell.settings.rewards = {"outcome": {"normalise": True}, "short": {"reward": "length_group"}, "tool_format": {}}
    curve = study.read(cell)
    assert curve.compares == ("outcome", "short") and curves.gap(curve, 1.0, 1.0) is None
    found = curves.figures({"outcome": [curve] * 5}, "outcome")
    assert found["shapings"]["outcome"]["proxy"] == {"start": None, "end": None}
    assert [warning.name for warning in tables.warnings(found)] == ["proxy-not-comparable"]


def test_a_study_under_difficulty_says_that_its_tasks_differ(folder: Path) -> None:
    planned = experiment.load(folder / "two.yaml")
    assert not study.told(planned)
    planned.base.worlds["math"].difficulty.low = 0.2
    assert [warning.name for warning in study.told(planned)] == ["tasks-by-difficulty"]


def test_a_cell_that_fails_is_named_and_the_others_are_kept(folder: Path) -> None:
    cell = experiment.load(folder / "two.yaml", ["name=failing"]).cells(str(folder / "model"))[0]
    cells.write([cell])
    with pytest.raises(ValueError, match=r"1 of 1 cells failed, first outcome-3: exit code 3, see .*outcome-3\.log"):
        cells.Player([cell], Heard(), (sys.executable, "-c", "import sys; print('no'); sys.exit(3)")).play()
    assert cell.log.read_text() == "no\n" * cells.TRIES


def test_cells_of_a_seed_that_played_other_tasks_are_not_compared(folder: Path) -> None:
    planned = experiment.load(folder / "two.yaml")
    cell = planned.cells(None)[1]
    with sqlite3.connect(cell.folder / "ledger.db") as db:
        (key,) = db.execute("select task_key from lease where task_index = 1").fetchone()
        db.execute("update lease set task_key = 'other' where task_index = 1")
    try:
        with pytest.raises(ValueError, match="task 1 of math is other in constant-3 and"):
            study.document(planned, planned.cells(None))
    finally:
        with sqlite3.connect(cell.folder / "ledger.db") as db:
            db.execute("update lease set task_key = ? where task_index = 1", (key,))


@pytest.mark.parametrize(
    ("line", "overrides", "said"),
    [
        ("treshold: 1", [], r"unknown key treshold; did you mean threshold\?"),
        ("threshold: 2", [], "got threshold 2; expected a success rate"),
        ("reference: best", [], "got reference best; available: outcome, constant"),
        ("name: a/b", [], "got the name 'a/b'"),
        ("", ["seeds=[1,1]"], "got seeds .* expected different integers"),
        ("", ["seeds=[]"], "has no seeds"),
        ("", ["rewards.outcome.weight=2"], "rewards is what the cells differ in"),
        ("", ["train.stesp=2"], "did you mean train.steps"),
        ("  bad: {rewards: {outcme: {}}}", [], "shaping bad: there is no reward 'outcme'"),
        ("  bad: {rewards: {outcome: {weight: x}}}", [], "shaping bad: .*expected a number"),
        ("  bad: {rewards: {outcome: {}}, algorithm: {name: ppo}}", [], "shaping bad: there is no algorithm 'ppo'"),
        (
            "  bad: {rewards: {outcome: {}}, algoritm: {}}",
            [],
            "shaping bad has algoritm; available: rewards, algorithm",
        ),
        ("  bad: {rewards: {}}", [], "shaping bad has no rewards"),
    ],
)
def test_an_experiment_is_checked_whole_before_it_starts(
    folder: Path, line: str, overrides: list[str], said: str
) -> None:
    text = (folder / "two.yaml").read_text()
    key = line.partition(":")[0]
    kept = [row for row in text.splitlines() if not (key and row.startswith(f"{key}:"))]
    (folder / "bad.yaml").write_text("\n".join([*kept, line, ""]))
    with pytest.raises(ValueError, match=said):
        experiment.load(folder / "bad.yaml", overrides)


def test_the_true_score_is_always_logged(folder: Path) -> None:
    paid = experiment.load(folder / "two.yaml").shapings
    assert paid["constant"].rewards == {"tool_format": {}, "outcome": {"weight": 0.0}}
    assert paid["outcome"].rewards == {"outcome": {}}


def test_the_study_that_is_shipped_can_be_run() -> None:
    shipped = experiment.load(Path("configs/lab/shapings.yaml"))
    assert len(shipped.shapings) >= 6 and len(shipped.seeds) == 5
