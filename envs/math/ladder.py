r"""The ladder: whether an answer says the same as the gold one. The conventions are written down in docs/verifiers.md.

    Ladder(leaf).same(gold, answer)

1. The same text after normalisation. 2. Own rungs: lists, units, exact numbers, words, tuples, sets, intervals,
matrices, relations. 3. What is left are pairs of single expressions, which go to `leaf`. The trainer's `leaf` raises
NeedsAlgebra, and the same ladder is climbed again where untrusted text may be parsed (envs/math/algebra.py).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from envs.math import rationals, units
from envs.math.rationals import TooLarge, Value
from envs.math.text import MAX_CHARS, Refused, normalise, squeeze, top_level

Leaf = Callable[[str, str, Literal["equal", "ratio", "positive"]], bool]
"""Two expressions, gold first: equal; of a constant ratio; of a constant positive ratio. May raise Unreadable."""

ENOUGH_DIGITS = 5
MAX_ITEMS = 24
POINTS = 4
_SEPARATOR = re.compile(
    r',?\s*(?:"(?:and|or)"|(?<=\s)(?:and|or)(?=\s)|\\(?:lor|vee|land|wedge)(?![A-Za-z]))|,(?!(?<=[0-9],)[0-9]{3}(?![0-9]))|;'
)
_COMMA = re.compile(r"[,;]")
_CUP = re.compile(r"\\cup(?![A-Za-z])")
_RELATION = re.compile(r"=|\\le(?![A-Za-z])|\\ge(?![A-Za-z])|\\ne(?![A-Za-z])|\\in(?![A-Za-z])|<|>")
_PLUS_MINUS = re.compile(r"\\(?:pm|mp)(?![A-Za-z])")
_NAME = re.compile(r"(?:[A-Za-z]|\\[A-Za-z]+)'*(?:_(?:\{[^{}]*\}|[0-9A-Za-z]))?\s*(?:\([a-z](?:\s*,\s*[a-z])*\))?")
_IN = re.compile(r"^[A-Za-z]\s*\\in(?![A-Za-z])\s*")
_SUCH_THAT = re.compile(r"^\\\{\s*[a-z]\s*(?:\\in\s*\(-\\infty,\\infty\)\s*)?[|:](.*)\\\}$")
_MATRIX = re.compile(r"\\begin\{([pb]?matrix)\}(.*)\\end\{\1\}")
_CHOICE = re.compile(r"\(?([A-J])\)?")
_WORD = re.compile(r"[A-Za-z][A-Za-z' -]*")
_SHORT_WORDS = frozenset({"yes", "no", "odd", "one", "two", "six", "ten", "red", "day", "sun", "mon"})
_LEAF = re.compile(r"[0-9A-Za-z\\{}^_+\-*/=().,|<>! \[\]]*")
_KNOWN = """
frac sqrt cdot times pm mp pi infty le ge ne in cup cap setminus emptyset mathbb begin end to circ overline bar hat vec
sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp lfloor rfloor lceil rceil binom ell
int sum prod lim gcd lcm max min det mod bmod pmod alpha beta gamma delta epsilon varepsilon zeta eta theta iota kappa
lambda mu nu xi rho sigma tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega
"""
_COMMANDS = frozenset(_KNOWN.split())
_BINARY = re.compile(r"[0-9A-Za-z})]\s*(?:[-+*]|\\times|\\cdot)")
_WORK = {
    "int": "int", "sum": "sum", "prod": "sum", "lim": "lim", "binom": "!", "gcd": "gcd", "lcm": "gcd", "max": "max",
    "min": "max", "det": "det", "mod": "mod", "bmod": "mod", "pmod": "mod",
}  # fmt: skip
"""Operators that leave the work undone where the gold answer has no such operator."""


class NeedsAlgebra(Exception):
    """The own rungs do not decide this pair."""


class Unreadable(Exception):
    """The gold answer is no answer that this ladder could compare with another: an error in the data."""


class Ladder:
    """`by_text=False` leaves out the first rung, so that a gold answer can be held against itself."""

    def __init__(self, leaf: Leaf, *, by_text: bool = True) -> None:
        self.leaf, self.by_text = leaf, by_text

    def same(self, gold: str, answer: str) -> bool:
        """Raises Unreadable for the gold answer's fault, TooLarge for a number that nobody can work out."""
        if self.by_text and gold.strip() == answer.strip() != "":
            return True
        try:
            expected = normalise(gold)
        except Refused as problem:
            if not gold.isascii() and len(gold) <= MAX_CHARS:
                return not self.by_text  # words of another script are compared as text, and only so
            raise Unreadable(f"the gold answer {gold[:80]!r} was refused: {problem}") from None
        if not expected:
            raise Unreadable(f"the gold answer {gold!r} is empty")
        try:
            found = normalise(answer)
        except Refused:
            return False
        return bool(found) and self._same(expected, found)

    def _same(self, gold: str, answer: str) -> bool:
        gold, answer = _unwrap(gold), _unwrap(answer)
        if self.by_text and squeeze(gold) == squeeze(answer) != "":
            return True
        if not gold or not answer or "\\ldots" in (gold, answer):
            return gold == answer
        rungs = (self._choices, self._lists, self._relations, self._units, self._words, self._brackets, self._numbers)
        for rung in rungs:
            if (verdict := rung(gold, answer)) is not None:
                return verdict
        return _parsable(gold, answer) and self.leaf(gold, answer, "equal")

    def _choices(self, gold: str, answer: str) -> bool | None:
        letters = [_CHOICE.fullmatch(text.replace('"', "")) for text in (gold, answer)]
        return letters[0][1] == letters[1][1] if letters[0] and letters[1] else None

    def _lists(self, gold: str, answer: str) -> bool | None:
        """Bare lists, unions and `\\pm`: in any order; with an ellipsis in the order written."""
        expected, found = _items(gold), _items(answer)
        if len(expected) == 1 and len(found) == 1:
            return None
        inner = [_bracketed(text) for text in (gold, answer)]
        if len(found) == 1 and inner[1] and inner[1].kind in ("set", "round") and len(expected) > 1:
            found, ordered = list(inner[1].parts), inner[1].kind == "round"
        elif len(expected) == 1 and inner[0] and inner[0].kind in ("set", "round") and len(found) > 1:
            expected, ordered = list(inner[0].parts), inner[0].kind == "round"
        else:
            ordered = any("\\ldots" in item for item in (*expected, *found))
        return self._each(expected, found) if ordered else self._any_order(expected, found)

    def _each(self, gold: Sequence[str], answer: Sequence[str]) -> bool:
        return len(gold) == len(answer) and all(map(self._same, gold, answer))

    def _any_order(self, gold: Sequence[str], answer: Sequence[str]) -> bool:
        """Each item of one is an item of the other, as often."""
        if len(gold) != len(answer) or len(gold) > MAX_ITEMS:
            return len(gold) == len(answer) and self._each(gold, answer)
        left = list(answer)
        for item in gold:
            partner = next((i for i, other in enumerate(left) if squeeze(other) == squeeze(item)), None)
            if partner is None:
                partner = next((i for i, other in enumerate(left) if self._same(item, other)), None)
            if partner is None:
                return False
            del left[partner]
        return True

    def _relations(self, gold: str, answer: str) -> bool | None:
        expected, found = _relation(gold), _relation(answer)
        if expected is None and found is None:
            return None
        if found is None:
            assert expected is not None
            if expected.is_assignment:
                return self._same(expected.sides[-1], answer)
            interval = _interval(expected)
            return self._intervals(interval, _bracketed(answer)) if interval else False
        if expected is None:
            if (interval := _interval(found)) and (other := _bracketed(gold)):
                return self._intervals(other, interval)
            return found.leads_to_its_end and self._same(gold, found.sides[-1])
        return self._two_relations(expected, found)

    def _two_relations(self, gold: Relation, answer: Relation) -> bool:
        if gold.is_assignment and answer.is_assignment and _one_name(gold.sides[0], answer.sides[0]):
            return self._same(gold.sides[-1], answer.sides[-1])
        expected, found = _interval(gold), _interval(answer)
        if expected and found:
            return expected.of == found.of and self._intervals(expected, found)
        if len(gold.signs) != 1 or len(answer.signs) != 1:
            return gold.signs == answer.signs and self._each(gold.sides, answer.sides)
        (sign, (left, right)), (other_sign, (other_left, other_right)) = gold.turned(), answer.turned()
        if sign != other_sign:
            return False
        how: Literal["ratio", "positive"] = "ratio" if sign in ("=", "ne") else "positive"
        return _parsable(gold.text, answer.text) and self.leaf(
            f"({left})-({right})", f"({other_left})-({other_right})", how
        )

    def _units(self, gold: str, answer: str) -> bool | None:
        (expected, unit), (found, other) = units.split(gold), units.split(answer)
        if expected == gold and found == answer:
            return None
        if unit == other or (unit and other and unit.kind == other.kind and unit.factor == other.factor):
            return self._same(expected, found)
        if other is None:
            dropped = unit is not None and (unit.kind == "share" or unit.bare_letter)
            return not dropped and self._same(expected, found)
        if unit is None:
            if other.bare_letter and rationals.value(expected) is None:
                return False
            if other.kind == "share" and (number := rationals.value(found)) and (whole := rationals.value(expected)):
                return whole.number in (number.number, number.number / 100)
            if other.kind == "angle" and "\\pi" in expected:
                return self._same(expected, f"({found})\\pi /180")
            return self._same(expected, found)
        numbers = rationals.value(expected), rationals.value(found)
        if unit.kind != other.kind or numbers[0] is None or numbers[1] is None:
            return False
        return numbers[0].number * unit.factor == numbers[1].number * other.factor

    def _words(self, gold: str, answer: str) -> bool | None:
        """Where either is a word, letters are compared and case is not: nothing is multiplied."""
        if not (_is_word(gold) or _is_word(answer)):
            return None
        return _plain_words(gold) == _plain_words(answer)

    def _numbers(self, gold: str, answer: str) -> bool | None:
        if ":" in gold + answer:
            return _ratio(gold) is not None and _ratio(gold) == _ratio(answer)
        expected, found = rationals.value(gold), rationals.value(answer)
        if expected is not None and found is not None:
            return same_number(expected, found)
        return _at_points(gold, answer)

    def _brackets(self, gold: str, answer: str) -> bool | None:
        expected, found = _bracketed(gold), _bracketed(answer)
        if expected is None and found is None:
            return None
        if expected is None or found is None:
            return False
        if expected.kind == found.kind == "set":
            return self._covers(expected.parts, found.parts) and self._covers(found.parts, expected.parts, turned=True)
        if expected.kind == found.kind == "matrix":
            return expected.of == found.of and self._each(expected.parts, found.parts)
        return expected.kind == found.kind and self._each(expected.parts, found.parts)

    def _covers(self, gold: Sequence[str], answer: Sequence[str], turned: bool = False) -> bool:
        def same(one: str, other: str) -> bool:
            return self._same(other, one) if turned else self._same(one, other)

        return max(len(gold), len(answer)) <= MAX_ITEMS and all(any(same(g, a) for a in answer) for g in gold)

    def _intervals(self, gold: Bracketed, answer: Bracketed | None) -> bool:
        return answer is not None and gold.kind == answer.kind and self._each(gold.parts, answer.parts)


