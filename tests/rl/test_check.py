"""`rl check`: names every planted fault, and is content with a sound world and with the shipped ones."""

import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

import envs
from envs import exploits
from rl.check import KINDS, leaks
from rl.check.result import Result
from rl.check.watch import Page, Watch
from rl.cli import main
from tests.rl.checking import heard

PLANTED = str(Path(__file__).with_name("planted.py"))
EXPECTED = {
    "leak-told": "leak",
    "leak-given": "leak",
    "leak-place": "leak",
    "leak-cases": "leak",
    "leak-long": "leak",
    "leak-heard": "leak",
    "any-answer": "accepts-anything",
    "any-wrong": "wrong-scores",
    "contains": "malformed-scores",
    "random": "not-repeatable",
    "random-tasks": "task-changes",
    "shared": "state-shared",
    "shared-world": "state-shared",
    "same-keys": "splits-overlap",
    "same-prompts": "splits-overlap",
    "hangs": "never-ends",
    "raises": "raises",
    "raises-malformed": "raises",
    "huge": "huge-output",
    "huge-facts": "huge-output",
    "gold-fails": "gold-fails",
    "solved-1": "wrong-type",
    "no-step": "wrong-type",
    "no-facts": "wrong-type",
    "no-task": "wrong-type",
    "not-json": "not-json",
    "task-not-json": "not-json",
    "unparsable-gold": "data-error",
    "unsound-gold": "data-error",
    "judge-fails": "judge-fails",
    "any-of-two": "exploit-passes",
    "strict": "honest-refused",
    "no-verdict": "wrong-verdict",
    "silence-scores": "malformed-scores",
}
INSIDE = {
    "future": ("1 commit, 1 tree, 1 blob that HEAD does not reach", "stands in /work/deep/er/note"),
    "remote": ("knows where it came from: origin", "stands in /tmp/log"),
    "dangling": ("1 blob that HEAD does not reach", "the hidden `outputs` was sent to a sandbox"),
}
SLOW = {"blocks": "never-ends", "blocks-in-task": "never-ends", "exits": "dies"}


OF_EXPLOITS = {"any-of-two", "strict", "no-verdict", "silence-scores"}


