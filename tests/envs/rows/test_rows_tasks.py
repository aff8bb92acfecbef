"""Problems as tasks of the real worlds: splits, hiding, the expert, and playing them."""

import asyncio
import json
import random
from pathlib import Path

import pytest

import envs
from envs import rows
from envs.rows import tasks
from envs.sandboxes.docker import DockerPool


def math_file(folder: Path, count: int = 60) -> str:
    path = folder / "math.jsonl"
    path.write_text(
        "".join(json.dumps({"problem": f"What is {i} + 1000?", "answer": i + 1000}) + "\n" for i in range(count))
    )
    return str(path)


def code_file(folder: Path, count: int = 40) -> str:
    path = folder / "code.jsonl"
    made = []
    for i in range(count):
        tests = {"inputs": [f"{j}\n" for j in range(3)], "outputs": [f"{j + i}\n" for j in range(3)]}
        solution = f"print(int(input()) + {i})"
        made.append({"question": f"Add {i}.", "input_output": json.dumps(tests), "solutions": json.dumps([solution])})
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return str(path)


def test_splits_go_by_key_repeat_and_cover_the_file(tmp_path: Path) -> None:
    path = math_file(tmp_path)
    first, second, other = (envs.load("math").World(None, seed=seed, tasks=path) for seed in (1, 1, 2))
    train = [first.task("train", i).key for i in range(200)]
    held_out = [first.task("heldout", i).key for i in range(200)]
    assert not set(train) & set(held_out) and len(set(train) | set(held_out)) == 60
    assert train == [second.task("train", i).key for i in range(200)]
    assert train != [other.task("train", i).key for i in range(200)]
    assert held_out == [other.task("heldout", i).key for i in range(200)]
    size = len(set(train))
    assert set(train[:size]) == set(train[size : 2 * size]) and train[:size] != train[size : 2 * size]


def test_the_order_in_the_file_does_not_matter(tmp_path: Path) -> None:
    path = Path(math_file(tmp_path))
    before = [
        t.content_hash for t in (envs.load("math").World(None, tasks=str(path)).task("heldout", i) for i in range(9))
    ]
    path.write_text("".join(sorted(path.read_text().splitlines(keepends=True), reverse=True)))
    after = [
        t.content_hash for t in (envs.load("math").World(None, tasks=str(path)).task("heldout", i) for i in range(9))
    ]
    assert before == after


def test_answers_tests_and_patches_are_hidden_only(tmp_path: Path) -> None:
    task = envs.load("math").World(None, tasks=math_file(tmp_path)).task("train", 0)
    assert task.hidden["answer"] not in json.dumps([task.messages, dict(task.given)])
    row = {
        "repo": "acme/anvil",
        "instance_id": "i",
        "base_commit": "c",
        "patch": "the fix",
        "test_patch": "the tests",
        "problem_statement": "It floats.",
        "FAIL_TO_PASS": ["the test"],
        "PASS_TO_PASS": [],
        "hints_text": "the hint",
    }
    swe = tasks.swe_task(rows.load([row]).problems[0])
    shown = json.dumps([swe.messages, dict(swe.given)])
    assert not any(secret in shown for secret in ("the fix", "the tests", "the test", "the hint"))
    assert swe.hidden["patch"] == "the fix" and swe.given["base_commit"] == "c"


def test_function_cases_are_carried_whole() -> None:
    row = {"text": "Double it.", "task_id": 9, "code": "def g(x): return 2 * x", "test_list": ["assert g(1) == 2"]}
    task = tasks.code_task(rows.load([row]).problems[0])
    carried = {name: task.hidden[name] for name in ("kind", "function", "inputs", "outputs")}
    assert carried == {"kind": "function", "function": "g", "inputs": [[1]], "outputs": [2]}
    assert "`g`" in task.messages[0]["content"]


def test_what_a_world_cannot_take_is_counted_and_a_file_without_any_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mixed.jsonl"
    stdin = json.loads(Path(code_file(tmp_path, 1)).read_text())
    path.write_text(json.dumps(stdin) + "\n" + json.dumps({"problem": "P", "answer": "1"}) + "\n")
    report = envs.load("code").World(None, tasks=str(path)).stream.report
    assert (report.read, report.taken) == (2, 1) and report.refused == {"no problem of programming": 1}
    with pytest.raises(ValueError, match="world code can take no problem of"):
        envs.load("code").World(None, tasks=math_file(tmp_path))
    with pytest.raises(ValueError, match="has no known shape"):
        path.write_text('{"x": 1}\n')
        envs.load("math").World(None, tasks=str(path))
    with pytest.raises(ValueError, match="levels has no effect where tasks come from a file"):
        envs.load("math").World(None, tasks=math_file(tmp_path), levels=[0])


def test_a_split_without_tasks_says_so(tmp_path: Path) -> None:
    world = envs.load("math").World(None, tasks=math_file(tmp_path, 1))
    empty = "train" if not world.stream.tasks["train"] else "heldout"
    with pytest.raises(ValueError, match=f"has no {empty} task among 1"):
        world.task(empty, 0)


async def solved(world: envs.World, task: envs.Task, *actions: str) -> bool:
    env = world.open(task)
    try:
        await env.start()
        for action in actions:
            await env.step(action)
        return bool((await env.measure())["solved"])
    finally:
        await env.close()


def said(world: envs.World, task: envs.Task, *, err: bool) -> str:
    return world.demonstrate(task, random.Random(0), err=err)[-1]["content"]


def test_math_rows_are_played_and_judged(tmp_path: Path) -> None:
    async def main() -> None:
        world = envs.load("math").World(None, tasks=math_file(tmp_path), python_tool=False)
        for index in range(5):
            task = world.task("train", index)
            assert await solved(world, task, said(world, task, err=False))
            assert not await solved(world, task, said(world, task, err=True))
        await world.close()

    asyncio.run(main())


def test_several_answers_tolerances_and_python_values(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    made = [
        {"prompt": "A", "reward_model": {"ground_truth": ["10", "12"]}, "data_source": "d"},
        {"question": "B", "final_answer": ["1.5"], "error": "0.1"},
        {"code": "def f(): ...", "input": "", "output": "[(1, 'a'), True]", "id": "C"},
    ]
    path.write_text("".join(json.dumps({"id": name, **row}) + "\n" for name, row in zip("ABC", made, strict=True)))
    right = {"A": ["10", "12"], "B": ["1.5", "1.58"], "C": ["[(1,'a'),True]"]}
    wrong = {"A": ["11"], "B": ["1.7"], "C": ["[(1, 'a'), 1]", "[[1, 'a'], True]", "rubbish("]}

    async def main() -> None:
        world = envs.load("math").World(None, tasks=str(path), python_tool=False)
        for task in (t for split in world.stream.tasks.values() for t in split):
            for answers, expected in ((right, True), (wrong, False)):
                for answer in answers[task.key]:
                    assert await solved(world, task, f"\\boxed{{{answer}}}") is expected, (task.key, answer)
        await world.close()

    asyncio.run(main())


@pytest.mark.docker
def test_code_rows_are_played_and_judged(tmp_path: Path) -> None:
    async def main() -> None:
        pool = DockerPool(run="test-rows", size=1)
        try:
            world = envs.load("code").World(pool, tasks=code_file(tmp_path))
            for index in range(3):
                task = world.task("train", index)
                assert await solved(world, task, said(world, task, err=False))
                assert not await solved(world, task, said(world, task, err=True))
        finally:
            await pool.close()

    asyncio.run(main())
