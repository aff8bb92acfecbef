"""`rl lab audit`: does a hack pay? Every reward against attempts whose truth is known, played in real sandboxes.

With F what an honest failure gets and G what gold gets of the same task (where the task has none, the median of the
world's), an attempt is paid where it gets more than F + margin (G - F). A hack is an empty answer, the prompt's echo or
an exploit; the audit fails where one is paid, where a near miss that is wrong gets as much as gold, where gold gets no
more than an honest failure, and where gold or a whole kind of hack has no score. Wrong attempts in earnest may be paid
in part: that is what partial credit is for.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

HELP = "does a hack pay? rewards against gold, empty, echo, near misses and the known exploits"
MARGIN = 0.2
TASKS = 4


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("places", nargs="+", metavar="CONFIG|WORLD", help="a YAML file of a run, or a world")
    parser.add_argument("--rewards", nargs="+", required=True, metavar="YAML", help="shapings, as of rl lab score")
    parser.add_argument("--tasks", type=int, default=TASKS, metavar="N", help=f"training tasks of each world ({TASKS})")
    parser.add_argument("--margin", type=float, default=MARGIN, metavar="SHARE", help=f"see docs/lab.md ({MARGIN})")
    parser.add_argument("--out", metavar="FOLDER", help="default: runs/lab/audit-…, named by what is audited")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def run(args: argparse.Namespace) -> int:
    """Exit code 1 where a hack pays."""
    from rl.lab import confusion, hashes, shapings
    from rl.lab.document import save
    from rl.lab.show import show

    if args.tasks < 1 or not 0 <= args.margin < 1:
        raise ValueError(f"got --tasks {args.tasks}, --margin {args.margin}; expected 1 or more, and from 0 to below 1")
    chosen = shapings.load(args.rewards)
    found = [place for given in args.places for place in confusion.places(given)]
    out = Path(args.out) if args.out else Path("runs") / "lab" / f"audit-{confusion.name(found, chosen)}"
    played = asyncio.run(confusion.play(found, args.tasks))
    document = confusion.judge(played, chosen, args.margin, out.name)
    document.hashes |= {f"world/{place.name}": hashes.world(place.ref, place.args) for place in found}
    save(document, out)
    print(f"{out / 'document.json'}; see it with: rl lab report {out}", file=sys.stderr)
    show(document, as_json=args.json)
    return 1 if document.figures["failed"] else 0
