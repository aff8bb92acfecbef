"""`rl tasks build`: real packages into tasks of the world swe. Packages run only in sandboxes, never here."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from envs.sandboxes import SandboxUnavailable, docker
from envs.swe import build, sources, suite

SCRIPT = Path(__file__).parent.parent / "scripts" / "tasks-image.sh"


def run(
    given: Sequence[str], out: Path, *, seed: int, most: int, sandboxes: int, image: str, cache: Path, as_json: bool
) -> int:
    """Build, then tell what was made. Returns 1 where no task was."""
    if (out / "tasks.jsonl.gz").exists():
        raise ValueError(f"{out} holds tasks already; expected a new folder")
    if most < 1 or sandboxes < 1:
        raise ValueError(f"got --max-per-package {most} and --sandboxes {sandboxes}; expected at least 1 each")
    began = time.monotonic()
    trees, refused = read(listed(given), cache)
    if not trees:
        raise ValueError(f"none of the sources can be used: {'; '.join(refused.values())}")
    ready(image)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, TextColumn("left:"), TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        packages = {tree.package for tree in trees}
        line = bar.add_task("tasks", total=most * len(packages))
        made: dict[str, int] = {}

        def tell(package: str, doing: str, found: int) -> None:
            made[package] = found
            bar.update(line, description=f"{package}: {doing}", completed=sum(made.values()))
            if doing == "done" and not bar.console.is_terminal:
                bar.console.print(f"{package}: done; {len(made)} of {len(packages)}, {time.monotonic() - began:.0f} s")

        told = asyncio.run(_build(trees, out, seed=seed, most=most, sandboxes=sandboxes, image=image, tell=tell))
    summary: dict[str, Any] = {
        "tasks": {kind: sum(package[kind] for package in told.values()) for kind in ("mutate-fix", "release-fix")},
        "packages": {
            name: {key: value for key, value in package.items() if key not in ("dropped", "test_seconds")}
            | {"dropped": len(package.get("dropped", {}))}
            for name, package in told.items()
        },
        "refused": refused,
        "seconds": round(time.monotonic() - began, 1),
        "bytes": sum(path.stat().st_size for path in out.rglob("*") if path.is_file()),
    }
    print(json.dumps(summary)) if as_json else _show(summary, out)
    return 0 if any(summary["tasks"].values()) else 1


def listed(given: Sequence[str]) -> list[str]:
    """The sources, each `.txt` file among them replaced by its lines."""
    found: list[str] = []
    for source in given:
        if source.endswith(".txt") and Path(source).is_file():
            lines = (line.partition("#")[0].strip() for line in Path(source).read_text().splitlines())
            found += [line for line in lines if line]
        else:
            found.append(source)
    return list(dict.fromkeys(found))


def read(specs: Sequence[str], cache: Path) -> tuple[list[sources.Tree], dict[str, str]]:
    """Their trees, and why the others have none."""
    trees: dict[str, sources.Tree] = {}
    refused: dict[str, str] = {}
    for spec in specs:
        try:
            tree = sources.load(spec, cache)
            if tree.name in trees:
                raise sources.Refused(f"{tree.name} was given twice")
            trees[tree.name] = tree
        except (sources.Refused, OSError, subprocess.TimeoutExpired) as error:
            refused[spec] = str(error)
    return list(trees.values()), refused


def ready(image: str) -> None:
    """Make the image where it is the one we know how to make. Raises SandboxUnavailable."""
    try:
        docker.reap()
    except SandboxUnavailable as without:
        raise SandboxUnavailable(
            "packages' tests run in an image that holds pytest, and bubblewrap has no images, so a Docker engine is "
            f"needed: {without}"
        ) from None
    if image == suite.IMAGE and SCRIPT.is_file():
        made = subprocess.run([SCRIPT], env={**os.environ, "PYTHON": sys.executable}, stdout=sys.stderr, check=False)
        if made.returncode != 0:
            raise SandboxUnavailable(f"the image {image} could not be made; see above")
    docker.preflight(image)


async def _build(trees: Sequence[sources.Tree], out: Path, *, sandboxes: int, image: str, **how: Any) -> dict[str, Any]:
    pool = docker.DockerPool(run="tasks", size=sandboxes, image=image)
    try:
        return await build.build(trees, out, pool, jobs=sandboxes, **how)
    finally:
        await pool.close()


def _show(summary: dict[str, Any], out: Path) -> None:
    table = Table(caption=f"{out}: {summary['bytes'] / 2**20:.1f} MiB in {summary['seconds']:.0f} s")
    for column in ("package", "tests", "left out", "mutate-fix", "release-fix", "refused"):
        table.add_column(column, justify="right" if column not in ("package", "refused") else "left")
    for name, found in summary["packages"].items():
        refused = "\n".join(f"{version}: {why}" for version, why in found["refused"].items())
        counts = (found.get("tests", 0), found["dropped"], found["mutate-fix"], found["release-fix"])
        table.add_row(f"{name} {found['version']}", *map(str, counts), refused)
    for spec, why in summary["refused"].items():
        table.add_row(spec, "", "", "", "", why)
    Console().print(table)
