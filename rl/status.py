"""What the driver waits for, and how the last minute went: `Board` writes `status.json`, `show` reads it (`rl status`).

The file is written about once a second, whole or not at all, so it can be read while the run goes on and after its
driver has died. Times in it are seconds since the epoch or durations; `docs/observe.md` has the keys.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

FILE = "status.json"
EVERY_S = 1.0
SPAN_S = 60.0
"""The last minute."""
LATE_S = 20.0
"""A driver that is there but has not written for this long is held up."""
LOG_LINES = 6

BATCH, STEP, PUBLISH, SAVE = "a batch", "an optimiser step", "new weights in the engines", "a checkpoint"
HELDOUT, SELFTEST = "held-out attempts", "the self-tests"
_TRAINER = {BATCH: "starved", STEP: "learning", PUBLISH: "sync", SAVE: "saving"}


class WaitedTooLong(RuntimeError):
    """A wait of the driver passed its deadline."""


@dataclass(slots=True, eq=False)
class Wait:
    """One thing that the driver waits for; `owner` is who must bring it."""

    what: str
    owner: str
    began: float
    deadline_s: float
    lease: int | None
    timeout: asyncio.Timeout


class Board:
    """What is waited for now, and what the last minute was spent on. Without a folder it writes nothing."""

    def __init__(self, folder: Path | None = None, deadline_s: float = 7200.0) -> None:
        self.folder, self.deadline_s = folder, deadline_s
        self.describe: Callable[[], Mapping[str, Any]] = dict
        """Further facts of the run, asked for at each writing."""
        self.swap: dict[str, float] = {}
        self._waits: dict[str, list[Wait]] = defaultdict(list)
        """By what is waited for."""
        self._spans: deque[tuple[str, float, float]] = deque()
        self._samples: deque[tuple[float, Mapping[str, int]]] = deque()
        self._phase, self._state, self._why = "starting", "running", ""
        self._began, self._written, self._late_s = time.time(), 0.0, 0.0

    # -- what happens ---------------------------------------------------------------------------------------------

    def phase(self, name: str) -> None:
        self._phase = name
        self.write()

    @asynccontextmanager
    async def on(
        self, what: str, *, owner: str, lease: int | None = None, deadline_s: float | None = None
    ) -> AsyncIterator[None]:
        """Around every wait of the driver. Raises WaitedTooLong past the deadline, which `renew` sets anew."""
        limit = deadline_s or self.deadline_s
        began = time.monotonic()
        timeout = asyncio.timeout(limit)
        try:
            async with timeout:
                wait = Wait(what, owner, began, limit, lease, timeout)
                self._waits[what].append(wait)
                try:
                    yield
                finally:
                    self._waits[what].remove(wait)
                    if not self._waits[what]:
                        del self._waits[what]
                    if what in _TRAINER:
                        self._spans.append((_TRAINER[what], began, time.monotonic()))
        except TimeoutError:
            if not timeout.expired():
                raise
            raise WaitedTooLong(
                f"waited {time.monotonic() - began:.0f} s for {what}, which {owner} should bring; expected it within "
                f"{limit:g} s (train.deadline_s). What {owner} said last is in {self._logs()}"
            ) from None

    def renew(self, what: str) -> None:
        """Something came in: the deadline of this wait counts from now."""
        for wait in self._waits.get(what, ()):
            if not wait.timeout.expired():
                wait.timeout.reschedule(asyncio.get_running_loop().time() + wait.deadline_s)

    def sample(self, attempts: Mapping[str, int], late_s: float = 0.0) -> None:
        """How many attempts do what at this moment: `generate`, `env`, `measure`, `sandbox` (in the queue for one)."""
        self._samples.append((time.monotonic(), dict(attempts)))
        self._late_s = late_s

    async def watch(self, look: Callable[[], Any] | None) -> None:
        """Sample and write until cancelled."""
        while True:
            due = time.monotonic() + EVERY_S
            await asyncio.sleep(EVERY_S)
            late_s = time.monotonic() - due
            self.sample(await look() if look else {}, late_s)
            self.write()

    def end(self, state: str, why: str = "") -> None:
        """`done`, `stopped` or `failed`: nothing is written after this."""
        self._state, self._why = state, " ".join(why.split())
        self.write()
        self.folder = None

    def _logs(self) -> str:
        return f"{self.folder}/logs" if self.folder else "the run's logs"

    # -- what is written ------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Write where the last writing is a second old."""
        if time.monotonic() - self._written >= EVERY_S:
            self.write()

    def write(self) -> None:
        self._written = time.monotonic()
        if self.folder is None or not self.folder.is_dir():
            return
        draft = self.folder / f".{FILE}"
        with suppress(OSError):  # who looks on must not end the run, whose own files say that the disk is full
            draft.write_text(json.dumps(self.facts(), indent=1) + "\n")
            draft.rename(self.folder / FILE)

    def facts(self) -> dict[str, Any]:
        now = time.monotonic()
        waits = sorted(chain.from_iterable(self._waits.values()), key=lambda wait: wait.began)
        leases = [wait for wait in waits if wait.lease is not None]
        return {
            "state": self._state,
            "why": self._why,
            "phase": self._phase,
            "pid": os.getpid(),
            "process_began": process_began(os.getpid()),
            "host": socket.gethostname(),
            "began": self._began,
            "time": time.time(),
            **self.describe(),
            "waits": [_row(wait, now) for wait in waits if wait.lease is None],
            "leases": len(leases),
            "oldest_lease": _row(leases[0], now) if leases else None,
            "last_minute": self.last_minute(),
            "swap": self.swap,
        }

    def last_minute(self) -> dict[str, Any]:
        """Shares of the trainer's time, mean counts of attempts, and the share of samples without any generating."""
        now = time.monotonic()
        since = now - SPAN_S
        while self._spans and self._spans[0][2] < since:
            self._spans.popleft()
        while self._samples and self._samples[0][0] < since:
            self._samples.popleft()
        running = [(share, w.began, now) for what, share in _TRAINER.items() for w in self._waits.get(what, ())]
        seconds = dict.fromkeys(_TRAINER.values(), 0.0)
        for name, began, ended in (*self._spans, *running):
            seconds[name] += max(0.0, ended - max(began, since))
        counts = [attempts for _, attempts in self._samples if attempts]
        names = sorted({name for attempts in counts for name in attempts})
        return {
            "trainer": {name: value / SPAN_S for name, value in seconds.items()},
            "attempts": {name: sum(c.get(name, 0) for c in counts) / len(counts) for name in names},
            "engine_starved": sum(not c.get("generate") for c in counts) / len(counts) if counts else None,
            "sandbox_queue": sum(bool(c.get("sandbox")) for c in counts) / len(counts) if counts else None,
            "judge_queue": sum(bool(c.get("measure")) for c in counts) / len(counts) if counts else None,
            "driver_late_s": self._late_s,
        }


