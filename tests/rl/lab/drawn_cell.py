"""`rl train` for a cell, in this process alone: real loops, ledger and learner; an engine that guesses by seed.

With CELL_DIES=NAME in the environment, that cell kills itself once, in its second step.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

import torch

from rl import config, train
from rl.live import Page
from rl.store import Run
from tests.rl import driven

if __name__ == "__main__":
    torch.set_num_threads(1)
    path, *rest = sys.argv[1:]
    resume = "--resume" in rest
    settings = config.load(path, [word for word in rest if word != "--resume"])
    began = time.monotonic()
    (Run.check_resumable if resume else Run.check_new)(settings.folder)
    run = Run.reopen(settings.folder) if resume else Run.create(settings.folder)
    if os.environ.get("CELL_DIES") == settings.name and not resume:
        driven._arm(driven.Kill("rl/store.py", ("trained",), 12))
    cluster = driven.cluster(settings, Path(path).parent, settings.name)
    stopped = asyncio.run(train.drive(settings, run, Page(settings), str(settings.policy.model), cluster))
    past = run.summary().get("wall_s", 0.0)
    run.summarise({"wall_s": past + time.monotonic() - began, "stopped": stopped})
    run.close()
    sys.exit(130 if stopped else 0)