@dataclass(frozen=True, slots=True)
class Bracketed:
    kind: str
    """`round`, `square`, `(]`, `[)`, `set` or `matrix`."""
    parts: tuple[str, ...]
    of: str = ""
    """The shape of a matrix; what lies in an interval that was written as an inequality."""


@dataclass(frozen=True, slots=True)
class Relation:
    sides: tuple[str, ...]
    signs: tuple[str, ...]
    text: str

    @property
    def is_assignment(self) -> bool:
        return self.signs == ("=",) and _NAME.fullmatch(self.sides[0]) is not None

    @property
    def leads_to_its_end(self) -> bool:
        """`x = 22` or `17 + 5 = 22`: the last side is the answer."""
        worked = set(self.signs) == {"="} and all(rationals.value(side) for side in self.sides[:-1])
        return self.is_assignment or worked

    def turned(self) -> tuple[str, tuple[str, str]]:
        """A relation of two sides, with `<` or `le` where it was written with `>` or `ge`."""
        left, right = self.sides
        return (_TURNED[self.signs[0]], (right, left)) if self.signs[0] in _TURNED else (self.signs[0], (left, right))


_TURNED = {">": "<", "ge": "le"}


def same_number(gold: Value, answer: Value) -> bool:
    """Exactly equal and worked out; or a decimal of at least ENOUGH_DIGITS digits that the other rounds to."""
    if gold.based and not answer.based and not answer.digits and str(answer.number) == gold.based:
        return True  # the base stands in the question
    if not answer.worked and gold.worked:
        return False
    if gold.number == answer.number:
        return True
    if gold.number.denominator == 1 and not gold.digits:
        return False
    if gold.digits:
        return gold.digits >= ENOUGH_DIGITS and answer.unit <= gold.unit and rationals.rounds_to(answer.number, gold)
    return answer.digits >= ENOUGH_DIGITS and rationals.rounds_to(gold.number, answer)


