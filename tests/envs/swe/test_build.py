"""Tasks of an invented package: built, verified and played in real sandboxes; the oracle solves, nothing else does."""

import asyncio
import gzip
import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tally import COUNTS, NEWER, NEWER_TEST, TALLY, write

from envs import Outcome, Task, swe
from envs.exploits import Exploit
from envs.exploits.swe.packages import ATTACKS, FILES, against_real
from envs.sandboxes.docker import DockerPool
from envs.swe import build, suite
from envs.swe.sources import Refused, Tree
from policy.chat import Chat
from policy.engines.scripted import ScriptedEngine
from policy.tiny import train_tokenizer
from rl import config
from rl import tasks as command
from rl.rollout import Limits, play

pytestmark = [pytest.mark.docker, pytest.mark.slow]
KEPT = 4


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture(scope="module")
def pool(loop: asyncio.AbstractEventLoop) -> Iterator[DockerPool]:
    command.ready(suite.IMAGE)
    pool = DockerPool(run="test-tasks", size=2, image=suite.IMAGE)
    yield pool
    loop.run_until_complete(pool.close())


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> list[Tree]:
    folder = tmp_path_factory.mktemp("tally")
    specs = [
        write(folder / "old", "1.0", TALLY, COUNTS),
        write(folder / "new", "1.1", TALLY + NEWER, COUNTS + NEWER_TEST),
    ]
    found, refused = command.read(specs, folder)
    assert not refused
    return found


def made(trees: list[Tree], out: Path, pool: DockerPool, loop: asyncio.AbstractEventLoop) -> dict[str, Any]:
    work = build.build(trees, out, pool, seed=1, most=KEPT, jobs=2, tell=lambda package, doing, found: None)
    return loop.run_until_complete(work)


@pytest.fixture(scope="module")
def built(
    trees: list[Tree], pool: DockerPool, loop: asyncio.AbstractEventLoop, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("tasks")
    return out, made(trees, out, pool, loop)


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in gzip.decompress((out / "tasks.jsonl.gz").read_bytes()).splitlines()]


def test_only_tests_to_be_relied_on_are_kept(built: tuple[Path, dict[str, Any]]) -> None:
    told = json.loads((built[0] / "build.json").read_text())["packages"]["tally"]
    assert told["tests"] == len(told["test_seconds"]) == 13, "11 of the package, 1 of the newer release, 1 beside"
    dropped = told["dropped"]
    assert {why for test, why in dropped.items() if "test_flaky" in test} == {"flaky"}, "never twice the same name"
    assert dropped["tests/test_odd.py::test_slow"] == "slow"
    assert dropped["tests/test_odd.py::test_failing"].startswith("failed")
    assert dropped["tests/test_odd.py::test_skipped"].startswith("skipped")
    assert dropped["tests/test_odd.py::test_expected_to_fail"].startswith("skipped")
    assert "no_such_module" in dropped["tests/test_broken.py"]


def test_records_say_what_was_done(built: tuple[Path, dict[str, Any]]) -> None:
    out, told = built
    found = records(out)
    assert [r["kind"] for r in found] == ["mutate-fix"] * KEPT + ["release-fix"] and not told["tally"]["refused"]
    assert len({r["key"] for r in found}) == len(found)
    for record in found[:-1]:
        assert record["file"] == "src/tally/core.py" and record["function"] != "unseen", "no test runs it"
        assert record["bug_patch"] and record["gold_patch"] and record["FAIL_TO_PASS"] and record["PASS_TO_PASS"]
        assert record["level"] == record["function"].startswith("_")
        assert not any(name in record["issue"] for name in ("test_", "TestPercent"))
        assert all(line not in record["issue"] for line in record["gold_patch"].splitlines() if line[:2] == "+ ")
        assert record["content_hash"] == build.content_hash(record)
    assert found[-1]["FAIL_TO_PASS"] == ["tests/test_counts.py::test_mean"]
    assert "mean: of several numbers" in found[-1]["issue"] and "+def mean(numbers):" in found[-1]["gold_patch"]


def test_the_same_seed_makes_the_same_bytes(
    built: tuple[Path, dict[str, Any]],
    trees: list[Tree],
    pool: DockerPool,
    loop: asyncio.AbstractEventLoop,
    tmp_path: Path,
) -> None:
    made(trees, tmp_path, pool, loop)
    for path in ("tasks.jsonl.gz", "trees/tally-1.0.tar.gz", "trees/tally-1.1.tar.gz"):
        assert (tmp_path / path).read_bytes() == (built[0] / path).read_bytes()


