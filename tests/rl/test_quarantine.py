"""What training does with results of `rl check`: tasks that failed are not drawn, an unfit world is refused."""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from envs import EnvCrashed, Split
from envs.math import World
from rl import config, evaluate, quarantine, rollout, selftest, stages
from rl.check import result as results
from rl.config import RunConfig
from rl.live import Page
from rl.stages import StageConfig
from rl.store import Run
from rl.train import Training
from rl.trajectory import Group, Member

ROWS = 40


@pytest.fixture
def settings(tmp_path: Path) -> RunConfig:
    rows = [{"problem": f"What is {i} + 1000?", "answer": str(i + 1000)} for i in range(ROWS)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "x.yaml").write_text("worlds: {math: {args: {python_tool: false}}}\n")
    return config.load(
        tmp_path / "x.yaml", [f"worlds.math.args.tasks={tmp_path}/rows.jsonl", f"runs={tmp_path}/runs", "seed=3"]
    )


def found(settings: RunConfig, change: Callable[[results.Result], None], args: Mapping[str, Any] | None = None) -> Path:
    """A result as `rl check` would write it, with what `change` does to it."""
    args = dict(settings.worlds["math"].args if args is None else args)
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


def bad_at(world: World, *indices: int) -> Callable[[results.Result], None]:
    """Training tasks at these positions of a world's stream."""

    def change(result: results.Result) -> None:
        for index in indices:
            key = world.task("train", index).key
            result.add({"kind": "gold-fails", "split": "train", "index": index, "key": key, "words": "no"})

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


class Asked:
    """Parts of a run that can play nothing: says which tasks were wanted of them."""

    def __init__(self) -> None:
        self.groups: list[int] = []
        self.experts: list[int] = []

    async def play(self, world: str, split: Split, index: int, lease: int, version: int, size: int) -> Group:
        self.groups.append(index)
        return Group(lease, world, version, rollout.unplayed(world, split, index, EnvCrashed("nothing is played here")))

    async def expert(self, world: str, index: int) -> Member:
        self.experts.append(index)
        return rollout.unplayed(world, "train", index, EnvCrashed("nothing is played here"))[0]

    async def score(self, members: Sequence[Member]) -> tuple[list[list[float]], dict[str, float]]:
        raise AssertionError("nothing was played")


def asked(settings: RunConfig, version: int = 0) -> Asked:
    parts, run = Asked(), Run.create(settings.folder)
    with pytest.raises(selftest.SelfTestFailed, match="nothing is played here"):
        asyncio.run(selftest.run(parts, settings, version, run, Page(settings)))
    run.close()
    return parts


def test_the_self_tests_pass_over_tasks_that_failed(settings: RunConfig) -> None:
    far = selftest.FAR
    world = World(None, seed=settings.seed, **settings.worlds["math"].args)  # type: ignore[arg-type]
    found(settings, bad_at(world, far, far + 2))
    parts = asked(settings)
    assert (parts.groups, parts.experts) == ([far + 1, far + 3], [far + 1, far + 3, far + 4])


def staged(settings: RunConfig, tmp_path: Path) -> tuple[RunConfig, dict[str, Any]]:
    """Until step 5 the world has other rows than the file says; and its arguments then."""
    rows = [{"problem": f"What is {i} + 2000?", "answer": str(i + 2000)} for i in range(ROWS)]
    (tmp_path / "others.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    first = StageConfig(until_step=5, worlds={"math": {"args": {"tasks": f"{tmp_path}/others.jsonl"}}})
    settings = replace(settings, stages=[first])
    return settings, stages.at(settings, 0).worlds["math"].args


def test_a_stage_with_arguments_of_its_own_has_a_quarantine_of_its_own(settings: RunConfig, tmp_path: Path) -> None:
    settings, args = staged(settings, tmp_path)
    of_stage = World(None, seed=settings.seed, **args)  # type: ignore[arg-type]
    of_file = World(None, seed=settings.seed, **settings.worlds["math"].args)  # type: ignore[arg-type]
    found(settings, bad_at(of_stage, 0, 2), args)
    found(settings, bad_at(of_file, 1))
    barred, lines = quarantine.read(settings)
    assert [line.split(" by ")[0] for line in lines] == [
        f"math: {count} of {ROWS} tasks quarantined" for count in (1, 2)
    ]
    assert [i for i in range(8) if barred.holds("math", "train", i, args)] == [0, 2]
    assert [i for i in range(8) if barred.holds("math", "train", i)] == [1]

    run = Run.create(settings.folder)
    training = Training(settings, run, None, Page(settings))  # type: ignore[arg-type]
    assert [training.lease().index for _ in range(3)] == [1, 3, 4], "in the stage"
    run.close()
    again = replace(settings, name="later")
    run = Run.create(again.folder)
    training = Training(again, run, None, Page(again))  # type: ignore[arg-type]
    training.version = 5
    assert [training.lease().index for _ in range(3)] == [0, 2, 3], "after it"
    run.close()


def test_the_self_tests_pass_over_what_failed_in_the_stage_that_they_play(settings: RunConfig, tmp_path: Path) -> None:
    settings, args = staged(settings, tmp_path)
    far = selftest.FAR
    found(settings, bad_at(World(None, seed=settings.seed, **args), far), args)  # type: ignore[arg-type]
    parts = asked(settings)
    assert parts.groups == [far + 1, far + 2], "groups are played in the stage"
    assert parts.experts == [far, far + 1, far + 2], "experts in the world of the file"


def test_a_stage_that_is_unfit_is_refused(settings: RunConfig, tmp_path: Path) -> None:
    settings, args = staged(settings, tmp_path)
    found(
        settings, lambda result: result.add({"kind": "dies", "split": "", "index": 0, "key": "", "words": "it"}), args
    )
    with pytest.raises(ValueError, match="world math is unfit to train on: dies"):
        quarantine.read(settings)
