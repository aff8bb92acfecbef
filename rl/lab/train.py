"""`rl lab train EXPERIMENT.yaml`: K shapings x N seeds through the real trainer, and what became of the true success.

runs/lab/<name>/configs/, cells/, logs/   a configuration, an ordinary run folder and a log for each SHAPING-SEED
                document.json             what was found: `rl lab report` and `rl lab diff` read it
"""

from __future__ import annotations

import argparse
import multiprocessing
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rl import quarantine, warmstart
from rl.lab import cells, experiment, study
from rl.lab.document import Document, save
from rl.lab.experiment import Experiment
from rl.lab.show import show

HELP = "train with each of several rewards under several seeds, and compare true success"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("experiment", metavar="EXPERIMENT", help="a YAML file, as configs/lab/shapings.yaml")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="of the experiment, as seeds=[0,1] or name=second, or else of every cell, as train.steps=2",
    )
    parser.add_argument("--at-once", type=int, default=1, metavar="N", help="cells that run side by side (1)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def run(args: argparse.Namespace) -> int:
    if args.at_once < 1:
        raise ValueError(f"got --at-once {args.at_once}; expected 1 or more")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what is playing is saved
    found = train(experiment.load(Path(args.experiment), args.overrides), at_once=args.at_once)
    show(found, as_json=args.json)
    return 0


def train(planned: Experiment, *, at_once: int = 1, command: Sequence[str] = cells.TRAIN) -> Document:
    """Play every cell that is not finished yet, one `command` each; then read them all."""
    quarantine.tell(quarantine.read(planned.base)[1])
    say = Said()
    of = planned.cells(_start(planned, say))
    cells.write(of)
    _known_faults(planned)
    cells.Player(of, say, command, at_once).play()
    found = study.document(planned, of)
    say(f"written: {save(found, planned.folder)}; see it with: rl lab report {planned.folder}")
    return found


class Said:
    """Progress, in lines on standard error."""

    def __init__(self) -> None:
        self._told = 0.0

    def __call__(self, line: str) -> None:
        print(time.strftime("%H:%M:%S"), line, file=sys.stderr, flush=True)

    def phase(self, name: str) -> None:
        self(name)

    def progress(self, done: int, total: int, note: str = "") -> None:
        if time.monotonic() - self._told >= cells.TELL_S:
            self._told = time.monotonic()
            self(f"{done} of {total} {note}".rstrip())


def _start(planned: Experiment, say: Said) -> str:
    """The weights that all cells start from: the base's model, or its warm start, made once for all seeds."""
    if planned.base.policy.model is not None:
        return planned.base.policy.model
    making = multiprocessing.get_context("spawn").Process(target=warmstart.ensure, args=(planned.base, say))
    making.start()  # a process of its own, so that this one stays small
    making.join()
    if making.exitcode != 0:
        raise ValueError(f"the warm start ended with exit code {making.exitcode}; expected weights for all cells")
    return str(warmstart.ensure(planned.base, say)[0])


def _known_faults(planned: Experiment) -> None:
    """What `rl check` found counts in every cell as it does in any other run."""
    checked, beside = Path(planned.base.runs) / "check", planned.folder / "cells" / "check"
    beside.parent.mkdir(parents=True, exist_ok=True)
    if checked.is_dir() and not beside.is_symlink():
        beside.symlink_to(checked.resolve())
