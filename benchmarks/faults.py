"""Failures injected at every boundary, at a rate of 10 %: does any reach a reward, and is any prompt lost?

    python -m benchmarks.faults [--json] [--only boundary,...] [--groups 30] [--rate 0.1] [--backend auto]

Within one process, over real worlds, sandboxes, rewards, ledger and driver code: sandbox_create, sandbox_exec,
mid_episode_death (the sandbox is really killed), grading, judge_hang, engine_crash. With real processes
(benchmarks/outages.py): actor_kill (SIGKILL of worker, engine and learner), daemon_restart, disk_full.

The policy recites scripted experts, right and wrong in turn, so the score of each attempt is known beforehand:
`false_zeros` counts right attempts that were scored below 1. `lost_prompts` were leased and never judged,
`duplicated_prompts` more than once. `wasted_fraction` is the share of attempts thrown away, the worst of all
boundaries. `recovery_s` is the longest time from a kill to the next group or step that is done, `hung` counts waits
past their deadline. `gradient_equal`: the step on groups with lost members is, bit for bit, that on the valid members.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import envs
from benchmarks.injection import BOUNDARIES, Faults, FaultyWorld
from envs import Outcome, World, sandboxes
from envs.sandboxes import Sandbox, SandboxUnavailable
from policy.chat import Chat
from policy.engines.recited import RecitedEngine
from policy.tiny import make_model, train_tokenizer
from rl import config, rollout
from rl.episodes import unpack
from rl.learner import Learner, Settings
from rl.live import Page
from rl.store import Run
from rl.train import Training
from rl.trajectory import Group

CONTEXT = 2048
LIMITS = rollout.Limits(context=CONTEXT, turn_tokens=1024, turns=6, timeout_s=120.0)
CALL_TIMEOUT_S = 8.0
"""Of one call into a world here, in place of a run's 900 s, so that a judge that hangs is given up soon."""
SCENARIO_TIMEOUT_S = 200.0
WORLDS: dict[str, dict[str, Any]] = {"code": {}, "swe": {"families": ["guard"]}}
BARS = {"false_zeros": 0, "lost_prompts": 0, "duplicated_prompts": 0, "wasted_fraction": 0.15, "hung": 0}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def policy(folder: Path) -> Path:
    """A random small policy with a tokenizer of plain bytes and a chat template."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["user assistant system tool bash"], 300)
    model = make_model(tokenizer, hidden=32, layers=2, heads=2, kv_heads=1, mlp=64, context=CONTEXT)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def expert(world: World, split: envs.Split, index: int, *, err: bool) -> tuple[list[envs.Message], list[str]]:
    """How the conversation opens, and what a scripted expert says in it."""
    demo = world.demonstrate(world.task(split, index), random.Random(index), err=err)
    first = next(place for place, message in enumerate(demo) if message["role"] == "assistant")
    return demo[:first], [message["content"] for message in demo if message["role"] == "assistant"]


class Local:
    """What the driver asks of a cluster, for playing: worlds with faults, and the recited policy, in this process."""

    def __init__(self, worlds: Mapping[str, World], engine: Any, recited: RecitedEngine, groups: list[Group]) -> None:
        self.worlds, self.engine, self.recited, self.groups = worlds, engine, recited, groups
        self.done: list[tuple[float, bool]] = []
        """When each group began, and whether the machinery lost none of it."""

    async def play(self, world: str, split: envs.Split, index: int, lease: int, version: int, size: int) -> Group:
        place = self.worlds[world]
        for err in (False, True):
            opening, turns = expert(place, split, index, err=err)
            self.recited.learn(self.recited.chat.tokenizer.decode(self.recited.chat.opening(opening)), turns)
        task, judges = rollout.task_of(place, split, index), {"outcome": {"weight": 1.0}}
        playing = rollout.play_group(place, task, size, self.engine, self.recited.chat, LIMITS, judges, 1)
        began = time.monotonic()
        self.groups.append(Group(lease, world, version, await playing))
        self.done.append((began, all(member.valid for member in self.groups[-1].members)))
        return self.groups[-1]


async def killed(sandbox: Sandbox) -> None:
    """End a leased sandbox from outside: its container is removed, or its process loses its stream."""
    wire = sandbox._wire  # type: ignore[attr-defined]
    await asyncio.sleep(0.2)
    if wire.name.startswith("touchstone-"):
        from envs.sandboxes.docker import engine

        await asyncio.to_thread(lambda: engine.remove(engine.connect(), wire.name))
    else:
        wire.close()


def settings_for(folder: Path, model: Path, name: str, **overrides: Any) -> config.RunConfig:
    text = {
        "name": name,
        "runs": str(folder),
        "worlds": {world: {"args": args} for world, args in WORLDS.items()},
        "policy": {"model": str(model), "context": CONTEXT, "turn_tokens": LIMITS.turn_tokens},
        "rollout": {"group_size": 4, "sandboxes": 4},
        "train": {"groups": 4},
    }
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(text))
    return config.load(path, [f"{key}={value}" for key, value in overrides.items()])


async def scenario(
    boundary: str,
    backend: str,
    folder: Path,
    model: Path,
    groups: int,
    rate: float,
    meanwhile: Callable[[], Awaitable[float]] | None = None,
) -> tuple[dict[str, Any], list[Group]]:
    """Play `groups` leases under faults at one boundary, through the driver's own code.

    `meanwhile` does harm of its own and says when; `recovery_s` counts from then to the beginning of the next group of
    which nothing is lost.
    """
    settings = settings_for(folder, model, boundary)
    faults = Faults(boundary, rate, seed=0, kill=killed)
    pool = sandboxes.load(backend).Pool(run=f"faults-{boundary}-{os.getpid()}", size=settings.rollout.sandboxes)
    worlds = {
        name: FaultyWorld(envs.load(name).World(faults.pool(pool), **args), faults) for name, args in WORLDS.items()
    }
    recited = RecitedEngine(Chat.load(model))
    played: list[Group] = []
    run = Run.create(settings.folder)
    page = Page(settings, Console(stderr=True, quiet=True))
    cluster = Local(worlds, faults.engine(recited), recited, played)
    training = Training(settings, run, cluster, page)  # type: ignore[arg-type]

    async def some() -> None:
        while run.db.execute("select count(*) from lease").fetchone()[0] < groups or training.owed:
            await training.play()

    began, hung = time.monotonic(), 0
    harm = asyncio.ensure_future(meanwhile()) if meanwhile else None
    players = [some() for _ in range(settings.train.groups)]
    try:
        await asyncio.wait_for(asyncio.gather(*players, *([harm] if harm else [])), SCENARIO_TIMEOUT_S)
    except TimeoutError:
        hung = 1
    finally:
        await pool.close()
        training.run.close()
    found = {**account(settings.folder, worlds), "struck": faults.struck, "hung": hung}
    if harm is not None:
        harmed_at = await harm
        after = [at for at, whole in cluster.done if at > harmed_at and whole]
        found |= {"recovery_s": after[0] - harmed_at if after else SCENARIO_TIMEOUT_S, "hung": hung + (not after)}
    return {**found, "wall_s": time.monotonic() - began}, played


def account(folder: Path, worlds: Mapping[str, World]) -> dict[str, Any]:
    """What a run folder says of its prompts and attempts: the ledger, and every stored episode."""
    import pyarrow.parquet as pq

    run = Run.reopen(folder)
    leases = run.db.execute("select id, world, task_index, state from lease").fetchall()
    unsettled = run.db.execute("select row from episode where purpose = 'train' and row is not null").fetchall()
    run.close()
    index_of = {lease: (world, index) for lease, world, index, _ in leases}
    rows = [
        row
        for shard in sorted((folder / "episodes").glob("[0-9]*.parquet"))
        for row in pq.read_table(shard).to_pylist()
        if row["purpose"] == "train"
    ]
    rows += [unpack(row).to_pylist()[0] for (row,) in unsettled]
    zeros = lost = 0
    stored: dict[tuple[int, int], int] = {}
    for row in rows:
        stored[row["lease"], row["member"]] = stored.get((row["lease"], row["member"]), 0) + 1
        if not Outcome(row["outcome"]).valid:
            lost += 1
            assert row["score"] is None, row
            continue
        world, index = index_of[row["lease"]]
        said = [message["content"] for message in json.loads(row["messages"]) if message["role"] == "assistant"]
        zeros += said == expert(worlds[world], "train", index, err=False)[1] and row["score"] < 1
    judged = {row["lease"] for row in rows if Outcome(row["outcome"]).valid}
    settled = [(lease, state) for lease, _, _, state in leases if state != "open"]
    positions: dict[str, set[int]] = {}
    for _, world, index, _ in leases:
        positions.setdefault(world, set()).add(index)
    missing = sum(max(seen) + 1 - len(seen) for seen in positions.values())
    again = sum(count > 1 for count in stored.values())
    return {
        "prompts": len(leases),
        "attempts": len(rows),
        "right": sum(row["score"] == 1 for row in rows),
        "false_zeros": zeros,
        "lost_prompts": missing + sum(state == "lost" or lease not in judged for lease, state in settled),
        "duplicated_prompts": len(leases) - sum(len(seen) for seen in positions.values()),
        "stored_again": again,
        "wasted_fraction": (lost + again) / max(1, len(rows)),
    }


def gradients_equal(model: Path, played: list[Group]) -> bool:
    """One real step on the groups as they came, and one on groups that hold their valid members only."""
    moments = []
    for only_valid in (False, True):
        settings = Settings(
            model=str(model), lr=1e-3, loss_denominator=4096, row_tokens=CONTEXT, device="cpu", threads=1
        )
        learner = Learner(settings)
        members = []
        for group in played:
            chosen = Group(group.lease, group.world, 0, group.valid if only_valid else group.members)
            for member in group.members:
                member.advantage = float("nan") if not member.valid else 0.0  # would be seen
            learner.algorithm.advantages(chosen)
            members += chosen.valid
        learner.step([member for member in members if member.advantage])
        state = learner.optimizer.state_dict()["state"]
        moments.append(
            [state[key]["exp_avg"].clone() for key in sorted(state)]
        )  # after one step: a tenth of the gradient
    return any(bool(m.any()) for m in moments[0]) and all(map(torch.equal, *moments))


def in_process(only: list[str], backend: str, folder: Path, model: Path, groups: int, rate: float) -> dict[str, Any]:
    rollout.WORLD_TIMEOUT_S, usual = CALL_TIMEOUT_S, rollout.WORLD_TIMEOUT_S
    found: dict[str, Any] = {}
    all_played: list[Group] = []
    try:
        for boundary in only:
            found[boundary], played = asyncio.run(scenario(boundary, backend, folder, model, groups, rate))
            all_played += played
            say(f"{boundary}: {json.dumps(found[boundary])}")
    finally:
        rollout.WORLD_TIMEOUT_S = usual
    mixed = [group for group in all_played if len(group.valid) < len(group.members)]
    if mixed:
        found["gradient_equal"] = gradients_equal(model, mixed[:16])
    return found


def main() -> int:
    from benchmarks import outages

    everywhere = [*BOUNDARIES, *outages.OUTAGES]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", default=",".join(everywhere))
    parser.add_argument("--groups", type=int, default=30)
    parser.add_argument("--rate", type=float, default=0.1)
    parser.add_argument("--backend", default="auto")
    args = parser.parse_args()
    only = args.only.split(",")
    if unknown := sorted(set(only) - set(everywhere)):
        parser.error(f"got --only {','.join(unknown)}; available: {', '.join(everywhere)}")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="touchstone-faults-") as name:
        folder = Path(name)
        backend = sandboxes.choose(args.backend, "touchstone-sandbox:bookworm")
        model = policy(folder / "policy")
        inside = [boundary for boundary in BOUNDARIES if boundary in only]
        found = in_process(inside, backend, folder, model, args.groups, args.rate)
        skipped = {}
        for outage in (outage for outage in outages.OUTAGES if outage in only):
            try:
                found[outage] = outages.OUTAGES[outage](folder, model)
                say(f"{outage}: {json.dumps(found[outage])}")
            except SandboxUnavailable as reason:
                skipped[outage] = str(reason)
                say(f"{outage}: skipped, {reason}")
    result = totals(found, skipped)
    print(json.dumps(result) if args.json else "\n".join(f"{k:20} {v}" for k, v in result.items() if k != "boundaries"))
    passed = all(result[key] <= bar for key, bar in BARS.items()) and result["gradient_equal"] is not False
    return 0 if passed else 1


def totals(found: dict[str, Any], skipped: dict[str, str]) -> dict[str, Any]:
    equal = found.pop("gradient_equal", None)
    rows = found.values()
    return {
        **{key: sum(row.get(key, 0) for row in rows) for key in ("false_zeros", "lost_prompts", "duplicated_prompts")},
        "wasted_fraction": max((row.get("wasted_fraction", 0.0) for row in rows), default=0.0),
        "recovery_s": max((row.get("recovery_s", 0.0) for row in rows), default=0.0),
        "hung": sum(row.get("hung", 0) for row in rows),
        "gradient_equal": equal,
        "skipped": skipped,
        "boundaries": found,
    }


if __name__ == "__main__":
    sys.exit(main())
