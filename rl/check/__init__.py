"""`rl check`: is a world fit to be trained on? Plays it without a model, names every fault and the task it shows on.

The world runs in a process of its own (`player.py`), which is killed where it stops answering (`watch.py`); neither Ray
nor an engine is started. What it looks for is in `KINDS`; the result is a file that training reads (`result.py`).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from pathlib import Path
from typing import Any

from envs import sandboxes
from rl.check import result as results
from rl.check.result import Result
from rl.check.watch import Page, Watch

KINDS = {
    "gold-fails": "the right answer is not scored as right",
    "empty-scores": "an empty answer is scored as right",
    "wrong-scores": "a wrong answer is scored as right",
    "malformed-scores": "an answer that cannot be understood is scored as right",
    "exploit-passes": "a known exploit is scored as right",
    "honest-refused": "an honest answer that looks like an exploit is not scored as right",
    "wrong-verdict": "an answer that never ends, floods or breaks off is not called what it is",
    "leak": "the task tells its own answer",
    "sandbox-tells": "a sandbox holds what the attempt may not see",
    "history": "a sandbox holds history that leads to the answer",
    "splits-overlap": "training and held-out tasks are not apart",
    "not-repeatable": "the same thing done twice has two results",
    "state-shared": "one attempt changes the verdict of another",
    "never-ends": "a call does not end",
    "raises": "a call raises, which would lose the episode",
    "data-error": "the hidden answer cannot be read",
    "judge-fails": "the verifier gives no verdict",
    "huge-output": "a message or the facts are too large",
    "wrong-type": "a call answers with something else than the contract says",
    "not-json": "a task or its facts cannot be stored",
    "sandbox-kept": "an attempt does not hand its sandbox back",
    "container-left": "containers are left after the end",
    "dies": "the world ends its whole process",
}
"""Every fault there is, by its name in the result, in plain words."""

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
    order = {"world": world, "args": args, "tasks": tasks, "deadline_s": deadline_s, "image": image}
    order |= {"backend": sandboxes.choose("auto", image), "exploits": exploits}
    with Page(world) as page:
        asyncio.run(Watch(order, result, page, _part(runs, order) if out is None else None).run())
    result.seconds = time.monotonic() - began
    path = Path(out) if out is not None else results.place(runs, world, result.config)
    results.write(result, path)
    *said, verdict = words(result)
    print(json.dumps(result.to_json()) if as_json else "\n".join([*said, f"result: {path}", verdict]))
    return 0 if result.fit else 1


def _part(runs: str, order: dict[str, Any]) -> Path:
    """Where what was heard stands until the end: named by all that the result will depend on."""
    whole = json.dumps([order, results.inputs(order["world"], order["args"])], sort_keys=True, default=str)
    return Path(runs) / "check" / f".{hashlib.sha256(whole.encode()).hexdigest()[:16]}.part"


def words(result: Result) -> list[str]:
    """The result for a person: each kind of fault, and the tasks that show it."""
    counts = {split: sum(at.startswith(f"{split}/") for at in result.tasks) for split in ("train", "heldout")}
    scope = "all there are" if all(map(result.whole.get, counts)) else "a sample"
    lines = [
        f"{result.world}: {counts['train']} train and {counts['heldout']} held-out tasks ({scope}), "
        f"{result.seconds:.0f} s"
    ]
    lines += [result.rows_words] if result.rows_words else []
    tried = result.exploits()
    if tried["attacks"] or tried["honest"]:
        lines.append(
            f"exploits: {tried['failed']} of {tried['attacks']} attacks failed, "
            f"{tried['accepted']} of {tried['honest']} honest look-alikes accepted"
        )
    if result.looked:
        lines.append("looked into: " + ", ".join(f"{count} {name}" for name, count in sorted(result.looked.items())))
    for kind, plain in KINDS.items():
        found = [fault for fault in result.faults if fault["kind"] == kind]
        if not found:
            continue
        lines.append(f"{kind}: {plain} ({len(found)})")
        for fault in found[:SHOWN]:
            where = f"{fault['split']} task {fault['index']}, {fault['key']}: " if fault["key"] else ""
            lines.append(f"  {where}{fault['words']}")
        lines += [f"  … and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
    if result.undemonstrated:
        key, why = next(iter(result.undemonstrated.items()))
        lines.append(
            f"{len(result.undemonstrated)} tasks without a right demonstration, not checked by it, e.g. {key}: {why}"
        )
    lines += result.notes
    return [*lines, _verdict(result)]


def _verdict(result: Result) -> str:
    if result.fit:
        return "fit to train on"
    kinds = len({fault["kind"] for fault in result.faults})
    if result.unfit_world():
        return f"unfit: {kinds} kind{'s' * (kinds > 1)} of fault"
    return f"fit to train on without {len(result.unfit_tasks())} of its {len(result.tasks)} tasks"
