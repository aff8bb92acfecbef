"""One attempt at a real task, and how it is graded.

The attempt gets the package without the test files that hold a FAIL_TO_PASS test; all others stay. Grading takes the
attempt's changed Python files that belong to no test into a second, clean sandbox, puts all test files of the task
there, and compares outside: every test named by the task must have passed, and failed where it stands as its twin
(twins.py). Two canary tests with names of the moment, one that passes and one that fails, stand among the hidden ones:
where they end otherwise, or a test passes both as it is and as its twin, the run was tampered with.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import envs.swe
from envs import Facts, Message, Step, Task, tool_call
from envs.sandboxes import Need, Sandbox, SandboxPool
from envs.swe import suite
from envs.swe.edits import patch, similarity
from envs.swe.real import OBSERVATION_CHARS, Stream
from envs.swe.sources import is_source, is_test
from envs.swe.twins import Twin, asked

COMMAND_TIMEOUT_S = 30.0
GRADING_TIMEOUT_S = 120.0
MAX_FILE_BYTES = 2**20
MAX_TAKEN = 100
FEW_TWINS = 3
"""With fewer, a liar who guesses would be right too often: one in four for each twin and pair of runs."""

CHANGED = """\
import hashlib, json, os, stat, sys
known, limit, most = json.load(sys.stdin)
found, changed, left_out = set(), {}, []
for place, folders, names in os.walk(".", followlinks=False):
    folders[:] = [name for name in folders if name != ".git"]
    for name in names:
        path = os.path.relpath(os.path.join(place, name), ".")
        if not path.endswith(".py"):
            continue
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            with open(fd, "rb") as file:
                data = file.read(limit + 1) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
                plain = stat.S_ISREG(os.fstat(fd).st_mode) and len(data) <= limit
            text = data.decode() if plain else None
        except (OSError, ValueError):
            text = None
        if text is None:
            left_out.append(path)
            continue
        found.add(path)
        if known.get(path) != hashlib.sha256(data).hexdigest():
            changed[path] = text
print(json.dumps([dict(sorted(changed.items())[:most]), sorted(set(known) - found), sorted(left_out)[:most]]))
"""
"""Runs in the attempt's sandbox after the attempt: which Python files differ from those it was given."""


@dataclass(slots=True)
class _Answer:
    """What one run of the tests comes to."""

    timed_out: bool
    tests: dict[str, bool] = field(default_factory=dict)
    """Whether each came out as it must."""
    claimed: dict[bool, set[str]] = field(default_factory=lambda: {False: set(), True: set()})
    """Tests said to have passed as they are, and tests said to have passed as a twin that must fail."""
    lies: bool = False
    well: bool = False


