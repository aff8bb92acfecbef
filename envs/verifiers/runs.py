"""Cases of untrusted code, run in one visit to a sandbox by `runner.py`; those that did not end well with a verdict."""

from __future__ import annotations

import ast
import math
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from envs import JudgeFailed
from envs.sandboxes import ExecResult, Sandbox
from envs.verifiers import Verdict

RUNNER = Path(__file__).with_name("runner.py").read_text()
FRAME = struct.Struct("!II")
BATCH_BYTES = 16 * 2**20
"""Of inputs in one visit."""
VISIT_BYTES = 48 * 2**20
"""Of answers in one visit: as much as any sandbox hands over whole."""
START_S = 5.0
NEAR = 1.25
"""A process is killed at this many times its limit; what ended by itself between the two is a near miss."""
SLEEP = 2.0
"""How many times its CPU limit a case may take by the clock, as far as it sleeps."""


Case = bytes | dict[str, Any]
"""What a program reads on stdin; or `calls`, for one process: `function`, `arguments`, perhaps `keywords`, `module`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """How to run each case. `program`: a Python file in a warm interpreter's fork; `argv`: any; `call`: a function."""

    run: Literal["program", "argv", "call"]
    file: str = ""
    argv: tuple[str, ...] = ()
    path: str = ""
    """For calls: the folder that imports find after Python's own."""
    prelude: str = ""
    """For calls: Python that runs before the file, in its module."""
    cpu_s: float = 4.0
    memory_mb: int = 0
    """Of data, for each process; 0: as much as the sandbox has."""
    output_bytes: int = 2**20
    timeouts: int = 2
    """After so many cases that timed out the others are not run."""

    @property
    def kill_cpu_s(self) -> int:
        return math.ceil(self.cpu_s * NEAR)

    @property
    def wall_s(self) -> float:
        return self.cpu_s * SLEEP


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What became of one case. Where `verdict` is None it ended well, and `body` has to be compared."""

    verdict: Verdict | None
    body: bytes = b""
    """What it printed; of calls, a line of claim for each that came to its end."""
    ended: str = ""
    """How it ended, where that was not well: `exit 1`, `signal 11`."""
    near_miss: bool = False
    """It ended well, not long after its time."""
    cpu_s: float = 0.0
    peak_mb: int = 0
    stderr: str = ""


async def run(sandbox: Sandbox, job: Job, cases: Sequence[Case]) -> list[Ran]:
    """Run every case, in one visit where inputs and outputs are of ordinary size. Raises JudgeFailed."""
    frames = [_frame(case) if isinstance(case, dict) else _frame({}, case) for case in cases]
    found: list[Ran] = []
    job_left = job
    while len(found) < len(frames):
        batch = _batch(frames[len(found) :])
        result = await sandbox.exec(
            ["python3", "-I", "-B", "-c", RUNNER],
            stdin=_frame(asdict(job_left) | {"kill_cpu_s": job.kill_cpu_s, "wall_s": job.wall_s}) + b"".join(batch),
            timeout_s=START_S + (job.wall_s + 1.0) * len(batch),
            max_output=VISIT_BYTES,
        )
        ran, whole = _read(result, job)
        found += ran
        late = sum(r.verdict is Verdict.TIMED_OUT and not r.near_miss for r in found)
        if late >= job.timeouts:
            break
        if len(ran) < len(batch) and whole:  # the runner is gone, or stopped in a case
            found.append(Ran(verdict=_lost(result), ended=f"exit {result.exit_code}"))
            break
        job_left = replace(job, timeouts=job.timeouts - late)
    stop = found[-1].verdict if found and found[-1].verdict is Verdict.TAMPERED else Verdict.NOT_RUN
    return found + [Ran(verdict=stop)] * (len(frames) - len(found))


def _batch(frames: Sequence[bytes]) -> list[bytes]:
    """As many of the next cases as fit into one visit, at least one."""
    batch, size = [frames[0]], len(frames[0])
    for frame in frames[1:]:
        size += len(frame)
        if size > BATCH_BYTES:
            break
        batch.append(frame)
    return batch


def _frame(head: dict[str, Any], body: bytes = b"") -> bytes:
    text = ascii(head).encode()
    return FRAME.pack(len(text), len(body)) + text + body


def _read(result: ExecResult, job: Job) -> tuple[list[Ran], bool]:
    """The cases told of, and whether all that the runner said is there. Raises JudgeFailed where it did not start."""
    data = result.stdout[: (VISIT_BYTES + 1) // 2] if result.stdout_cut else result.stdout
    frames, at = [], 0
    while at + FRAME.size <= len(data):
        text_size, body_size = FRAME.unpack_from(data, at)
        text = at + FRAME.size
        at = text + text_size + body_size
        if at > len(data):
            break
        frames.append((ast.literal_eval(data[text : text + text_size].decode()), data[text + text_size : at]))
    if not frames and not result.timed_out:
        said = result.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise JudgeFailed(f"the runner of cases did not start: exit code {result.exit_code}, {said[:200] or 'silent'}")
    return [_ran(told, body, job, result.oom) for told, body in frames[1:]], not result.stdout_cut


def _lost(result: ExecResult) -> Verdict:
    """Why the runner ended before its cases: nothing but the code that it ran can have ended it."""
    if result.timed_out:
        return Verdict.TIMED_OUT
    return Verdict.OUT_OF_MEMORY if result.oom else Verdict.TAMPERED


def _ran(told: dict[str, Any], body: bytes, job: Job, oom: bool) -> Ran:
    failed = told["signal"] != 0 or told["exit_code"] != 0
    verdict = _verdict(told, job, oom, failed)
    return Ran(
        verdict=verdict,
        body=body,
        ended=f"signal {told['signal']}" if told["signal"] else f"exit {told['exit_code']}" if failed else "",
        near_miss=verdict is Verdict.TIMED_OUT and not told["timed_out"] and not failed,
        cpu_s=told["cpu_s"],
        peak_mb=told["peak_mb"],
        stderr=told["stderr"],
    )


def _verdict(told: dict[str, Any], job: Job, oom: bool, failed: bool) -> Verdict | None:
    if told["timed_out"] or told["cpu_s"] > job.cpu_s:
        return Verdict.TIMED_OUT
    if told["too_long"]:
        return Verdict.OUTPUT_TOO_LONG
    if failed:
        full = oom if told["signal"] == 9 else "MemoryError" in told["stderr"] or "bad_alloc" in told["stderr"]
        if full or (job.memory_mb and told["peak_mb"] > job.memory_mb):
            return Verdict.OUT_OF_MEMORY
        return Verdict.COMPILE_ERROR if told["claim"] == "compile_error" else Verdict.CRASHED
    return Verdict.UNFINISHED if job.run == "call" and not told["claim"] else None
