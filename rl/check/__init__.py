"""`rl check`: is a world fit to be trained on? Plays it without a model, names every fault and the task it shows on.

The world runs in a process of its own (`player.py`), which is killed where it stops answering (`watch.py`); neither Ray
nor an engine is started. What it looks for is in `kinds.py`; the result is a file that training reads (`result.py`).
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import shutil
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

from envs import sandboxes
from rl.check import fresh
from rl.check import result as results
from rl.check.kinds import KINDS
from rl.check.result import Result
from rl.check.watch import Page, Watch

SHOWN = 5


def check(
    world: str,
    args: dict[str, Any],
    *,
    tasks: int | None = None,
    deadline_s: float = 120.0,
    image: str = "touchstone-sandbox:bookworm",
    exploits: bool = True,
    as_json: bool = False,
    out: str | None = None,
    runs: str = "runs",
) -> int:
    """Exit code 0 where the world is fit, 1 where it is not. `tasks`: of each split; None for all of a finite world and
    a sample of an endless one. Raises ValueError for what the user got wrong.
    """
    if (tasks is not None and tasks < 1) or deadline_s <= 0:
        raise ValueError(f"got --tasks {tasks} and --deadline {deadline_s:g}; expected more than 0 of both")
    if out is not None and not Path(out).resolve().parent.is_dir():
        raise ValueError(f"there is no folder for --out {out}")
    began = time.monotonic()
    result = Result(world, args, image)
    order: dict[str, Any] = {"world": world, "args": args, "tasks": tasks, "deadline_s": deadline_s, "image": image}
    order |= {"backend": sandboxes.choose("auto", image), "exploits": exploits, "only": []}
    with Page(world) as page:
        asyncio.run(_played(order, result, page, _part(runs, order) if out is None else None))
    result.seconds = time.monotonic() - began
    path = Path(out) if out is not None else results.place(runs, world, result.config)
    results.write(result, path)
    *said, verdict = words(result)
    print(json.dumps(result.to_json()) if as_json else _wrapped([*said, f"result: {path}", verdict]))
    return 0 if result.fit else 1


def _part(runs: str, order: dict[str, Any]) -> Path:
    """Where what was heard stands until the end: named by all that the result will depend on."""
    whole = json.dumps([order, results.inputs(order["world"], order["args"])], sort_keys=True, default=str)
    return Path(runs) / "check" / f".{hashlib.sha256(whole.encode()).hexdigest()[:16]}.part"


async def _played(order: dict[str, Any], result: Result, page: Page, part: Path | None) -> None:
    watch = Watch(order, result, page, part)
    await watch.run()
    result.fold()
    right = [line for line in watch.kept.values() if line[0] == "right"]
    await fresh.settle(order, result, page, right)


def words(result: Result) -> list[str]:
    """The result for a person: a line for each kind of fault, then what was played, then the verdict."""
    by_kind = {kind: [fault for fault in result.faults if fault["kind"] == kind] for kind in KINDS}
    lines = [_finding(kind, found, *result.share(kind)) for kind, found in by_kind.items() if found]
    counts = {split: sum(at.startswith(f"{split}/") for at in result.tasks) for split in ("train", "heldout")}
    scope = "all there are" if all(map(result.whole.get, counts)) else "a sample"
    longest = f", prompts of up to {result.longest} characters" if result.longest else ""
    lines.append(
        f"{result.world}: {counts['train']} train and {counts['heldout']} held-out tasks ({scope}){longest}, "
        f"{result.seconds:.0f} s"
    )
    lines += [result.rows_words] if result.rows_words else []
    tried = result.exploits()
    if tried["attacks"] or tried["honest"]:
        lines.append(
            f"exploits: {tried['failed']} of {tried['attacks']} attacks failed, "
            f"{tried['accepted']} of {tried['honest']} honest look-alikes accepted"
        )
    if result.looked:
        lines.append("looked into: " + ", ".join(f"{count} {name}" for name, count in sorted(result.looked.items())))
    for kind, found in by_kind.items():
        if 1 < len(found) < len(result.tasks) and _where(found[0]):
            more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
            lines.append(f"{kind} is on: {', '.join(map(_where, found[:SHOWN]))}{more}")
    if result.undemonstrated:
        key, why = next(iter(result.undemonstrated.items()))
        lines.append(
            f"{len(result.undemonstrated)} tasks without a right demonstration, not checked by it, e.g. {key}: {why}"
        )
    lines += result.notes
    return [*lines, _verdict(result)]


def _wrapped(lines: list[str]) -> str:
    """For a terminal, at spaces and indented; for a pipe, a line for each."""
    if not sys.stdout.isatty():
        return "\n".join(lines)
    width = shutil.get_terminal_size().columns
    fill = functools.partial(
        textwrap.fill, width=width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(map(fill, lines))


def _finding(kind: str, found: list[dict[str, Any]], on: int, tried: int) -> str:
    where = _where(found[0])
    if len(found) > 1:
        count = f"{on} of {tried} tasks" if found[0]["key"] else f"{len(found)} positions"
        where = f"{count}, as {where}"
    return f"{kind}{f' on {where}' if where else ''}: {found[0]['words']}. To mend: {KINDS[kind].change}"


def _where(fault: dict[str, Any]) -> str:
    """Empty for what is nowhere, or at an exploit, which the words name."""
    if fault["split"] not in ("train", "heldout"):
        return ""
    return f"{fault['split']} {fault['index']}" + (f" ({fault['key']})" if fault["key"] else "")


def _verdict(result: Result) -> str:
    if result.fit:
        return "fit to train on"
    kinds = len({fault["kind"] for fault in result.faults})
    if result.unfit_world():
        return f"unfit: {kinds} kind{'s' * (kinds > 1)} of fault"
    return f"fit to train on without {len(result.unfit_tasks())} of its {len(result.tasks)} tasks"
