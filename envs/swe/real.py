"""Tasks made by `rl tasks build`, read back: a package with a fault or a missing change, an issue, hidden tests.

    stream = Stream("tasks", seed=0, families=None, levels=(0, 1, 2), turns=20)
    task = stream.task("train", 5)
    stream.demonstrate(task, err=False)       # the gold patch, written through the tools

How they are played and graded is in `attempt.py`.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import json
import random
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from envs import Message, Split, Task, heldout
from envs.swe.build import content_hash
from envs.swe.edits import Edit, applied
from envs.swe.sources import is_source, is_test, unpack

FAMILIES = ("mutate-fix", "release-fix")
OBSERVATION_CHARS = 6000
TREES_IN_MEMORY = 4
SHOWN_LINES = 6
"""Around each place that the expert looks at."""

HIDDEN = (
    *("FAIL_TO_PASS", "PASS_TO_PASS", "tree", "tree_sha256", "tests_tree", "tests_tree_sha256"),
    *("bug_edits", "gold_edits", "gold_patch"),
)

RULES = """\
You mend a Python package in /work. Each turn, call one tool, as plain text:

<tool: bash>
a shell command
</tool>

<tool: edit>
path/of/the/file.py
<<<<
the old lines, which must occur once in the file
====
the new lines
>>>>
</tool>

<tool: submit>
done
</tool>

`python3 -m pytest` runs the package's tests. Some tests are hidden; they decide, on your Python files outside of tests.
Submit within {turns} turns."""


class Trees:
    """Packed trees of a folder, unpacked when asked for; the last few stay in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._held: OrderedDict[str, dict[str, bytes]] = OrderedDict()

    def get(self, name: str, sha256: str) -> dict[str, bytes]:
        if name not in self._held:
            data = (self.folder / f"{name}.tar.gz").read_bytes()
            if (got := hashlib.sha256(data).hexdigest()) != sha256:
                raise ValueError(f"{self.folder}/{name}.tar.gz has SHA-256 {got:.12}…, expected {sha256:.12}…")
            self._held[name] = unpack(data, f"{name}.tar.gz", strip=False)
            while len(self._held) > TREES_IN_MEMORY:
                self._held.popitem(last=False)
        self._held.move_to_end(name)
        return self._held[name]


