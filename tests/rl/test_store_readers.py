"""Others may read a run's ledger while it is written."""

import subprocess
import sys
from pathlib import Path

from rl.store import Run

FIRST_HERE = """
import fcntl, sys
with open(sys.argv[1], "r+b") as shared:
    try:
        fcntl.lockf(shared, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 128)
    except BlockingIOError:
        print("no")
    else:
        print("yes")
"""
"""How SQLite tells that nobody else has the ledger open, and that its shared memory may be cut and made anew."""


def test_a_reader_does_not_take_a_secured_ledger_for_one_that_nobody_has_open(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    run.grant("math", 0)
    shared = str(run.folder / "ledger.db-shm")
    for _ in range(2):
        told = subprocess.run([sys.executable, "-c", FIRST_HERE, shared], capture_output=True, text=True, check=True)
        assert told.stdout == "no\n"
        run.secure()
    run.close()
