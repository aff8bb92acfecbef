"""Which shape a row has, by the names of its columns. One list, the most particular shapes first."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from envs.rows import code, math, swe
from envs.rows.records import Problem
from envs.rows.values import Row


@dataclass(frozen=True, slots=True)
class Shape:
    name: str
    needs: tuple[str, ...]
    """Columns that must be there; `a|b` where one of two is enough."""
    read: Callable[[Row], Problem]
    lacks: tuple[str, ...] = ()
    """Columns that tell another shape."""

    def missing(self, columns: Collection[str]) -> list[str]:
        return [names for names in self.needs if not set(names.split("|")) & set(columns)]

    def fits(self, columns: Collection[str]) -> bool:
        return not self.missing(columns) and not set(self.lacks) & set(columns)


_TESTS = "fail_to_pass", "pass_to_pass"
_CASES = "public_tests|private_tests|generated_tests"
SHAPES = (
    Shape("R2E-Gym", ("repo_name", "commit_hash", "expected_output_json", "problem_statement"), swe.r2e),
    Shape("SWE-bench", ("instance_id", "repo", "base_commit", "patch", "test_patch", *_TESTS), swe.swe_bench),
    Shape("SWE-smith", ("instance_id", "repo", "patch", "image_name", *_TESTS), swe.swe_smith, lacks=("test_patch",)),
    Shape("NeMo Gym code", ("responses_create_params", "verifier_metadata"), code.nemo_gym),
    Shape("NeMo Gym math", ("responses_create_params", "expected_answer|answer"), math.nemo_gym),
    Shape("LiveCodeBench", ("question_content", "public_test_cases|private_test_cases"), code.livecodebench),
    Shape("CodeContests", ("name", "description", _CASES), code.code_contests),
    Shape("verl code", ("prompt", "reward_model", "ability"), code.verl),
    Shape("verl", ("prompt", "reward_model"), math.verl),
    Shape("PrimeIntellect", ("prompt", "verification_info"), code.prime_intellect),
    Shape("HumanEval", ("prompt", "entry_point", "test"), code.humaneval),
    Shape("MBPP", ("text|prompt", "test_list"), code.mbpp),
    Shape("AceCoder", ("question", "test_cases"), code.acecoder),
    Shape("INTELLECT-3", ("question", "info"), code.intellect_3),
    Shape("APPS and TACO", ("question", "input_output"), code.apps),
    Shape("DeepCoder", ("problem", "tests"), code.deepcoder),
    Shape("CRUXEval", ("code", "input", "output"), math.cruxeval),
    Shape("OlympiadBench", ("question", "final_answer"), math.olympiad_bench),
    Shape("OpenMathReasoning", ("problem", "expected_answer", "problem_type"), math.open_math_reasoning),
    Shape("MATH and AIME", ("problem", "expected_answer|answer|solution"), math.math),
    Shape("GSM8K", ("question", "answer|expected_answer"), math.gsm8k),
)


def named(name: str) -> Shape:
    """Raises ValueError (got, available)."""
    found = [shape for shape in SHAPES if shape.name.lower() == name.lower()]
    if not found:
        raise ValueError(f"got shape {name!r}; available: {', '.join(shape.name for shape in SHAPES)}")
    return found[0]


def detect(columns: Collection[str]) -> Shape | None:
    return next((shape for shape in SHAPES if shape.fits(columns)), None)


def nearest(columns: Collection[str]) -> str:
    """For columns that fit no shape: what the nearest one misses, in words."""

    def distance(shape: Shape) -> tuple[int, float]:
        missing = len(shape.missing(columns))
        return missing, -(len(shape.needs) - missing) / len(shape.needs)

    best = min(SHAPES, key=distance)
    have = len(best.needs) - len(best.missing(columns))
    if have == 0:
        return f"no known shape has any of them; known: {', '.join(shape.name for shape in SHAPES)}"
    missing = ", ".join(f"`{names.replace('|', '` or `')}`" for names in best.missing(columns))
    if not missing:
        return f"as {best.name} they should not have {', '.join(sorted(set(best.lacks) & set(columns)))}"
    return f"the nearest shape is {best.name}, which also needs {missing}"
