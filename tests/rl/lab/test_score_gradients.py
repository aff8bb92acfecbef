"""Gradients of shapings on the run's own policy: the same way, the opposite way, and none."""

from pathlib import Path

import pytest

from envs import Episode, Outcome
from envs.math import World
from rewards import Score
from rl import config
from rl.lab import shapings
from rl.lab.document import Document
from rl.lab.rescore import score
from rl.learner import Learner, Settings
from rl.store import Run
from rl.trajectory import Group, Member, Trajectory
from tests.policy.test_model import small_cwm
from tests.rl.lab.stores import shaping


def attempt(learner: Learner, task: object, answer: list[int], solved: bool) -> Member:
    trajectory = Trajectory()
    trajectory.hear([1, 5, 6])
    trajectory.speak(answer, learner.logprobs([1, 5, 6, *answer])[3:], [0] * len(answer))
    outcome = Outcome.SOLVED if solved else Outcome.FAILED
    episode = Episode(task=task, messages=[], outcome=outcome, facts={"solved": solved}, turns=1)  # type: ignore[arg-type]
    episode.tokens = len(answer)
    return Member(trajectory, episode, Score(float(solved)))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Right attempts are long and wrong ones short; one group is too new for the checkpoint."""
    place = tmp_path_factory.mktemp("gradients")
    model = str(small_cwm(place / "m"))
    learner = Learner(Settings(model=model, lr=0.0, loss_denominator=9.0, row_tokens=64, device="cpu"))
    (place / "x.yaml").write_text(
        "worlds: {math: {args: {python_tool: false}}}\npolicy: {context: 64}\n"
        "learner: {row_tokens: 64, batch_tokens: 64}\n"
    )
    folder = Run.create(place / "run")
    settings = config.load(place / "x.yaml")
    config.save(settings, folder.folder / "config.yaml")
    world = World(None, seed=0, python_tool=False)  # type: ignore[arg-type]
    for version in (0, 0, 5):
        lease = folder.grant("math", version)
        task = world.task("train", lease.index)
        answers = (([10, 11, 12, 13], True), ([20, 21], False)) if version == 0 else (([40] * 9, False), ([41], True))
        group = Group(lease.id, "math", version, [attempt(learner, task, *answer) for answer in answers])
        folder.keep(group, "train")
        folder.settle([group], "flat", version + 1)
    learner.version = 1
    learner.save(folder.checkpoint(1))
    folder.close()
    return folder.folder


def compared(run: Path, folder: Path, **texts: str) -> Document:
    files = [shaping(folder, name, text) for name, text in texts.items()]
    return score([run], shapings.load(files), folder / "out", 1, gradients=True)


def test_opposite_shapings_push_opposite_ways_and_a_scaled_one_the_same(run: Path, tmp_path: Path) -> None:
    cosine = compared(
        run,
        tmp_path,
        truth="rewards: {outcome: {}}",
        twice="rewards: {outcome: {weight: 2}}",
        divided="rewards: {outcome: {}}\nalgorithm: {name: dr_grpo}",
        short="rewards: {length: {soft_tokens: 0, hard_tokens: 9, only_solved: false}}",
        flat="rewards: {tool_format: {}}",
    ).figures["gradient_cosine"]["all"]
    assert cosine["truth"]["twice"] == pytest.approx(1, abs=1e-5)
    assert cosine["truth"]["short"] == pytest.approx(-1, abs=1e-5)
    assert 0.5 < cosine["truth"]["divided"] < 1 - 1e-4
    assert cosine["truth"]["flat"] is None and cosine["flat"]["flat"] is None


def test_a_run_without_a_checkpoint_has_no_policy_to_ask(run: Path, tmp_path: Path) -> None:
    (run / "checkpoints").rename(run / "gone")
    try:
        with pytest.raises(ValueError, match="has no checkpoint"):
            compared(run, tmp_path, truth="rewards: {outcome: {}}")
    finally:
        (run / "gone").rename(run / "checkpoints")
