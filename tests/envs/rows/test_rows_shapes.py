"""Every shape of data set, by rows of our own making: what is taken from it, and what each refusal says."""

import base64
import json
import pickle
import zlib
from typing import Any

import pytest

from envs import rows
from envs.rows import CodeProblem, MathProblem, SweProblem, shapes, values
from envs.rows.records import Refused


def one(row: dict[str, Any]) -> Any:
    loaded = rows.load([row])
    assert loaded.report.taken == 1
    return loaded.problems[0]


def refused(row: dict[str, Any]) -> str:
    with pytest.raises(rows.BadSource) as caught:
        rows.load([row])
    return str(caught.value)


SWE = {
    "repo": "acme/anvil",
    "instance_id": "acme__anvil-7",
    "base_commit": "c0ffee",
    "patch": "--- a/x.py\n+++ b/x.py\n",
    "test_patch": "--- a/test_x.py\n",
    "problem_statement": "The anvil floats.",
    "FAIL_TO_PASS": '["test_x.py::test_sinks"]',
    "PASS_TO_PASS": "['test_x.py::test_rings']",
}


def test_swe_bench_with_lists_as_json_text_or_python_text_and_the_image_by_rule() -> None:
    found = one(SWE)
    assert isinstance(found, SweProblem)
    assert (found.fail_to_pass, found.pass_to_pass) == (("test_x.py::test_sinks",), ("test_x.py::test_rings",))
    assert found.image == "swebench/sweb.eval.x86_64.acme_1776_anvil-7:latest" and found.image_column == ""


@pytest.mark.parametrize("column", ["image_name", "docker_image", "image", "dockerhub_tag"])
def test_the_image_is_taken_from_the_first_column_that_names_one(column: str) -> None:
    order = ["image_name", "docker_image", "image", "dockerhub_tag"]
    named = {name: f"from/{name}" for name in order[order.index(column) :]}
    found = one({**SWE, **named})
    assert (found.image, found.image_column) == (f"from/{column}", column)


def test_swe_relatives_real_lists_lower_case_names_and_extra_texts() -> None:
    gym = {**SWE, "FAIL_TO_PASS": ["a"], "PASS_TO_PASS": []}
    assert one(gym).fail_to_pass == ("a",)
    pro = {k.lower(): v for k, v in SWE.items()} | {"dockerhub_tag": "t", "requirements": "Sink.", "interface": "f()"}
    assert one(pro).problem_statement == "The anvil floats.\n\nRequirements:\nSink.\n\nInterface:\nf()"
    v2 = {**SWE, "image_name": "i", "install_config": '{"test_cmd": ["pytest"], "log_parser": "p"}'}
    assert one(v2).running["install_config"]["test_cmd"] == ["pytest"] and one(v2).workdir == "/anvil"
    assert "no test fails before the fix" in refused({**SWE, "FAIL_TO_PASS": "[]"})


def test_the_patch_of_swe_smith_is_the_fault() -> None:
    row = {k: v for k, v in SWE.items() if k != "test_patch"} | {"image_name": "smith/anvil"}
    found = one(row)
    assert (found.patch, found.bug_patch) == ("", SWE["patch"])
    assert "`problem_statement` is empty" in refused({**row, "problem_statement": ""})


def test_r2e_gym_has_a_map_of_statuses_and_a_fix_without_its_tests() -> None:
    def file(path: str, old: str, new: str) -> dict[str, Any]:
        return {"header": {"file": {"path": path}}, "old_file_content": old, "new_file_content": new}

    diffs = [file("anvil.py", "a = 1\n", "a = 2\n"), file("tests/test_a.py", "", "assert 1\n")]
    row = {
        "repo_name": "anvil",
        "docker_image": "smiths/anvil:1",
        "commit_hash": "beef",
        "parsed_commit_content": json.dumps({"file_diffs": diffs, "old_commit_hash": "beef^"}),
        "expected_output_json": '{"\\u001b[32mA.test_x\\u001b[0m - slow": "PASSED"}',
        "problem_statement": "[ISSUE]\nIt floats.\n[/ISSUE]",
    }
    found = one(row)
    assert found.statuses == {"A.test_x": "PASSED"} and found.problem_statement == "It floats."
    assert found.patch == "--- a/anvil.py\n+++ b/anvil.py\n@@ -1 +1 @@\n-a = 1\n+a = 2\n"