class RealEnv:
    def __init__(self, task: Task, stream: Stream, sandboxes: SandboxPool) -> None:
        self.task, self.stream, self.sandboxes = task, stream, sandboxes
        self.sandbox: Sandbox | None = None
        self.submitted = False
        self.edits = 0
        self.image: str | None = task.given.get("image")
        if self.image is not None:  # its first turn is being sampled when this one is fetched and a sandbox made of it
            sandboxes.plan([Need(image=self.image)])

    async def start(self) -> Sequence[Message]:
        return self.task.messages

    async def step(self, action: str) -> Step:
        call = tool_call(action)
        if call is None or call.name not in ("bash", "edit", "submit"):
            return Step(done=True, invalid=True)
        if call.name == "submit":
            self.submitted = True
            return Step(done=True)
        if self.sandbox is None:
            self.sandbox = await self.sandboxes.acquire(image=self.image)
            await suite.put(self.sandbox, self.stream.visible(self.task))
        if call.name == "bash":
            text, seconds = await self._bash(self.sandbox, call.body)
        else:
            text, seconds = await self._edit(self.sandbox, call.body), 0.0
        return Step(messages=({"role": "tool", "name": call.name, "content": text},), seconds=seconds)

    async def _bash(self, sandbox: Sandbox, command: str) -> tuple[str, float]:
        paths = dict.fromkeys((f"/work/{self.task.given['root']}".rstrip("/"), "/work", suite.LIBRARY))
        result = await sandbox.exec(
            command,
            timeout_s=COMMAND_TIMEOUT_S,
            max_output=OBSERVATION_CHARS,
            env={"PYTHONPATH": ":".join(paths), "TZ": "UTC"},
        )
        text = (result.stdout + result.stderr).decode(errors="replace").rstrip("\n")[:OBSERVATION_CHARS]
        if result.timed_out:
            text = f"{text}\ntimed out after {COMMAND_TIMEOUT_S:g} s".lstrip()
        elif result.exit_code != 0:
            text = f"{text}\nexit code {result.exit_code}".lstrip()
        return text, result.duration_s

    async def _edit(self, sandbox: Sandbox, body: str) -> str:
        edit = envs.swe.parse_edit(body)
        if edit is None:
            return "bad edit: expected FILE, <<<<, old lines, ====, new lines, >>>>"
        path, old, new = edit
        try:
            text = (await sandbox.read(f"/work/{path}", limit=MAX_FILE_BYTES)).decode()
            if text.count(old) != 1:
                return f"no edit: the old lines occur {text.count(old)} times in {path}, expected once"
            await sandbox.write(f"/work/{path}", text.replace(old, new).encode())
        except OSError as error:
            return f"no edit: {path}: {error.strerror}"
        except UnicodeDecodeError:
            return f"no edit: {path} is not in UTF-8"
        self.edits += 1
        return "edited"

    async def measure(self) -> Facts:
        """Its `solved` is true where every test of the task passed in the clean sandbox."""
        facts: Facts = {"solved": False, "submitted": self.submitted, "edits": self.edits}
        if not self.submitted or self.sandbox is None:
            return facts
        base = self.stream.files(self.task)
        changed, gone, left_out = await _taken(self.sandbox, base)
        await self.close()
        fixed = {path for path in base if not is_source(path)} | self.stream.tests(self.task).keys()
        below = [path for path in changed if not fixed.isdisjoint(map(str, PurePosixPath(path).parents))]
        left_out += below  # of a folder where grading puts a file
        changed = {path: text for path, text in changed.items() if path not in below}
        files = {path: data for path, data in base.items() if not is_test(path) and path not in gone}
        files |= {path: text.encode() for path, text in changed.items()} | self.stream.tests(self.task)
        return (
            facts
            | await self._graded(files)
            | {
                "changed": sorted(changed) + gone,
                "left_out": left_out,
                "similarity": _similarity(base, changed, gone, self.task.hidden["gold_patch"]),
            }
        )

    async def _graded(self, files: Mapping[str, bytes]) -> Facts:
        """All tests in each of two sandboxes, every test function with a twin as its twin in one of them; where few
        have one, and all went well, in two more.
        """
        twins: list[Twin] = self.task.hidden["twins"]
        coin = secrets.SystemRandom()
        answers: list[_Answer] = []
        for pair in range(2 if 0 < len(twins) < FEW_TWINS else 1):
            chosen = [coin.random() < 0.5 for _ in twins]
            sides = [
                [twin for twin, is_it in zip(twins, chosen, strict=True) if is_it is side] for side in (True, False)
            ]
            answers += await asyncio.gather(*(self._asked(files, side) for side in (sides if twins else [[]])))
            if pair == 0 and not all(answer.well for answer in answers):
                break
        wanted = {name: self.task.hidden[name] for name in ("FAIL_TO_PASS", "PASS_TO_PASS")}
        passed = {test: all(a.tests[test] for a in answers) for tests in wanted.values() for test in tests}
        claims = [{test for a in answers for test in a.claimed[as_twin]} for as_twin in (False, True)]
        tampered = any(answer.lies for answer in answers) or bool(claims[0] & claims[1])
        return {
            "solved": not tampered and all(answer.well for answer in answers),
            "fail_to_pass": [passed[test] for test in wanted["FAIL_TO_PASS"]],
            "pass_to_pass": [passed[test] for test in wanted["PASS_TO_PASS"]],
            "tampered": tampered,
            "timed_out": any(answer.timed_out for answer in answers),
        }

    async def _asked(self, files: Mapping[str, bytes], twins: Sequence[Twin]) -> _Answer:
        """One run of the tests, with these functions as their twins."""
        hidden = self.task.hidden
        place = hidden["FAIL_TO_PASS"][0].partition("::")[0]
        good, bad = (f"test_{secrets.token_hex(4)}" for _ in range(2))
        canaries = f"\n\ndef {good}():\n    assert True\n\n\ndef {bad}():\n    assert False\n"
        files = asked(twins, files)
        replaced = {test: (twin, at) for twin in twins for test, at in twin["tests"].items()}
        wanted = [*hidden["FAIL_TO_PASS"], *hidden["PASS_TO_PASS"]]
        # What is asked for names every test that has a twin alike: code under test may read it.
        cases = {test: (twin["function"], at) for twin in hidden["twins"] for test, at in twin["tests"].items()}
        ran = await suite.run(
            self.sandboxes,
            {**files, place: files[place].rstrip() + canaries.encode()},
            self.task.given["root"],
            only=[*(test for test in wanted if test not in cases), f"{place}::{good}", f"{place}::{bad}"],
            places=list(cases.values()),
            image=self.image,
            timeout_s=GRADING_TIMEOUT_S,
        )
        answer = _Answer(timed_out=ran.timed_out)
        for test in wanted:
            if test not in replaced:
                passed = ran.at(*cases[test]) == "passed" if test in cases else ran.passed(test)
                answer.tests[test] = passed
                answer.claimed[False] |= {test} if passed else set()
                continue
            twin, at = replaced[test]
            said, falls = ran.at(twin["function"], at), at in twin["fails"]
            answer.tests[test] = said == ("failed" if falls else "passed")
            answer.claimed[True] |= {test} if falls and said == "passed" else set()
        failing = ran.tests.get(f"{place}::{bad}")
        judged = ran.done and failing is not None
        answer.lies = judged and (failing.status != "failed" or not ran.passed(f"{place}::{good}"))  # type: ignore[union-attr]
        answer.well = judged and not answer.lies and all(answer.tests.values())
        return answer

    async def close(self) -> None:
        sandbox, self.sandbox = self.sandbox, None
        if sandbox is not None:
            await sandbox.close()