def checked(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        code = main(["check", "--out", f"{folder}/result.json", *arguments, "--json"])
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_sound_world_is_fit_and_the_result_has_hashes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "result.json"
    code, result = checked(capsys, PLANTED, "--tasks", "6", "--out", str(out))
    assert (code, result["fit"], result["faults"]) == (0, True, [])
    assert len(result["hashes"]["tasks"]) == 12 and len(result["hashes"]["world"]) == 16
    assert json.loads(out.read_text()) == result
    _, again = checked(capsys, PLANTED, "--tasks", "6")
    assert again["hashes"] == result["hashes"]


@pytest.mark.parametrize("fault", EXPECTED)
def test_each_planted_fault_is_named(fault: str) -> None:
    exploits = fault in OF_EXPLOITS
    result = heard(PLANTED, 4, 1.0 if fault == "hangs" else 60.0, exploits, fault=fault)
    assert {f["kind"] for f in result.faults} == {EXPECTED[fault]} <= set(KINDS), result.faults
    assert result.unfit_world() and all(f["words"] for f in result.faults), result.faults
    if fault != "no-task":
        assert all(f["key"] for f in result.faults) and (result.unfit_tasks() or fault in ("any-of-two", "strict"))


@pytest.mark.slow
@pytest.mark.parametrize("fault", SLOW)
def test_a_world_that_blocks_or_ends_its_process_is_survived(fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, result = checked(capsys, PLANTED, f"fault={fault}", "--tasks", "1", "--deadline", "1", "--no-exploits")
    assert code == 1 and {f["kind"] for f in result["faults"]} == {SLOW[fault]}
    if fault == "blocks":
        assert (
            len(result["faults"]) == 2
            and result["faults"][0]["key"]
            and "step did not end" in result["faults"][0]["words"]
        )


def test_a_world_without_right_answers_says_how_many(capsys: pytest.CaptureFixture[str]) -> None:
    code, result = checked(capsys, PLANTED, "fault=no-gold", "--tasks", "3")
    assert code == 0 and len(result["undemonstrated"]) == 6
    (why,) = set(result["undemonstrated"].values())
    assert re.fullmatch(r"nobody knows \(planted.py, line \d+\)", why)


def test_words_for_a_person(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["check", PLANTED, "fault=gold-fails", "--tasks", "2", "--no-exploits", "--out", str(tmp_path / "x")]) == 1
    )
    said = capsys.readouterr().out
    assert said.startswith("gold-fails on 4 of 4 tasks, as train 0 (")
    assert ': the right answer does not count as solved; {"solved": false' in said.splitlines()[0]
    assert said.splitlines()[0].endswith(f"To mend: {KINDS['gold-fails'].change}")
    assert said.rstrip().endswith("unfit: 1 kind of fault")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["nosuchworld"], "there is no world 'nosuchworld'; available: code, delayed, "),
        (["nosuch.py"], "there is no file nosuch.py"),
        (["no.such.module"], "there is no module"),
        (["json.decoder"], "has no `World`"),
        ([PLANTED, "fautl=x"], "takes no argument 'fautl'; did you mean fault?"),
        ([PLANTED, "fault=x"], "got fault=x; available"),
        ([PLANTED, "fault"], "expected key=value"),
        ([PLANTED, "--tasks", "0"], "expected more than 0"),
        ([PLANTED, "--out", "/nosuch/folder/x.json"], "there is no folder"),
        (["math", "tasks=nosuch.jsonl"], "there is no file nosuch.jsonl"),
    ],
)
def test_what_the_user_got_wrong_is_one_sentence(
    arguments: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", *arguments]) == 2
    said = capsys.readouterr().err
    assert [line for line in said.splitlines() if line.startswith("rl check: ") and why in line], said


def test_neither_ray_nor_an_engine_nor_torch_is_started(tmp_path: Path) -> None:
    code = (
        "import sys; from rl.cli import main; main(['check', *sys.argv[1:], '--tasks', '1']); import rl.check.player;"
        "assert not {'ray', 'vllm', 'torch', 'transformers'} & set(sys.modules), 'imported'"
    )
    command = [sys.executable, "-c", code, PLANTED, "--out", str(tmp_path / "x.json")]
    done = subprocess.run(command, capture_output=True, env={**os.environ}, check=False)
    assert done.returncode == 0, done.stderr.decode()


def test_rows_of_a_file_are_checked_counts_and_bad_golds_included(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    made = [{"problem": f"What is {i} + 1000?", "answer": str(i + 1000)} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in made) + "{broken\n")
    code, result = checked(capsys, "math", f"tasks={path}", "python_tool=false", "--tasks", "4", "--no-exploits")
    assert code == 0, result["faults"]
    assert (result["rows"]["read"], result["rows"]["taken"]) == (41, 40)
    assert result["rows"]["refused"] == {"a line is no JSON": 1} and result["hashes"]["files"]["tasks"]
    made = [{"code": f"def f(): return {i}", "input": "", "output": "[1,"} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    code, result = checked(capsys, "math", f"tasks={path}", "python_tool=false", "--tasks", "2", "--no-exploits")
    assert code == 1 and "data-error" in {f["kind"] for f in result["faults"]}, result["faults"]


@pytest.mark.docker
@pytest.mark.parametrize("world", ["math", "code", "swe"])
def test_the_shipped_worlds_are_fit(world: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, result = checked(capsys, world, "--tasks", "3", "--no-exploits")
    assert code == 0, result["faults"]
    if world == "swe":
        assert result["looked"]["sandboxes"] >= 6 and result["looked"]["files"] >= 6


@pytest.mark.parametrize("world", ["math", "code", "swe"])
def test_the_shipped_worlds_have_exploits_and_limits_that_apply_as_configured(world: str) -> None:
    place = envs.load(world).World(None)
    assert len(exploits.against(world, place)) >= 24 and len(exploits.limits(world, place)) >= 4
    if world == "code":
        assert not exploits.against(world, envs.load("code").World(None, languages=["cpp"]))


@pytest.mark.docker
@pytest.mark.parametrize("fault", INSIDE)
def test_what_a_sandbox_must_not_hold_is_found_by_commands_inside(
    fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, result = checked(capsys, PLANTED, f"fault={fault}", "--tasks", "1", "--no-exploits")
    assert code == 1 and len(result["faults"]) == 4, result["faults"]
    for kind, words in zip(("history", "sandbox-tells"), INSIDE[fault], strict=True):
        assert [words in f["words"] for f in result["faults"] if f["kind"] == kind] == [True] * 2, result["faults"]


@pytest.mark.docker
def test_a_repository_without_a_future_is_no_fault(capsys: pytest.CaptureFixture[str]) -> None:
    code, result = checked(capsys, PLANTED, "git=true", "--tasks", "1", "--no-exploits")
    assert code == 0 and result["looked"]["repositories"] == 2, result


def test_all_tasks_of_a_finite_world_are_played_and_those_that_failed_are_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, result = checked(capsys, PLANTED, "fault=bad-3", "finite=14")
    assert len(result["tasks" if "tasks" in result else "hashes"]["tasks"]) == 28 and all(result["whole"].values())
    assert code == 1 and len(result["unfit_tasks"]) == 4 and not result["unfit_world"], "two of each split"
    assert result["exploits"] == {"attacks": 3, "failed": 3, "honest": 1, "accepted": 1}
    _, result = checked(capsys, PLANTED, "fault=bad-3", "finite=14", "--tasks", "5")
    assert not any(result["whole"].values()) and result["unfit_world"], "nobody knows about the others"


def test_a_row_that_cannot_be_stored_is_named_and_the_others_are_played() -> None:
    result = heard(PLANTED, None, fault="bad-row", finite=6)
    assert {(f["kind"], f["index"]) for f in result.faults} == {("not-json", 3)}, result.faults
    assert len(result.tasks) == 12 and all(result.whole.values())
    assert len(result.unfit_tasks()) == 2 and not result.unfit_world(), "left out, and the rest is trained on"


def test_a_task_that_ends_the_process_beside_others_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    code, result = checked(capsys, PLANTED, "fault=kills-late", "finite=14")
    assert code == 1 and {(f["kind"], f["index"]) for f in result["faults"]} == {("dies", 11)}, result["faults"]
    assert len(result["unfit_tasks"]) == 2


def test_a_check_that_was_stopped_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    order = {"world": PLANTED, "args": {"fault": "bad-3", "finite": 12}, "tasks": None, "deadline_s": 60.0}
    order |= {"image": "touchstone-sandbox:bookworm", "backend": "docker", "exploits": False, "only": []}

    def result() -> Result:
        found = Result(PLANTED, order["args"])  # type: ignore[arg-type]
        asyncio.run(Watch(order, found, Page("planted"), part).run())
        return found

    part = tmp_path / "x.part"
    whole = result()
    assert not part.exists(), "gone at the end"
    first = [unit for phase in ("empty", "gold") for unit in [[phase, "train", 3]]]
    said = [{"said": "done", "unit": unit} for unit in first]
    heard = [{"said": "fault", "kind": "gold-fails", "split": "train", "index": 3, "key": "x", "words": "as before"}]
    lines = [{"of": order}, *heard, *said]
    part.write_text("".join(json.dumps(line, sort_keys="of" in line) + "\n" for line in lines) + '{"said": "do')
    again = result()
    assert [f["words"] for f in again.faults if f["key"] == "x"] == ["as before"], "kept"
    assert len(again.faults) == len(whole.faults) == 2 and again.tasks == whole.tasks


@pytest.mark.docker
def test_a_sandbox_that_is_not_handed_back_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    code, result = checked(capsys, PLANTED, "fault=keeps", "--tasks", "1")
    assert code == 1 and {f["kind"] for f in result["faults"]} == {"sandbox-kept"}


def test_without_an_engine_for_sandboxes_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nosuch.sock")
    assert main(["check", PLANTED, "fault=needs-sandbox", "--tasks", "1"]) == 2
    assert "no Docker engine answers at unix:///nosuch.sock" in capsys.readouterr().err


def test_leak_rules_stay_silent_about_numbers_that_merely_occur() -> None:
    from envs import Task

    def told(prompt: str, **hidden: Any) -> str:
        message = {"role": "user", "content": prompt}
        task = Task(world="w", key="k", family="f", level=0, messages=(message,), hidden=hidden)
        return leaks.in_task(task, prompt)

    assert not told("Which is the largest of 3, 9, 12? Answer in \\boxed{}.", answer="12")
    assert not told("The answer is 5 more than a third of 30. What is it?", answer="5")
    assert not told("Input 3 gives YES. Print YES or NO.", inputs=["3", "4"], outputs=["YES", "NO"])
    assert told("Solve it. The answer is: 12.", answer="12")
    assert told("Solve it. \\boxed{12}", answers=["12"])
    many = [
        (f"Which is larger, {i} or {j}?", [str(max(i, j))]) for i, j in zip(range(20), range(19, -1, -1), strict=True)
    ]
    assert not leaks.at_one_place(many)
    assert leaks.at_one_place([(f"Add 1 to {i}, then see {i + 1} there.", [str(i + 1)]) for i in range(8)])
