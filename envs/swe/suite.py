"""A package's own tests, run in clean sandboxes: what they say of a tree, and which of them can be relied on.

    ran = await run(pool, tree.files, tree.root, only=("tests/test_a.py::test_one",))
    suite = await verify(pool, tree)      # which tests pass every time, and which functions each of them runs

`runner.py` runs inside and reports; what its report means is decided here.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from envs import JudgeFailed
from envs.sandboxes import Sandbox, SandboxPool
from envs.swe.sources import Refused, Tree, is_test, tar

RUNNER = Path(__file__).with_name("runner.py").read_text()
LIBRARY = "/opt/tasks"
"""Where the image holds pytest and what tests import."""
IMAGE = "touchstone-tasks:bookworm"
UNPACK_TIMEOUT_S = 20.0
SUITE_TIMEOUT_S = 180.0
SLOW_CPU_S = 1.0
SLOW_WALL_S = 5.0
"""A test that takes more than either, in its fastest run, is left out."""
FEWEST_TESTS = 5
REPORT_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Test:
    status: str
    """passed, failed or skipped; an expected failure is skipped, a test reported twice failed."""
    message: str = ""
    cpu_s: float = 0.0
    wall_s: float = 0.0
    place: tuple[str, int] = ("", 0)
    """The test function, and which of its cases: what names a test whose parameters changed."""
    ran: frozenset[tuple[str, int]] = frozenset()
    """Functions of the tree that it ran, by file and first line, where they were traced."""


@dataclass(slots=True, kw_only=True)
class Ran:
    tests: dict[str, Test] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    """Files that could not be imported, and why."""
    done: bool = False
    """Whether pytest came to its end; only then every test that it collected has a line."""
    timed_out: bool = False
    seconds: float = 0.0
    error: str = ""

    def at(self, function: str, case: int) -> str:
        """The status of a case of a test function, empty where it did not run."""
        found = [test.status for test in self.tests.values() if test.place == (function, case)]
        return found[0] if len(found) == 1 else "failed" if found else ""

    def passed(self, test: str) -> bool:
        return test in self.tests and self.tests[test].status == "passed"


@dataclass(slots=True, kw_only=True)
class Suite:
    tests: dict[str, Test]
    """Tests that passed every time, by id, with what they ran."""
    dropped: dict[str, str]
    """The others, and why: failing, skipped, flaky, slow, or the file could not be imported."""
    seconds: float
    twins: list[dict[str, Any]] = field(default_factory=list)
    """Of its test functions, see twins.py."""

    def covering(self, path: str, line: int) -> list[str]:
        return sorted(test for test, seen in self.tests.items() if (path, line) in seen.ran)


async def put(sandbox: Sandbox, files: Mapping[str, bytes]) -> None:
    """Write a tree into /work."""
    untar = ["tar", "--extract", "--file=-", "--directory=/work"]
    done = await sandbox.exec(untar, stdin=tar(files), timeout_s=UNPACK_TIMEOUT_S)
    if done.exit_code != 0:
        raise JudgeFailed(f"a tree of {len(files)} files could not be unpacked: {done.stderr.decode()[-200:]}")


async def run(
    pool: SandboxPool,
    files: Mapping[str, bytes],
    root: str,
    *,
    only: Collection[str] = (),
    places: Collection[tuple[str, int]] = (),
    trace: bool = False,
    timeout_s: float = SUITE_TIMEOUT_S,
    image: str | None = None,
) -> Ran:
    """Run tests of a tree in a sandbox of their own: those named by id or by place, or all. Raises MachineryError."""
    if only or places:
        paths = sorted(
            {test.partition("::")[0] for test in (*only, *(function for function, _ in places))} & set(files)
        )
    else:
        paths = sorted(path for path in files if is_test(path) and _collected(path))
    token = secrets.token_hex(16)
    asked = {
        "token": token,
        "root": root,
        "paths": paths,
        "only": sorted(only),
        "places": sorted(places),
        "trace": trace,
        "library": LIBRARY,
        "hypothesis": any(b"hypothesis" in files[path] for path in paths),
    }
    sandbox = await pool.acquire(image=image)
    try:
        await put(sandbox, files)
        result = await sandbox.exec(
            ["python3", "-I", "-B", "-c", RUNNER],
            stdin=json.dumps(asked).encode(),
            timeout_s=timeout_s,
            max_output=REPORT_BYTES,
        )
    finally:
        await sandbox.close()
    ran = read(result.stdout, token)
    ran.timed_out, ran.seconds = result.timed_out, result.duration_s
    ran.error = result.stderr.decode(errors="replace")[-500:].strip()
    if token.encode() + b'{"ready"' not in result.stdout[:200]:
        said = ran.error.splitlines()[-1:] or [f"exit code {result.exit_code}"]
        raise JudgeFailed(f"pytest did not start in the sandbox ({said[0]}); expected an image such as {IMAGE}")
    return ran


def _collected(path: str) -> bool:
    """Whether pytest, left to itself, takes a test file for one with tests in it."""
    name = PurePosixPath(path).name
    return name.endswith(".py") and (name.startswith("test_") or name.endswith("_test.py") or name == "tests.py")


def read(report: bytes, token: str) -> Ran:
    """The report's lines. What does not carry the token, or is no line of ours, was said by somebody else."""
    ran = Ran()
    for line in report.decode(errors="replace").splitlines():
        try:
            said = json.loads(line.removeprefix(token)) if line.startswith(token) else None
            if not isinstance(said, dict):
                continue
            if "test" in said:
                ran.tests[str(said["test"])] = Test(
                    status="failed" if said["test"] in ran.tests else str(said["status"]),
                    message=str(said["message"]),
                    cpu_s=float(said["cpu_s"]),
                    wall_s=float(said["wall_s"]),
                    place=(str(said["place"][0]), int(said["place"][1])),
                    ran=frozenset((str(path), int(line)) for path, line in said["ran"]),
                )
            elif "broken" in said:
                ran.broken[str(said["broken"])] = str(said["message"])
            elif "done" in said:
                ran.done = True
        except (ValueError, KeyError, TypeError, IndexError):
            continue
    return ran


