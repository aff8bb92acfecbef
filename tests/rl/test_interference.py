"""Gradients by world of a stored run: planted agreement and conflict are found, and nothing heavy is started."""

import io
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from envs import Episode, Outcome, Task
from rewards import Score
from rl import cli, config, effect, interference
from rl.learner import Learner, Settings
from rl.store import Run
from rl.trajectory import Group, Member, Trajectory
from tests.policy.test_model import small_cwm

GOOD, BAD, OTHER = [10, 11, 12], [20, 21, 22], [30, 31, 32]


def attempt(learner: Learner, world: str, answer: list[int], advantage: float) -> Member:
    logprobs = learner.logprobs([1, 5, 6, *answer])[3:]
    trajectory = Trajectory()
    trajectory.hear([1, 5, 6])
    trajectory.speak(answer, logprobs, [0] * len(answer))
    task = Task(world=world, key="k", family="f", level=0, messages=())
    return Member(trajectory, Episode(task=task, messages=[], outcome=Outcome.FAILED), Score(advantage), advantage)


def keep(run: Run, group: Group) -> None:
    run.keep(group, "train")
    run.settle([group], "flat", group.version + 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose `code` wants what `math` wants, and whose `swe` wants the opposite. Two groups each, and more that
    must not count: without advantage, of a later version, held out.
    """
    place = tmp_path_factory.mktemp("interference")
    settings = Settings(model=str(small_cwm(place / "m")), lr=0.0, loss_denominator=9.0, row_tokens=64, device="cpu")
    learner = Learner(settings)
    (place / "x.yaml").write_text(
        "worlds: {math: {}, code: {}, swe: {}}\nlearner: {row_tokens: 64, batch_tokens: 12}\npolicy: {context: 64}\n"
    )
    run = Run.create(place / "run")
    config.save(config.load(place / "x.yaml"), run.folder / "config.yaml")
    sign = {"math": 1.0, "code": 2.0, "swe": -1.0}
    for world, scale in sign.items():
        for _ in range(2):
            good, bad = attempt(learner, world, GOOD, scale), attempt(learner, world, BAD, -scale)
            keep(run, Group(run.grant(world, 0).id, world, 0, [good, bad]))
    late = [attempt(learner, "math", OTHER, 50.0), attempt(learner, "math", BAD, -50.0)]
    keep(run, Group(run.grant("math", 2).id, "math", 2, late))
    keep(run, Group(run.grant("math", 0).id, "math", 0, [attempt(learner, "math", OTHER, 0.0)]))
    run.append("evals.jsonl", {"when": "before", "step": 0, "worlds": {"math": {"pass@1": 0.25}}})
    learner.version = 1
    learner.save(run.checkpoint(1))
    run.flush()
    run.close()
    return run.folder


def test_worlds_that_agree_and_worlds_that_do_not(folder: Path) -> None:
    found = interference.facts(folder)
    assert found["step"] == 1
    cosine, worlds, effect = found["cosine"], found["worlds"], found["effect"]
    assert cosine["math"]["code"] == pytest.approx(1, abs=1e-4)
    assert cosine["math"]["swe"] == cosine["swe"]["math"] == pytest.approx(-1, abs=1e-4)
    assert worlds["code"]["norm"] == pytest.approx(2 * worlds["math"]["norm"], rel=1e-4)
    assert effect["math"]["swe"] == pytest.approx(worlds["swe"]["norm"], rel=1e-4), "what helps math harms swe"
    assert effect["math"]["code"] == pytest.approx(-worlds["code"]["norm"], rel=1e-4)
    assert all(world["self_cosine"] == pytest.approx(1, abs=1e-4) for world in worlds.values())
    assert [(world["attempts"], world["tokens"]) for world in worlds.values()] == [(4, 12)] * 3
    assert worlds["math"]["heldout"] == [0.25] and worlds["swe"]["heldout"] == []


def test_the_first_order_effect_is_what_a_small_step_does(folder: Path) -> None:
    """Against the loss itself: move the weights a little down math's gradient and see what the others' losses do."""
    found = interference.facts(folder)
    settings = config.load(folder / "config.yaml")
    attempts = interference.stored(Run(folder), range(2), 12, ["math", "swe"])
    members = {world: [m for own in leases.values() for m in own] for world, leases in attempts.items()}
    gradient = interference.Gradient(folder / "checkpoints" / "000001", settings)
    _, down = gradient(members["math"])
    length, change = 1e-2, []
    for sign in (1.0, -1.0):
        start = 0
        with torch.no_grad():
            for weight in (p for p in gradient.model.parameters() if p.grad is not None):
                part = down[start : start + weight.numel()].view_as(weight)
                weight -= (length if sign > 0 else -2 * length) * part / down.norm()
                start += weight.numel()
        change.append(loss(gradient, members["swe"]))
    assert (change[0] - change[1]) / (2 * length) == pytest.approx(found["effect"]["math"]["swe"], rel=0.02)


def loss(gradient: interference.Gradient, members: list[Member]) -> float:
    """The surrogate without its clip, per sampled token."""
    from policy.model import token_logprobs
    from rl.batch import pack

    batch = pack(members, 64)
    with torch.no_grad():
        logprob_BT, _ = token_logprobs(gradient.model, batch.ids_BT, batch.position_BT, batch.mask_BT)
    ratio_BT = (logprob_BT - batch.behaviour_BT).exp()
    return float(-(ratio_BT * batch.advantage_BT)[batch.mask_BT].sum() / batch.mask_BT.sum())


def test_the_newest_attempts_are_taken_in_whole_groups(folder: Path) -> None:
    run = Run(folder)
    assert {world: list(own) for world, own in interference.stored(run, range(2), 1, ["math", "swe"]).items()} == {
        "math": [2],
        "swe": [6],
    }
    assert list(interference.stored(run, range(3), 1, ["math"])["math"]) == [7], "as a later policy would see it"
    assert not interference.stored(run, range(5, 9), 1, ["math"]), "too old"
    one = interference.facts(folder, tokens=1)["worlds"]["math"]
    assert (one["attempts"], one["self_cosine"]) == (2, None)


def test_the_command_starts_nothing_heavy(folder: Path) -> None:
    program = (
        "import sys; from rl.cli import main; code = main(sys.argv[1:]); "
        "assert not {'ray', 'vllm', 'docker', 'trl'} & set(sys.modules), 'heavy'; sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "interference", str(folder), "--json"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["cosine"]["math"]["swe"] < -0.99


def test_a_table_for_people(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["interference", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "-1.00" in said and "+1.00" in said and "down the loss of math" in said and "(+1.00)" in said


def test_what_is_missing_is_one_sentence(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["interference", str(tmp_path)]) == 2
    assert cli.main(["interference", str(folder), "--step", "7"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("rl interference: there is no run at")
    assert said[1].endswith("has no checkpoint of step 7; available: 000001")
    assert cli.main(["interference", str(folder), "--tasks", "7"]) == 2
    assert "--tasks only with --effect" in capsys.readouterr().err


def test_steps_on_one_world_do_to_the_others_what_their_gradients_say(folder: Path, tmp_path: Path) -> None:
    """The real learner, from the checkpoint, on each world alone: code wants what math wants, swe the opposite."""
    settings = config.load(folder / "config.yaml")
    settings.learner.lr = 1e-3
    attempts = interference.stored(Run(folder), range(2), 12, ["math", "swe"])
    members = {world: [m for own in leases.values() for m in own] for world, leases in attempts.items()}
    checkpoint = folder / "checkpoints" / "000001"
    before = policy_prefers_good(checkpoint, settings)
    after = {
        w: policy_prefers_good(effect.nudged(checkpoint, settings, members[w], 3, tmp_path / w), settings)
        for w in members
    }
    assert after["math"] > before + 0.01 > before - 0.01 > after["swe"]
    assert policy_prefers_good(checkpoint, settings) == before, "the checkpoint is as it was"


def policy_prefers_good(model: Path, settings: config.RunConfig) -> float:
    learner = Learner(Settings.of(settings, str(model)))
    good, bad = (sum(learner.logprobs([1, 5, 6, *answer])[3:]) for answer in (GOOD, BAD))
    return good - bad


def test_the_average_of_the_gradients_of_other_worlds_is_emptied(folder: Path, tmp_path: Path) -> None:
    """With a rate of zero for the steps, but not for what AdamW still carries, weights would move; they do not."""
    settings = config.load(folder / "config.yaml")
    settings.learner.lr = 1e-2
    attempts = interference.stored(Run(folder), range(2), 12, ["math", "swe"])
    members = {world: [m for own in leases.values() for m in own] for world, leases in attempts.items()}
    learner = Learner(Settings.of(settings, str(folder / "checkpoints" / "000001")))
    for _ in range(5):
        learner.step(members["swe"])
    learner.save(tmp_path / "carried")
    still = [Member(m.trajectory, m.episode, m.score, 0.0) for m in members["math"]]
    model = effect.nudged(tmp_path / "carried", settings, still, 1, tmp_path / "still")
    assert policy_prefers_good(model, settings) == policy_prefers_good(tmp_path / "carried", settings)


def test_held_out_tasks_are_paired_before_and_after(folder: Path) -> None:
    """What was played is played again after each world's steps; the row without a step shows chance alone."""
    played: list[str] = []

    def play(model: str) -> list[Group]:
        """The policy solves every task of a world while it is as it was, and half of them once it was moved."""
        played.append(model)
        assert (Path(model) / "config.json").is_file()
        moved = "checkpoints" not in model
        return [held_out(world, index, not moved or index % 2 == 0) for world in ("math", "swe") for index in range(16)]

    found = interference.facts(folder, effect_steps=2, play=play)["measured"]
    assert (found["steps"], found["samples"], len(played)) == (2, 1, 5)
    assert list(found["after"]) == [effect.NOTHING, "code", "math", "swe"]
    nothing, math = found["after"][effect.NOTHING]["swe"], found["after"]["math"]["swe"]
    assert (nothing["change"], nothing["better"], nothing["worse"], nothing["n"]) == (0.0, 0, 0, 16)
    assert nothing["low"] < -0.1 and nothing["high"] > 0.1, "sixteen tasks without a change are no certainty"
    assert (math["before"], math["change"], math["worse"]) == (1.0, -0.5, 8) and math["high"] < 0
    console = Console(record=True, width=160, file=io.StringIO())
    interference.tell_effect(console, found)
    said = console.export_text()
    assert "after 2 steps on one world alone" in said and "swe (1.00, n 16)" in said
    assert "+0.000 [-0.154, +0.154]" in said and "-0.500 [-" in said and "Of 8 such intervals about 0.4" in said


def held_out(world: str, index: int, solved: bool) -> Group:
    task = Task(world=world, key=f"{world}-{index}", family="f", level=0, messages=())
    outcome = Outcome.SOLVED if solved else Outcome.FAILED
    episode = Episode(task=task, messages=[], outcome=outcome, facts={"solved": solved})
    trajectory = Trajectory()
    trajectory.hear([1])
    trajectory.speak([2], [0.0], [0])
    return Group(index, world, 0, [Member(trajectory, episode, Score(float(solved)))])


@pytest.mark.parametrize("tasks", [16, 128])
@pytest.mark.parametrize("shift", [0.0, 0.15])
def test_intervals_hold_the_true_change(tasks: int, shift: float) -> None:
    """Paired tasks, some of which change by chance in either direction and more in one: 95 in 100, at least 93."""
    draw, held = random.Random(0), 0
    for _ in range(1000):
        before = {str(n): float(draw.random() < 0.5) for n in range(tasks)}
        after = {key: flipped(value, shift, draw) for key, value in before.items()}
        seen = effect.change(before, after)
        held += seen["low"] <= shift <= seen["high"]
    assert held >= 930


def flipped(value: float, shift: float, draw: random.Random) -> float:
    """Of tasks that failed more are solved by as many as makes the mean change `shift`."""
    return 1.0 - value if draw.random() < 0.1 + (1 - value) * 2 * shift else value
