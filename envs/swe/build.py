"""Tasks from real packages: `mutate-fix` (a planted fault) and `release-fix` (what the next release mended).

    found = await build(trees, Path("tasks"), pool, seed=0, most=30, jobs=2, tell=print_progress)

Writes `tasks.jsonl.gz` (one record a task), `trees/*.tar.gz` (each package once; both the same bytes for the same
sources, seed and image) and `build.json` (counts, refusals, tests left out, seconds of each test). A task is kept only
where, twice the same, some tests fail because of it and others pass, and its gold patch makes all of them pass.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import itertools
import json
import random
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from envs.sandboxes import SandboxPool
from envs.swe import edits, issues, mutate, suite, twins
from envs.swe.sources import Refused, Tree, is_source, is_test
from envs.swe.suite import Ran, Suite

Record = dict[str, Any]
Tell = Callable[[str, str, int], None]
"""Called with the package, what is being done, and how many of its faults are kept; all of them when it is done."""

MOST_COVERING = 120
MOST_BESIDE = 20
"""Tests of a task: those that run the faulty function, and a few others of the same files. Of a release, up to the
first number that fail and as many that pass."""
TRIES = 4
"""Faults tried for each task wanted, at most."""
PATCH_CHARS = 60_000


def content_hash(record: Mapping[str, Any]) -> str:
    """Of everything in the record but the hash itself."""
    plain = {name: value for name, value in record.items() if name != "content_hash"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


async def build(
    trees: Sequence[Tree], out: Path, pool: SandboxPool, *, seed: int, most: int, jobs: int, tell: Tell
) -> dict[str, Any]:
    """Make the tasks of all packages and write them. Several versions of one package: faults are put into the newest,
    and each two neighbours may give a release-fix. A build that was stopped goes on with the next package.
    """
    packages: dict[str, list[Tree]] = {}
    for tree in sorted(trees, key=lambda tree: (tree.package, version_key(tree.version))):
        packages.setdefault(tree.package, []).append(tree)
    told: dict[str, Any] = {}
    records: list[Record] = []
    parts = out / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    for name, versions in packages.items():
        part, asked = parts / f"{name}.json", [seed, most, *(tree.sha256 for tree in versions)]
        done = json.loads(part.read_text()) if part.exists() else {}
        if done.get("asked") != asked:
            own: list[Record] = []
            began = time.monotonic()
            found = await _package(versions, pool, own, seed=seed, most=most, jobs=jobs, tell=tell)
            found["wall_s"] = round(time.monotonic() - began, 1)
            done = {"asked": asked, "records": own, "told": found}
            part.write_text(json.dumps(done))
        tell(name, "done", most)
        records += done["records"]
        told[name] = done["told"]
    used = {record[role] for record in records for role in ("tree", "tests_tree")}
    (out / "trees").mkdir(parents=True, exist_ok=True)
    for tree in trees:
        if tree.name in used:
            (out / "trees" / f"{tree.name}.tar.gz").write_bytes(tree.packed)
    lines = "".join(json.dumps(record, sort_keys=True) + "\n" for record in records)
    (out / "tasks.jsonl.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))
    (out / "build.json").write_text(json.dumps({"seed": seed, "packages": told}, indent=1, sort_keys=True) + "\n")
    shutil.rmtree(parts)
    return told


def version_key(version: str) -> list[tuple[int, int | str]]:
    """Orders versions by their numbers; a letter, as in 1.0rc1, comes before the number that it leads to."""
    return [(1, int(p)) if p.isdigit() else (0, p) for p in version.replace("-", ".").split(".")]


async def _package(
    versions: Sequence[Tree], pool: SandboxPool, records: list[Record], *, seed: int, most: int, jobs: int, tell: Tell
) -> dict[str, Any]:
    newest = versions[-1]
    told: dict[str, Any] = {"version": newest.version, "mutate-fix": 0, "release-fix": 0, "refused": {}}
    suites: dict[str, Suite] = {}
    for tree in versions[1:] or versions:
        tell(tree.package, f"the tests of {tree.version}", 0)
        try:
            if found := await suite.copies(pool, tree):
                raise Refused(f"the image holds a copy of it: {found[0]}")
            suites[tree.version] = await suite.verify(pool, tree)
            suites[tree.version].twins = await twins.verified(pool, tree, suites[tree.version])
        except Refused as error:
            told["refused"][tree.version] = str(error)
    if newest.version in suites:
        own = suites[newest.version]
        seconds = {name: test.cpu_s for name, test in own.tests.items()}
        told |= {"tests": len(own.tests), "dropped": own.dropped, "seconds": own.seconds, "test_seconds": seconds}
        tried: dict[str, int] = {}
        found_records = await _mutations(pool, newest, own, tried, seed=seed, most=most, jobs=jobs, tell=tell)
        records += found_records
        told |= {"mutate-fix": len(found_records), "tried": tried}
    for old, new in itertools.pairwise(versions):
        if new.version in suites:
            tell(old.package, f"{old.version} to {new.version}", told["mutate-fix"])
            try:
                records.append(await release_fix(pool, old, new, suites[new.version], seed=seed))
                told["release-fix"] += 1
            except Refused as error:
                told["refused"][f"{old.version}..{new.version}"] = str(error)
    return told


async def _mutations(
    pool: SandboxPool, tree: Tree, own: Suite, tried: dict[str, int], *, seed: int, most: int, jobs: int, tell: Tell
) -> list[Record]:
    """The first `most` faults, in the order of the seed, that tests tell from the source. `tried` counts endings."""
    kept: list[Record] = []

    async def one(candidate: tuple[str, mutate.Fault]) -> Record | str:
        return await mutate_fix(pool, tree, own, *candidate, seed=seed)

    wanted = candidates(tree, own, seed)[: TRIES * most]
    async for result in _in_order([lambda c=c: one(c) for c in wanted], jobs):  # type: ignore[misc]
        ending = result if isinstance(result, str) else "kept"
        tried[ending] = tried.get(ending, 0) + 1
        if isinstance(result, dict):
            kept.append(result)
        tell(tree.package, "faults", len(kept))
        if len(kept) == most:
            break
    return kept


async def _in_order(calls: Sequence[Callable[[], Awaitable[Any]]], jobs: int) -> AsyncIterator[Any]:
    """Results of the calls in their order, which is the same on any machine; some are begun ahead, so that none of
    the `jobs` sandboxes waits for the slowest.
    """
    waiting = list(reversed(calls))
    running: list[asyncio.Future[Any]] = []
    try:
        while waiting or running:
            while waiting and len(running) < 2 * jobs:
                running.append(asyncio.ensure_future(waiting.pop()()))
            yield await running.pop(0)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def candidates(tree: Tree, own: Suite, seed: int) -> list[tuple[str, mutate.Fault]]:
    """Faults in functions that tests run: one of each function, then a second of each …; the rarest operator first."""
    rng = random.Random(f"{seed}/{tree.name}")
    ran = {place for test in own.tests.values() for place in test.ran}
    by_function: dict[tuple[str, str], dict[str, list[mutate.Fault]]] = {}
    for path in sorted({path for path, _ in ran if is_source(path)} & set(tree.files)):
        try:
            source = tree.files[path].decode()
        except UnicodeDecodeError:
            continue
        for fault in mutate.faults(source):
            if (path, fault.line) in ran:
                by_function.setdefault((path, fault.function), {}).setdefault(fault.operator, []).append(fault)
    queues = [
        (path, {operator: rng.sample(found, len(found)) for operator, found in sorted(operators.items())})
        for (path, _), operators in sorted(by_function.items())
    ]
    rng.shuffle(queues)
    used: Counter[str] = Counter()
    order: list[tuple[str, mutate.Fault]] = []
    while queues:
        for path, left in queues:
            operator = min(left, key=lambda name: (used[name], rng.random()))
            used[operator] += 1
            order.append((path, left[operator].pop()))
            if not left[operator]:
                del left[operator]
        queues = [queue for queue in queues if queue[1]]
    return order


async def mutate_fix(
    pool: SandboxPool, tree: Tree, own: Suite, path: str, fault: mutate.Fault, *, seed: int
) -> Record | str:
    """The task of one fault, or in a word why there is none."""
    source = tree.files[path].decode()
    if not mutate.sound(fault, source):
        return "unsound"
    bad = fault.apply(source)
    try:
        bug, gold = edits.edits(path, source, bad), edits.edits(path, bad, source)
    except ValueError:
        return "not to be edited"
    rng = random.Random(f"{seed}/{tree.name}/{path}/{fault}")
    chosen = _chosen(rng, own, path, fault.line)
    fails, passes, messages = await _told_apart(pool, {**tree.files, path: bad.encode()}, tree.root, chosen, own)
    if not fails or not passes:
        return messages[0]
    told_apart = twins.of_tests(own.twins, fails)
    if not told_apart:
        return "no twin"
    digest = hashlib.sha256(f"{path}/{fault}".encode()).hexdigest()[:8]
    return _record(
        key=f"mutate-fix/{tree.name}/{fault.function}/{fault.operator}/{digest}",
        kind="mutate-fix",
        level=int(any(part.startswith("_") for part in fault.function.split("."))),
        trees=(tree, tree),
        place=(path, fault.function, fault.operator),
        bug=bug,
        gold=gold,
        patches=(edits.patch({path: source}, {path: bad}), edits.patch({path: bad}, {path: source})),
        tests=(fails, passes),
        told_apart=told_apart,
        issue=issues.fault(tree, path, fault.function, messages),
    )


def _chosen(rng: random.Random, own: Suite, path: str, line: int) -> list[str]:
    covering = own.covering(path, line)
    files = {test.partition("::")[0] for test in covering}
    beside = sorted(test for test in own.tests if test.partition("::")[0] in files and test not in set(covering))
    return sorted(_sampled(rng, covering, MOST_COVERING) + _sampled(rng, beside, MOST_BESIDE))


def _sampled(rng: random.Random, tests: Sequence[str], most: int) -> list[str]:
    return sorted(rng.sample(tests, min(len(tests), most)))


async def _told_apart(
    pool: SandboxPool, files: Mapping[str, bytes], root: str, chosen: Sequence[str], own: Suite
) -> tuple[list[str], list[str], list[str]]:
    """Tests that fail on a tree, tests that pass, and what the failing say; where not twice the same, only why not."""
    limit_s = 10.0 + 4 * own.seconds
    first = await suite.run(pool, files, root, only=chosen, timeout_s=limit_s)
    fails, passes = _split(first, chosen)
    if first.timed_out or not fails or not passes:
        return [], [], ["timed out" if first.timed_out else "not seen" if not fails else "nothing passes"]
    second = await suite.run(pool, files, root, only=chosen, timeout_s=limit_s)
    if second.timed_out or _split(second, chosen) != (fails, passes):
        return [], [], ["flaky"]
    said = [_said(run_, fails) for run_ in (first, second)]
    return fails, passes, [message for message in said[0] if message in said[1]]


def _split(ran: Ran, chosen: Sequence[str]) -> tuple[list[str], list[str]]:
    return [test for test in chosen if not ran.passed(test)], [test for test in chosen if ran.passed(test)]


def _said(ran: Ran, fails: Sequence[str]) -> list[str]:
    return issues.seen([ran.tests[test].message for test in fails if test in ran.tests] + sorted(ran.broken.values()))


async def release_fix(pool: SandboxPool, old: Tree, new: Tree, own: Suite, *, seed: int) -> Record:
    """The step from one release to the next. Raises Refused."""
    texts: list[dict[str, str]] = []
    for tree in (old, new):
        try:
            texts.append({path: data.decode() for path, data in tree.files.items() if is_source(path)})
        except UnicodeDecodeError as error:
            raise Refused(f"{tree.name}: a source file is not in UTF-8: {error}") from None
    before, after = texts
    gold_patch = edits.patch(before, after)
    if not gold_patch or len(gold_patch) > PATCH_CHARS:
        raise Refused(f"the source's patch has {len(gold_patch)} characters, expected 1 to {PATCH_CHARS}")
    try:
        gold = [
            step for path in sorted({*before, *after}) for step in edits.edits(path, before.get(path), after.get(path))
        ]
    except ValueError as error:
        raise Refused(f"the change cannot be written as edits: {error}") from None
    base = {path: data for path, data in old.files.items() if not is_test(path)} | new.tests
    fails, passes, messages = await _told_apart(pool, base, old.root, sorted(own.tests), own)
    if not fails or not passes:
        raise Refused(f"the new tests on the old source: {messages[0]}")
    mended = {path: data for path, data in base.items() if not is_source(path)}
    mended |= {path: text.encode() for path, text in after.items()}
    whole = await suite.run(pool, mended, old.root, only=sorted(own.tests))
    fails = [test for test in fails if whole.passed(test)]
    passes = [test for test in passes if whole.passed(test)]
    if not fails or not passes:
        raise Refused(f"with the gold patch {len(fails)} failing and {len(passes)} passing tests pass")
    rng = random.Random(f"{seed}/{old.name}/{new.version}")
    fails, passes = _sampled(rng, fails, MOST_COVERING), _sampled(rng, passes, MOST_COVERING)
    told_apart = twins.of_tests(own.twins, fails)
    if not told_apart:
        raise Refused("none of the tests that fail has a twin")
    return _record(
        key=f"release-fix/{old.name}/{new.version}",
        kind="release-fix",
        level=2,
        trees=(old, new),
        place=(next(step["path"] for step in gold), "", "release"),
        bug=[],
        gold=gold,
        patches=("", gold_patch),
        tests=(fails, passes),
        told_apart=told_apart,
        issue=issues.release(old, new, messages),
    )


def _record(
    *,
    key: str,
    kind: str,
    level: int,
    trees: tuple[Tree, Tree],
    place: tuple[str, str, str],
    bug: list[edits.Edit],
    gold: list[edits.Edit],
    patches: tuple[str, str],
    tests: tuple[list[str], list[str]],
    told_apart: Sequence[twins.Twin],
    issue: str,
) -> Record:
    tree, tests_tree = trees
    record: Record = {
        "key": key,
        "kind": kind,
        "level": level,
        "package": tree.package,
        "version": tree.version,
        "tree": tree.name,
        "tree_sha256": tree.sha256,
        "tests_tree": tests_tree.name,
        "tests_tree_sha256": tests_tree.sha256,
        "root": tree.root,
        "file": place[0],
        "function": place[1],
        "operator": place[2],
        "bug_edits": bug,
        "gold_edits": gold,
        "bug_patch": patches[0],
        "gold_patch": patches[1],
        "FAIL_TO_PASS": tests[0],
        "twins": [
            {**twin, "tests": {test: at for test, at in twin["tests"].items() if test in {*tests[0], *tests[1]}}}
            for twin in told_apart
        ],
        "PASS_TO_PASS": tests[1],
        "issue": issue,
    }
    return record | {"content_hash": content_hash(record)}
