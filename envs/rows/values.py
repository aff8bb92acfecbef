"""Values of a row: nested ones as lists, JSON text or Python-literal text; packed tests; limits and difficulties.

All of it is other people's data: every size is bounded, and nothing is ever evaluated or unpickled.
"""

from __future__ import annotations

import ast
import base64
import binascii
import json
import pickletools
import re
import zlib
from collections.abc import Mapping
from typing import Any

from envs.rows.records import Refused

LITERAL_CHARS = 1_000_000
"""Longest text read as a Python literal: the parser of Python takes about 100 bytes of memory for each character."""
UNPACKED_BYTES = 256 * 2**20
"""Largest packed tests of one problem, unpacked."""
_TEXT_OPCODES = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE"}
_IDLE_OPCODES = {"PROTO", "FRAME", "MEMOIZE", "BINPUT", "LONG_BINPUT", "PUT", "STOP"}

Row = Mapping[str, Any]
"""A row with its column names in lower case, without the columns that are null."""


def column(row: Row, names: str) -> Any:
    """The value of the first of the columns `a|b|c` that there is, else None."""
    return next((row[name] for name in names.split("|") if name in row), None)


def text(row: Row, names: str) -> str:
    """The text of a column. Refused where it is absent, empty or no text."""
    value = column(row, names)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise Refused(f"`{names}` is no text", f"got {type(value).__name__}")
    if not value.strip():
        raise Refused(f"`{names}` is empty")
    return value


def optional(row: Row, names: str) -> str:
    """The text of a column, empty where there is none."""
    value = column(row, names)
    return value if isinstance(value, str) else "" if value is None else str(value)


def nested(value: Any, what: str) -> Any:
    """A list or dict as it is; text is read as JSON, then as a Python literal. Refused where it is neither."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except RecursionError:
        raise Refused(f"`{what}` is nested too deeply") from None
    except ValueError as error:
        if "digits" in str(error):
            raise Refused(f"`{what}` holds an integer with thousands of digits") from None
    if len(value) > LITERAL_CHARS:
        raise Refused(f"`{what}` is no JSON", f"and {len(value)} characters are too many for a Python literal")
    try:
        return ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        raise Refused(f"`{what}` is neither JSON nor a Python literal", f"starts with {value[:60]!r}") from None


def texts(value: Any, what: str) -> tuple[str, ...]:
    """A list of texts, however it is written."""
    found = nested(value, what)
    if not isinstance(found, list | tuple) or not all(isinstance(item, str) for item in found):
        raise Refused(f"`{what}` is no list of texts", f"got {str(found)[:60]!r}")
    return tuple(found)


def unpacked(value: Any, what: str) -> Any:
    """Tests as LiveCodeBench packs them: JSON text, or base64 of zlib of a pickle of JSON text."""
    if not isinstance(value, str) or value.lstrip()[:1] in ("[", "{"):
        return nested(value, what)
    try:
        packed = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise Refused(f"`{what}` is neither JSON nor base64", f"starts with {value[:40]!r}") from None
    engine = zlib.decompressobj()
    try:
        data = engine.decompress(packed, UNPACKED_BYTES)
    except zlib.error as error:
        raise Refused(f"`{what}` cannot be decompressed", str(error)) from None
    if engine.unconsumed_tail:
        raise Refused(f"`{what}` unpacks to more than {UNPACKED_BYTES // 2**20} MB")
    if not engine.eof:
        raise Refused(f"`{what}` cannot be decompressed", "it ends too early")
    return nested(pickled_text(data, what), what)


def pickled_text(data: bytes, what: str) -> str:
    """The single text that a pickle holds, read opcode by opcode: no object is made, no memo is kept."""
    found: list[str] = []
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name in _TEXT_OPCODES:
                found.append(str(argument))
            elif opcode.name not in _IDLE_OPCODES:
                raise Refused(f"`{what}` pickles more than plain text", f"opcode {opcode.name}")
    except Refused:
        raise
    except Exception as error:  # genops raises whatever its reading of rubbish runs into
        raise Refused(f"`{what}` is no pickle", f"{type(error).__name__}: {error}"[:100]) from None
    if len(found) != 1:
        raise Refused(f"`{what}` pickles {len(found)} texts instead of one")
    return found[0]


def plain_number(value: Any) -> str:
    """A number as its shortest text, so that 27.0 reads 27."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def seconds(value: Any) -> float | None:
    """A time limit: a number, `2.0 seconds`, or {seconds, nanos}."""
    if isinstance(value, Mapping):
        whole, nanos = value.get("seconds") or 0, value.get("nanos") or 0
        value = whole + nanos / 1e9 if isinstance(whole, int | float) and isinstance(nanos, int | float) else None
    found = re.match(r"\s*(\d+(?:\.\d+)?)", str(value)) if value is not None else None
    return (float(found[1]) or None) if found else None


def megabytes(value: Any, *, in_bytes: bool = False) -> int | None:
    """A memory limit: a number, or text such as `256.0 megabytes`."""
    found = re.match(r"\s*(\d+(?:\.\d+)?)", str(value)) if value is not None else None
    size = float(found[1]) if found else 0.0
    return int(size / 2**20 if in_bytes else size) or None


_LEVELS = {
    **dict.fromkeys(("easy", "introductory", "beginner"), 0),
    **dict.fromkeys(("medium", "medium_hard", "interview", "intermediate"), 1),
    **dict.fromkeys(("hard", "very_hard", "competition", "advanced", "expert"), 2),
}


def level(value: Any) -> int:
    """A difficulty as a number from 0: `Level 3` is 2, `medium` is 1, unknown ones are 0."""
    named = re.fullmatch(r"level (\d)", str(value).strip().lower())
    return max(0, int(named[1]) - 1) if named else _LEVELS.get(str(value).strip().lower(), 0)