def test_packages_that_cannot_be_relied_on_are_refused(
    pool: DockerPool, loop: asyncio.AbstractEventLoop, tmp_path: Path
) -> None:
    def refused(files: dict[str, str]) -> str:
        with pytest.raises(Refused) as error:
            loop.run_until_complete(suite.verify(pool, Tree("x", "1", {p: t.encode() for p, t in files.items()})))
        return str(error.value)

    many = "".join(f"def test_{number}(): pass\n" for number in range(9))
    assert "no test files" in refused({"x.py": ""})
    assert "run no function" in refused({"x.py": "", "test_x.py": many})
    assert "0 of its tests" in refused({"x.py": "", "test_x.py": "import y\n"})
    assert "end the interpreter" in refused(
        {"x.py": "", "test_x.py": many + "def test_end():\n    import os; os._exit(0)\n"}
    )
    copied = Tree("iniconfig", "1", {"src/iniconfig/__init__.py": b"", "tests/test_a.py": b""})
    assert loop.run_until_complete(suite.copies(pool, copied)) == [f"{suite.LIBRARY}/iniconfig/__init__.py"]


def world(built: tuple[Path, dict[str, Any]], pool: DockerPool | None) -> swe.World:
    return swe.World(pool, tasks=str(built[0]), max_turns=8)  # type: ignore[arg-type]


def every_task(place: swe.World) -> dict[str, Task]:
    found = [place.task(split, index) for split in ("train", "heldout") for index in range(KEPT + 1)]  # type: ignore[arg-type]
    return {task.key: task for task in found}


@pytest.fixture(autouse=True)
def both_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five keys are too few for the shares of a whole build."""
    monkeypatch.setattr("envs.swe.real.heldout", lambda key: key.startswith("release-fix"))


def test_the_oracle_solves_through_the_rollout_and_an_empty_submission_fails(
    built: tuple[Path, dict[str, Any]], pool: DockerPool, loop: asyncio.AbstractEventLoop
) -> None:
    place = world(built, pool)
    tasks = every_task(place)
    assert len(tasks) == KEPT + 1
    chat = Chat(train_tokenizer([m["content"] for task in tasks.values() for m in task.messages], 400))
    limits = Limits(context=30000, turn_tokens=8000, turns=8, timeout_s=120.0)
    for task in tasks.values():
        for err in (False, True):
            demonstration = place.demonstrate(task, random.Random(0), err=err)
            actions = iter([m["content"] for m in demonstration if m["role"] == "assistant"])
            engine = ScriptedEngine(lambda prompt, actions=actions: chat.encode(next(actions)) + chat.stop_ids[:1])  # type: ignore[misc]
            member = loop.run_until_complete(play(place, task, engine, chat, limits, {"outcome": {"weight": 1.0}}))
            episode = member.episode
            assert episode.outcome is (Outcome.FAILED if err else Outcome.SOLVED), (task.key, episode)
            assert episode.messages == demonstration, "what the expert foresaw"
            assert all(episode.facts["pass_to_pass"]) and any(episode.facts["fail_to_pass"]) is not err
            assert episode.facts["similarity"] == (0.0 if err else 1.0) and not episode.facts["tampered"]


async def attempt(place: swe.World, task: Task, *commands: str) -> tuple[dict[str, Any], str]:
    env = place.open(task)
    said = ""
    try:
        await env.start()
        for text in commands:
            said += (await env.step(f"<tool: bash>\n{text}\n</tool>")).messages[0]["content"]
        await env.step("<tool: submit>\ndone\n</tool>")
        return await env.measure(), said
    finally:
        await env.close()


def test_a_task_with_an_image_of_its_own_is_played_and_graded_in_it(
    built: tuple[Path, dict[str, Any]], tmp_path: Path, loop: asyncio.AbstractEventLoop
) -> None:
    """The pool's own image has no pytest."""
    shutil.copytree(built[0], tmp_path / "tasks")
    path = tmp_path / "tasks" / "tasks.jsonl.gz"
    records = [json.loads(line) | {"image": suite.IMAGE} for line in gzip.decompress(path.read_bytes()).splitlines()]
    lines = [json.dumps(record | {"content_hash": build.content_hash(record)}) for record in records]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))

    async def scenario() -> tuple[dict[str, Any], str]:
        pool = DockerPool(run="test-images", size=2)
        try:
            place = swe.World(pool, tasks=str(path.parent), max_turns=8)
            task = place.task("train", 0)
            assert task.given["image"] == suite.IMAGE
            return await attempt(place, task, "python3 -m pytest --version")
        finally:
            await pool.close()

    facts, said = loop.run_until_complete(scenario())
    assert said.startswith("pytest ")
    assert facts["pass_to_pass"] and all(facts["pass_to_pass"]) and not facts["solved"]


def test_hidden_tests_are_not_there_and_the_others_run(
    built: tuple[Path, dict[str, Any]], pool: DockerPool, loop: asyncio.AbstractEventLoop
) -> None:
    place = world(built, pool)
    for task in every_task(place).values():
        look = "ls tests; grep -rl TestPercent . /opt /tmp; python3 -m pytest -q tests/test_other.py | tail -1"
        _, said = loop.run_until_complete(attempt(place, task, look))
        assert said.startswith("test_broken.py\ntest_odd.py\ntest_other.py\n1 passed"), said


