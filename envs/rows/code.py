"""Rows with a programming problem and its tests: LiveCodeBench, APPS, CodeContests, HumanEval and their relatives."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from envs.rows import asserts
from envs.rows.math import asked, nemo_gym_asked
from envs.rows.records import Case, CodeProblem, Refused
from envs.rows.values import Row, column, level, megabytes, nested, optional, seconds, text, texts, unpacked

SOLUTIONS = 3
"""Right and wrong programs kept of each problem."""
_PYTHON3 = (3, "3", "PYTHON3", "python", "python3", "py")
"""As CodeContests counts languages, and as others write it."""
_FENCE = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)
_IMPORT = re.compile(r"^(?:import|from) .+$", re.MULTILINE)
_LEETCODE = "import bisect, collections, functools, heapq, itertools, math\nfrom typing import *\n"
"""What answers that define the class `Solution` take for granted."""
_CALLED = ("functional", "function_call", "function", "call")


def _problem(row: Row, statement: str, tests: Mapping[str, Any], **more: Any) -> CodeProblem:
    settings: dict[str, Any] = {
        "key": optional(row, "question_id|problem_id|task_id|id|hash_id|uuid"),
        "starter": optional(row, "starter_code"),
        "solutions": _programs(column(row, "solutions|solution|canonical_solution|gold_standard_solution|code")),
        "level": level(column(row, "difficulty")),
        "time_limit_s": seconds(column(row, "time_limit")),
        "memory_limit_mb": megabytes(column(row, "memory_limit|memory_limit_bytes")),
    }
    settings |= tests
    settings |= more
    if settings["kind"] == "function":
        starter = settings["starter"]
        settings.setdefault("prelude", "\n".join(_IMPORT.findall(starter)))
        if re.search(r"^class Solution\b", starter, re.MULTILINE):
            settings["owner"] = "Solution"
            settings["prelude"] = f"{_LEETCODE}{settings['prelude']}"
    return CodeProblem(statement=statement.strip(), **settings)


def _programs(value: Any) -> tuple[str, ...]:
    """Programs out of a text, a list, or {language, solution} lists, or JSON text of those; Python only, no fences."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            value = nested(value, "solutions")
        except Refused:
            value = [value]
    if isinstance(value, Mapping):
        languages, found = value.get("language") or [], value.get("solution") or []
        value = [s for kind, s in zip(languages, found, strict=False) if kind in _PYTHON3]
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        value = [v.get("solution") or v.get("code") for v in value if v.get("language", "python") in _PYTHON3]
    programs = [value] if isinstance(value, str) else [v for v in value or () if isinstance(v, str)]
    plain = []
    for program in programs:
        fences = _FENCE.findall(program)
        if fences and fences[-1][0].lower() not in ("", "python", "python3", "py"):
            continue
        plain.append(fences[-1][1] if fences else program)
    return tuple(p for p in plain if p.strip())[:SOLUTIONS]


def _cases(found: Any, what: str, name: str = "") -> dict[str, Any]:
    """Tests as {inputs, outputs, fn_name?}, as a list of {input, output, testtype}, or as lists of asserts."""
    if isinstance(found, list) and found and all(isinstance(item, str) for item in found):
        return _asserted(asserts.tests(found))
    if isinstance(found, Mapping):
        given, expected = (found.get(f"{side}s", found.get(side)) for side in ("input", "output"))
        name = found.get("fn_name") or name
        kinds = {"function"} if name else {"stdin"}
    elif isinstance(found, list) and all(isinstance(item, Mapping) for item in found):
        given, expected = ([item.get(side) for item in found] for side in ("input", "output"))
        kinds = {"function" if _kind(item) in _CALLED else "stdin" for item in found}
        name = next((n for item in found if (n := item.get("fn_name") or _metadata(item).get("func_name"))), name)
    else:
        raise Refused(f"`{what}` holds no tests", f"got {str(found)[:60]!r}")
    if not isinstance(given, list) or not isinstance(expected, list) or len(given) != len(expected):
        raise Refused(f"`{what}` has inputs and outputs of different number")
    if not given:
        raise Refused("there is no test", f"`{what}` is empty")
    if len(kinds) != 1:
        raise Refused(f"`{what}` mixes tests on stdin with calls of a function")
    if kinds == {"stdin"}:
        cases = [Case(given=_lines(g, what), expected=_lines(e, what)) for g, e in zip(given, expected, strict=True)]
        return {"kind": "stdin", "cases": tuple(cases)}
    if not name:
        raise Refused(f"`{what}` calls a function without saying which")
    return {"kind": "function", "name": str(name), "cases": _calls(given, expected, what)}


