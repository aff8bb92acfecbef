"""Each reward by hand."""

import math
from collections.abc import Sequence
from typing import Any

import pytest

import rewards
from envs import Episode, Outcome, Task


def episode(
    *said: str | tuple[str, str],
    opening: Sequence[dict[str, str]] = (),
    outcome: Outcome = Outcome.FAILED,
    tokens: int = 0,
    **facts: Any,
) -> Episode:
    """One turn for each of `said`; of a pair, the second is what a tool answered."""
    task = Task(world="w", key="k", family="f", level=0, messages=())
    messages = [*opening, {"role": "user", "content": "solve it"}]
    for turn in said:
        text, heard = turn if isinstance(turn, tuple) else (turn, None)
        messages.append({"role": "assistant", "content": text})
        if heard is not None:
            messages.append({"role": "tool", "name": "bash", "content": heard})
    solved = outcome is Outcome.SOLVED
    facts = {"solved": solved, **facts}
    return Episode(task=task, messages=messages, outcome=outcome, facts=facts, turns=len(said), tokens=tokens)


def value(file: str, attempt: Episode, /, **args: Any) -> float | None:
    rewards.check(file, args)
    got: float | None = rewards.load(file)(attempt, **args)
    return got


def by_turn(file: str, attempt: Episode, /, **args: Any) -> list[float] | None:
    rewards.check(file, args)
    got: list[float] | None = rewards.load(file)(attempt, **args)
    return got


def test_a_fact() -> None:
    attempt = episode("x", reward=-3, parts={"style": 0.25}, named=True)
    assert value("fact", attempt, name="reward") == -3
    assert value("fact", attempt, name="parts.style") == 0.25
    assert value("fact", attempt, name="named") == 1.0
    assert value("fact", attempt, name="parts.other") is None and value("fact", attempt, name="reward.x") is None
    scaled = [value("fact", episode("x", n=n), name="n", low=-1, high=3) for n in (-9, -1, 1, 3, 4)]
    assert scaled == [0.0, 0.0, 0.5, 1.0, 1.0]
    for odd in (math.nan, math.inf):
        with pytest.raises(ValueError, match="expected a finite number"):
            value("fact", episode("x", n=odd), name="n", low=0, high=1)
    unmeasured = episode("x", outcome=Outcome.TURNS_SPENT)
    assert value("fact", unmeasured, name="reward") == 0.0
    assert value("fact", unmeasured, name="reward", unmeasured=-200.0) == -200.0


def test_facts_by_turn() -> None:
    assert by_turn("turn_fact", episode("x", "y", gains=[1, -2]), name="gains") == [1, -2]
    assert by_turn("turn_fact", episode("x", "y"), name="gains") is None
    assert by_turn("turn_fact", episode("x", "y", outcome=Outcome.TIME_SPENT), name="gains") == [0.0, 0.0]


@pytest.mark.parametrize(
    ("facts", "groups", "share"),
    [
        ({"passed": 0.75, "points": 0.4}, False, 0.75),
        ({"passed": 0.75, "points": 0.4}, True, 0.4),
        ({"fail_to_pass": [True, False, False, True], "pass_to_pass": [True]}, False, 0.5),
        ({"fail_to_pass": [True, False], "pass_to_pass": [True, False]}, False, 0.0),
        ({"fail_to_pass": [False], "pass_to_pass": []}, False, 0.0),
        ({"fail_to_pass": [True], "pass_to_pass": [True], "tampered": True}, False, 0.0),
        ({"submitted": False}, False, 0.0),
        ({"verdict": "wrong"}, False, 0.0),
    ],
)
def test_the_share_of_tests(facts: dict[str, Any], groups: bool, share: float) -> None:
    assert value("tests", episode("x", **facts), groups=groups) == share
    assert value("tests", episode("x", outcome=Outcome.SOLVED, **{**facts, "tampered": False}), groups=groups) == 1.0


def test_the_share_of_tests_agrees_with_what_the_code_world_states() -> None:
    from envs.code import grade
    from envs.verifiers import Verdict

    hidden = {
        "inputs": ["1"] * 4,
        "outputs": ["1"] * 4,
        "groups": [{"cases": [0, 1], "points": 30}, {"cases": [2, 3], "points": 70}],
    }
    problem = grade.Problem.of(hidden, 1.0)
    right, wrong = Verdict.RIGHT, Verdict.WRONG
    facts = grade.facts([right, right, right, wrong], [], problem)
    attempt = episode("x", **facts)
    assert value("tests", attempt) == 0.75
    assert value("tests", attempt, groups=True) == pytest.approx(0.3)
    assert value("tests", episode("x", **grade.no_code(problem, "none"))) == 0.0


