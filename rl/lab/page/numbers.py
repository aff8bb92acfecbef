"""Numbers as a reader wants them: one precision for a column, never a rounded-off zero."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rl.lab.page.markup import clean


def numeric(values: Sequence[Any]) -> bool:
    """Is this a column of numbers, as far as it has values?"""
    there = [value for value in values if value is not None]
    return bool(there) and all(_number(value) for value in there)


def column(values: Sequence[Any]) -> list[str]:
    """A column's cells. Its numbers share their decimals: three digits of the largest, less what is 0 in all."""
    numbers = [value for value in values if _number(value)]
    whole = all(isinstance(value, int) for value in numbers)
    largest = max((abs(value) for value in numbers if math.isfinite(value)), default=0.0)
    decimals = 0 if whole else _decimals(largest)
    while decimals and all(f"{value:.{decimals}f}".endswith("0") for value in numbers if math.isfinite(value)):
        decimals -= 1
    return [cell(value, decimals) for value in values]


def cell(value: Any, decimals: int | None = None) -> str:
    """One value; `decimals` None where it stands alone."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and not decimals:
        return minus(f"{value:,}")
    if isinstance(value, int | float):
        return minus(_float(value, _decimals(abs(value)) if decimals is None else decimals))
    if isinstance(value, dict):
        return ", ".join(f"{clean(str(key))} {cell(held)}" for key, held in value.items()) or "–"
    if isinstance(value, list | tuple):
        return ", ".join(cell(held) for held in value) or "–"
    return clean(str(value))


def minus(text: str) -> str:
    return text.replace("-", "\u2212")


def _float(value: float, decimals: int) -> str:
    if not math.isfinite(value):
        return str(value)
    text = f"{value:,.{decimals}f}"
    return f"{value:.2g}" if value and not text.strip("-0.,") else text


def _decimals(largest: float) -> int:
    return min(5, max(0, 2 - math.floor(math.log10(largest)))) if 0 < largest < math.inf else 3


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
