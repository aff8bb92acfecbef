r"""Exact arithmetic for answers that are plain numbers, and for rational expressions in letters at given points.

value("1{,}000.50")            1000.5, a decimal of 6 digits
value(r"2\frac{1}{2}")         5/2, a mixed number
value(r"3 \times 10^{-7}")     3/10000000
value(r"0.1\overline{6}")      1/6
value("101_2")                 5, a literal of base 2
value("17 + 5")                22, but with work left to do: `worked` is False
value(r"\sqrt{2}")             None: not rational, or not read here
value("9^{9^9}")               raises TooLarge
at_point("2x(x+1)", {"x": 3})  24
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

MAX_BITS = 60_000
MAX_WORK = 20 * MAX_BITS
MAX_TOKENS = 240
MAX_FACTORIAL = 5_000
_TOKEN = re.compile(
    r"\s*(?:(?P<repeating>[0-9]*\.[0-9]*\\(?:overline|bar)\s*(?:\{\s*[0-9]+\s*\}|[0-9]))"
    r"|(?P<based>(?:[0-9][0-9A-Za-z]*|[A-F][0-9A-F]+)_(?:\{\s*[0-9]{1,2}\s*\}|[0-9]))"
    r"|(?P<number>(?:(?:[0-9]{1,3}(?:[, ][0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)"
    r"|(?P<word>\\frac|\\times|\\cdot)|(?P<sign>[-+*/^!(){}])|(?P<letter>[A-Za-z]))"
)


class TooLarge(Exception):
    """A number that is written in a few characters and has more than MAX_BITS bits."""


@dataclass(frozen=True, slots=True)
class Value:
    number: Fraction
    worked: bool = True
    """False where sums, differences or products of numbers are left to be worked out."""
    digits: int = 0
    """Significant digits of a decimal; 0 for any other form."""
    unit: Fraction = Fraction(0)
    """Of a decimal: what one step of its last digit is worth."""
    based: str = ""
    """The digits of a literal with a base."""


def value(text: str) -> Value | None:
    """What a normalised text is worth where it is a plain number, else None. Raises TooLarge."""
    reader = _Reader(text)
    try:
        found = reader.sum()
    except (_NotPlain, ZeroDivisionError):
        return None
    return found if reader.at == len(reader.tokens) else None


def at_point(text: str, point: Mapping[str, int]) -> Fraction | None:
    """What a rational expression is worth where its letters are numbers; None where it is not read here."""
    if re.search(r"(?<![\\A-Za-z])[A-Za-z]{3,}", text):
        return None  # perhaps a function or a word
    reader = _Reader(text, point)
    try:
        found = reader.sum()
    except (_NotPlain, TooLarge, ZeroDivisionError):
        return None
    return found.number if reader.at == len(reader.tokens) else None


class _NotPlain(Exception):
    pass


class _Reader:
    def __init__(self, text: str, point: Mapping[str, int] | None = None) -> None:
        self.tokens: list[tuple[str, str]] = []
        self.point = point or {}
        self.at = self.work = self.letters = position = 0
        text = text.strip()
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None or match.end() == position:
                self.tokens = [("", "")]
                return
            self.tokens.append((match.lastgroup or "", (match[match.lastgroup or 0]).strip()))
            position = match.end()

    def peek(self, *wanted: str) -> bool:
        return self.at < len(self.tokens) and self.tokens[self.at][1] in wanted

    def kind(self) -> str:
        return self.tokens[self.at][0] if self.at < len(self.tokens) else "end"

    def take(self) -> str:
        if self.at >= min(len(self.tokens), MAX_TOKENS):
            raise _NotPlain
        self.at += 1
        return self.tokens[self.at - 1][1]

    def expect(self, wanted: str) -> None:
        if self.take() != wanted:
            raise _NotPlain

    def keep(self, number: Fraction, worked: bool = True) -> Value:
        """A result on the way. All of them together are bounded, so that no text takes long."""
        self.work += _bits(number)
        if _bits(number) > MAX_BITS or self.work > MAX_WORK:
            raise TooLarge
        return Value(number, worked)

    def sum(self) -> Value:
        found = self.product()
        while self.peek("+", "-"):
            sign = 1 if self.take() == "+" else -1
            found = self.keep(found.number + sign * self.product().number, worked=False)
        return found

    def product(self) -> Value:
        found = self.signed()
        while self.peek("*", "/", r"\times", r"\cdot") or self.next_to():
            if self.peek("/"):
                self.take()
                divisor = self.signed()
                if self.next_to():
                    raise _NotPlain  # 1/2x: perhaps (1/2)x, perhaps 1/(2x)
                found = self.keep(found.number / divisor.number, worked=found.worked and divisor.worked)
                continue
            if not self.next_to():
                self.take()
            first = self.at
            factor = self.signed()
            ten = self.tokens[first][1] == "10" and self.at > first + 1 and self.tokens[first + 1][1] == "^"
            worked = ten and found.worked and factor.worked  # 3 * 10^8 is one number in scientific notation
            scale = factor.number if worked else Fraction(0)
            digits = found.digits if worked else 0
            found = replace(self.keep(found.number * factor.number, worked), digits=digits, unit=found.unit * scale)
        return found

    def next_to(self) -> bool:
        """Whether a factor follows without a sign of multiplication."""
        return self.peek("(") or (bool(self.point) and (self.kind() == "letter" or self.peek(r"\frac")))

    def signed(self) -> Value:
        if self.peek("-"):
            self.take()
            found = self.signed()
            return replace(found, number=-found.number, based="")
        if self.peek("+"):
            self.take()
            return self.signed()
        return self.power()

    def power(self) -> Value:
        base = self.atom()
        while self.peek("!"):
            self.take()
            base = self.keep(Fraction(_factorial(base.number)), worked=False)
        if not self.peek("^"):
            return base
        self.take()
        letters = self.letters
        exponent = self.signed()  # from the right: 2^3^2 is 2^9
        if self.letters > letters:
            raise _NotPlain
        return self.keep(_power(base.number, exponent.number), worked=base.worked and exponent.worked)

    def atom(self) -> Value:
        kind, token = self.kind(), self.take()
        if kind == "based":
            return _based(token)
        if kind == "repeating":
            return self.keep(_repeating(token))
        if kind == "number":
            found = _number(token)
            if found.number.denominator == 1 and not found.digits and (part := self._fraction()) is not None:
                return self.keep(found.number + part)
            return found
        if kind == "letter" and token in self.point and not self.peek("("):
            self.letters += 1
            return Value(Fraction(self.point[token]))
        if token == r"\frac":
            top, bottom = self._group(), self._group()
            return self.keep(top.number / bottom.number, worked=top.worked and bottom.worked)
        if token in "({" and token:
            found = self.sum()
            self.expect(")" if token == "(" else "}")
            return found
        raise _NotPlain

    def _group(self) -> Value:
        self.expect("{")
        found = self.sum()
        self.expect("}")
        return found

    def _fraction(self) -> Fraction | None:
        r"""The fraction of a mixed number, right behind its integer: `\frac{1}{2}`, or ` 1/2`."""
        start = self.at
        if self.peek(r"\frac"):
            self.take()
            letters = self.letters
            top, bottom = self._group().number, self._group().number
            if 0 < top < bottom and self.letters == letters:
                return top / bottom
            raise _NotPlain
        if [kind for kind, _ in self.tokens[start : start + 3]] == ["number", "sign", "number"]:
            top_text, slash, bottom_text = (token for _, token in self.tokens[start : start + 3])
            if slash == "/" and top_text.isdigit() and bottom_text.isdigit() and 0 < int(top_text) < int(bottom_text):
                self.at += 3
                return Fraction(int(top_text), int(bottom_text))
        return None


def _bits(number: Fraction) -> int:
    return number.numerator.bit_length() + number.denominator.bit_length()


def _number(token: str) -> Value:
    mantissa, _, exponent = token.lower().partition("e")
    mantissa = re.sub("[, ]", "", mantissa)
    if len(exponent) > 6 or abs(int(exponent or 0)) > MAX_BITS // 8:
        raise TooLarge
    whole, point, decimals = mantissa.partition(".")
    scale = Fraction(10) ** (int(exponent or 0) - len(decimals))
    number = int((whole + decimals) or 0) * scale
    digits = len((whole + decimals).lstrip("0")) if (point and decimals) or exponent else 0
    return Value(number, digits=digits, unit=scale)


def _based(token: str) -> Value:
    literal, _, base_text = token.partition("_")
    base = int(base_text.strip("{} "))
    try:
        number = int(literal, base) if base != 0 else int("")
    except ValueError:  # not digits of that base
        raise _NotPlain from None
    return Value(Fraction(number), based=literal.lower())


def _repeating(token: str) -> Fraction:
    r"""`0.1\overline{6}`."""
    fixed, _, period = re.sub(r"[{} ]|overline|bar", "", token).partition("\\")
    whole, _, decimals = fixed.partition(".")
    scale = 10 ** len(decimals)
    return Fraction(int(whole + decimals or "0"), scale) + Fraction(int(period), (10 ** len(period) - 1) * scale)


def _factorial(number: Fraction) -> int:
    if number.denominator != 1 or number < 0:
        raise _NotPlain
    if number > MAX_FACTORIAL:
        raise TooLarge
    return math.factorial(int(number))


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        raise _NotPlain  # a root
    if base in (0, 1, -1):
        return Fraction(base ** (int(exponent) % 2 if base < 0 else min(1, max(-1, int(exponent)))))
    if abs(exponent) * _bits(base) > 2 * MAX_BITS:
        raise TooLarge
    return Fraction(base ** int(exponent))


def rounds_to(exact: Fraction, decimal: Value) -> bool:
    """True where the digits of `decimal` are those of `exact`, rounded."""
    return abs(exact - decimal.number) * 2 <= decimal.unit