def _row(wait: Wait, now: float) -> dict[str, Any]:
    row = {"what": wait.what, "owner": wait.owner, "for_s": now - wait.began, "deadline_s": wait.deadline_s}
    return row if wait.lease is None else {"lease": wait.lease, **row}


# -- who reads ----------------------------------------------------------------------------------------------------


def read(folder: Path) -> dict[str, Any]:
    """`status.json` with `condition` (running, held up, gone, done, stopped, failed) and, for a run that did not end
    well, the last lines of its logs. Raises ValueError where there is nothing to read.
    """
    if not (folder / FILE).is_file():
        runs = sorted(p.parent.name for p in folder.parent.glob(f"*/{FILE}")) if folder.parent.is_dir() else []
        raise ValueError(f"there is no {FILE} in {folder}; available beside it: {', '.join(runs) or 'none'}")
    facts: dict[str, Any] = json.loads((folder / FILE).read_text())
    facts["age_s"] = max(0.0, time.time() - facts["time"])
    condition = facts["state"]
    if condition == "running":
        late = facts["age_s"] > LATE_S
        here = facts["host"] == socket.gethostname()
        if here and process_began(facts["pid"]) != facts["process_began"]:
            condition = "gone"
        elif late:
            condition = "held up"
    if condition in ("gone", "failed", "held up"):
        facts["logs"] = {path.name: _tail(path) for path in sorted((folder / "logs").glob("*.log"))}
    return {"condition": condition, **facts}


def show(folder: Path, *, as_json: bool) -> int:
    """Print it. The exit code is 1 where the run is gone, held up or failed, else 0."""
    facts = read(folder)
    print(json.dumps(facts) if as_json else "\n".join(page(folder, facts)))
    return int(facts["condition"] in ("gone", "held up", "failed"))


