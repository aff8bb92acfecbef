"""The verifiers against what they are built on, in one run: verdicts a second, memory, and the worst that a bomb costs.

    python -m benchmarks.verifiers [--json] [--only math] [--pairs 400]

Math, on one list of generated pairs (half of them wrong), `math_ratio` being `math_per_s / math_direct_per_s`:
- `math_per_s`, `math_asked`: this verifier with a container of WORKERS children; the share of pairs that reached it;
- `math_container_per_s`: the same where every pair goes to the container, whatever this process could decide;
- `math_direct_per_s`: Math-Verify's own parse and verify in this process, with its default limits of 5 s;
- `math_agree`, `math_right`, `math_direct_right`: share of pairs with the same verdict from both; each with the label;
- `math_start_s`: from nothing to the first verdict; `math_peak_mb`: of this process while this verifier ran;
- `math_bomb_s`, `math_hung`: the longest verdict on a bomb, and how many had none within ten times the limit.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

from envs.math.exploits import EXPLOITS
from envs.math.judge import CPU_S, WORKERS, Judge
from envs.sandboxes.docker import DockerPool

SLICE = 40
NEEDS_PARSER = r"1 + \sqrt{x}", r"\sqrt{x} + 1"
AT_ONCE = 32
"""Verdicts asked for at a time, as by the attempts of a rollout worker."""


def pairs(count: int) -> list[tuple[str, str, bool]]:
    """Gold, answer, and whether it is right: of 10, 4 are integers, 2 other numbers, 2 expressions, 2 tuples."""
    rng = random.Random(0)
    kinds: list[Callable[[int, int], tuple[str, str, str]]] = [
        lambda a, b: (str(a * b), str(a * b), str(a + b)),
        lambda a, b: (str(a * b), f"{a * b:,}", str(a * b + 1)),
        lambda a, b: (str(1000 * a), f"{1000 * a:,}", f"{1000 * a + b:,}"),
        lambda a, b: (str(-a), f"x = -{a}", f"x = {a}"),
        lambda a, b: (f"\\frac{{{a}}}{{{b + 1}}}", f"{a}/{b + 1}", f"{b + 1}/{a}"),
        lambda a, b: (f"{a}\\sqrt{{{b}}}", f"\\sqrt{{{a * a * b}}}", f"\\sqrt{{{a * b}}}"),
        lambda a, b: (f"x^2 - {a * a}", f"(x - {a})(x + {a})", f"(x - {a})^2"),
        lambda a, b: (f"{a}x + {b}", f"y = {b} + {a}x", f"y = {a} + {b}x + 1"),
        lambda a, b: (f"({a}, \\frac{{{b}}}{{2}})", f"({a}, {b / 2})", f"({b / 2}, {a})"),
        lambda a, b: (f"[{a}, {a + b})", f"{a} \\le x < {a + b}", f"{a} < x \\le {a + b}"),
    ]
    found = []
    for i in range(count):
        gold, right, wrong = kinds[i % len(kinds)](rng.randint(2, 99), rng.randint(100, 199))
        correct = i // len(kinds) % 2 == 0
        found.append((gold, right if correct else wrong, correct))
    return found


def direct(gold: str, answer: str) -> bool:
    from math_verify import LatexExtractionConfig, parse, verify

    config = [LatexExtractionConfig()]
    return bool(verify(*(parse(f"${text}$", extraction_config=config) for text in (gold, answer))))


async def all_verdicts(ask: Callable[[str, str], Any], given: list[tuple[str, str, bool]]) -> list[bool]:
    places = asyncio.Semaphore(AT_ONCE)

    async def one(gold: str, answer: str) -> bool:
        async with places:
            return bool(await ask(answer, gold) == "right")

    return list(await asyncio.gather(*(one(gold, answer) for gold, answer, _ in given)))


async def bombs(judge: Judge) -> tuple[float, int]:
    """The longest that one exploit of the shipped list took, and how many hung."""
    longest, hung = 0.0, 0
    for gold, answer in EXPLOITS.values():
        begun = time.perf_counter()
        try:
            async with asyncio.timeout(10 * CPU_S):
                assert await judge.verdict(answer, gold) != "right", (gold, answer[:80])
        except TimeoutError:
            hung += 1
        longest = max(longest, time.perf_counter() - begun)
    return longest, hung


async def math(count: int) -> dict[str, float]:
    """Ours and theirs take turns, SLICE pairs each, so that both meet the same machine."""
    given = list(dict.fromkeys(pairs(count)))
    labels = [right for _, _, right in given]
    pool = DockerPool(run="benchmark-verifiers", size=1)
    judge = Judge(pool, timeout_s=60.0)
    ours: list[bool] = []
    theirs: list[bool] = []
    spent = {"": 0.0, "container_": 0.0, "direct_": 0.0}
    try:
        begun = time.perf_counter()
        await judge.verdict(*NEEDS_PARSER)
        start_s = time.perf_counter() - begun
        bomb_s, hung = await bombs(judge)
        await all_verdicts(judge.verdict, given[:SLICE])
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        direct("x + 1", "1 + x")  # its imports and tables are not counted either
        judge = Judge(pool, timeout_s=60.0)
        await judge.verdict(*NEEDS_PARSER)
        judge.asked = 0
        for at in range(0, len(given), SLICE):
            part = given[at : at + SLICE]
            marks = [time.perf_counter()]
            ours += await all_verdicts(judge.verdict, part)
            asked = judge.asked
            marks.append(time.perf_counter())
            await all_verdicts(lambda answer, gold: judge._ask(gold, answer), part)
            judge.asked = asked
            marks.append(time.perf_counter())
            theirs += [direct(gold, answer) for gold, answer, _ in part]
            marks.append(time.perf_counter())
            for name, begin, end in zip(spent, marks, marks[1:], strict=False):
                spent[name] += end - begin
    finally:
        await pool.close()
    return {
        "math_ratio": spent["direct_"] / spent[""],
        **{f"math_{name}per_s": len(given) / seconds for name, seconds in spent.items()},
        "math_asked": judge.asked / len(given),
        "math_right": _share(ours, labels),
        "math_direct_right": _share(theirs, labels),
        "math_agree": _share(ours, theirs),
        "math_pairs": len(given),
        "math_workers": WORKERS,
        "math_start_s": start_s,
        "math_peak_mb": peak_mb,
        "math_bomb_s": bomb_s,
        "math_hung": hung,
    }


def _share(one: list[bool], other: list[bool]) -> float:
    return sum(a == b for a, b in zip(one, other, strict=True)) / len(one)


SECTIONS = {"math": lambda args: asyncio.run(math(args.pairs))}
"""A section returns its figures, each key with the section's name before it."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", choices=sorted(SECTIONS))
    parser.add_argument("--pairs", type=int, default=400)
    args = parser.parse_args()
    figures: dict[str, float] = {}
    for name, section in SECTIONS.items():
        if args.only in (None, name):
            figures |= section(args)
    if args.json:
        print(json.dumps(figures))
        return 0
    for name, value in figures.items():
        print(f"{name:<22}{value:10.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