def packed(tests: Any) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(tests)))).decode()


LCB = {"question_content": "Add two.", "question_id": "q1", "starter_code": "", "difficulty": "hard"}


def test_livecodebench_unpacks_its_private_tests_and_calls_by_metadata() -> None:
    public = json.dumps([{"input": "1 2\n", "output": "3\n", "testtype": "stdin"}])
    private = [{"input": "4 5\n", "output": "9\n", "testtype": "stdin"}]
    for form in (json.dumps(private), packed(private)):
        found = one({**LCB, "public_test_cases": public, "private_test_cases": form})
        assert [c.given for c in found.cases] == ["1 2\n", "4 5\n"] and found.level == 2
    calls = packed([{"input": '[1, 2]\n"x"', "output": "true", "testtype": "functional"}])
    starter = "class Solution:\n    def f(self, a, b): ..."
    row = {**LCB, "public_test_cases": "[]", "private_test_cases": calls, "metadata": '{"func_name": "f"}'}
    found = one({**row, "starter_code": starter})
    assert (found.kind, found.name, found.owner) == ("function", "f", "Solution")
    assert (found.cases[0].given, found.cases[0].expected) == ([[1, 2], "x"], True)


class Evil:
    def __reduce__(self) -> Any:
        return print, ("ran",)


def test_packed_tests_hold_plain_text_only_and_cannot_blow_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def blob(data: bytes) -> str:
        return base64.b64encode(zlib.compress(data)).decode()

    wrong = {
        blob(pickle.dumps(Evil())): "pickles more than plain text",
        blob(pickle.dumps(["a"])): "pickles more than plain text",
        blob(b"\x80\x04\x8cZ"): "is no pickle",
        blob(pickle.dumps("a") + b""): "neither JSON nor a Python literal",
        base64.b64encode(zlib.compress(pickle.dumps("[]"))[:-3]).decode(): "it ends too early",
        base64.b64encode(b"plainly not compressed").decode(): "cannot be decompressed",
        "!!": "neither JSON nor base64",
    }
    for private, why in wrong.items():
        assert why in refused({**LCB, "private_test_cases": private}), why
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(values, "UNPACKED_BYTES", 2**20)
    assert "unpacks to more than 1 MB" in refused({**LCB, "private_test_cases": blob(b"0" * 2**24)})


def test_apps_and_taco() -> None:
    row = {"question": "Echo.", "problem_id": 3, "difficulty": "interview", "solutions": '["print(input())"]'}
    found = one({**row, "input_output": '{"inputs": ["a\\n", ["b", "c"]], "outputs": ["a\\n", ["b"]]}'})
    assert [c.given for c in found.cases] == ["a\n", "b\nc"] and found.solutions == ("print(input())",)
    assert (found.level, found.family) == (1, "apps")
    taco = {"question": "Add.", "time_limit": "2.5 seconds", "memory_limit": "256.0 megabytes", "tags": "[]"}
    found = one({**taco, "input_output": "{'fn_name': 'add', 'inputs': [[1, 2], [3, 4]], 'outputs': [[3], [7]]}"})
    assert [(c.given, c.expected) for c in found.cases] == [([1, 2], 3), ([3, 4], 7)]
    assert (found.time_limit_s, found.memory_limit_mb, found.family) == (2.5, 256, "taco")
    digits = '{"inputs": [[1]], "outputs": [' + "9" * 5000 + '], "fn_name": "f"}'
    assert "thousands of digits" in refused({**row, "input_output": digits})
    assert "of different number" in refused({**row, "input_output": '{"inputs": ["a"], "outputs": []}'})


def test_code_contests_counts_all_tests_and_keeps_python_programs_right_and_wrong() -> None:
    row = {
        "name": "1_A. Echo",
        "description": "Echo.",
        "public_tests": {"input": ["a"], "output": ["a"]},
        "generated_tests": {"input": ["b"], "output": ["b"]},
        "solutions": {"language": [2, 3], "solution": ["int main(){}", "print(input())"]},
        "incorrect_solutions": {"language": [3], "solution": ["print(1)"]},
        "time_limit": {"seconds": 1, "nanos": 500000000},
        "memory_limit_bytes": 256000000,
    }
    found = one(row)
    assert len(found.cases) == 2 and found.solutions == ("print(input())",) and found.wrong == ("print(1)",)
    assert (found.time_limit_s, found.memory_limit_mb) == (1.5, 244)
    assert "reads or writes a file" in refused({**row, "input_file": "in.txt"})


