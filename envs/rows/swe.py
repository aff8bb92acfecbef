"""Rows with a repository, an issue and tests: SWE-bench and relatives, SWE-smith, R2E-Gym."""

from __future__ import annotations

import difflib
import re
from typing import Any

from envs.rows.records import Refused, SweProblem
from envs.rows.values import Row, column, nested, optional, text, texts

_IMAGES = ("image_name", "docker_image", "image", "dockerhub_tag")
_RUNNING = ("test_cmd", "log_parser", "install_config", "eval_script", "eval_type", "before_repo_set_cmd")
_MORE = ("selected_test_files_to_run", "environment_setup_commit")
_TEST_FILE = re.compile(r"(^|/)tests?/|(^|/)test_[^/]*$|_test\.\w+$|(^|/)conftest\.py$")
DIFF_CHARS = 4_000_000


def image(row: Row) -> tuple[str, str]:
    """The image's name, and the column it stands in."""
    for name in _IMAGES:
        if found := optional(row, name).strip():
            return found, name
    return "", ""


def _problem(row: Row, **more: Any) -> SweProblem:
    found, where = image(row)
    running = {name: column(row, name) for name in (*_RUNNING, *_MORE) if column(row, name) is not None}
    if isinstance(running.get("install_config"), str):
        running["install_config"] = nested(running["install_config"], "install_config")
    settings: dict[str, Any] = {
        "repo": optional(row, "repo|repo_name"),
        "image": found,
        "image_column": where,
        "problem_statement": text(row, "problem_statement"),
        "hints": optional(row, "hints_text"),
        "language": (optional(row, "repo_language|language") or "python").lower(),
        "running": running,
        "version": optional(row, "version"),
    }
    return SweProblem(**(settings | more))


def _lists(row: Row) -> dict[str, tuple[str, ...]]:
    both = {name: texts(column(row, name), name) for name in ("fail_to_pass", "pass_to_pass")}
    if not both["fail_to_pass"]:
        raise Refused("no test fails before the fix", "`FAIL_TO_PASS` is empty")
    return both


def swe_bench(row: Row) -> SweProblem:
    """The statement of SWE-bench Pro comes with requirements and an interface; rebench V2 works in `/` + repo name."""
    key, repo = text(row, "instance_id"), text(row, "repo")
    statement = text(row, "problem_statement")
    for name in ("requirements", "interface"):
        if extra := optional(row, name).strip():
            statement += f"\n\n{name.capitalize()}:\n{extra}"
    found, where = image(row)
    if not found:
        found = f"swebench/sweb.eval.x86_64.{key.replace('__', '_1776_').lower()}:latest"
    v2 = where == "image_name" and isinstance(column(row, "install_config"), dict | str)
    return _problem(
        row,
        key=key,
        image=found,
        image_column=where,
        problem_statement=statement,
        base_commit=text(row, "base_commit"),
        patch=text(row, "patch"),
        test_patch=text(row, "test_patch"),
        workdir=f"/{repo.rpartition('/')[2]}" if v2 else "/app" if where == "dockerhub_tag" else "/testbed",
        **_lists(row),
    )


def swe_smith(row: Row) -> SweProblem:
    """`patch` is the fault, and it is in the image: undoing it is the fix."""
    return _problem(
        row,
        key=text(row, "instance_id"),
        bug_patch=text(row, "patch"),
        base_commit=optional(row, "base_commit"),
        **_lists(row),
    )


def r2e(row: Row) -> SweProblem:
    """The whole map of statuses is the verdict; the fix is made from the parsed commit, its tests left out."""
    commit = text(row, "commit_hash")
    statuses = nested(text(row, "expected_output_json"), "expected_output_json")
    if not isinstance(statuses, dict) or not statuses:
        raise Refused("`expected_output_json` is no map from test to status")
    parsed = nested(optional(row, "parsed_commit_content") or "{}", "parsed_commit_content")
    parsed = parsed if isinstance(parsed, dict) else {}
    statement = re.sub(r"^\s*\[ISSUE\]\s*|\s*\[/ISSUE\]\s*$", "", text(row, "problem_statement"))
    if not statement:
        raise Refused("`problem_statement` is empty")
    return _problem(
        row,
        key=f"{text(row, 'repo_name')}/{commit}",
        problem_statement=statement,
        base_commit=str(parsed.get("old_commit_hash") or f"{commit}^"),
        patch=_source_diff(parsed.get("file_diffs")),
        statuses={plain_name(name): str(status) for name, status in statuses.items()},
    )


def plain_name(test: str) -> str:
    """A test's name without colours and without what follows ` - `."""
    return re.sub(r"\x1b\[[0-9;]*m", "", str(test)).split(" - ")[0].strip()


def _source_diff(files: Any) -> str:
    """A unified diff of the files that are no tests, from their old and new text; empty where that is not all there."""
    found: list[str] = []
    for file in files if isinstance(files, list) else ():
        try:
            path, old, new = file["header"]["file"]["path"], file["old_file_content"], file["new_file_content"]
        except (KeyError, TypeError):
            return ""
        if not path or _TEST_FILE.search(str(path).lower()):
            continue
        if not all(isinstance(side, str) for side in (old, new)) or len(old) + len(new) > DIFF_CHARS:
            return ""
        before, after = (side.splitlines(keepends=True) for side in (old, new))
        names = (f"a/{path}" if old else "/dev/null", f"b/{path}" if new else "/dev/null")
        for line in difflib.unified_diff(before, after, *names):
            found.append(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n")
    return "".join(found)