def _kind(item: Mapping[str, Any]) -> str:
    return str(item.get("testtype") or item.get("type") or "stdin")


def _metadata(item: Mapping[str, Any]) -> Mapping[str, Any]:
    found = item.get("metadata")
    return found if isinstance(found, Mapping) else {}


def _lines(value: Any, what: str) -> str:
    """Text of stdin or stdout; a list is one line each."""
    if isinstance(value, list) and all(isinstance(line, str | int | float) for line in value):
        return "\n".join(str(line) for line in value)
    if isinstance(value, str | int | float):
        return str(value)
    raise Refused(f"`{what}` has an input or output that is no text", f"got {type(value).__name__}")


def _calls(given: Sequence[Any], expected: Sequence[Any], what: str) -> tuple[Case, ...]:
    """Arguments are a list, or text with one JSON value a line; outputs that are all lists of one mean that one."""
    lists = [_arguments(g, what) for g in given]
    values = [_json(e) for e in expected]
    if all(isinstance(e, list) for e in expected) and all(isinstance(v, list) and len(v) == 1 for v in values):
        values = [v[0] for v in values]
    return tuple(Case(given=g, expected=v) for g, v in zip(lists, values, strict=True))


def _arguments(value: Any, what: str) -> list[Any]:
    if isinstance(value, list):
        return value
    if not isinstance(value, str):
        raise Refused(f"`{what}` has arguments that are no list", f"got {type(value).__name__}")
    return [nested(line, what) for line in value.split("\n") if line.strip()]


def _json(value: Any) -> Any:
    """A value; text is read as JSON where it is some."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _asserted(tests: asserts.Tests) -> dict[str, Any]:
    more = {"tolerance": tests.tolerance, "unordered": tests.unordered}
    return {"kind": "function", "name": tests.name, "cases": tests.cases, **more}


def livecodebench(row: Row) -> CodeProblem:
    """Public and private tests together; the private ones may be packed."""
    metadata = nested(column(row, "metadata") or "{}", "metadata")
    name = metadata.get("func_name") or "" if isinstance(metadata, Mapping) else ""
    found: list[Any] = []
    for names in ("public_test_cases", "private_test_cases"):
        part = unpacked(column(row, names) or "[]", names)
        if not isinstance(part, list):
            raise Refused(f"`{names}` is no list of tests")
        found += part
    title = optional(row, "question_title").strip()
    return _problem(row, text(row, "question_content"), _cases(found, "tests", name), family=title and "livecodebench")


def apps(row: Row) -> CodeProblem:
    family = "taco" if "tags" in row or "time_limit" in row else "apps"
    tests = _cases(nested(column(row, "input_output"), "input_output"), "input_output")
    return _problem(row, text(row, "question"), tests, family=family)


def code_contests(row: Row) -> CodeProblem:
    """All its tests; a problem that reads or writes named files cannot be judged on stdin."""
    files = [name for name in ("input_file", "output_file") if optional(row, name).strip()]
    if files:
        raise Refused("the problem reads or writes a file", f"`{files[0]}` is {optional(row, files[0])!r}")
    given: list[Any] = []
    expected: list[Any] = []
    for name in ("public_tests", "private_tests", "generated_tests"):
        part = nested(column(row, name) or {}, name)
        if isinstance(part, list):
            part = {"input": [p.get("input") for p in part], "output": [p.get("output") for p in part]}
        given += part.get("input") or []
        expected += part.get("output") or []
    tests = _cases({"input": given, "output": expected}, "tests")
    memory = megabytes(column(row, "memory_limit_bytes"), in_bytes=True)
    wrong = _programs(column(row, "incorrect_solutions"))
    more = {"memory_limit_mb": memory, "wrong": wrong, "family": "code_contests", "level": 0}
    return _problem(row, text(row, "description"), tests, key=text(row, "name"), **more)


def deepcoder(row: Row) -> CodeProblem:
    metadata = nested(column(row, "metadata") or "{}", "metadata")
    name = metadata.get("func_name") or "" if isinstance(metadata, Mapping) else ""
    tests = _cases(nested(column(row, "tests"), "tests"), "tests", name)
    return _problem(row, text(row, "problem"), tests, family="deepcoder")


def prime_intellect(row: Row) -> CodeProblem:
    info = nested(column(row, "verification_info"), "verification_info")
    if not isinstance(info, Mapping) or "test_cases" not in info:
        raise Refused("`verification_info` holds no test_cases")
    if (language := str(info.get("language") or "python")).lower() not in ("python", "python3"):
        raise Refused("the problem wants another language than Python", language)
    tests = _cases(nested(info["test_cases"], "test_cases"), "test_cases")
    return _problem(row, asked(column(row, "prompt"), "prompt"), tests, family="prime_intellect")


def intellect_3(row: Row) -> CodeProblem:
    info = nested(column(row, "info"), "info")
    if not isinstance(info, Mapping) or "tests" not in info:
        raise Refused("`info` holds no tests")
    return _problem(row, text(row, "question"), _cases(nested(info["tests"], "tests"), "tests"), family="intellect_3")


def acecoder(row: Row) -> CodeProblem:
    tests = _asserted(asserts.tests(texts(column(row, "test_cases"), "test_cases")))
    return _problem(row, text(row, "question"), tests, family="acecoder", solutions=())


def humaneval(row: Row) -> CodeProblem:
    """The test's `candidate` is the function; the program is the prompt with its solution."""
    name, prompt = text(row, "entry_point"), text(row, "prompt")
    tests = _asserted(asserts.tests([text(row, "test")], "candidate", name))
    solution = optional(row, "canonical_solution")
    program = prompt + solution if solution and f"def {name}" not in solution else solution
    solutions = (program,) if program.strip() else ()
    return _problem(row, prompt, tests, family="humaneval", starter=prompt, solutions=solutions)


