"""Cases a second of the code verifier, against one `docker exec` for each case: the same program, inputs and limits.

    python -m benchmarks.code_cases [--json]

Both run one case after another, in turns of 20 cases, so that what else the machine does falls on both alike.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from envs import Task
from envs.code import World
from envs.sandboxes.docker import DockerPool

IMAGE = "touchstone-sandbox:bookworm"
PROGRAM = "a = [int(x) for x in input().split()]\nprint(sum(x for x in a if x % 2 == 0))\n"
CASES = 20
TURNS = 7


def task() -> Task:
    lists = [[(7 * case + 3 * n) % 101 for n in range(12)] for case in range(CASES)]
    return Task(
        world="code",
        key="benchmark",
        family="benchmark",
        level=0,
        messages=(),
        hidden={
            "inputs": [" ".join(map(str, numbers)) + "\n" for numbers in lists],
            "outputs": [str(sum(n for n in numbers if n % 2 == 0)) for numbers in lists],
        },
    )


async def ours(world: World, problem: Task) -> float:
    """Seconds for a turn, from the answer to the facts."""
    env = world.open(problem)
    started = time.perf_counter()
    await env.step(f"```python\n{PROGRAM}```")
    facts = await env.measure()
    assert facts["solved"], facts
    return time.perf_counter() - started


@contextmanager
def container() -> Iterator[str]:
    limits = ["--network", "none", "--init", "--memory", "512m", "--cpus", "1", "--cap-drop", "ALL"]
    started = ["docker", "run", "-d", "--rm", *limits, "--tmpfs", "/work", IMAGE, "sleep", "600"]
    name = subprocess.run(started, capture_output=True, check=True, text=True).stdout.strip()
    try:
        yield name
    finally:
        subprocess.run(["docker", "rm", "-f", name], capture_output=True, check=True)


def one_exec_each(name: str, problem: Task) -> float:
    started = time.perf_counter()
    write = ["docker", "exec", "-i", name, "sh", "-c", "cat >/work/main.py"]
    subprocess.run(write, input=PROGRAM.encode(), check=True)
    for given, expected in zip(problem.hidden["inputs"], problem.hidden["outputs"], strict=True):
        argv = ["docker", "exec", "-i", name, "python3", "-I", "/work/main.py"]
        got = subprocess.run(argv, input=given.encode(), capture_output=True, check=True).stdout
        assert got.decode().strip() == expected
    return time.perf_counter() - started


async def measure() -> dict[str, float]:
    problem, pool = task(), DockerPool(run="benchmark-code", size=1)
    world = World(pool)
    try:
        await ours(world, problem)
        with container() as name:
            pairs = [(await ours(world, problem), one_exec_each(name, problem)) for _ in range(TURNS)]
    finally:
        await pool.close()
    seconds, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    return {
        "code_cases_per_s": round(CASES / seconds, 1),
        "exec_cases_per_s": round(CASES / theirs, 1),
        "code_ratio": round(theirs / seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    found = asyncio.run(measure())
    if parser.parse_args().json:
        print(json.dumps(found))
    else:
        print("\n".join(f"{key:18} {value}" for key, value in found.items()))


if __name__ == "__main__":
    main()
