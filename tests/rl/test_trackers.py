"""Figures to trackers: read back from TensorBoard's own files; what is missing is one sentence at the start."""

from pathlib import Path
from typing import Any

import pytest

from rl import trackers
from rl.cli import main

ROW = {"step": 3, "learner/entropy": 0.5, "worlds": {"math": {"success": 0.25, "lost": 2}}, "why": "text", "ok": True}


def test_numbers_are_named_by_their_path_and_nothing_else_is_sent() -> None:
    assert trackers.numbers(ROW) == {
        "step": 3,
        "learner/entropy": 0.5,
        "worlds/math/success": 0.25,
        "worlds/math/lost": 2,
    }


def test_tensorboard_holds_every_step(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    trackers.check(["tensorboard"])
    tracked = trackers.start(["tensorboard"], tmp_path, "run", {"seed": 0})
    tracked.step(ROW)
    tracked.step({**ROW, "step": 4, "worlds": {"math": {"success": 0.5}}})
    tracked.measured("before", {"step": 0, "worlds": {"math": {"pass@1": 0.125}}})
    tracked.finish()
    assert not tracked.said
    read = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    assert [(e.step, e.value) for e in read.Scalars("worlds/math/success")] == [(3, 0.25), (4, 0.5)]
    assert [(e.step, e.value) for e in read.Scalars("learner/entropy")] == [(3, 0.5), (4, 0.5)]
    assert [e.value for e in read.Scalars("heldout/math/pass@1")] == [0.125]


def test_tensorboard_shows_the_steps_of_a_resumed_run_once(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    first = trackers.start(["tensorboard"], tmp_path, "run", {})
    for step in (1, 2, 3):
        first.step({"step": step, "loss": 1.0})
    first.finish()
    again = trackers.start(["tensorboard"], tmp_path, "run", {}, resumed_at=1)
    for step in (2, 3, 4):
        again.step({"step": step, "loss": 2.0})
    again.finish()
    read = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    assert [(e.step, e.value) for e in read.Scalars("loss")] == [(1, 1.0), (2, 2.0), (3, 2.0), (4, 2.0)]


def test_an_unknown_tracker_and_a_missing_package_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=r"there is no tracker 'tensorbord'; available: .*tensorboard.*wandb"):
        trackers.check(["tensorbord"])
    missing = {"comet_ml": "comet_ml", "aim": "aim", "dvclive": "dvclive", "swanlab": "swanlab", "clearml": "clearml"}
    from accelerate.tracking import get_available_trackers

    absent = next(name for name in missing if name not in map(str, get_available_trackers()))
    (tmp_path / "x.yaml").write_text(f"worlds: {{math: {{}}}}\ntrain: {{trackers: [{absent}]}}\n")
    monkeypatch.chdir(tmp_path)
    assert main(["train", "x.yaml"]) == 2
    said = capsys.readouterr().err
    assert f"the package of '{absent}' is not installed" in said and said.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_tracker_that_breaks_does_not_stop_the_run() -> None:
    class Broken:
        name = "broken"

        def log(self, values: Any, step: int) -> None:
            raise OSError("no network")

    tracked = trackers.Trackers([Broken()])
    tracked.step(ROW)
    tracked.step(ROW)
    tracked.finish()
    assert tracked.said == ["tracker broken ended: OSError: no network"]
