"""What can be found inside a sandbox: its files, environment, processes and repositories, listed by a command that
runs there as the attempt would, compared here. Nothing that is looked for ever enters the sandbox.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from envs import JudgeFailed, Task, World
from envs.sandboxes import Sandbox
from rl.check import leaks

TIMEOUT_S = 120.0
LISTING_BYTES = 64 * 2**20
FEWEST_CHARS = 3
"""A shorter answer may stand anywhere by accident."""

LOOK = r"""
import json, os, subprocess, sys
names, here, most = json.load(sys.stdin), os.getpid(), 10 << 20
found = {"files": {}, "env": dict(os.environ), "processes": [], "repositories": {}, "cut": 0}
spent = 0

def text(data):
    return data.decode("latin-1")

def take(path):
    global spent
    try:
        if not os.path.isfile(path):
            return
        with open(path, "rb") as file:
            data = file.read((1 << 20) + 1)
    except OSError:
        return
    spent += len(data)
    if spent > most or len(data) > 1 << 20:
        found["cut"] += 1
    else:
        found["files"][path] = text(data)

def git(place, *arguments):
    env = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "GIT_CONFIG_GLOBAL": "/dev/null", "HOME": "/nonexistent"}
    command = ["git", "-c", "safe.directory=*", "--no-replace-objects", "--git-dir=" + place, *arguments]
    try:
        return subprocess.run(command, capture_output=True, env=env, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return b""

def repository(place):
    heads = {line.split()[0] for line in git(place, "rev-list", "--objects", "HEAD").splitlines() if line}
    heads |= {line.split()[1] for line in git(place, "ls-files", "-s").splitlines() if line}
    check = "--batch-check=%(objectname) %(objecttype) %(objectsize)"
    kinds = [line.split() for line in git(place, "cat-file", "--batch-all-objects", check).splitlines()]
    blobs, size = {}, 0
    for name, kind, long in kinds:
        if kind == b"blob" and size + int(long) < most // 2:
            size += int(long)
            blobs[text(name)] = text(git(place, "cat-file", "blob", text(name)))
    logs = [os.path.join(at, file) for at, _, files in os.walk(os.path.join(place, "logs")) for file in files]
    return {
        "git": text(git(place, "--version")),
        "beyond": {k: [text(n) for n, kind, _ in kinds if text(kind) == k and n not in heads]
                   for k in ("commit", "tag", "tree", "blob")},
        "refs": text(git(place, "for-each-ref", "--format=%(refname)")).split(),
        "remotes": text(git(place, "remote", "-v")).split("\n")[:1],
        "reflog": sum(len(open(path, "rb").readlines()) for path in logs),
        "commits": len([1 for _, kind, _ in kinds if kind == b"commit"]),
        "blobs": blobs,
    }

for root in ("/work", "/tmp", "/var/tmp", "/home", "/root", "/dev/shm", "/run", "/mnt", "/srv", "/media"):
    for place, folders, files in os.walk(root):
        if "HEAD" in files and "objects" in folders:
            found["repositories"][place] = repository(place)
            folders[:] = []
            continue
        for name in sorted(files):
            take(os.path.join(place, name))
for place, folders, files in os.walk("/") if names else ():
    folders[:] = [f for f in folders if os.path.join(place, f) not in ("/proc", "/sys", "/dev", "/work", "/tmp")]
    for name in files:
        if any(os.path.join(place, name).endswith("/" + wanted) for wanted in names):
            take(os.path.join(place, name))
for pid in filter(str.isdigit, os.listdir("/proc")):
    if int(pid) != here:
        for part in ("cmdline", "environ"):
            try:
                with open(f"/proc/{pid}/{part}", "rb") as file:
                    found["processes"] += [text(word) for word in file.read().split(b"\0") if word]
            except OSError:
                pass
print(json.dumps(found))
"""


@dataclass(slots=True)
class Seen:
    """A sandbox, as its own user sees it."""

    files: dict[str, str] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    processes: list[str] = field(default_factory=list)
    repositories: dict[str, dict[str, Any]] = field(default_factory=dict)
    cut: int = 0
    """Files left out as too large, or too many."""


async def look(sandbox: Sandbox, names: list[str]) -> Seen:
    """`names`: ends of paths to look for anywhere, e.g. `tests/test_a.py`."""
    result = await sandbox.exec(
        ["python3", "-I", "-B", "-c", LOOK],
        stdin=json.dumps(names).encode(),
        timeout_s=TIMEOUT_S,
        max_output=LISTING_BYTES,
    )
    try:
        return Seen(**json.loads(result.stdout))
    except (ValueError, TypeError):
        said = result.stderr.decode(errors="replace")[-200:]
        raise JudgeFailed(f"the sandbox could not be looked into: exit code {result.exit_code}, {said}") from None


def secrets(world: World, task: Task) -> dict[str, str]:
    """Long texts that no attempt may find, by what they are: a world's own list, and hidden answers and programs."""
    own: Mapping[str, str] = world.secrets(task) if hasattr(world, "secrets") else {}
    visible = "\n".join([*(m["content"] for m in task.messages), *leaks.flat(task.given)])
    texts = {f"the hidden `{name}`": text for name, text in leaks.long_texts(task)}
    return {what: text for what, text in {**texts, **own}.items() if text.strip() and text not in visible}


def told(seen: Seen, empty: Seen, task: Task, hidden: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Kinds and words of what a sandbox gives away. `empty`: one that no attempt was given yet."""
    yield from _history(seen)
    places = {**seen.files}
    for path, repository in seen.repositories.items():
        places |= {f"{path}, object {name[:12]}": text for name, text in repository["blobs"].items()}
    for what, text in hidden.items():
        wanted = text.strip().encode().decode("latin-1")
        for place, content in places.items():
            if wanted in content:
                yield "sandbox-tells", f"{what} stands in {place} of the sandbox"
                break
    golds = {gold.strip() for gold in leaks.golds(task) if len(gold.strip()) >= FEWEST_CHARS}
    known = set(empty.env.values()) | set(empty.processes)
    words = [(f"the environment ({name})", value) for name, value in seen.env.items()]
    words += [("the list of processes", word) for word in seen.processes]
    words += [(place, content) for place, content in seen.files.items() if place not in empty.files]
    for place, value in words:
        if value in known:
            continue
        for gold in golds:
            if value.strip() == gold or re.search(rf"(?i)answers?\W+{re.escape(gold)}(?![\w.])", value):
                yield "sandbox-tells", f"the answer {gold[:60]!r} stands in {place} of the sandbox"
                return


def _history(seen: Seen) -> Iterator[tuple[str, str]]:
    for place, repository in seen.repositories.items():
        beyond = {kind: names for kind, names in repository["beyond"].items() if names}
        if not repository["git"]:
            yield "history", f"there is a repository at {place}, and no git in the sandbox to look into it"
        if beyond:
            counts = ", ".join(f"{len(names)} {kind}{'s' * (len(names) > 1)}" for kind, names in beyond.items())
            refs = ", ".join(repository["refs"][:5]) or "none"
            yield (
                "history",
                f"{place} holds {counts} that HEAD does not reach, e.g. {next(iter(beyond.values()))[0][:12]} "
                f"(refs: {refs}; {repository['reflog']} entries of reflogs)",
            )
        if any(repository["remotes"]):
            yield "history", f"{place} knows where it came from: {repository['remotes'][0].strip()[:120]}"
    for path, content in seen.files.items():
        if re.match(r"# v\d git bundle\n", content):
            yield "history", f"{path} is a bundle of git objects"