def _at_points(gold: str, answer: str) -> bool | None:
    """Rational expressions, exactly: equal at random points is equal. None where either is no such expression."""
    letters = sorted((_letters(gold) | _letters(answer)) - {"e", "i"})
    rng = random.Random(0)
    for _ in range(POINTS):
        point = {letter: rng.randint(1000, 1_000_000) for letter in letters}
        pair = rationals.at_point(gold, point), rationals.at_point(answer, point)
        if pair[0] is None or pair[1] is None:
            return None
        if pair[0] != pair[1]:
            return False
    return _letters(answer) <= _letters(gold)


def _letters(text: str) -> set[str]:
    return set(re.findall("[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", text)))


def _ratio(text: str) -> list[Fraction] | None:
    """`2:3:5` in units of its first number; a number is its ratio to 1."""
    numbers = [rationals.value(part) for part in (text if ":" in text else f"{text}:1").split(":")]
    found = [number.number for number in numbers if number is not None]
    return [number / found[0] for number in found] if len(found) == len(numbers) and found[0] else None


def _unwrap(text: str) -> str:
    """Without braces, or round brackets around one item, that hold the whole text, and without `x \\in`."""
    text = _SUCH_THAT.sub(r"\1", _IN.sub("", text.strip()))
    if re.fullmatch(r'"[^"]*"', text) and not _is_word(text):
        text = text[1:-1].strip()
    while len(text) > 1 and text[0] in "({" and _closes_at_end(text):
        inside = text[1:-1].strip()
        if text[0] == "(" and (len(top_level(inside, _COMMA)) > 1 or _CHOICE.fullmatch(text)):
            break
        text = inside
    return text


