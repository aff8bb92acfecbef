"""What the verifiers of several worlds share: the verdicts, and the runs and comparisons that lead to them. No world.

    ran = await runs.run(sandbox, runs.Job(run="program", file="main.py"), [b"1 2\\n", b"3 4\\n"])    # runs.py
    verdict = ran[0].verdict or compare.output(ran[0].body, "3", compare.Comparison())               # compare.py

`runner.py` is the program in the sandbox. What comes back from there is a claim and nothing more. The sandbox holds no
expected answer, so the most that a liar can claim is a value; a claimed value is right only where it equals the one
held here, and whoever can say that for hidden inputs has solved the problem. (What it tells of time and memory could be
forged only by a process that had taken over the runner, which none can trace or open; the sandbox bounds both anyway.)
"""

from __future__ import annotations

from enum import StrEnum


class Verdict(StrEnum):
    """What became of one case. All of these are the policy's doing; trouble of the machinery is raised instead."""

    RIGHT = "right"
    WRONG = "wrong"
    PRESENTATION = "presentation"
    """A checker says: not in the form that was asked for."""
    TIMED_OUT = "timed_out"
    CRASHED = "crashed"
    OUT_OF_MEMORY = "out_of_memory"
    OUTPUT_TOO_LONG = "output_too_long"
    UNFINISHED = "unfinished"
    """The process ended by itself before the function had returned."""
    MISSING = "missing"
    """The function, or the module that should have it, is not there."""
    COMPILE_ERROR = "compile_error"
    NO_CODE = "no_code"
    TAMPERED = "tampered"
    """The code attacked what runs it."""
    NOT_RUN = "not_run"
    """Cases before it had used up the time."""
