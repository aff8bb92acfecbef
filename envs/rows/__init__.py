"""Data sets as users have them: rows of known shapes become typed problems, and those become tasks of a world.

    loaded = load("rows.jsonl.gz")              # or a folder, a Parquet file, an object of `datasets`, a list of dicts
    loaded.problems, str(loaded.report)         # what was taken; what was read, left out and refused, and why

A shape is told by the names of its columns (`shapes.py`), row by row. A row that cannot be taken is refused with its
file and line and stops nothing; a source of which no row can be taken raises BadSource.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from envs.rows import shapes
from envs.rows.read import lines
from envs.rows.records import BadSource, Case, CodeProblem, MathProblem, Problem, Refused, Report, SweProblem

__all__ = ["BadSource", "Case", "CodeProblem", "Loaded", "MathProblem", "Problem", "Refused", "Report", "SweProblem"]
__all__ += ["load", "statement"]


@dataclass(frozen=True, slots=True)
class Loaded:
    problems: list[Problem]
    """Each with a key of its own."""
    report: Report


def load(source: Any, shape: str | None = None) -> Loaded:
    """Read every row. `shape` names one of `shapes.SHAPES` where the columns alone would be taken for another.

    Two rows are the same problem where their statements are: only the first is taken, so that no problem stands on
    both sides of a split.
    """
    forced = shapes.named(shape) if shape else None
    name = str(source) if not isinstance(source, list | Mapping) else f"{type(source).__name__} of rows"
    report = Report(source=name[:200])
    problems: dict[str, Problem] = {}
    seen: set[bytes] = set()
    unknown: tuple[str, Refused] | None = None
    for where, found in lines(source):
        report.read += 1
        try:
            row = _columns(found)
            chosen = forced or shapes.detect(row)
            if chosen is None:
                unknown = unknown or (where, _unknown(row))
                raise _unknown(row)
            problem = chosen.read(row)
        except Refused as refusal:
            report.refuse(where, refusal)
            continue
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
            detail = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
            report.refuse(where, Refused("a column holds something that its shape does not", detail))
            continue
        digest = hashlib.sha256(" ".join(statement(problem).split()).encode(errors="replace")).digest()
        if digest in seen:
            report.duplicates += 1
            continue
        seen.add(digest)
        key = problem.key or digest.hex()[:12]
        if key in problems:
            report.renamed += 1
            key = f"{key}#{digest.hex()[:8]}"
        problems[key] = replace(problem, key=key)
        report.shapes[chosen.name] = report.shapes.get(chosen.name, 0) + 1
    report.taken = len(problems)
    if not problems:
        raise BadSource(_nothing(report, unknown))
    return Loaded(list(problems.values()), report)


def statement(problem: Problem) -> str:
    """What makes two problems the same one."""
    if isinstance(problem, MathProblem):
        return problem.question
    if isinstance(problem, CodeProblem):
        return f"{problem.statement}\n{problem.starter}"
    return f"{problem.repo} {problem.base_commit} {problem.image}\n{problem.problem_statement}"


def content_hash(problem: Problem) -> str:
    """Hex digest over everything in a problem."""
    return hashlib.sha256(json.dumps(asdict(problem), sort_keys=True, default=str).encode()).hexdigest()[:16]


def _columns(found: dict[str, Any] | Refused) -> dict[str, Any]:
    """Column names in lower case; a column that is null is not there."""
    if isinstance(found, Refused):
        raise found
    return {name.strip().lower(): value for name, value in found.items() if value is not None}


def _unknown(row: Mapping[str, Any]) -> Refused:
    columns = ", ".join(f"`{name}`" for name in sorted(row)[:20]) or "none"
    return Refused("no known shape", f"it has the columns {columns}; {shapes.nearest(row)}")


def _nothing(report: Report, unknown: tuple[str, Refused] | None) -> str:
    if unknown is not None and report.refused.get("no known shape") == report.read:
        return f"{report.source} has no known shape ({unknown[0]}): {unknown[1].detail}"
    if report.read == 0:
        return f"{report.source} holds no row"
    return f"no row of {report.source} can be taken: {report}"