def test_the_likeness_of_a_patch() -> None:
    assert value("patch_similarity", episode("x", submitted=True, similarity=0.4)) == 0.4
    assert value("patch_similarity", episode("x", submitted=True, similarity=0.4), only_failed=True) == 0.4
    solved = episode("x", submitted=True, similarity=0.9, outcome=Outcome.SOLVED)
    assert value("patch_similarity", solved) == 0.9 and value("patch_similarity", solved, only_failed=True) == 0.0
    assert value("patch_similarity", episode("x", submitted=False)) == 0.0
    assert value("patch_similarity", episode("x", outcome=Outcome.TURNS_SPENT)) == 0.0
    assert value("patch_similarity", episode("x", verdict="wrong")) is None


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ({"pattern": "^two"}, 1.0),
        ({"pattern": "one"}, 0.0),
        ({"pattern": "one", "where": "any"}, 1.0),
        ({"pattern": "o", "where": "every"}, 1.0),
        ({"pattern": "two", "where": "every"}, 0.0),
        ({"pattern": "edited", "role": "tool", "where": "any"}, 1.0),
        ({"pattern": "shown", "where": "any"}, 0.0),
        ({"pattern": "", "role": "user", "where": "every"}, 0.0),
    ],
)
def test_the_form_of_what_was_said(args: dict[str, Any], expected: float) -> None:
    """A turn that the opening shows is not the policy's; of messages that there are none of, none matches."""
    shown = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "shown"}]
    assert value("format", episode(("one", "edited"), "two", opening=shown), **args) == expected


@pytest.mark.parametrize("file", ["format", "tool_errors"])
def test_a_text_on_which_a_pattern_never_ends_is_a_judge_too_late_and_no_number(file: str) -> None:
    """What a policy wrote, or brought its tool to print; the attempt beside it has its score."""
    endless = "a" * 80 + "b"
    groups = [episode((text, text)) for text in ("aa", endless)]
    with pytest.raises(rewards.Unscored) as caught:
        rewards.score_group(groups, {"form": {"reward": file, "pattern": "(?:a|aa)+$"}})
    late = caught.value.failed
    assert set(late) == {1} and late[1].outcome is Outcome.JUDGE_TIMED_OUT
    assert str(late[1]).startswith("the pattern '") and "took more than 1 s on a text of 81 characters" in str(late[1])


def test_patterns_are_read_as_re_reads_them() -> None:
    assert rewards.matches(r"\\boxed\{", "so \\boxed{4}") and not rewards.matches("^b", "a\nb")
    assert rewards.matches("(?im)^B$", "a\nb") and by_turn(
        "tool_errors", episode(("x", "OOPS")), pattern="(?i)oops"
    ) == [-1]


def test_length_along_a_cosine() -> None:
    ended = {True: Outcome.SOLVED, False: Outcome.FAILED}
    got = {
        (right, tokens): value("length_cosine", episode("x", outcome=ended[right], tokens=tokens), max_tokens=100)
        for right in ended
        for tokens in (0, 25, 50, 100, 101)
    }
    quarter = (1 + math.cos(math.pi / 4)) / 2
    assert got == pytest.approx(
        {
            (True, 0): 1.0,
            (True, 25): 0.5 + 0.5 * quarter,
            (True, 50): 0.75,
            (True, 100): -1.0,
            (True, 101): -1.0,
            (False, 0): -1.0,
            (False, 25): -0.5 - 0.5 * quarter,
            (False, 50): -0.75,
            (False, 100): -1.0,
            (False, 101): -1.0,
        }
    )


def test_length_against_the_others() -> None:
    group = rewards.load("length_group")
    right, wrong = Outcome.SOLVED, Outcome.FAILED
    attempts = [
        episode("x", outcome=o, tokens=n) for o, n in ((right, 10), (right, 30), (wrong, 10), (wrong, 50), (right, 50))
    ]
    assert group(attempts) == [0.5, 0.0, 0.0, -0.5, -0.5]
    assert group(attempts[:1]) == [0.0] and group([attempts[3], attempts[4]]) == [0.0, 0.0]


@pytest.mark.parametrize(
    ("said", "words", "expected"),
    [
        (["a b c d"], 2, 0.0),
        (["a b a B"], 2, -1 / 3),
        (["go on", "go on"], 2, -0.5),
        (["a a", "a a"], 3, 0.0),
        (["so " * 101], 1, -100 / 101),
        ([], 2, 0.0),
    ],
)
def test_saying_the_same_again(said: list[str], words: int, expected: float) -> None:
    assert value("repetition", episode(*said), words=words) == pytest.approx(expected)