def _closes_at_end(text: str) -> bool:
    depth = 0
    for at, character in enumerate(text):
        depth += (character in "({[") - (character in ")}]")
        if depth == 0:
            return at == len(text) - 1
    return False


def _items(text: str) -> list[str]:
    """The items of a bare list; `a \\pm b` is a list of two; the sides of a union are a list, too."""
    if _RELATION.search(text) is None and len(unions := top_level(text, _CUP)) > 1:
        return [part for part, _ in unions]
    parts = [part for part, _ in top_level(text, _SEPARATOR) if part]
    items = []
    for part in parts:
        items += [_PLUS_MINUS.sub(sign, part) for sign in "+-"] if len(_PLUS_MINUS.findall(part)) == 1 else [part]
    name = squeeze(items[0].partition("=")[0]) if items else ""
    others = {squeeze(item.partition("=")[0]) for item in items if "=" in item} - {name}
    if len(items) > 1 and not others and _NAME.fullmatch(name) and _RELATION.findall(items[0]) == ["="]:
        items = [item.rpartition("=")[2].strip() for item in items]  # `x = 1, 2`, `x = 1 or x = 2`: the list 1, 2
    return items or [text]


def _bracketed(text: str) -> Bracketed | None:
    if match := _MATRIX.fullmatch(text):
        rows = [[cell.strip() for cell in row.split("&")] for row in match[2].split("\\\\") if row.strip()]
        return Bracketed("matrix", tuple(cell for row in rows for cell in row), of=str([len(row) for row in rows]))
    if text.startswith("\\{") and text.endswith("\\}"):
        return Bracketed("set", tuple(part for part, _ in top_level(text[2:-2], _COMMA) if part))
    if text in ("\\emptyset", "\\{ \\}"):
        return Bracketed("set", ())
    if match := re.fullmatch(r"\\langle(.*)\\rangle", text):
        return Bracketed("round", tuple(part for part, _ in top_level(match[1], _COMMA)))
    if len(text) > 2 and text[0] in "([" and _closes_at_end(text):
        parts = tuple(part for part, _ in top_level(text[1:-1], _COMMA))
        kind = {"()": "round", "[]": "square"}.get(text[0] + text[-1], text[0] + text[-1])
        return Bracketed(kind, parts) if len(parts) > 1 or kind == "square" else None
    return None


