"""The whole system on real parts: TRL warms up, vLLM generates, Ray runs processes, Docker programs, and it learns."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from envs.sandboxes import docker
from rl import evaluate, quarantine
from rl.config import load
from rl.store import Run

pytestmark = [pytest.mark.docker, pytest.mark.vllm, pytest.mark.slow]

CONFIG = """
worlds:
  code: {args: {aggregates: [sum, count], levels: [0, 1]}}
warmstart: {steps: 500, error_rate: 0.5, vocab: 400}
policy: {context: 160, turn_tokens: 80}
learner: {lr: 6e-4, batch_tokens: 3000}
rollout: {sandboxes: 8}
engine: {max_sequences: 96, args: {block_size: 32}}
train: {steps: 20, groups: 16, checkpoint_every: 5}
eval: {tasks: 20, samples: 6}
"""


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "rl.cli", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A run that was stopped by Ctrl-C after some steps, resumed, and ended: its folder and all it printed."""
    place = tmp_path_factory.mktemp("e2e")
    (place / "small.yaml").write_text(CONFIG)
    first = start(place, "train", "small.yaml", "name=small")
    wait_for_steps(place / "runs/small/metrics.jsonl", 3, first)
    first.send_signal(signal.SIGINT)
    said, _ = first.communicate(timeout=120)
    assert first.returncode == 130, said
    assert "--resume" in said
    second = start(place, "train", "small.yaml", "name=small", "--resume")
    more, _ = second.communicate(timeout=600)
    assert second.returncode == 0, more
    yield place, said + more


def wait_for_steps(path: Path, count: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        if path.is_file() and len(path.read_text().splitlines()) >= count:
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.2)
    raise AssertionError(f"no {count} steps within 600 s")


def measured(folder: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "rl.cli", "report", str(folder), "--json"], capture_output=True, text=True, check=True
    )
    return dict(json.loads(done.stdout))


def test_it_learns(finished: tuple[Path, str]) -> None:
    """Held-out success of an untrained policy that errs half of the time rises by far more than the noise."""
    found = measured(finished[0] / "runs/small")
    assert found["steps"] == 20
    assert found["joint"]["after"] - found["joint"]["before"] > 0.15, found


def test_nothing_is_left_behind(finished: tuple[Path, str]) -> None:
    assert docker.count("small") == 0
    assert measured(finished[0] / "runs/small")["leaked_containers"] == 0
    assert not list(Path("/dev/shm").glob("touchstone-weights-*"))


def test_every_step_is_once_in_the_metrics_and_every_lease_in_one_state(finished: tuple[Path, str]) -> None:
    run = Run.reopen(finished[0] / "runs/small")
    rows = run.rows("metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 21))
    assert all(row["staleness_max"] <= 8 for row in rows)
    trained = run.db.execute(
        "select count(*), count(distinct task_index) from lease where state = 'trained'"
    ).fetchone()
    assert trained[0] == trained[1] == sum(row["trained_groups"] for row in rows)
    run.close()


def test_the_last_checkpoint_is_a_hugging_face_model(finished: tuple[Path, str]) -> None:
    latest = Run(finished[0] / "runs/small").latest()
    assert latest is not None and latest.name == "000020"
    assert AutoModelForCausalLM.from_pretrained(latest).num_parameters() > 1_000_000


def test_report_draws_and_a_run_is_never_overwritten(finished: tuple[Path, str]) -> None:
    place, _ = finished
    shown = subprocess.run(
        [sys.executable, "-m", "rl.cli", "report", "runs/small"], cwd=place, capture_output=True, text=True, check=True
    )
    assert "code" in shown.stdout and (place / "runs/small/curves.png").stat().st_size > 10_000
    again = start(place, "train", "small.yaml", "name=small")
    said, _ = again.communicate(timeout=60)
    assert again.returncode == 2 and "already a run" in said


def test_held_out_tasks_are_distinct(finished: tuple[Path, str]) -> None:
    settings = load(finished[0] / "small.yaml")
    assert len(set(evaluate.indices(settings, "code", 16, quarantine.read(settings)[0]))) == 16
