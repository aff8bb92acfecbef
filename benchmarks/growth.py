"""The controller as episodes in flight grow from 16 to 4,096: CPU time and memory of driver and rollout worker.

    python -m benchmarks.growth [--json] [--most 4096]

The real driver loop, ledger, Ray actors and world, with the scripted engine (policy/engines/scripted.py) in place of a
model. Waits grow with the number in flight (envs/delayed.py), so that every size plays about RATE episodes a second and
a linear controller costs the same CPU time an episode. `cpu_growth`: that cost at the largest size over that at the
smallest, of driver and worker together. `kb_an_episode`: what an episode in flight adds to their memory.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rl import config, warmstart
from rl.cluster import Cluster, preflight
from rl.live import Page
from rl.store import Run
from rl.train import Training

RATE = 100.0
SIGMA = 0.5
SECONDS = 20.0
TURNOVERS = 2.5
"""Of the attempts, before the measuring: those that began together also end together at first. A group, which takes as
long as its slowest attempt, is then in its second."""
CONFIG = """
name: growth
worlds:
  delayed: {{args: {{median_s: {median}, sigma: {sigma}, args: {{families: [arithmetic], python_tool: false}}}}}}
policy: {{model: {model}}}
engine: {{name: scripted}}
train: {{groups: {groups}}}
"""


def of_process(pid: int) -> tuple[float, float]:
    """CPU seconds and resident MB of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), pages * os.sysconf("SC_PAGE_SIZE") / 2**20


async def worker_pid(cluster: Cluster) -> int:
    """Its own rollout worker: there may be others on this machine."""
    pid: int = await cluster.workers[0].actor.__ray_call__.remote(lambda _: os.getpid())
    return pid


def measure(folder: Path, model: str, episodes: int) -> dict[str, float]:
    """One size, for SECONDS once it is in its stride."""
    median_s = episodes / RATE / math.exp(SIGMA**2 / 2)
    path = folder / "growth.yaml"
    path.write_text(CONFIG.format(median=median_s, sigma=SIGMA, model=model, groups=max(1, episodes // 8)))
    settings = config.load(path, [f"name=growth-{episodes}", f"runs={folder}"])
    preflight(settings)
    run = Run.create(settings.folder)

    async def main() -> dict[str, float]:
        cluster = Cluster(settings, f"growth-{episodes}")
        try:
            await cluster.start(model, run.logs, learn=False)
            training = Training(settings, run, cluster, Page(settings))
            feeding = asyncio.create_task(training.feed())
            await asyncio.sleep(5 + TURNOVERS * episodes / RATE)
            pids = (os.getpid(), await worker_pid(cluster))
            before, began, played = [of_process(pid) for pid in pids], time.monotonic(), len(training.window.groups)
            await asyncio.wait({feeding}, timeout=SECONDS)
            after, seconds = [of_process(pid) for pid in pids], time.monotonic() - began
            if feeding.done():
                feeding.result()
            done = sum(len(group.members) for group in training.window.groups[played:])
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
        finally:
            await cluster.close()
        return {
            "episodes_per_s": done / seconds,
            "driver_ms": 1000 * (after[0][0] - before[0][0]) / done,
            "worker_ms": 1000 * (after[1][0] - before[1][0]) / done,
            "driver_mb": after[0][1],
            "worker_mb": after[1][1],
        }

    try:
        return asyncio.run(main())
    finally:
        run.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--most", type=int, default=4096)
    args = parser.parse_args()
    if args.most < 64:
        parser.error(f"got --most {args.most}; expected at least 64")
    sizes = [size for size in (16, 64, 256, 1024, 4096) if size <= args.most]
    with tempfile.TemporaryDirectory(prefix="touchstone-bench-") as folder, contextlib.redirect_stdout(sys.stderr):
        settings = config.load("configs/quickstart.yaml")
        with Page(settings) as page:
            model = str(warmstart.ensure(settings, page)[0].resolve())
        found = {size: measure(Path(folder), model, size) for size in sizes}
    first, last = found[sizes[0]], found[sizes[-1]]
    cpu_growth = (last["driver_ms"] + last["worker_ms"]) / (first["driver_ms"] + first["worker_ms"])
    grown_mb = last["driver_mb"] + last["worker_mb"] - first["driver_mb"] - first["worker_mb"]
    summary: dict[str, Any] = {"cpu_growth": cpu_growth, "kb_an_episode": 1024 * grown_mb / (sizes[-1] - sizes[0])}
    if args.json:
        print(json.dumps({**summary, "sizes": found}))
        return 0
    print(f"{'in flight':>9}" + "".join(f"{name:>16}" for name in first))
    for size, figures in found.items():
        print(f"{size:>9}" + "".join(f"{value:16.2f}" for value in figures.values()))
    print("  ".join(f"{name} {value:.2f}" for name, value in summary.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
