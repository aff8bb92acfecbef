"""`rl lab score` on 10,000 stored attempts under 8 shapings, from a run folder to the document.

    python -m benchmarks.scoring [--json] [--episodes 10000] [--processes 2]

The run is real but for its model: the store, the rollout's code and the world `math`, with the engine that draws its
replies (policy/engines/drawn.py), answers of 20 to 120 tokens, groups of 8. Making it is not in `seconds`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path

from envs.math import World
from policy.chat import Chat
from policy.engines.drawn import DrawnEngine
from policy.tiny import make_model, train_tokenizer
from rl import config, rollout
from rl.algorithms import load
from rl.config import RunConfig
from rl.lab import shapings
from rl.lab.progress import Bar
from rl.lab.rescore import score
from rl.store import Run
from rl.trajectory import Group

GROUP = 8
CONFIG = """
name: scoring
worlds: {math: {args: {families: [arithmetic], levels: [0], python_tool: false}}}
"""
SHAPINGS = {
    "outcome": "rewards: {outcome: {}}",
    "form": "rewards: {outcome: {}, format: {pattern: boxed, weight: 0.1}, tool_format: {weight: 0.1}}",
    "gated": "rewards: {outcome: {}, form: {reward: format, pattern: boxed, gate: true}}\nalgorithm: {name: rloo}",
    "short": "rewards: {outcome: {}, length: {soft_tokens: 30, hard_tokens: 120, weight: 0.5}}",
    "cosine": "rewards: {length_cosine: {max_tokens: 128}}\nalgorithm: {name: dapo}",
    "group": "rewards: {outcome: {}, length_group: {normalise: true, weight: 0.2}}\nalgorithm: {name: dapo}",
    "varied": "rewards: {outcome: {}, repetition: {words: 3, weight: 0.3}}",
    "potential": "rewards: {outcome: {}, potential: {of: format, args: {pattern: boxed}}, turn_cost: {weight: 0.05}}\n"
    "algorithm: {name: turns}",
}


def replies(chat: Chat) -> list[list[int]]:
    """Answers from 0 to 19, after one to six steps in words."""
    step = "First I add the tens, then I add the ones, so I get {} and go on. "
    texts = ["".join(step.format(n + k) for k in range(1 + n % 6)) + f"\\boxed{{{n}}}" for n in range(20)]
    return [chat.encode(text) + chat.stop_ids[:1] for text in texts]


async def make(settings: RunConfig, run: Run, chat: Chat, episodes: int) -> None:
    """Play the groups and store them, as settled."""
    world = World(None, seed=0, **settings.worlds["math"].args)  # type: ignore[arg-type]
    engine, algorithm = DrawnEngine(replies(chat)), load(settings.algorithm.name)
    limits = rollout.limits(settings, world)
    with Bar("play", episodes) as bar:
        for _ in range(episodes // GROUP):
            lease = run.grant("math", 0)
            task = world.task("train", lease.index)
            members = await rollout.play_group(world, task, GROUP, engine, chat, limits, settings.rewards, 0)
            group = Group(lease.id, "math", 0, members)
            algorithm.advantages(group)
            run.keep(group, "train")
            run.settle([group], "flat", 1)
            bar.add(GROUP)


def measure(folder: Path, episodes: int, processes: int) -> float:
    """Seconds for all of it, once the run is there."""
    tokenizer = train_tokenizer(["First I add the tens, then the ones, so I get 7 and go on. \\boxed{7}"] * 4, 400)
    tokenizer.save_pretrained(folder / "model")
    make_model(tokenizer, hidden=16, layers=1, heads=2, kv_heads=1, mlp=32, context=384).save_pretrained(
        folder / "model"
    )
    (folder / "run.yaml").write_text(CONFIG + f"policy: {{model: {folder / 'model'}}}\nruns: {folder}\n")
    settings = config.load(folder / "run.yaml")
    run = Run.create(settings.folder)
    config.save(settings, run.folder / "config.yaml")
    asyncio.run(make(settings, run, Chat.load(folder / "model"), episodes))
    run.close()
    for name, text in SHAPINGS.items():
        (folder / f"{name}.yaml").write_text(text)
    began = time.monotonic()
    chosen = shapings.load([str(folder / f"{name}.yaml") for name in SHAPINGS])
    document = score([settings.folder], chosen, folder / "out", processes)
    seconds = time.monotonic() - began
    if document.figures["attempts"] != episodes // GROUP * GROUP:
        raise RuntimeError(f"{document.figures['attempts']} attempts were scored; expected {episodes // GROUP * GROUP}")
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--episodes", type=int, default=10_000)
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    if args.episodes < GROUP:
        parser.error(f"got --episodes {args.episodes}; expected at least {GROUP}")
    with tempfile.TemporaryDirectory(prefix="touchstone-bench-") as folder:
        seconds = measure(Path(folder), args.episodes, args.processes)
    found = {"episodes": args.episodes // GROUP * GROUP, "rewards": len(SHAPINGS), "seconds": round(seconds, 2)}
    print(json.dumps(found) if args.json else "  ".join(f"{name} {value}" for name, value in found.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