def mbpp(row: Row) -> CodeProblem:
    """The statement does not name the function, so the first test's call is added to it, without its value."""
    tests = asserts.tests(texts(column(row, "test_list"), "test_list"))
    count = len(tests.cases[0].given)
    statement = f"{text(row, 'text|prompt').strip()}\nThe function is called {tests.name} and takes {count} argument"
    lines = nested(column(row, "test_imports") or "[]", "test_imports")
    prelude = "\n".join([*map(str, lines if isinstance(lines, list) else ()), optional(row, "test_setup_code")]).strip()
    statement += "." if count == 1 else "s."
    return _problem(row, statement, _asserted(tests), family="mbpp", prelude=prelude)


def verl(row: Row) -> Any:
    """Rows of code hold tests as the ground truth; others, told by their ability, are rows of mathematics."""
    from envs.rows import math

    if "code" not in optional(row, "ability").lower() and "coding" not in optional(row, "ability").lower():
        return math.verl(row)
    judge = nested(column(row, "reward_model"), "reward_model")
    if not isinstance(judge, Mapping) or judge.get("ground_truth") is None:
        raise Refused("there is no test", "`reward_model` has no ground_truth")
    tests = _cases(nested(judge["ground_truth"], "ground_truth"), "ground_truth")
    extra = nested(column(row, "extra_info") or "{}", "extra_info")
    index = extra.get("index") if isinstance(extra, Mapping) else None
    key = "" if index is None else f"{extra.get('split', '')}{index}"
    return _problem(row, asked(column(row, "prompt"), "prompt"), tests, family="verl", key=key)


def nemo_gym(row: Row) -> CodeProblem:
    found = nested(column(row, "verifier_metadata"), "verifier_metadata")
    if not isinstance(found, Mapping) or "unit_tests" not in found:
        raise Refused("`verifier_metadata` holds no unit_tests")
    tests = _cases(nested(found["unit_tests"], "unit_tests"), "unit_tests")
    return _problem(row, nemo_gym_asked(row), tests, family="nemo_gym")
