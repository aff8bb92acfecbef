"""What training does with results of `rl check`: tasks that failed are not drawn, an unfit world is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from envs.math import World
from rl import config, evaluate, quarantine
from rl.check import result as results
from rl.config import RunConfig
from rl.live import Page
from rl.store import Run
from rl.train import Training

ROWS = 40


@pytest.fixture
def settings(tmp_path: Path) -> RunConfig:
    rows = [{"problem": f"What is {i} + 1000?", "answer": str(i + 1000)} for i in range(ROWS)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "x.yaml").write_text("worlds: {math: {args: {python_tool: false}}}\n")
    return config.load(
        tmp_path / "x.yaml", [f"worlds.math.args.tasks={tmp_path}/rows.jsonl", f"runs={tmp_path}/runs", "seed=3"]
    )


def found(settings: RunConfig, change: Callable[[results.Result], None]) -> Path:
    """A result as `rl check` would write it, with what `change` does to it."""
    args = settings.worlds["math"].args
    world = World(None, **args)  # type: ignore[arg-type]
    result = results.Result("math", args, settings.rollout.image, results.config_digest("math", args))
    for split in ("train", "heldout"):
        for index in range(world.size(split) or 0):
            task = world.task(split, index)
            result.tasks[f"{split}/{task.key}"] = task.content_hash
        result.whole[split] = True
    change(result)
    path = results.place(settings.runs, "math", result.config)
    results.write(result, path)
    return path


def bad(*numbers: int, split: str = "train") -> Callable[[results.Result], None]:
    def change(result: results.Result) -> None:
        keys = [at.partition("/")[2] for at in result.tasks if at.startswith(split)]
        for number in numbers:
            result.add({"kind": "gold-fails", "split": split, "index": number, "key": keys[number], "words": "no"})

    return change


def leases(settings: RunConfig, run: Run, count: int) -> list[int]:
    training = Training(settings, run, None, Page(settings))  # type: ignore[arg-type]
    return [training.lease().index for _ in range(count)]


def test_tasks_that_failed_are_not_drawn_also_after_a_resume(settings: RunConfig) -> None:
    path = found(settings, bad(0, 1, 5))
    _, lines = quarantine.read(settings)
    assert lines == [f"math: 3 of {ROWS} tasks quarantined by {path}"]
    world = World(None, seed=settings.seed, **settings.worlds["math"].args)  # type: ignore[arg-type]
    barred = set(json.loads(path.read_text())["unfit_tasks"].values())
    size = world.size("train") or 0
    run = Run.create(settings.folder)
    drawn = leases(settings, run, size - 5)
    run.close()
    run = Run.reopen(settings.folder)
    drawn += leases(settings, run, 2)
    assert drawn == sorted(drawn) and len(set(drawn)) == size - 3 and max(drawn) < size, "a whole round, each once"
    hashes = {world.task("train", index).content_hash for index in drawn}
    assert len(hashes) == size - 3 and not hashes & barred
    run.close()


def test_held_out_tasks_that_failed_are_not_measured(settings: RunConfig) -> None:
    world = World(None, **settings.worlds["math"].args)  # type: ignore[arg-type]
    size = world.size("heldout") or 0
    assert evaluate.indices(settings, "math", size, quarantine.read(settings)[0]) == list(range(size))
    found(settings, bad(1, split="heldout"))
    assert evaluate.indices(settings, "math", size - 1, quarantine.read(settings)[0]) == [
        index for index in range(size) if index != 1
    ]


def test_without_a_result_nothing_is_barred(settings: RunConfig) -> None:
    assert quarantine.read(settings)[1] == []


def test_a_world_that_is_unfit_is_refused_in_one_sentence(settings: RunConfig) -> None:
    def accepts_anything(result: results.Result) -> None:
        for at in result.tasks:
            split, _, key = at.partition("/")
            result.add({"kind": "empty-scores", "split": split, "index": 0, "key": key, "words": "the empty answer"})

    found(settings, accepts_anything)
    with pytest.raises(ValueError, match=f"unfit to train on: empty-scores on {ROWS} of {ROWS} tasks"):
        quarantine.read(settings)

    def shared(result: results.Result) -> None:
        result.add({"kind": "state-shared", "split": "train", "index": 0, "key": "x", "words": "of two"})

    found(settings, shared)
    with pytest.raises(ValueError, match="state-shared"):
        quarantine.read(settings)

    def sample(result: results.Result) -> None:
        bad(0)(result)
        result.whole = {}

    found(settings, sample)
    with pytest.raises(ValueError, match="1 of 40 tasks of a stream without end"):
        quarantine.read(settings)


@pytest.mark.parametrize("changed", ["data", "world", "image"])
def test_a_result_of_other_things_is_told_and_not_trusted(settings: RunConfig, changed: str) -> None:
    path = found(settings, bad(0, 1))
    if changed == "data":
        with Path(settings.worlds["math"].args["tasks"]).open("a") as file:
            file.write('{"problem": "1 + 1?", "answer": "2"}\n')
    elif changed == "world":
        stored = json.loads(path.read_text())
        stored["hashes"]["world"] = "0" * 16
        path.write_text(json.dumps(stored))
    else:
        settings.rollout.image = "another"
    barred, (line,) = quarantine.read(settings)
    assert line.startswith(f"math: {path} is not used, since ") and "check again with: rl check math " in line
    assert not any(barred.holds("math", "train", index) for index in range(ROWS))


def test_another_configuration_has_another_result_and_defaults_may_be_written_down(settings: RunConfig) -> None:
    args = settings.worlds["math"].args
    one = results.config_digest("math", args)
    assert one == results.config_digest("math", {**args, "judge_timeout_s": 10.0, "seed": 7})
    assert one != results.config_digest("math", {**args, "python_tool": True})


def test_a_file_that_is_no_result_is_refused(settings: RunConfig) -> None:
    path = found(settings, bad(0))
    for text in ("{", "[]", '{"hashes": {}}'):
        path.write_text(text)
        with pytest.raises(ValueError, match="is no result of rl check"):
            quarantine.read(settings)
