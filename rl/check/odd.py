"""Calls that fit a tool's schema and that no task asks for: what a policy tries that has not learned the tool yet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from envs import World
from envs.tools import BadCall, Tool

MOST = 6
"""Calls of one tool."""
VALUES: Mapping[str, tuple[Any, ...]] = {
    "string": ("", "no such thing", "-1", "\x00"),
    "integer": (-1, 10**6, 0),
    "number": (-1.5, 1e6, 0.0),
    "boolean": (False, True),
    "array": ([],),
    "object": ({},),
    "null": (None,),
}


def tools(world: World) -> list[Tool]:
    """Those that a world tells of, for the probes."""
    known = getattr(world, "tools", None)
    return [tool for tool in known.values() if isinstance(tool, Tool)] if isinstance(known, Mapping) else []


def calls(tool: Tool) -> Iterator[dict[str, Any]]:
    """Arguments that the tool's schema admits; none where the schema asks for what is not known here."""
    properties: Mapping[str, Any] = tool.parameters.get("properties", {})
    values = {name: _values(schema) for name, schema in properties.items()}
    for at in range(min(MOST, max(map(len, values.values()), default=0))):
        given = {name: options[at % len(options)] for name, options in values.items() if options}
        try:
            tool.takes(given)
        except BadCall:
            continue
        yield given


def _values(schema: Mapping[str, Any]) -> tuple[Any, ...]:
    if "enum" in schema:
        return tuple(schema["enum"])
    if options := schema.get("anyOf") or schema.get("oneOf"):
        return tuple(value for option in options for value in _values(option))
    kinds = schema.get("type", "string")
    found = [value for kind in ([kinds] if isinstance(kinds, str) else kinds) for value in VALUES.get(kind, ())]
    if isinstance(inner := schema.get("items"), Mapping):
        found += [[value] for value in _values(inner)]
    return (*found, None) if schema.get("nullable") else tuple(found)