def test_lists_of_tests_in_deepcoder_prime_intellect_and_intellect_3() -> None:
    listed = [{"input": "1", "output": "2", "testtype": "stdin_stdout", "metadata": {}}]
    assert one({"problem": "P", "tests": json.dumps(listed)}).cases[0].expected == "2"
    assert one({"problem": "P", "tests": {"inputs": ["1"], "outputs": ["2"]}}).cases[0].expected == "2"
    call = {"type": "function_call", "fn_name": "f", "input": [1], "output": [2]}
    info = {"language": "python", "test_cases": [call]}
    row = {"prompt": "P", "verification_info": repr(info), "gold_standard_solution": "```python\ndef f(x): ...\n```"}
    found = one(row)
    assert (found.name, found.cases[0].expected, found.solutions) == ("f", 2, ("def f(x): ...\n",))
    assert "another language" in refused({**row, "verification_info": json.dumps({**info, "language": "rust"})})
    inner = json.dumps({"inputs": ["1"], "outputs": ["2"]})
    assert one({"question": "Q", "info": json.dumps({"tests": inner})}).kind == "stdin"


def test_asserts_become_calls_with_values() -> None:
    test = (
        'METADATA = {"a": 1}\n\ndef check(candidate):\n    assert candidate(1, [2]) == (3, 4), "why"\n    assert True\n'
    )
    row = {"task_id": "H/0", "prompt": "def f(a, b):\n", "entry_point": "f", "test": test}
    found = one({**row, "canonical_solution": "    return 3, 4\n"})
    assert (found.name, found.cases[0].given, found.cases[0].expected) == ("f", [1, [2]], [3, 4])
    assert found.solutions == ("def f(a, b):\n    return 3, 4\n",) and len(found.cases) == 1
    near = one({**row, "test": "def check(candidate):\n    assert abs(candidate(1) - 2.0 / 4.0) < 1e-6"})
    assert (near.cases[0].expected, near.tolerance) == (0.5, 1e-6)
    loop = "def check(candidate):\n    for i in range(3):\n        assert candidate(i) == i"
    assert "no plain comparison" in refused({**row, "test": loop})
    mbpp = {"text": "Double it.", "task_id": 9, "code": "def g(x): return 2 * x"}
    found = one({**mbpp, "test_list": ["assert g(1) == 2", "assert not g(0)"]})
    assert found.statement.endswith("called g and takes 1 argument.") and found.cases[1].expected is False
    assert one({**mbpp, "test_list": ["assert set(g(1)) == set([2])"]}).unordered
    assert "no plain comparison" in refused({**mbpp, "test_list": ["assert g(1) == open('x').read()"]})
    assert "no plain comparison" in refused({**mbpp, "test_list": ["assert g(1) == [1] * 1000 * 1000 * 1000"]})
    assert one({"question": "Q", "test_cases": ["assert h() == {'a': [1]}"]}).name == "h"


def test_math_answers_boxes_and_levels() -> None:
    row = {"problem": "What?", "solution": r"So $\boxed{\frac{1}{2}}$.", "level": "Level 4", "type": "Algebra"}
    found = one(row)
    assert isinstance(found, MathProblem)
    assert (found.golds, found.level, found.family) == ((r"\frac{1}{2}",), 3, "Algebra")
    assert one({**row, "expected_answer": "$7$"}).golds == ("7",)
    assert one({"Problem": "What?", "Answer": 33, "ID": "2024-I-1"}).golds == ("33",)
    assert one({"problem": "What?", "answer": 27.0}).golds == ("27",)
    assert "the answer is empty" in refused({"problem": "What?", "solution": "no box"})
    assert "the answer is too long" in refused({"problem": "What?", "answer": "word " * 100})


