"""Arguments that make no sense are refused before a run starts, also those of a reward within another."""

from typing import Any

import pytest

from rewards import check


@pytest.mark.parametrize(
    ("name", "settings", "why"),
    [
        ("potential", {"of": "format", "args": {"pattern": "["}}, "expected a regular expression"),
        ("potential", {"fact": 3}, "expected the name of a fact"),
        ("fact", {"name": 3}, "expected the name of a fact"),
        ("fact", {"name": "reward", "low": "a", "high": "b"}, "got low='a'; expected a number"),
        ("fact", {"name": "reward", "unmeasured": None}, "got unmeasured=None; expected a number"),
        ("length_cosine", {"max_tokens": 9, "exceeded": "x"}, "got exceeded='x'; expected a number"),
        ("length_cosine", {"max_tokens": float("nan")}, "got max_tokens=nan; expected a number above 0"),
        ("length_cosine", {"max_tokens": 9, "right": 1.0}, "expected two numbers"),
    ],
)
def test_what_would_fail_on_every_attempt_is_refused(name: str, settings: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why.replace("[", r"\[")):
        check(name, settings)


def test_what_makes_sense_is_not() -> None:
    check("potential", {"of": "format", "args": {"pattern": "x"}, "gamma": 1})
    check("potential", {"fact": "potential"})
    check("fact", {"name": "parts.style", "low": 0, "high": 10})
    check("length_cosine", {"max_tokens": 100, "exceeded": 0, "right": [1, 0.5]})
