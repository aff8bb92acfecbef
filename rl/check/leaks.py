"""Does a task tell its answer? Rules that stay silent where a small number merely occurs in a question.

A gold text is a leak where it is (a) long and stands in what the attempt may read, (b) announced there, as in `the
answer is 42`, (c) in `given` under a name of answers, or (d) at the same place of the prompt in task after task. A
programming task is a leak where the prompt shows every one of its hidden cases. One of several choices is none, nor is
an example that other tasks show as well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from envs import Task

LONG = 40
"""Characters from which on a gold text in a prompt is no accident."""
BEFORE = 24
"""Characters before an announcement by which another task's is known to be the same."""
ENOUGH_TASKS, ENOUGH_GOLDS = 8, 4
"""Tasks, and different answers among them, from which on one and the same place in all prompts is no accident."""
_ANSWERS = ("answer", "answers", "gold", "golds", "ground_truth", "truth", "target")
_WORKS = ("solution", "solutions", "program", "programs", "patch", "test_patch", "bug_patch", "new", "fix", "reference")
_CASES = (("inputs", "outputs"), ("arguments", "expected"))
_ANNOUNCED = r"(?:answer|solution|result|gold|target|boxed)\b\s*(?:is|was|are|=|:|\{{|->)+\s*[\"'`$({{\[]*{gold}"
_ENDS = r"(?=\s*(?:[.,;)\]}\"'`$]|$))"


def golds(task: Task) -> list[str]:
    """The texts of right answers in `hidden`, without programs and patches."""
    return [text for name in _ANSWERS for text in flat(task.hidden.get(name)) if text.strip()]


def long_texts(task: Task) -> list[tuple[str, str]]:
    """Hidden answers, programs and patches that are too long to stand anywhere by accident, each with its name."""
    named = ((name, text.strip()) for name in (*_ANSWERS, *_WORKS) for text in flat(task.hidden.get(name)))
    return [(name, text) for name, text in named if len(text) >= LONG]


def in_task(
    task: Task, heard: str, also: Collection[str] = (), others: Sequence[tuple[str, Collection[str]]] = ()
) -> str:
    """What a single task gives away, in words, else empty. `heard`: all that the world says before the answer; `also`:
    more texts that are right; `others`: prompts and answers of other tasks.
    """
    if task.hidden.get("kind") == "literal":  # what a shown function returns stands in it more often than not
        return ""
    given = "\n".join(flat(task.given))
    for place, text in (("the prompt", heard), ("`given`", given)):
        for name, gold in long_texts(task):
            if gold in text and not (_in_list(gold, task.given) if text is given else _a_choice(gold, text)):
                return f"the hidden `{name}` stands in {place}: {gold[:60]!r}"
        for gold in {text.strip() for text in (*golds(task), *also)}:
            if gold and len(gold) < LONG and _announced(gold, text, others):
                return f"{place} announces the answer {gold!r}"
    known = set(golds(task))
    for name, value in task.given.items():
        if name in (*_ANSWERS, *_WORKS) and (value == task.hidden.get(name) or known & set(flat(value))):
            return f"`given` holds the answer as {name!r}"
    return _all_cases(task, heard)


def _announced(gold: str, text: str, others: Sequence[tuple[str, Collection[str]]]) -> bool:
    for found in re.finditer(_ANNOUNCED.format(gold=re.escape(gold)) + _ENDS, text, re.IGNORECASE | re.MULTILINE):
        rest = re.split(r"[.?!\n]", text[found.end() :], maxsplit=1)[0]
        choices = re.match(r"\s*[,;][^,;]{1,30}[,;]", rest) or re.search(r"\bor\b", rest)
        shown = text[max(0, found.start() - BEFORE) : found.end()]
        if not choices and not any(shown in prompt and gold not in golds for prompt, golds in others):
            return True
    return False


def _a_choice(gold: str, text: str) -> bool:
    """One of several items of a list, as `(B) Rome` or `- Rome` on a line of its own."""
    items = re.split(r"(?m)(?:^|(?<=\s))\(?[A-Za-z\d]{1,2}[).:]\s+|^\s*[-*•]\s+", text)[1:]
    return len(items) > 1 and any(item.strip() == gold or item.strip().split("\n")[0].strip() == gold for item in items)


def _in_list(gold: str, given: Any) -> bool:
    """One of several items of a list within `given`."""
    if isinstance(given, Mapping):
        return any(_in_list(gold, value) for value in given.values())
    return isinstance(given, list | tuple) and len(given) > 1 and gold in given


def _all_cases(task: Task, heard: str) -> str:
    for first, second in _CASES:
        inputs, outputs = (task.hidden.get(name) for name in (first, second))
        if not isinstance(inputs, list) or not isinstance(outputs, list) or not inputs:
            continue
        sides = [(_case(i), _case(o)) for i, o in zip(inputs, outputs, strict=False)]
        if all(len(i) > 1 and i in heard and o in heard for i, o in sides):
            return f"the prompt shows every hidden case ({len(sides)})"
    return ""


def _case(value: Any) -> str:
    return value.strip() if isinstance(value, str) else json.dumps(value, default=str)


def at_one_place(heard: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Over many tasks, each with its prompt and its golds: does the answer stand at one and the same place?"""
    cases = [(words(prompt), {g.strip() for g in golds}) for prompt, golds in heard if golds]
    if len(cases) < ENOUGH_TASKS or len({min(golds) for _, golds in cases}) < ENOUGH_GOLDS:
        return ""
    for side, name in ((1, "start"), (-1, "end")):
        places: set[int] | None = None
        for prompt, known in cases:
            here = {at for at, word in enumerate(prompt[::side]) if word in known}
            places = here if places is None else places & here
            if not places:
                break
        if places:
            return f"the answer is always word {min(places) + 1} from the {name} of the prompt"
    return ""


def words(prompt: str) -> list[str]:
    return [word.strip(".,:;!?()[]{}\"'`$") for word in prompt.split()]


def flat(value: Any) -> Iterator[str]:
    """All texts and numbers within a value."""
    if isinstance(value, Mapping):
        for item in value.values():
            yield from flat(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from flat(item)
    elif isinstance(value, str | int | float) and not isinstance(value, bool):
        yield str(value)