def _relation(text: str) -> Relation | None:
    cuts = top_level(text, _RELATION)
    if len(cuts) == 1 or not all(part for part, _ in cuts):
        return None
    sides, signs = tuple(part for part, _ in cuts), tuple(sign.strip("\\ ") for _, sign in cuts[1:])
    if set(signs) == {"="} and _NAME.fullmatch(sides[0]):
        sides, signs = (sides[0], sides[-1]), ("=",)  # `A = \\pi 5^2 = 25 \\pi` says what A is
    return Relation(sides, signs, text)


def _interval(relation: Relation) -> Bracketed | None:
    """`a < x \\le b` or `x > a` as the interval in which the name lies, None for any other relation."""
    sides, signs = relation.sides, relation.signs
    if signs and signs[0] in (">", "ge"):
        sides, signs = sides[::-1], tuple(_TURNED.get(sign, "?") for sign in reversed(signs))
    if not set(signs) <= {"<", "le"} or len(sides) not in (2, 3):
        return None
    if len(sides) == 2:
        if _NAME.fullmatch(sides[0]) and sides[0] not in ("\\infty", "\\pi", "e"):
            sides, signs = ("-\\infty", *sides), ("<", *signs)
        elif _NAME.fullmatch(sides[1]):
            sides, signs = (*sides, "\\infty"), (*signs, "<")
        else:
            return None
    if not _NAME.fullmatch(sides[1]):
        return None
    kind = ("[" if signs[0] == "le" else "(") + ("]" if signs[1] == "le" else ")")
    kind = {"()": "round", "[]": "square"}.get(kind, kind)
    return Bracketed(kind, (sides[0], sides[2]), of=squeeze(sides[1]))


def _one_name(gold: str, answer: str) -> bool:
    """The same name; `y` and `f(x)` are one."""
    names = [re.sub(r"^[a-z]\([a-z]\)$", "y", squeeze(name)) for name in (gold, answer)]
    return squeeze(gold) == squeeze(answer) or (names == ["y", "y"] and "y" in (squeeze(gold), squeeze(answer)))


def _plain_words(text: str) -> str:
    return re.sub(r"[\s\"]+", " ", text).strip(" .").casefold()


def _is_word(text: str) -> bool:
    bare = text.replace('"', "").strip(" .")
    if not _WORD.fullmatch(bare) or len(bare) < 2:
        return False
    return '"' in text or len(bare.split()[0]) >= 4 or bare.split()[0].lower() in _SHORT_WORDS


def _parsable(gold: str, answer: str) -> bool:
    """Whether the answer may reach a parser and leaves no work undone. Raises Unreadable where the gold one may not."""
    for text in (gold, answer):
        if not _LEAF.fullmatch(text) or set(re.findall(r"\\([A-Za-z]+)", text)) - _COMMANDS:
            if text is answer and text != gold:
                return False
            raise Unreadable(f"the gold answer {gold[:80]!r} is no expression that can be compared")
    try:
        worked = rationals.value(gold)
    except TooLarge:
        worked = None
    if worked and worked.worked and _BINARY.search(answer):
        return False
    return not _work(answer) - _work(gold) and not _words(answer) - _words(gold)


def _words(text: str) -> set[str]:
    """Runs of letters too long to be a product: no answer is made of words that the gold one has not."""
    return set(re.findall(r"(?<![\\A-Za-z])[A-Za-z]{4,}", text)) - {"sqrt", "pmatrix", "bmatrix", "matrix"}


def _work(text: str) -> set[str]:
    found = {_WORK[command] for command in re.findall(r"\\([A-Za-z]+)", text) if command in _WORK}
    return found | ({"!"} if "!" in text else set())
