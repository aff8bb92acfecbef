r"""The unit of an answer: `5 \text{ cm}` is (`5`, cm). A degree sign, a percent sign and a currency are units, too.

A unit of the table may be written bare behind a number (`5 cm`); a single letter (`5 m`) only with a space before it,
for `5m` is a product. Text behind a number that is in no table (`5 \text{ apples}`) is a unit of its own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction

_TABLE = """
length  m meter metre=1 cm centimeter centimetre=1/100 mm millimeter millimetre=1/1000 km kilometer kilometre=1000
length  in inch inches=127/5000 ft foot feet=381/1250 yd yard=1143/1250 mi mile=201168/125
mass    g gram=1 kg kilogram=1000 mg milligram=1/1000 lb lbs pound=45359237/100000 oz ounce=45359237/1600000
time    s sec second=1 min minute=60 h hr hour=3600 ms millisecond=1/1000 day=86400 week=604800 year=0 month=0
volume  L l liter litre=1 mL ml milliliter millilitre=1/1000 gal gallon=0 qt quart=0 pint=0 cup=0
money   dollar usd buck=1 cent=1/100 euro eur=0 gbp=0
angle   deg degree=1 rad radian=0
share   percent percentage=1
length/time mph=1397/3125 kmh kph=5/18
others  unit=0 people=0 hz hertz=0 N newton=0 J joule=0 W watt=0 V volt=0 A ampere=0 K kelvin=0 mol mole=0
"""
# Where the factor is 0, nothing is converted.
_FACTORS: dict[str, tuple[str, Fraction]] = {}
for _line in _TABLE.strip().splitlines():
    _kind, *_entries = _line.split()
    _names: list[str] = []
    for _entry in _entries:
        _name, _equals, _factor = _entry.partition("=")
        _names.append(_name)
        if _equals:
            _value = Fraction(_factor)
            for _each in _names:
                _FACTORS[_each] = (_kind, _value) if _value else (f"{_kind} {_names[0]}", Fraction(1))
            _names = []
_BARE = re.compile(
    r"(?P<body>.*(?:[0-9})]|\\pi(?= )))(?P<gap>\s*)"
    r"(?P<name>(?:(?:square|sq|cubic) )?[A-Za-z]+(?:(?: ?/ ?| per )[A-Za-z]+)?)"
    r"(?:\^\{?(?P<power>[23])\}?)?"
)
_QUOTED = re.compile(r'(?P<body>.+?)\s*(?P<name>"[^"]*"(?:\s*/\s*"[^"]*")?)\s*(?:\^\s*\{?(?P<power>-?[0-9])\}?)?')
_MONEY = re.compile(r'(?P<sign>-?)\s*"(?P<name>dollar|euro|gbp)"\s*(?P<body>.+)')


@dataclass(frozen=True, slots=True)
class Unit:
    kind: str
    factor: Fraction = Fraction(1)
    bare_letter: bool = False
    """A single letter outside text, which may be a variable: never dropped."""


def split(text: str) -> tuple[str, Unit | None]:
    """A normalised answer without its unit, and the unit."""
    if match := re.fullmatch(r"(.+?)\s*(?:%|\s\"?percent\"?)", text):
        return match[1], Unit("share")
    if match := re.fullmatch(r"(.+?)\s*\\circ(?:\s*\"?([CF])\"?)?", text):
        return match[1], Unit(f"temperature {match[2]}" if match[2] else "angle")
    if match := _MONEY.fullmatch(text):
        return match["sign"] + match["body"], _unit(match["name"], 1)
    if (match := _QUOTED.fullmatch(text)) and not match["body"].endswith((",", "(")):
        return match["body"], _unit(match["name"].replace('"', ""), int(match["power"] or 1))
    if (match := _BARE.fullmatch(text)) and all(map(_known, re.findall("[A-Za-z]+", match["name"]))):
        letter = len(match["name"]) == 1
        if not letter or match["gap"]:
            unit = _unit(match["name"], int(match["power"] or 1))
            return match["body"], replace(unit, bare_letter=letter) if unit else None
    return text, None


def _known(word: str) -> bool:
    return word in ("square", "sq", "cubic", "per") or any(
        spelling in _FACTORS for spelling in (word, word.lower(), _singular(word))
    )


def _singular(name: str) -> str:
    return re.sub(r"s$", "", name.lower())


def _unit(name: str, power: int) -> Unit | None:
    """None where the word says no more than that there is a unit (`square units`)."""
    name = re.sub(r"\s+", " ", name).strip(" .~")
    for word, exponent in (("square ", 2), ("sq ", 2), ("sq. ", 2), ("cubic ", 3)):
        if name.lower().startswith(word):
            name, power = name[len(word) :], exponent
    top, *below = re.split(r"\s*(?:/|\bper\b)\s*", name)
    kind, factor = _one(top)
    if kind == "others unit":
        return None
    for part in below:
        other, divisor = _one(part)
        kind, factor = f"{kind}/{other}", factor / divisor
    return Unit(f"{kind}^{power}" if power != 1 else kind, factor**power) if kind else None


def _one(name: str) -> tuple[str, Fraction]:
    """Kind and factor of one name; a word that is in no table is a kind of its own."""
    for spelling in (name, name.lower(), _singular(name)):
        if spelling in _FACTORS:
            return _FACTORS[spelling]
    return _singular(name), Fraction(1)