def test_errors_of_tools() -> None:
    heard = [
        "edited",
        "ls: no\nexit code 2",
        "exit code 0",
        "ZeroDivisionError: by zero",
        "no edit: twice",
        "see Error: x",
    ]
    attempt = episode(*[("act", text) for text in heard], "done")
    assert by_turn("tool_errors", attempt) == [0, -1, 0, -1, -1, 0, 0]
    assert by_turn("tool_errors", episode(("a", "oops"), ("b", "fine")), pattern="oops") == [-1, 0]
    assert by_turn("tool_errors", episode(("a", "fine"), "b", outcome=Outcome.INVALID_ACTION)) == [0, -1]
    assert by_turn("tool_errors", episode("Error: said by the policy")) == [0]


def test_the_cost_of_turns() -> None:
    assert by_turn("turn_cost", episode("a", "b", "c")) == [0, -1, -1]
    assert by_turn("turn_cost", episode("a", "b", "c"), free=0) == [-1, -1, -1]


def test_a_potential_by_hand() -> None:
    """Phi 0, 0.5, 0.8 before the turns, and 0 after the last, whatever the world says of it."""
    attempt = episode("a", "b", "c", progress=[0.5, 0.8, 0.9])
    assert by_turn("potential", attempt, fact="progress") == pytest.approx([0.5, 0.3, -0.8])
    assert by_turn("potential", attempt, fact="progress", gamma=0.5) == pytest.approx([0.25, 0.4 - 0.5, -0.8])
    assert by_turn("potential", episode("a"), fact="progress") is None
    assert by_turn("potential", episode("a", "b", outcome=Outcome.TOKENS_SPENT), fact="progress") == [0.0, 0.0]


def test_a_potential_of_the_conversation_so_far() -> None:
    edited = {"of": "format", "args": {"pattern": "edited", "role": "tool", "where": "any"}}
    attempt = episode(("look", "text"), ("edit", "edited"), ("edit", "edited"), "submit")
    assert by_turn("potential", attempt, **edited) == [0.0, 1.0, 0.0, -1.0]
    assert by_turn("potential", attempt, gamma=0.5, **edited) == [0.0, 0.5, -0.5, -1.0]
    assert by_turn("potential", episode("submit"), **edited) == [0.0]


@pytest.mark.parametrize("seed", range(5))
def test_a_potential_telescopes_to_what_it_was_at_the_start(seed: int) -> None:
    import random

    rng = random.Random(seed)
    progress = [rng.uniform(-5, 5) for _ in range(rng.randint(1, 9))]
    attempt = episode(*["a"] * len(progress), progress=progress)
    score = rewards.score(attempt, {"outcome": {}, "potential": {"fact": "progress"}})
    assert score.value == pytest.approx(0.0, abs=1e-12) and sum(score.turns) == pytest.approx(0.0, abs=1e-12)
    gamma = 0.9
    shaped = by_turn("potential", attempt, fact="progress", gamma=gamma)
    assert shaped is not None
    assert sum(gamma**k * f for k, f in enumerate(shaped)) == pytest.approx(0.0, abs=1e-12), "Phi(s_0) is 0"


@pytest.mark.parametrize(
    ("name", "args", "said"),
    [
        ("fact", {"name": "x", "low": 1.0}, "got low=1.0, high=None; expected both with low below high, or neither"),
        ("format", {"pattern": "("}, "expected a regular expression"),
        ("format", {"pattern": "x", "role": "system"}, "got role='system'; available"),
        ("length_cosine", {"max_tokens": 0}, "got max_tokens=0; expected a number above 0"),
        ("length_cosine", {"max_tokens": 9, "right": [1]}, r"got right=\[1\]; expected two numbers"),
        ("repetition", {"words": 0}, "got words=0; expected a whole number of at least 1"),
        ("tool_errors", {"pattern": "["}, "expected a regular expression"),
        ("turn_cost", {"free": -1}, "got free=-1; expected"),
        ("potential", {}, "got fact=None, of=None; expected one of the two"),
        ("potential", {"fact": "a", "of": "format"}, "got fact=a, of=format; expected one of the two"),
        ("potential", {"fact": "a", "gamma": 1.1}, "got gamma=1.1; expected a number from 0 to 1"),
        ("potential", {"fact": "a", "args": {}}, "args has no effect without of"),
        ("potential", {"of": "turn_cost"}, "got of=turn_cost, which is no number of one conversation"),
        ("potential", {"of": "nothing"}, "there is no reward 'nothing'"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(name: str, args: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        rewards.check(name, args)