EXPLOITS = {
    "settings": "printf '[pytest]\\naddopts = --collect-only\\n' > pytest.ini",
    "other tests": "echo 'def test_total(): pass' > tests/test_counts.py",
    "links": "rm src/tally/core.py; ln -s /opt/tasks/six.py src/tally/core.py",
    "nothing left": "rm -r src tests",
    "endless": "echo 'while True: pass' >> src/tally/core.py",
}


@pytest.mark.parametrize("exploit", EXPLOITS)
def test_grading_is_not_fooled(
    exploit: str,
    built: tuple[Path, dict[str, Any]],
    pool: DockerPool,
    loop: asyncio.AbstractEventLoop,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("envs.swe.attempt.GRADING_TIMEOUT_S", 5.0)
    place = world(built, pool)
    task = next(task for task in every_task(place).values() if task.family == "mutate-fix")
    facts, _ = loop.run_until_complete(attempt(place, task, EXPLOITS[exploit]))
    assert facts["solved"] is False
    assert facts["tampered"] is False, facts
    assert facts["timed_out"] is (exploit == "endless")


@pytest.fixture
def real_exploits(built: tuple[Path, dict[str, Any]], pool: DockerPool) -> dict[str, Exploit]:
    found = against_real(world(built, pool))
    assert len(found) == len(ATTACKS) + len(FILES)
    return {exploit.name: exploit for exploit in found}


LIES = ("always passed", "passed, canaries spared", "tests not called", "a report of its own", "assertions off")


@pytest.mark.parametrize("name", [*ATTACKS, *FILES])
def test_code_beside_its_tests_cannot_lie_about_them_and_honest_code_passes(
    name: str,
    real_exploits: dict[str, Exploit],
    built: tuple[Path, dict[str, Any]],
    pool: DockerPool,
    loop: asyncio.AbstractEventLoop,
) -> None:
    exploit = real_exploits[f"packages/{name}"]
    place = world(built, pool)
    facts = loop.run_until_complete(played(place, exploit.task, exploit.attack))
    assert facts["solved"] is False and facts["tampered"] is (name in LIES), facts
    assert loop.run_until_complete(played(place, exploit.task, exploit.honest))["solved"] is True


@pytest.mark.parametrize("name", ["passed, canaries spared", "a report of its own", "tests not called"])
def test_without_twins_the_same_code_would_pass(
    name: str,
    real_exploits: dict[str, Exploit],
    built: tuple[Path, dict[str, Any]],
    pool: DockerPool,
    loop: asyncio.AbstractEventLoop,
) -> None:
    exploit = real_exploits[f"packages/{name}"]
    blind = replace(exploit.task, hidden={**exploit.task.hidden, "twins": []})
    assert loop.run_until_complete(played(world(built, pool), blind, exploit.attack))["solved"] is True


async def played(place: swe.World, task: Task, actions: tuple[str, ...]) -> dict[str, Any]:
    env = place.open(task)
    try:
        await env.start()
        for action in actions:
            await env.step(action)
        return await env.measure()
    finally:
        await env.close()


def test_every_task_has_a_failing_test_with_a_twin(built: tuple[Path, dict[str, Any]]) -> None:
    for record in records(built[0]):
        covered = {test for twin in record["twins"] for test, at in twin["tests"].items() if at in twin["fails"]}
        assert covered & set(record["FAIL_TO_PASS"]), record["key"]


def test_an_edited_record_or_tree_is_noticed(built: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    found = records(built[0])
    found[0]["issue"] = "something else"
    (tmp_path / "tasks.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in found).encode()))
    with pytest.raises(ValueError, match="content hash"):
        swe.World(None, tasks=str(tmp_path))  # type: ignore[arg-type]
    place = world(built, None)
    (tmp_path / "trees").mkdir()
    for path in (built[0] / "trees").iterdir():
        (tmp_path / "trees" / path.name).write_bytes(b"another tree")
    assert place.real is not None
    place.real.trees.folder = tmp_path / "trees"
    with pytest.raises(ValueError, match="SHA-256"):
        place.real.files(place.task("train", 0))


def test_the_joint_configuration_takes_a_built_folder(
    built: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("{}")
    model, tasks = f"policy.model={tmp_path}", f"worlds.swe.args.tasks={built[0]}"
    settings = config.load("configs/joint_real.yaml", [model, tasks])
    assert settings.rollout.image == suite.IMAGE and set(settings.worlds) == {"math", "code", "swe"}
    for overrides, said in (([tasks], "policy.model"), ([model, "worlds.swe.args.tasks=nowhere"], "rl tasks build")):
        with pytest.raises(config.ConfigError, match=said):
            config.load("configs/joint_real.yaml", overrides)
