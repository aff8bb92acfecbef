"""The asynchronous run against lock-step (`train.sync`): same configuration, same warm start, same budget of tokens.

    python -m benchmarks.overlap [--json] [--tokens 60000] [--config configs/quickstart.yaml]

`ratio` is lock-step's wall time over the asynchronous one's, from the first lease to the end of the last step. `busy`
is the share of that time in which the learner learnt, `step_s` the mean of a step.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile

from rl import config
from rl.store import Run
from rl.train import train


def measure(path: str, folder: str, tokens: int, *, sync: bool) -> dict[str, float]:
    name = "sync" if sync else "async"
    overrides = [f"name={name}", f"runs={folder}", f"train.tokens={tokens}", "train.steps=100000", "eval.tasks=4"]
    settings = config.load(path, [*overrides, f"train.sync={str(sync).lower()}", "train.checkpoint_every=100000"])
    train(settings, resume=False)
    rows = Run(settings.folder).rows("metrics.jsonl")
    wall_s = sum(row["wall_s"] for row in rows)
    return {
        "wall_s": wall_s,
        "tokens": rows[-1]["tokens"],
        "steps": len(rows),
        "step_s": wall_s / len(rows),
        "played_tokens_per_s": sum(row["played_tokens_per_s"] * row["wall_s"] for row in rows) / wall_s,
        "episodes_per_s": sum(w["attempts"] for row in rows for w in row["worlds"].values()) / wall_s,
        "busy": sum(row["learn_s"] for row in rows) / wall_s,
        "staleness": sum(row["staleness_mean"] for row in rows) / len(rows),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--tokens", type=int, default=60000)
    parser.add_argument("--config", default="configs/quickstart.yaml")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="touchstone-bench-") as folder, contextlib.redirect_stdout(sys.stderr):
        found = {name: measure(args.config, folder, args.tokens, sync=name == "sync") for name in ("async", "sync")}
    per_token = {name: figures["wall_s"] / figures["tokens"] for name, figures in found.items()}
    ratio = per_token["sync"] / per_token["async"]
    if args.json:
        print(json.dumps({"ratio": ratio, **found}))
        return 0
    for name, figures in found.items():
        print(f"{name:<6}" + "  ".join(f"{value:10.2f} {key}" for key, value in figures.items()))
    print(f"ratio {ratio:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
