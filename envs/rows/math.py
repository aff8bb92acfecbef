"""Rows with a question and an answer: MATH, GSM8K, AIME, DAPO, OlympiadBench, CRUXEval and their relatives."""

from __future__ import annotations

import re
from typing import Any

from envs.rows.records import MathProblem, Refused
from envs.rows.values import Row, column, level, nested, optional, plain_number, text

GOLD_CHARS = 300
"""As long as an answer may be that the verifier reads."""
_WRAPPING = ("solve the following math problem", "remember to put your answer", "let's think step by step")


def gold(value: Any, what: str) -> str:
    """The text of an answer, without dollar signs around it. Refused where there is none, or no short one."""
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise Refused("the answer is no text or number", f"`{what}` holds {str(value)[:60]!r}")
    found = plain_number(value).strip()
    if len(found) > 1 and found.startswith("$") and found.endswith("$") and found.count("$") % 2 == 0:
        found = found.replace("$", "").strip()
    if not found:
        raise Refused("the answer is empty", f"`{what}`")
    if len(found) > GOLD_CHARS:
        raise Refused("the answer is too long to be one", f"`{what}` has {len(found)} characters")
    return found


def last_box(solution: str) -> str | None:
    """Content of the last complete `\\boxed{...}` or `\\fbox{...}`, braces balanced."""
    for start in reversed([m.end() for m in re.finditer(r"\\f?boxed\s*\{", solution)]):
        depth = 1
        for at in range(start, len(solution)):
            depth += {"{": 1, "}": -1}.get(solution[at], 0)
            if depth == 0:
                return solution[start:at].strip()
    return None


def _problem(row: Row, question: str, golds: tuple[str, ...], **more: Any) -> MathProblem:
    key = optional(row, "unique_id|id|idx|question_id|uuid|hash_id|task_id")
    settings: dict[str, Any] = {"family": optional(row, "subject|type|data_source|dataset") or "math"}
    settings |= {"level": level(column(row, "level|difficulty"))}
    return MathProblem(key=key, question=question.strip(), golds=golds, **(settings | more))


def _answer(row: Row) -> str:
    """The answer column where there is one, else the last box of the solution."""
    value = column(row, "expected_answer|answer")
    if value is not None and value != "":
        if isinstance(value, str) and len(value) > GOLD_CHARS:
            value = last_box(value) or value
        return gold(value, "answer")
    boxed = last_box(optional(row, "solution"))
    if boxed is None:
        raise Refused("the answer is empty", "and the solution has no box")
    return gold(boxed, "solution")


def math(row: Row) -> MathProblem:
    return _problem(row, text(row, "problem"), (_answer(row),))


def gsm8k(row: Row) -> MathProblem:
    """`#### N` at the end of a worked answer with calculator marks; else the answer itself, or its last box."""
    question, answer = text(row, "question"), column(row, "answer|expected_answer")
    if isinstance(answer, str) and "####" in answer:
        final = answer.rpartition("####")[2].strip().removeprefix("$")
        if re.fullmatch(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?", final):
            final = final.replace(",", "")
        return _problem(row, question, (gold(final, "answer"),))
    return _problem(row, question, (_answer(row),))


def open_math_reasoning(row: Row) -> MathProblem:
    kind = optional(row, "problem_type")
    if kind != "has_answer_extracted":
        raise Refused("the problem has no answer to check", f"problem_type is {kind!r}")
    return _problem(row, text(row, "problem"), (gold(column(row, "expected_answer"), "expected_answer"),))


def olympiad_bench(row: Row) -> MathProblem:
    """Several answers are one, with commas; a unit may be written or left out; `error` is a tolerance."""
    found = nested(column(row, "final_answer"), "final_answer")
    parts = [gold(part, "final_answer") for part in (found if isinstance(found, list | tuple) else [found])]
    if not parts:
        raise Refused("the answer is empty", "`final_answer`")
    question = text(row, "question")
    if "<image_" in question:
        raise Refused("the question needs a picture")
    joined = gold(", ".join(parts), "final_answer")
    unit = optional(row, "unit").strip().strip("$")
    golds = (joined, f"{joined} {unit}") if unit else (joined,)
    try:
        tolerance = float(optional(row, "error")) or None
    except ValueError:
        tolerance = None  # absent, or one for each part of the answer
    return _problem(row, question, golds, tolerance=tolerance)


def verl(row: Row) -> MathProblem:
    """`prompt` as messages, `reward_model.ground_truth` as text, or as a list of equally right texts."""
    judge = nested(column(row, "reward_model"), "reward_model")
    if not isinstance(judge, dict) or judge.get("ground_truth") is None:
        raise Refused("the answer is empty", "`reward_model` has no ground_truth")
    truth = judge["ground_truth"]
    if isinstance(truth, str) and truth.lstrip()[:2] in ('["', "['"):
        truth = nested(truth, "ground_truth")
    golds = tuple(gold(t, "ground_truth") for t in (truth if isinstance(truth, list | tuple) else [truth]))
    if not golds:
        raise Refused("the answer is empty", "`reward_model.ground_truth`")
    extra = column(row, "extra_info")
    extra = nested(extra, "extra_info") if extra else {}
    question = extra.get("raw_problem") if isinstance(extra, dict) else None
    found = _problem(row, question or unwrapped(asked(column(row, "prompt"), "prompt")), golds)
    index = extra.get("index") if isinstance(extra, dict) else None
    if found.key or index is None:
        return found
    return _problem({**row, "id": f"{extra.get('split', '')}{index}"}, found.question, golds)


def nemo_gym(row: Row) -> MathProblem:
    question = optional(row, "question|problem") or nemo_gym_asked(row)
    return _problem(row, question, (gold(column(row, "expected_answer|answer"), "expected_answer"),))


def nemo_gym_asked(row: Row) -> str:
    params = nested(column(row, "responses_create_params"), "responses_create_params")
    if not isinstance(params, dict) or "input" not in params:
        raise Refused("`responses_create_params` has no input")
    return asked(params["input"], "responses_create_params.input")


def cruxeval(row: Row) -> MathProblem:
    """What does the function return? The answer is a Python value."""
    source, argument, output = text(row, "code"), optional(row, "input"), text(row, "output")
    question = f"```python\n{source.strip()}\n```\nWhat Python value does f({argument}) return?"
    return _problem(row, question, (gold(output, "output"),), kind="literal", family="cruxeval")


def asked(prompt: Any, what: str) -> str:
    """The last message of the user, where a prompt is a list of messages; else the text."""
    if isinstance(prompt, str) and prompt.lstrip()[:2] in ("[{", "[ "):
        prompt = nested(prompt, what)
    if isinstance(prompt, str) and prompt.strip():
        return prompt
    said = [m.get("content") for m in prompt or () if isinstance(m, dict) and m.get("role") == "user"]
    if not said or not isinstance(said[-1], str) or not said[-1].strip():
        raise Refused(f"`{what}` holds no message of a user")
    return said[-1]


def unwrapped(question: str) -> str:
    """A question without the paragraphs around it that say how to write the answer: the world says that itself."""
    parts = [part for part in question.strip().split("\n\n") if part.strip()]
    kept = [part for part in parts if not part.strip().lower().startswith(_WRAPPING)]
    return "\n\n".join(kept or parts)
