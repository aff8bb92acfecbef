"""An invented package in two releases, from which tasks are built."""

from pathlib import Path

TALLY = '''"""Counts things."""


def total(numbers, start=0):
    """The sum of the numbers above zero."""
    result = start
    for number in numbers:
        if number > 0:
            result += number
    return result


def longest(words):
    """The longest word, the first of several."""
    best = ""
    for word in words:
        if len(word) > len(best):
            best = word
    return best


def _clip(value, low, high):
    return max(low, min(value, high))


def percent(part, whole):
    if whole == 0:
        raise ValueError("nothing to take a part of")
    return _clip(100 * part // whole, 0, 100)


def unseen(a, b):
    return a - b
'''
COUNTS = """\
import pytest

from tally import longest, percent, total


@pytest.mark.parametrize("numbers, expected", [([], 0), ([1], 1), ([1, -1], 1), ([2, 3], 5), ([0, 4], 4)])
def test_total(numbers, expected):
    assert total(numbers) == expected


@pytest.mark.parametrize("words, expected", [(["a", "bb"], "bb"), (["ab", "cd"], "ab"), ([], "")])
def test_longest(words, expected):
    assert longest(words) == expected


class TestPercent:
    def test_part(self):
        assert percent(1, 4) == 25

    def test_clipped(self):
        assert percent(5, 4) == 100 and percent(-1, 4) == 0

    def test_nothing(self):
        with pytest.raises(ValueError):
            percent(1, 0)
"""
ODD = """\
import os, time
import pytest


@pytest.mark.parametrize("number", [os.urandom(8).hex()])
def test_flaky(number):
    pass


def test_failing():
    assert False


@pytest.mark.skip
def test_skipped():
    pass


@pytest.mark.xfail
def test_expected_to_fail():
    assert False


def test_slow():
    end = time.process_time() + 1.2
    while time.process_time() < end:
        pass
"""
NEWER = "\n\ndef mean(numbers):\n    return sum(numbers) / len(numbers) if numbers else None\n"
NEWER_TEST = """

def test_mean():
    from tally import mean
    assert mean([1, 3]) == 2 and mean([]) is None
"""


def write(folder: Path, version: str, source: str, counts: str) -> str:
    for path, text in {
        "src/tally/__init__.py": "from tally.core import *\nfrom tally.core import percent\n",
        "src/tally/core.py": source,
        "tests/test_counts.py": counts,
        "tests/test_odd.py": ODD,
        "tests/test_broken.py": "import no_such_module\n",
        "tests/test_other.py": "import tally\n\ndef test_words():\n    assert tally.core.__doc__ == 'Counts things.'\n",
        "pyproject.toml": f"[project]\nname = 'tally'\nversion = '{version}'\n",
        "CHANGELOG.md": "- mean: of several numbers\n" if version != "1.0" else "",
    }.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return str(folder)