def page(folder: Path, facts: Mapping[str, Any]) -> list[str]:
    """The facts as lines for a person."""
    condition, ago = facts["condition"], _span(facts["age_s"])
    lines = [f"{folder.name}: {_headline(folder, facts, ago)}"]
    if "step" in facts:
        lines.append(f"step {facts['step']} of {facts['steps']}, {facts['tokens']:,} sampled tokens trained on")
    if condition in ("running", "held up", "gone"):
        then = "" if condition == "running" else f" (as of {ago} ago)"
        lines += ["", f"What waits for what{then}"]
        lines += [_wait(row) for row in facts["waits"]] or ["  the driver waits for nothing"]
        if oldest := facts["oldest_lease"]:
            lines.append(_wait(oldest, f"oldest of {facts['leases']} leases: "))
        if "batch" in facts:
            batch = facts["batch"]
            lines.append(f"  next batch: {batch['ready']:,} of {batch['wanted']:,} tokens; waits for {batch['reason']}")
        lines += ["", f"The last minute{then}", *_minute(facts["last_minute"])]
    if swap := facts["swap"]:
        lines += ["", "The last swap of weights", f"  {swap_words(swap)}"]
    for name, tail in facts.get("logs", {}).items():
        lines += ["", f"Last lines of {folder / 'logs' / name}", *(f"  {line}" for line in tail or ["(empty)"])]
    if condition in ("gone", "failed", "stopped"):
        lines += ["", f"Go on from the last checkpoint with: rl train {folder / 'config.yaml'} --resume"]
    elif condition == "held up":
        lines += ["", f"See what it does with: py-spy dump --pid {facts['pid']}; end it with: kill {facts['pid']}"]
    elif condition == "done":
        lines += ["", f"See what it achieved with: rl report {folder}"]
    return lines


def _headline(folder: Path, facts: Mapping[str, Any], ago: str) -> str:
    match facts["condition"]:
        case "running":
            since = f"for {_span(facts['time'] - facts['began'])} (process {facts['pid']} on {facts['host']})"
            return f"running, {since}: {facts['phase']}"
        case "held up":
            return f"its driver (process {facts['pid']}) is there but has not written for {ago}: {facts['phase']}"
        case "gone":
            return f"its driver (process {facts['pid']}) is gone; {ago} ago it still wrote: {facts['phase']}"
        case "failed":
            return f"failed {ago} ago while {facts['phase']}: {facts['why']}"
        case "stopped":
            return f"stopped by a person {ago} ago"
    return f"done, {ago} ago"


def _wait(row: Mapping[str, Any], prefix: str = "") -> str:
    over = "  OVERDUE" if row["for_s"] > row["deadline_s"] else ""
    lease = f"lease {row['lease']}, " if "lease" in row else ""
    waited = f"since {_span(row['for_s'])}, at most {_span(row['deadline_s'])}"
    return f"  {prefix}{lease}{row['what']}, from {row['owner']}: {waited}{over}"


def _minute(minute: Mapping[str, Any]) -> list[str]:
    trainer = minute["trainer"]
    rest = max(0.0, 1.0 - sum(trainer.values()))
    lines = [
        f"  trainer: starved {trainer['starved']:.0%}, learning {trainer['learning']:.0%}, "
        f"sync {trainer['sync']:.0%}, saving {trainer['saving']:.0%}, else {rest:.0%}"
    ]
    if minute["engine_starved"] is not None:
        attempts = minute["attempts"]
        in_words = {"generate": "generating", "env": "acting", "measure": "being judged"}
        split = ", ".join(f"{attempts.get(name, 0.0):.1f} {word}" for name, word in in_words.items())
        lines += [
            f"  engine starved {minute['engine_starved']:.0%}, sandbox queue {minute['sandbox_queue']:.0%}, "
            f"judge queue {minute['judge_queue']:.0%} of the time",
            f"  attempts, on average: {split}; of these {attempts.get('sandbox', 0.0):.1f} in the queue for a sandbox",
        ]
    if minute["driver_late_s"] > EVERY_S:
        lines.append(f"  the driver's own loop is {minute['driver_late_s']:.1f} s late")
    return lines


def swap_words(swap: Mapping[str, float]) -> str:
    """`pause_s`, `bytes_per_s`, `overlap`, `read_back` and `canary_gap` of a swap (policy/weights.py) as a sentence."""
    return (
        f"engines paused {1000 * swap['pause_s']:.0f} ms of {1000 * swap['publish_s']:.0f} "
        f"(overlap {swap['overlap']:.0%}), {swap['bytes_per_s'] / 1e6:.1f} MB/s, {swap['read_back']:.0%} of the bytes "
        f"read back equal, canary within {swap['canary_gap']:.1e} nats"
    )


def _span(seconds: float) -> str:
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def _tail(path: Path) -> list[str]:
    """The last lines that are not empty, read from the last few kilobytes."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 16_384))
        lines = file.read().decode(errors="replace").splitlines()
    return [line.rstrip()[:200] for line in lines if line.strip()][-LOG_LINES:]


def process_began(pid: int) -> int | None:
    """Clock ticks from boot to the start of a process, which tells it from a later one of its number; None where it is
    gone, 0 where the system does not say."""
    with suppress(OSError, IndexError, ValueError):
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if stat[0] == "Z" else int(stat[19])
    if Path("/proc/self/stat").exists():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return 0
