"""`rl lab score`: the stored attempts of runs under other rewards, after the advantage code that training uses."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "stored attempts under other rewards: what would have been learnt from?"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, as runs/quickstart")
    parser.add_argument(
        "--rewards", nargs="+", required=True, metavar="YAML", help="shapings: rewards, and an algorithm"
    )
    parser.add_argument("--gradients", action="store_true", help="also compare gradients on the first run's own policy")
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="that score beside each other (2)")
    parser.add_argument("--out", metavar="FOLDER", help="default: runs/lab/score-…, named by what is scored")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def run(args: argparse.Namespace) -> int:
    from rl.lab import shapings
    from rl.lab.rescore import score
    from rl.lab.show import show

    if args.processes < 1:
        raise ValueError(f"got --processes {args.processes}; expected 1 or more")
    chosen = shapings.load(args.rewards)
    folders = list(dict.fromkeys(Path(folder).resolve() for folder in args.runs))
    document = score(folders, chosen, args.out and Path(args.out), args.processes, args.gradients)
    show(document, as_json=args.json)
    return 0
