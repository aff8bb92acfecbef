r"""The top of the ladder, inside a sandbox: where text is parsed and Math-Verify has the last word.

Runs as the program of a service (envs/math/judge.py), loaded once and forked for each pair; the trainer never imports
it. Numbers are compared to 50 digits and relative to their size; expressions at several points as well. Math-Verify
decides what is left, and its yes counts only where no point contradicts it.
"""

from __future__ import annotations

import json
import logging
import random
import re
from typing import Any, Literal

import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy
from latex2sympy2_extended.math_normalization import NormalizationConfig, normalize_latex
from math_verify import verify

from envs.math.ladder import ENOUGH_DIGITS, Ladder, Unreadable
from envs.math.rationals import TooLarge, value

POINTS = 8
DIGITS = 50
SAME = sympy.Float(10) ** -30
"""Relative difference up to which two numbers worked out to DIGITS are the same."""
TINY = sympy.Float(10) ** (5 - DIGITS)
_CONVERSION = ConversionConfig(lowercase_symbols=False)
_NORMALIZATION = NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=False, boxed="none", equations=False
)
_DECIMAL = re.compile(r"(?<![0-9.])([0-9]*)\.([0-9]+)")


def answer(question: bytes) -> bytes:
    """A question is the JSON of [gold, answer]; of [gold, null] where the gold one is held against itself."""
    gold, given = json.loads(question)
    try:
        verdict = Ladder(leaf, by_text=given is not None).same(gold, gold if given is None else given)
    except Unreadable as problem:
        return json.dumps(["unreadable", str(problem)]).encode()
    except TooLarge:
        return json.dumps(["too large", ""]).encode()
    return json.dumps(["right" if verdict else "wrong", ""]).encode()


def leaf(gold: str, given: str, how: Literal["equal", "ratio", "positive"]) -> bool:
    try:
        expected = parse(gold)
    except MemoryError:
        raise
    except Exception as problem:
        raise Unreadable(f"the gold answer {gold[:80]!r} was not parsed: {type(problem).__name__}") from None
    try:
        found = parse(given)
    except MemoryError:
        raise
    except Exception:
        return False
    if not (isinstance(expected, sympy.Expr) and isinstance(found, sympy.Expr)):
        return how == "equal" and bool(verify(expected, found, timeout_seconds=None))
    if how != "equal":
        return proportional(expected, found, positive=how == "positive")
    if not expected.free_symbols and not found.free_symbols:
        return same_numbers(expected, found, given)
    if found.free_symbols - expected.free_symbols:
        return False
    agree = at_points(expected, found)
    return agree if agree is not None else bool(verify(expected, found, timeout_seconds=None))


def parse(text: str) -> Any:
    """A sympy object, decimals as the fractions that they are."""
    text = _DECIMAL.sub(lambda d: f"\\frac{{{int(d[1] + d[2])}}}{{{10 ** len(d[2])}}}", text)
    text = normalize_latex(text, _NORMALIZATION)
    parsed = latex2sympy(text, normalization_config=None, conversion_config=_CONVERSION)
    if parsed is None or isinstance(parsed, str):
        raise ValueError(f"got {parsed!r}, expected an expression")
    return parsed.subs(sympy.Symbol("i"), sympy.I).doit()


def number(expression: Any) -> Any:
    """Worked out to DIGITS, None where that is no number."""
    found = sympy.N(expression, DIGITS)
    return found if found.is_number and found.is_finite else None


def near(one: Any, other: Any) -> bool:
    size = max(abs(one), abs(other))
    return bool(size == 0 or abs(one - other) <= SAME * size)


def same_numbers(gold: Any, given: Any, text: str) -> bool:
    """Equal, or rounded to the digits that the answer gives where the gold number has no end of them."""
    if sympy.oo in (gold, given) or -sympy.oo in (gold, given):
        return bool(gold == given)
    one, other = number(gold), number(given)
    if one is None or other is None:
        return bool(verify(gold, given, timeout_seconds=None))
    if min(abs(one), abs(other)) < TINY:  # perhaps nothing but what rounding left of 0
        return bool(sympy.simplify(gold - given) == 0)
    if near(one, other):
        return True
    decimal = value(text)
    if decimal is None or decimal.digits < ENOUGH_DIGITS or gold.is_rational:
        return False
    unit = sympy.Rational(decimal.unit.numerator, decimal.unit.denominator)
    return bool(one.is_real and abs(one - other) * 2 <= unit)


def values(expressions: list[Any], symbols: list[Any], rng: random.Random, lowest: int) -> list[Any] | None:
    """What expressions are worth at one point, None where one of them is worth nothing there."""
    point = {symbol: sympy.Rational(rng.randint(lowest, 4000), 997) for symbol in symbols}
    found = [number(expression.subs(point)) for expression in expressions]
    return None if any(each is None for each in found) else found


def at_points(gold: Any, given: Any) -> bool | None:
    """Whether both agree wherever both are worth something; None where points do not decide it."""
    symbols = sorted(gold.free_symbols | given.free_symbols, key=str)
    rng = random.Random(0)
    agreed = seen = 0
    for lowest in (1,) * (POINTS // 2) + (-4000,) * (POINTS // 2):
        pair = values([gold, given], symbols, rng, lowest)
        if pair is None:
            continue
        if not near(*pair):
            if lowest > 0:
                return False
            continue
        agreed += 1
        seen += 1
    return True if agreed == POINTS else None


def proportional(gold: Any, given: Any, positive: bool) -> bool:
    """Whether one is a constant times the other, so that they vanish together."""
    symbols = sorted(gold.free_symbols | given.free_symbols, key=str)
    rng = random.Random(0)
    ratios = []
    for _ in range(POINTS):
        pair = values([gold, given], symbols, rng, -4000)
        if pair is not None and pair[0] != 0 and pair[1] != 0:
            ratios.append(pair[1] / pair[0])
    if len(ratios) < POINTS // 2 or not all(near(ratios[0], ratio) for ratio in ratios):
        return False
    return not positive or bool(ratios[0].is_real and ratios[0] > 0)


_WARM = r"""
\frac{1}{2}+\sqrt{3}x^{2}-3\pi    \sin(2x)\cdot\log_{2}(3)(x+1)    e^{-ix}y_{1}/7    47\sqrt{174}    \sqrt{384366}
x^2-841    (x-29)(x+29)    (x+3)^2    19x+136    136+19x    -x+4y-2    (2x+3y-7)-(0)
\frac{x+2}{7}    \frac{-1}{3}    f(x)
\frac{\sqrt{2}}{2}    1-\sqrt[3]{5}    2^{n+1}    2^{-98}    \frac{n(n+1)}{2}    n!    \binom{n}{2}    |x|    \ln 2
3+4i    2n\pi    \frac{5\pi}{6}    -\infty    \cos^2 x    \tan\theta    (1+\frac{1}{2})\pi
a b c    x^{12}y^2    12.5x    -7
3\times 10^{8}    x/y    (x+1)^{1/2}    \frac{1}{1+\frac{1}{x}}    \lfloor x\rfloor    \alpha+\beta    2(k+1)    ((x))
"""
logging.disable(logging.CRITICAL)
for _text in re.split(r"\s\s+|\n", _WARM.strip()):
    leaf(_text, _text, "equal")  # the parser learns its tables once, and every fork has them
