"""What asynchrony buys where worlds are slow and uneven, and what the rollout path costs over the bare engine.

    python -m benchmarks.asynchrony [--json] [--tokens 4800] [--median 1.0] [--sigma 1.2]

Part 1, the real stack in both modes until the same number of sampled tokens is trained on: mathematics behind waits
drawn from a log-normal (envs/delayed.py), the same draws in both. Lock-step takes a step after each wave, the
asynchronous run after as many tokens as a wave brought on average: equal work is equal batches too. `speedup` is
lock-step's wall time over the asynchronous one's, by the token; `bound` the same quotient in a simulation of these
draws with the step and generation times that lock-step had, free of contention and of the bound on staleness;
`of_bound` their quotient. Idle: the trainer's share of waiting, and the share of the engine's raw speed not used.

Part 2: sampled tokens/s of whole episodes through workers, chat, world, verifier and reward (`path`), against the same
prompts and sampling given straight to the engine by a loop (`raw`): `of_raw`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import heapq
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

import envs
from benchmarks import throughput
from policy.chat import Chat
from policy.engines import Sampling
from rl import config, warmstart
from rl.cluster import Cluster, preflight
from rl.live import Page
from rl.store import Run
from rl.train import train

WAITING = """
name: waiting
worlds: {{delayed: {{args: {{median_s: {median}, sigma: {sigma}, args: {inner}}}}}}}
policy: {{turn_tokens: 32, context: 128}}
warmstart: {{steps: 1200}}
learner: {{lr: 1e-4}}
engine: {{max_sequences: 192, args: {{block_size: 32}}}}
train: {{steps: 100000, tokens: {tokens}, groups: {groups}, checkpoint_every: 100000}}
eval: {{tasks: 4}}
"""
INNER = "{families: [arithmetic, compare, word], levels: [0, 1], python_tool: false}"
GROUPS = 24
LEAST_TOKENS = 150
"""A batch of lock-step: below what one wave brings, so that each wave is one step."""
REQUESTS = 1536
ADMITTED = 2
"""Attempts in flight over what the engine holds at once, in both, as in a run (`train.groups`)."""
FIRST = 128
"""Requests before the clock starts: the first ones compile."""


@dataclass(frozen=True, slots=True)
class Played:
    """One group as it was played: seconds of the slowest attempt's waits, and tokens that can be trained on."""

    waited_s: float
    tokens: int


def played(run: Run) -> dict[int, Played]:
    """By lease."""
    columns = ["purpose", "lease", "facts", "advantage", "mask"]
    rows = pq.read_table(run.episodes, columns=columns).to_pylist()
    found: dict[int, Played] = {}
    for row in rows:
        if row["purpose"] == "train":
            past = found.get(row["lease"], Played(0.0, 0))
            waited_s = max(past.waited_s, json.loads(row["facts"]).get("waited_s", 0.0))
            found[row["lease"]] = Played(waited_s, past.tokens + (sum(row["mask"]) if row["advantage"] else 0))
    return found


def lockstep_s(groups: list[Played], budget: int, step_s: float, overhead_s: float) -> float:
    """Wall time of waves of GROUPS groups, each followed by a step."""
    now = trained = at = 0.0
    while trained < budget:
        ready = 0
        while ready < LEAST_TOKENS:
            wave = [groups[(int(at) + i) % len(groups)] for i in range(GROUPS)]
            at += GROUPS
            now += max(group.waited_s for group in wave) + overhead_s
            ready += sum(group.tokens for group in wave)
        now += step_s
        trained += ready
    return now


def overlapped_s(groups: list[Played], budget: int, step_s: float, overhead_s: float, batch_tokens: int) -> float:
    """Wall time where GROUPS places are always taken and steps go on beside them."""
    ends = [group.waited_s + overhead_s for group in groups[:GROUPS]]
    heap = [(end, number) for number, end in enumerate(ends)]
    heapq.heapify(heap)
    following, ready, trained, free = GROUPS, 0, 0, 0.0
    while True:
        now, number = heapq.heappop(heap)
        ready += groups[number % len(groups)].tokens
        heapq.heappush(heap, (now + groups[following % len(groups)].waited_s + overhead_s, following))
        following += 1
        if ready >= batch_tokens:
            free = max(now, free) + step_s
            trained, ready = trained + ready, 0
            if trained >= budget:
                return free