async def verify(pool: SandboxPool, tree: Tree, *, times: int = 2) -> Suite:
    """Run all tests `times` times, each in a clean sandbox, and once more to see what each runs. Raises Refused."""
    if not any(_collected(path) for path in tree.tests):
        raise Refused("it holds no test files")
    runs = await asyncio.gather(
        *(run(pool, tree.files, tree.root) for _ in range(times)), run(pool, tree.files, tree.root, trace=True)
    )
    if slow := [ran for ran in runs if ran.timed_out]:
        raise Refused(f"its tests take more than {slow[0].seconds:.0f} s")
    if stopped := [ran for ran in runs if not ran.done]:
        raise Refused(f"its tests end the interpreter: {(stopped[0].error or 'no message').splitlines()[-1]}")
    tests, dropped = _sorted_out(runs)
    for ran in runs:
        dropped |= {path: f"cannot be imported: {_last_line(why)}" for path, why in ran.broken.items()}
    if len(tests) < FEWEST_TESTS:
        why = next(iter(dropped.items()), ("no test", "none was found"))
        raise Refused(f"{len(tests)} of its tests pass every time, expected at least {FEWEST_TESTS}; {': '.join(why)}")
    own = {path for seen in tests.values() for path, _ in seen.ran if not is_test(path)}
    if not own:
        raise Refused("its tests run no function of its source; compiled code, or an installed copy, is tested instead")
    return Suite(tests=tests, dropped=dropped, seconds=runs[0].seconds)


def _sorted_out(runs: Sequence[Ran]) -> tuple[dict[str, Test], dict[str, str]]:
    """Tests that passed in every run, as the last one saw them; and the others."""
    tests: dict[str, Test] = {}
    dropped: dict[str, str] = {}
    for test in sorted({test for ran in runs for test in ran.tests}):
        seen = [ran.tests[test] for ran in runs if test in ran.tests]
        states = {one.status for one in seen}
        if len(seen) < len(runs) or len(states) > 1:
            dropped[test] = "flaky"
        elif states != {"passed"}:
            dropped[test] = f"{seen[0].status}: {_last_line(seen[0].message)}"
        elif min(one.cpu_s for one in seen) > SLOW_CPU_S or min(one.wall_s for one in seen) > SLOW_WALL_S:
            dropped[test] = "slow"
        else:
            one = seen[-1]
            tests[test] = Test(
                status="passed", cpu_s=seen[0].cpu_s, wall_s=seen[0].wall_s, place=one.place, ran=one.ran
            )
    return tests, dropped


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1][:200]


async def copies(pool: SandboxPool, tree: Tree) -> list[str]:
    """Files of the image that are this package's own modules: an attempt could read the answer there."""
    sandbox = await pool.acquire()
    try:
        find = ["find", "/", "-xdev", "-name", "*.py", "-not", "-path", "/work/*"]
        listing = await sandbox.exec(find, max_output=REPORT_BYTES, timeout_s=UNPACK_TIMEOUT_S)
    finally:
        await sandbox.close()
    prefix = f"{tree.root}/" if tree.root else ""
    modules = {p.removeprefix(prefix) for p in tree.files if p.startswith(prefix) and p.endswith(".py")}
    modules -= {path for path in modules if is_test(path) or path in ("setup.py", "noxfile.py", "conf.py")}
    homes = {"site-packages", "dist-packages", "_vendor", "vendor", "vendored", PurePosixPath(LIBRARY).name}
    found = []
    for line in listing.stdout.decode(errors="replace").splitlines():
        parts = line.split("/")
        homed = ["/".join(parts[at + 1 :]) for at, part in enumerate(parts) if part in homes]
        if not modules.isdisjoint(homed):
            found.append(line)
    return found
