"""Is a wrong verdict the grader's own, or left by earlier attempts? It is played again, first in a new process."""

from __future__ import annotations

from typing import Any

from rl.check.result import Result
from rl.check.watch import Page, Watch

OF_VERDICTS = (
    "accepts-anything",
    "empty-scores",
    "wrong-scores",
    "malformed-scores",
    "gold-fails",
    "never-done",
    "not-repeatable",
)
"""Kinds that a state left by earlier attempts can bring about."""
PHASES = ("empty", "malformed", "wrong", "gold", "afterwards", "each")


async def settle(order: dict[str, Any], result: Result, page: Page) -> None:
    """One attempt of each such kind as the first thing that a process does. Where it comes out otherwise there, all of
    the kind is called `state-shared`, and what else was seen of verdicts is left out, since it means nothing.
    """
    shared = []
    for kind in OF_VERDICTS:
        found = [fault for fault in result.faults if fault["kind"] == kind and fault["key"]]
        # The last one, where chance could show the same: what it draws first in a new process is not what it drew then.
        fault = found[-1 if kind == "not-repeatable" else 0] if found else None
        if fault and fault["phase"] in PHASES and (why := await _otherwise(order, fault, page)):
            shared += [{**fault, "kind": "state-shared", "words": f"{fault['words']}; {why}"} for fault in found]
    if shared:
        result.faults = [fault for fault in result.faults if fault["kind"] not in OF_VERDICTS]
        for fault in shared:
            result.add(fault)
        result.notes.append("verdicts depend on earlier attempts: mend that first, and check again for others")


async def _otherwise(order: dict[str, Any], fault: dict[str, Any], page: Page) -> str:
    """How the fault differs in a new process, in words; empty where it does not."""
    alone = Result(order["world"], order["args"], order["image"])
    only = [[fault["phase"], fault["split"], fault["index"]]]
    await Watch({**order, "only": only, "exploits": False}, alone, page, None).run()
    if not alone.tasks or any(found["kind"] in ("dies", "never-ends", "raises") for found in alone.faults):
        return ""
    same = [found for found in alone.faults if (found["kind"], found["key"]) == (fault["kind"], fault["key"])]
    if fault["kind"] == "not-repeatable":  # by chance it would hardly change once, and once more at the same place
        repeated = "all at the" in fault["words"] and any(found["words"] == fault["words"] for found in same)
        return "a new process gives the same row of verdicts" if repeated else ""
    return "" if same else "not so where it is the first attempt of a new process"
