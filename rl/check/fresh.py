"""Is a wrong verdict the grader's own, or left by earlier attempts? It is played again, first in a new process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rl.check.result import Result
from rl.check.watch import Page, Watch

CHANCE = "not-repeatable"
OF_VERDICTS = (
    CHANCE,
    "accepts-anything",
    "empty-scores",
    "wrong-scores",
    "malformed-scores",
    "gold-fails",
    "never-done",
)
"""Kinds that a state left by earlier attempts can bring about."""
PHASES = ("empty", "malformed", "wrong", "gold", "afterwards", "each")


async def settle(order: dict[str, Any], result: Result, page: Page, right: Sequence[list[Any]] = ()) -> None:
    """One attempt of each such kind as the first thing that a process does. Where it comes out otherwise there, all of
    the kind is called `state-shared`, and what else was seen of verdicts is left out, since it means nothing. Where
    verdicts fall by chance, what would so be called on fewer tasks is left out: now and then chance looks like it.
    `right`: right answers, so that no new process finds them by playing, which may leave something behind.
    """
    shared: list[dict[str, Any]] = []
    chance = 0
    for kind in OF_VERDICTS:
        found = [fault for fault in result.faults if fault["kind"] == kind and fault["key"]]
        # The last one, where chance could show the same: what it draws first in a new process is not what it drew then.
        fault = found[-1 if kind == CHANCE else 0] if found else None
        if fault is None or fault["phase"] not in PHASES:
            continue
        why = await _otherwise(order, fault, page, right)
        if why and len(found) < chance:
            result.faults = [fault for fault in result.faults if fault not in found]
        elif why:
            shared += [{**fault, "kind": "state-shared", "words": f"{fault['words']}; {why}"} for fault in found]
        elif kind == CHANCE:
            chance = len(found)
    beside = [fault for fault in result.faults if fault["kind"] == "state-shared" and fault["phase"] == "afterwards"]
    if len(beside) < chance:
        result.faults = [fault for fault in result.faults if fault not in beside]
    if shared:
        result.faults = [fault for fault in result.faults if fault["kind"] not in OF_VERDICTS]
        for fault in shared:
            result.add(fault)
        result.notes.append("verdicts depend on earlier attempts: mend that first, and check again for others")


async def _otherwise(order: dict[str, Any], fault: dict[str, Any], page: Page, right: Sequence[list[Any]]) -> str:
    """How the fault differs in a new process, in words; empty where it does not."""
    alone = Result(order["world"], order["args"], order["image"])
    only = [[fault["phase"], fault["split"], fault["index"]]]
    watch = Watch({**order, "only": only, "exploits": False}, alone, page, None)
    watch.kept = {json.dumps(line[:2]): line for line in right}
    await watch.run()
    if not alone.tasks or any(found["kind"] in ("dies", "never-ends", "raises") for found in alone.faults):
        return ""
    same = [found for found in alone.faults if (found["kind"], found["key"]) == (fault["kind"], fault["key"])]
    if fault["kind"] == CHANCE:  # by chance it would hardly change once, and once more at the same place
        repeated = "all at the" in fault["words"] and any(found["words"] == fault["words"] for found in same)
        return "a new process gives the same row of verdicts" if repeated else ""
    return "" if same else "not so where it is the first attempt of a new process"