def waiting(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Part 1."""
    path = folder / "waiting.yaml"
    path.write_text(WAITING.format(**vars(args), inner=INNER, groups=GROUPS))
    batch_tokens = LEAST_TOKENS
    groups: dict[int, Played] = {}
    found: dict[str, dict[str, float]] = {}
    for name in ("sync", "async"):
        overrides = [f"name={name}", f"runs={folder}", f"train.sync={str(name == 'sync').lower()}"]
        overrides.append(f"learner.batch_tokens={batch_tokens}")
        settings = config.load(path, overrides)
        train(settings, resume=False)
        run = Run(settings.folder)
        rows = run.rows("metrics.jsonl")
        wall_s = sum(row["wall_s"] for row in rows)
        groups = played(run) | groups
        found[name] = {
            "wall_s": wall_s,
            "tokens": rows[-1]["tokens"],
            "steps": len(rows),
            "step_s": sum(row["learn_s"] + row["publish_s"] for row in rows) / len(rows),
            "sampled_tokens_per_s": sum(row["sampled_tokens_per_s"] * row["wall_s"] for row in rows) / wall_s,
            "trainer_idle": sum(row["wait_s"] for row in rows) / wall_s,
            "staleness": sum(row["staleness_mean"] for row in rows) / len(rows),
        }
        batch_tokens = round(found[name]["tokens"] / found[name]["steps"])
    order = [groups[lease] for lease in sorted(groups)]
    waits_s = sum(
        max(g.waited_s for g in order[i : i + GROUPS]) for i in range(0, GROUPS * int(found["sync"]["steps"]), GROUPS)
    )
    sync = found["sync"]
    overhead_s = max(0.0, (sync["wall_s"] - waits_s) / sync["steps"] - sync["step_s"])
    costs = (order, args.tokens, sync["step_s"], overhead_s)
    simulated = lockstep_s(*costs), overlapped_s(*costs, round(sync["tokens"] / sync["steps"]))
    speedup = (sync["wall_s"] / sync["tokens"]) / (found["async"]["wall_s"] / found["async"]["tokens"])
    bound = simulated[0] / simulated[1]
    return {
        "speedup": speedup,
        "bound": bound,
        "of_bound": speedup / bound,
        "overhead_s": overhead_s,
        "simulated_s": dict(zip(("sync", "async"), simulated, strict=True)),
        **found,
    }


def bare(folder: Path) -> dict[str, float]:
    """Part 2: the same requests through the whole path and straight into the engine."""
    settings = throughput.settings_for("worked", folder, steps=1)
    preflight(settings)
    with Page(settings) as page:
        model = str(warmstart.ensure(settings, page)[0])
    size = settings.rollout.group_size
    at_once = ADMITTED * settings.engine.max_sequences // size

    async def path(turn: int) -> float:
        cluster = Cluster(settings, "benchmark")
        gate = asyncio.Semaphore(at_once)

        async def group(index: int) -> int:
            async with gate:
                group = await cluster.play("math", "train", index, index, 0, size)
            return sum(member.trajectory.spoken for member in group.members)

        try:
            logs = folder / f"logs-{turn}"
            logs.mkdir()
            await cluster.start(model, logs, learn=False)
            await asyncio.gather(*map(group, range(FIRST // size)))
            began = time.monotonic()
            tokens = await asyncio.gather(*map(group, range(FIRST // size, REQUESTS // size)))
            return sum(tokens) / (time.monotonic() - began)
        finally:
            await cluster.close()

    async def raw() -> float:
        from policy.engines.vllm import start

        chat, world = (
            Chat.load(model),
            envs.load("math").World(None, seed=settings.seed, **settings.worlds["math"].args),
        )
        prompts = [chat.opening(list(world.task("train", i).messages)) for i in range(REQUESTS // size)]
        sampling = Sampling(max_tokens=settings.policy.turn_tokens, stop_ids=tuple(chat.stop_ids))
        gate = asyncio.Semaphore(at_once)
        engine = await start(
            model,
            max_model_len=settings.policy.context,
            dtype=settings.policy.dtype,
            max_sequences=settings.engine.max_sequences,
            args=settings.engine.args,
        )

        async def group(index: int) -> int:
            async with gate:
                said = await asyncio.gather(*(engine.generate(prompts[index], sampling) for _ in range(size)))
            return sum(len(completion.ids) for completion in said)

        try:
            await asyncio.gather(*map(group, range(FIRST // size)))
            began = time.monotonic()
            tokens = await asyncio.gather(*map(group, range(FIRST // size, REQUESTS // size)))
            return sum(tokens) / (time.monotonic() - began)
        finally:
            await engine.close()

    through, straight = zip(*((asyncio.run(path(turn)), asyncio.run(raw())) for turn in range(2)), strict=True)
    return {
        "of_raw": sum(through) / sum(straight),
        "path_tokens_per_s": sum(through) / len(through),
        "raw_tokens_per_s": sum(straight) / len(straight),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--tokens", type=int, default=4800)
    parser.add_argument("--median", type=float, default=1.0)
    parser.add_argument("--sigma", type=float, default=1.2)
    parser.add_argument("--part", type=int, choices=(1, 2))
    args = parser.parse_args()
    found: dict[str, Any] = {"median_s": args.median, "sigma": args.sigma}
    with tempfile.TemporaryDirectory(prefix="touchstone-bench-") as folder, contextlib.redirect_stdout(sys.stderr):
        if args.part != 2:
            found |= waiting(args, Path(folder))
        if args.part != 1:
            found |= bare(Path(folder))
    if "of_raw" in found and "async" in found:
        for name in ("sync", "async"):
            found[name]["engine_idle"] = 1 - found[name]["sampled_tokens_per_s"] / found["raw_tokens_per_s"]
    if args.json:
        print(json.dumps(found))
        return 0
    for name, value in found.items():
        shown = "  ".join(f"{v:9.2f} {k}" for k, v in value.items()) if isinstance(value, dict) else f"{value:9.2f}"
        print(f"{name:<18}{shown}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