def test_gsm8k_takes_what_follows_the_marks() -> None:
    row = {"question": "How many?", "answer": "#### Steps\n2 * 600 = <<2*600=1200>>1200 in all.\n#### 1,200"}
    assert one(row).golds == ("1200",)


def test_verl_dapo_and_lists_of_truths() -> None:
    asked = (
        "Solve the following math problem step by step.\n\nWhat is it?\n\nRemember to put your answer on its own line."
    )
    row: dict[str, Any] = {
        "data_source": "math_dapo",
        "prompt": [{"role": "user", "content": asked}],
        "ability": "MATH",
        "reward_model": {"ground_truth": "34", "style": "rule"},
        "extra_info": {"index": "abc"},
    }
    found = one(row)
    assert (found.question, found.golds, found.key) == ("What is it?", ("34",), "abc")
    assert one({**row, "reward_model": {"ground_truth": ["1/2", "0.5"]}}).golds == ("1/2", "0.5")
    truth = json.dumps({"inputs": ["1"], "outputs": ["2"]})
    assert isinstance(one({**row, "ability": "code", "reward_model": {"ground_truth": truth}}), CodeProblem)
    loaded = rows.load([row] * 32)
    assert (loaded.report.read, loaded.report.taken, loaded.report.duplicates) == (32, 1, 31)


def test_open_math_reasoning_olympiad_bench_nemo_gym_and_cruxeval() -> None:
    row = {"problem": "P", "expected_answer": "3", "problem_type": "has_answer_extracted"}
    assert one(row).golds == ("3",)
    assert "no answer to check" in refused({**row, "problem_type": "converted_proof"})
    olympiad = {"question": "Q", "final_answer": ["$2$", "$3$"], "unit": "m", "error": "1e-1"}
    assert (one(olympiad).golds, one(olympiad).tolerance) == (("2, 3", "2, 3 m"), 0.1)
    assert "needs a picture" in refused({**olympiad, "question": "See <image_1>."})
    params = {"responses_create_params": {"input": [{"role": "user", "content": "Do it."}]}}
    assert one({**params, "question": "Q", "expected_answer": "4"}).question == "Q"
    tests = {"unit_tests": {"inputs": ["1"], "outputs": ["2"]}}
    assert one({**params, "verifier_metadata": tests}).statement == "Do it."
    crux = one({"code": "def f(x):\n    return [x]", "input": "1", "output": "[1]", "id": "c"})
    assert crux.kind == "literal" and crux.golds == ("[1]",) and "f(1)" in crux.question


def test_an_unknown_shape_names_its_columns_and_what_the_nearest_lacks() -> None:
    said = refused({"instance_id": "a", "repo": "b", "base_commit": "c", "patch": "d", "PASS_TO_PASS": "[]"})
    assert "`base_commit`, `instance_id`, `pass_to_pass`, `patch`, `repo`" in said
    assert "the nearest shape is SWE-bench, which also needs `test_patch`, `fail_to_pass`" in said
    assert "no known shape has any of them" in refused({"foo": 1})
    assert "known: R2E-Gym" in refused({"foo": 1})
    with pytest.raises(ValueError, match="got shape 'nope'; available: R2E-Gym"):
        rows.load([], shape="nope")


def test_keys_are_unique_and_a_statement_is_taken_once() -> None:
    made = [{"id": 1, "problem": f"P{i % 3}", "answer": "1"} for i in range(6)]
    loaded = rows.load(made)
    assert (loaded.report.taken, loaded.report.duplicates, loaded.report.renamed) == (3, 3, 2)
    assert len({p.key for p in loaded.problems}) == 3


def test_values_nested_too_deeply_or_too_long_are_refused() -> None:
    for text in ("[" * 100_000, "(" * 100_000, "1" * 3_000_000 + "x", "{'a': __import__('os')}"):
        with pytest.raises(Refused):
            values.nested(text, "column")
    assert values.nested("('a', {'b': None})", "column") == ("a", {"b": None})


def test_every_shape_is_told_apart_by_its_own_columns() -> None:
    for shape in shapes.SHAPES:
        columns = [names.split("|")[0] for names in shape.needs]
        found = shapes.detect(columns)
        assert found is shape, f"{shape.name} is taken for {found and found.name}"
