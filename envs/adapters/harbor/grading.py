"""Grades an attempt at a Harbor task in a second, clean sandbox, by the task's own `tests/test.sh`.

What the attempt left in `/work` is all it can have written but `/tmp`; it goes into the second sandbox as one snapshot,
together with the tests, which no sandbox held before. Left out are `/tests`, `/solution`, `/logs` but its artifacts,
links of the attempt's that lead there or nowhere, and what is hidden in the home folder, where shells and interpreters
look before they do as test.sh says: a reward written by the attempt is never read, nor do our files stand for its own.
None of its processes is there. A separate verifier gets the artifacts only.

What test.sh itself runs of the attempt, runs with test.sh's rights, and could write the reward: Harbor's format has the
tests and what they test in one place. docs/adapters.md says what that means.
"""

from __future__ import annotations

import json
import struct
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from envs import EnvCrashed, Facts
from envs.adapters.harbor.folder import Folder
from envs.sandboxes import ExecResult, Sandbox, SandboxPool, Snapshot

FILES = "/.harbor/files"
ABOUT = "/.harbor/about.json"
VERIFIER = "/work/logs/verifier"
SNAPSHOT_BYTES = 48 * 2**20
REWARD_BYTES = 64 * 1024
SAID_CHARS = 1000
COPY_S = 60.0
LARGEST = sys.float_info.max
_LENGTH = struct.Struct("!I")
COPY = f"""\
import os, shutil, sys

def take(source, target):
    if os.path.islink(source):
        if not os.path.lexists(target):
            os.symlink(os.readlink(source), target)
    elif not os.path.isdir(source):
        if not os.path.lexists(target):
            shutil.copy2(source, target)
    elif os.path.isdir(target) or not os.path.lexists(target):
        new = not os.path.lexists(target)
        os.makedirs(target, exist_ok=True)
        for name in os.listdir(source):
            take(os.path.join(source, name), os.path.join(target, name))
        if new:
            shutil.copystat(source, target)

def end(path):
    # Where it leads, through all links; None for one that never ends or goes by a process.
    at, left, links = "/", path.split("/"), 0
    while left:
        name = left.pop(0)
        here = os.path.normpath(os.path.join(at, name))
        if os.path.islink(here):
            target, links = os.readlink(here), links + 1
            at, left = "/" if target[0] == "/" else at, target.split("/") + left
        else:
            at = here
        if links > 40 or at == "/proc":
            return None
    return at

def ours(path):
    # Whether a link is the image's own.
    own = "{FILES}" + path[len("/work"):]
    return os.path.islink(own) and os.readlink(own) == os.readlink(path)

def astray(path):
    # Whether a link leads to or above what is not the attempt's, or to what nobody has made yet.
    place = end(path)
    if place is None or not any(map(os.path.lexists, (place, "{FILES}" + place[len("/work"):]))):
        return True
    barred = ("/work/tests", "/work/solution", "/work/logs", "/tmp", "/dev/shm")
    return any((bar + "/").startswith(place.rstrip("/") + "/") or place.startswith(bar + "/") for bar in barred)

links = [os.path.join(at, name) for at, folders, names in os.walk("/work") for name in folders + names]
for path in [path for path in links if os.path.islink(path) and not ours(path) and astray(path)]:
    os.chmod(os.path.dirname(path), 0o755)  # it may be read-only
    os.unlink(path)

os.chdir("{FILES}")
if sys.argv[1] == "everything":
    take(".", "/work")
else:
    for place in ("tests", "logs", "solution", *(f"root/{{name}}" for name in os.listdir("root") if name[0] == ".")):
        os.makedirs(os.path.dirname(f"/work/{{place}}"), exist_ok=True)
        take(place, f"/work/{{place}}")
for place in ("agent", "artifacts", "verifier"):
    os.makedirs(f"/work/logs/{{place}}", exist_ok=True)
"""
"""Takes away links of an attempt's that lead astray, and puts what is in the image to where nothing is yet:
`everything`, or what an attempt may not bring along."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Graded:
    """What one run of test.sh came to."""

    reward: float | None
    """None where it wrote none that can be read."""
    parts: Mapping[str, float] = field(default_factory=dict)
    why: str = ""
    """Why there is no reward, in words."""
    said: str = ""

    def facts(self, solved_at: float) -> Facts:
        """Where there is no reward, the attempt has earned none."""
        facts = {"solved": self.reward is not None and self.reward >= solved_at, "reward": self.reward or 0.0}
        return {**facts, "parts": dict(self.parts), "verdict": self.why or "graded", "said": self.said}


@dataclass(frozen=True, slots=True)
class About:
    """What build.py wrote into the image."""

    workdir: str
    env: Mapping[str, str]


async def begin(sandbox: Sandbox, task: Folder, what: str = "everything") -> About:
    """The task's files, out of its image, to where they can be written. Raises EnvCrashed where they do not fit."""
    try:
        about = json.loads(await sandbox.read(ABOUT))
    except FileNotFoundError:
        raise EnvCrashed(f"the image {task.image} was not made by envs.adapters.harbor.build") from None
    result = await sandbox.exec(["python3", "-I", "-c", COPY, what], timeout_s=COPY_S)
    if result.exit_code != 0:
        raise EnvCrashed(f"the files of {task.key} do not go into a sandbox's /work: {_said(result)[-200:]}")
    workdir = task.workdir or about["workdir"]
    return About(workdir, {**about["env"], **task.env, "HOME": "/root", "PWD": workdir})