async def _taken(sandbox: Sandbox, base: Mapping[str, bytes]) -> tuple[dict[str, str], list[str], list[str]]:
    """The attempt's changed source files, those it removed, and files that were not taken."""
    known = {path: hashlib.sha256(data).hexdigest() for path, data in base.items() if is_source(path)}
    result = await sandbox.exec(
        ["python3", "-I", "-B", "-c", CHANGED],
        stdin=json.dumps([known, MAX_FILE_BYTES, MAX_TAKEN + len(base)]).encode(),
        timeout_s=COMMAND_TIMEOUT_S,
        max_output=32 * 2**20,
    )
    try:
        changed, gone, left_out = json.loads(result.stdout)
    except ValueError:  # too deep, too large or too slow to be read: the attempt's own doing, taken as it was given
        return {}, [], [f"nothing could be taken: exit code {result.exit_code}"]
    sources = {path: text for path, text in changed.items() if is_source(path)}
    if len(sources) > MAX_TAKEN:
        return {}, [], [f"{len(sources)} changed files, expected at most {MAX_TAKEN}"]
    others = sorted(path for path in changed if path not in sources and path not in base)
    return sources, [path for path in gone if path not in left_out], (left_out + others)[:20]


def _similarity(base: Mapping[str, bytes], changed: Mapping[str, str], gone: Sequence[str], gold: str) -> float:
    """Of the attempt's patch and the gold one."""
    before = {path: base[path].decode(errors="replace") for path in {*changed, *gone} if path in base}
    return similarity(patch(before, changed), gold)