class Stream:
    """The tasks of a folder, endless: each split's in an order of its seed, then again in another."""

    def __init__(
        self, folder: str, seed: int, families: Sequence[str] | None, levels: Sequence[int], turns: int
    ) -> None:
        path = Path(folder) / "tasks.jsonl.gz"
        if not path.is_file():
            raise ValueError(f"world swe: there is no {path}; expected a folder made by `rl tasks build`")
        families = FAMILIES if families is None else families
        if not families or not set(families) <= set(FAMILIES):
            raise ValueError(f"world swe: got families {list(families)}; available with tasks: {', '.join(FAMILIES)}")
        if not levels or not set(levels) <= {0, 1, 2}:
            raise ValueError(f"world swe: got levels {list(levels)}; available: 0, 1, 2")
        self.seed, self.turns, self.trees = seed, turns, Trees(Path(folder) / "trees")
        self.splits: dict[str, list[dict[str, Any]]] = {"train": [], "heldout": []}
        for number, line in enumerate(gzip.decompress(path.read_bytes()).decode().splitlines(), 1):
            record = json.loads(line)
            if record["content_hash"] != content_hash(record):
                raise ValueError(f"{path}, line {number}: task {record['key']} is not what its content hash says")
            if record["kind"] in families and record["level"] in levels:
                self.splits["heldout" if heldout(record["key"]) else "train"].append(record)
        if empty := [split for split, records in self.splits.items() if not records]:
            raise ValueError(f"world swe: {path} has no {' and no '.join(empty)} tasks of these families and levels")

    def task(self, split: Split, index: int) -> Task:
        records = self.splits[split]
        turn, at = divmod(index, len(records))
        record = records[_order(f"swe/{split}/{self.seed if split == 'train' else 0}/{turn}", len(records))[at]]
        files = {test.partition("::")[0] for test in record["FAIL_TO_PASS"]}
        return Task(
            world="swe",
            key=record["key"],
            family=record["kind"],
            level=record["level"],
            messages=(
                {"role": "system", "content": RULES.format(turns=self.turns)},
                {"role": "user", "content": record["issue"]},
            ),
            given={name: record[name] for name in ("package", "version", "root", "image") if name in record},
            hidden={name: record[name] for name in HIDDEN} | {"files": sorted(files), "twins": record.get("twins", [])},
        )

    def files(self, task: Task) -> dict[str, bytes]:
        """The package with its fault, tests included."""
        files = dict(self.trees.get(task.hidden["tree"], task.hidden["tree_sha256"]))
        steps: list[Edit] = task.hidden["bug_edits"]
        before = {step["path"]: files[step["path"]].decode() for step in steps}
        return files | {path: text.encode() for path, text in applied(before, steps).items()}

    def visible(self, task: Task) -> dict[str, bytes]:
        """What the attempt finds in /work: all but the test files that hold a FAIL_TO_PASS test."""
        return {path: data for path, data in self.files(task).items() if path not in task.hidden["files"]}

    def tests(self, task: Task) -> dict[str, bytes]:
        """The task's test files, which no attempt sees or brings."""
        tree = self.trees.get(task.hidden["tests_tree"], task.hidden["tests_tree_sha256"])
        return {path: data for path, data in tree.items() if is_test(path)}

    def secrets(self, task: Task) -> dict[str, str]:
        """Texts that no attempt may find in its sandbox: the hidden test files, and the mended code."""
        seen = "\n".join(data.decode("latin-1") for data in self.visible(task).values())
        found = {f"the hidden test file {path}": self.tests(task).get(path, b"") for path in task.hidden["files"]}
        for step in task.hidden["gold_edits"]:
            found[f"the mended code of {step['path']}"] = (step["new"] or "").encode()
        texts = {what: data.decode(errors="replace") for what, data in found.items()}
        return {what: text for what, text in texts.items() if text.strip() and text.strip() not in seen}

    def paths(self, task: Task) -> list[str]:
        """Ends of paths where a copy of the package or of its hidden tests would stand."""
        own = {*task.hidden["files"], *(step["path"] for step in task.hidden["gold_edits"])}
        return sorted({"/".join(path.removeprefix("src/").split("/")[-2:]) for path in own})

    def demonstrate(self, task: Task, *, err: bool) -> list[Message]:
        """The expert looks at each place, edits it as the gold patch says and submits; where it errs it only looks."""
        texts = {path: data.decode(errors="replace") for path, data in self.files(task).items() if is_source(path)}
        said = list(task.messages)
        for step in task.hidden["gold_edits"]:
            command, seen = _look(texts, step)
            said += [_call("bash", command), {"role": "tool", "name": "bash", "content": seen}]
            if not err:
                said += _do(step)
                texts = applied(texts, [step])
        return [*said, _call("submit", "done")]


@functools.lru_cache(maxsize=4)
def _order(seed: str, count: int) -> list[int]:
    """One round through so many records, shuffled."""
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order


def _look(texts: Mapping[str, str], step: Edit) -> tuple[str, str]:
    path, old = step["path"], step["old"]
    if not old:
        return f"test -e {path} || echo no file", "no file" if path not in texts else ""
    before = texts[path].partition(old)[0].count("\n")
    first, last = max(1, before + 1 - SHOWN_LINES), before + 1 + old.count("\n") + SHOWN_LINES
    shown = "\n".join(texts[path].split("\n")[first - 1 : last])
    return f"sed -n '{first},{last}p' {path}", shown.rstrip("\n")[:OBSERVATION_CHARS]


def _do(step: Edit) -> list[Message]:
    path, old, new = step["path"], step["old"], step["new"]
    if old is not None and new is not None:
        return [
            _call("edit", f"{path}\n<<<<\n{old}\n====\n{new}\n>>>>"),
            {"role": "tool", "name": "edit", "content": "edited"},
        ]
    command = f"rm {path}" if new is None else f"cat > {path} <<'END OF FILE'\n{new}END OF FILE"
    return [_call("bash", command), {"role": "tool", "name": "bash", "content": ""}]


def _call(tool: str, body: str) -> Message:
    return {"role": "assistant", "content": f"<tool: {tool}>\n{body}\n</tool>"}