async def grade(sandboxes: SandboxPool, task: Folder, left: Snapshot | None, timeout_s: float) -> Graded:
    """`left`: what the attempt's /work held; None for the image as it is, as where nothing was done."""
    alone = task.separate or left is None
    carried = [] if left is None else _carried(left, task)
    try:
        sandbox = await sandboxes.acquire(_packed([*carried, *_tests(task)]), image=task.image)
    except OSError as problem:
        return Graded(reward=None, why=f"what was left does not go into a clean sandbox: {problem.strerror}")
    try:
        try:
            about = await begin(sandbox, task, "everything" if alone else "ours")
        except EnvCrashed as problem:
            if not carried:
                raise
            return Graded(reward=None, why=f"what was left is in the way: {problem}")
        env = {**about.env, **task.verifier_env}
        ran = await sandbox.exec(
            "/tests/test.sh 2>&1",
            cwd=about.workdir,
            env=env,
            timeout_s=min(timeout_s, task.verifier_s),
            max_output=4 * SAID_CHARS,
        )
        said = _said(ran)[-SAID_CHARS:]
        if ran.timed_out:
            return Graded(reward=None, why=f"test.sh did not end within {timeout_s:g} s", said=said)
        return await _reward(sandbox, said)
    finally:
        await sandbox.close()


async def _reward(sandbox: Sandbox, said: str) -> Graded:
    """As Harbor reads it: reward.json where there is one, else reward.txt."""
    for name in ("reward.json", "reward.txt"):
        try:
            data = await sandbox.read(f"{VERIFIER}/{name}", limit=REWARD_BYTES)
        except FileNotFoundError:
            continue
        except OSError as problem:
            return Graded(reward=None, why=f"{name} cannot be read: {problem.strerror}", said=said)
        try:
            reward, parts = numbers(data, is_json=name.endswith("json"))
        except (ValueError, RecursionError) as problem:
            return Graded(reward=None, why=f"{name} holds no reward: {problem}"[:300], said=said)
        return Graded(reward=reward, parts=parts, said=said)
    return Graded(reward=None, why="test.sh wrote neither reward.json nor reward.txt", said=said)


def numbers(data: bytes, *, is_json: bool) -> tuple[float, dict[str, float]]:
    """The reward and its named parts. Of several named numbers, the one called `reward` is it. Raises ValueError."""
    text = data.decode()
    found: Any = json.loads(text) if is_json else float(text)
    named = found if isinstance(found, dict) else {"reward": found}
    for name, value in named.items():
        if not isinstance(value, int | float) or not -LARGEST <= value <= LARGEST:  # false for nan too
            raise ValueError(f"{name} is {value!r:.40}; expected a finite number")
    parts = {str(name): float(value) for name, value in named.items()}
    if "reward" in parts:
        return parts["reward"], parts if isinstance(found, dict) else {}
    if len(parts) != 1:
        raise ValueError(f"got {', '.join(sorted(parts)) or 'no number'}; expected one number, or one called reward")
    return next(iter(parts.values())), parts


Entry = tuple[list[Any], bytes]
"""One line of a snapshot's index, and the bytes of a file."""


def _entries(snapshot: Snapshot) -> Iterator[Entry]:
    at = _LENGTH.size + _LENGTH.unpack_from(snapshot.packed)[0]
    for entry in json.loads(snapshot.packed[_LENGTH.size : at]):
        size = entry[4] if entry[0] == "file" else 0
        yield entry, snapshot.packed[at : at + size]
        at += size


def _packed(entries: list[Entry]) -> Snapshot:
    index = json.dumps([entry for entry, _ in entries]).encode()
    return Snapshot(b"".join([_LENGTH.pack(len(index)), index, *(data for _, data in entries)]))


def _carried(left: Snapshot, task: Folder) -> list[Entry]:
    """What of an attempt's files goes to the grader. A link is left out where something of ours goes below it."""
    entries = list(_entries(left))
    linked = any(entry[1] in ("logs", "logs/artifacts") and entry[0] != "folder" for entry, _ in entries)
    artifacts = [PurePosixPath(path.lstrip("/")).parts for path in task.artifacts]

    def taken(entry: list[Any]) -> bool:
        parts = PurePosixPath(entry[1]).parts
        if parts[0] == "logs":
            return not linked and parts[1:2] in ((), ("artifacts",))
        if task.separate:
            return any(parts[: len(wanted)] == wanted for wanted in artifacts if wanted)
        if parts[0] == "root":
            return entry[0] == "folder" if len(parts) == 1 else not parts[1].startswith(".")
        return parts[0] not in ("tests", "solution")

    return [(entry, data) for entry, data in entries if taken(entry)]


def _tests(task: Folder) -> Iterator[Entry]:
    now = time.time_ns()
    for path, data in task.tests.items():
        yield ["file", f"tests/{path}", 0o755, now, len(data)], data


def _said(result: ExecResult) -> str:
    return (result.stdout + result.stderr).decode(errors="replace").strip()
