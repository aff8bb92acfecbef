"""Tools that a policy may call: their JSON schema (OpenAI's function calls), and calls read out of what it says.

    tool = Tool.of(price)                     # from a function's type hints and docstring; or Tool.read(json)
    found = call(action, {tool.name: tool})   # None: no call; Call(name, arguments); BadCall says what is wrong

Both ways to write a call are understood. The body of CWM's is the one argument as text, or JSON where there are more:

    <tool: price>                    <tool_call>
    pencil                           {"name": "price", "arguments": {"item": "pencil"}}
    </tool>                          </tool_call>
"""

from __future__ import annotations

import inspect
import json
import math
import re
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Union

from envs import tool_call

_NAMED = {str: "string", int: "integer", float: "number", bool: "boolean", list: "array", dict: "object"}
_SHOWN = {"string": "a text", "integer": "a whole number", "number": "a number", "boolean": "true or false"}
_SHOWN |= {"array": "a list", "object": "an object", "null": "null"}
_JSON_CALL = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)
_ARGUMENT = re.compile(r"^(\s*)(\w+)\s*(?:\([^)]*\))?:\s*(.*)$")


class BadCall(ValueError):
    """What is wrong with a call, in one sentence for the policy. `tool` is empty where none can be told to answer it.

    A tool raises it for arguments that it does not take, e.g. `BadCall("there is no item 'pen'")`.
    """

    def __init__(self, words: str, tool: str = "") -> None:
        super().__init__(words)
        self.tool = tool


@dataclass(frozen=True, slots=True)
class Call:
    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Tool:
    name: str
    description: str
    parameters: Mapping[str, Any]
    """A JSON schema of type object."""

    @classmethod
    def of(cls, function: Callable[..., Any], leave_out: Collection[str] = ()) -> Tool:
        """Raises ValueError for what cannot be expressed. `leave_out`: parameters that the policy does not give."""
        name = getattr(function, "__name__", type(function).__name__)
        description, about = _documented(name, inspect.getdoc(function) or "")
        try:
            hints = typing.get_type_hints(function)
        except (NameError, TypeError) as error:
            raise ValueError(f"tool {name}: its type hints cannot be read: {error}") from None
        properties: dict[str, Any] = {}
        required = []
        for at, (given, parameter) in enumerate(inspect.signature(function).parameters.items()):
            if given in leave_out or (at == 0 and given in ("self", "cls") and given not in hints):
                continue
            if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                raise ValueError(f"tool {name}: got the parameter {parameter}; expected only ones with a name")
            if given not in hints:
                raise ValueError(
                    f"tool {name}: its parameter {given!r} has no type hint; expected e.g. {given}: str, as the policy "
                    "gives it (what is the task's is kept in self by `start`)"
                )
            properties[given] = _typed(hints[given], f"tool {name}: its parameter {given!r}")
            properties[given] |= {"description": about[given]} if given in about else {}
            required += [given] if parameter.default is parameter.empty else []
        parameters: dict[str, Any] = {"type": "object", "properties": properties}
        return cls(name, description, parameters | ({"required": required} if required else {}))

    @classmethod
    def read(cls, schema: Mapping[str, Any]) -> Tool:
        """From an OpenAI function call's JSON schema, with or without the `function` around it."""
        inner = schema.get("function", schema)
        if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
            raise ValueError(f"got the tool {str(schema)[:80]}; expected a schema with `name` and `parameters`")
        parameters = inner.get("parameters") or {"type": "object", "properties": {}}
        return cls(inner["name"], inner.get("description") or "", parameters)

    @property
    def schema(self) -> dict[str, Any]:
        inner = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": inner}

    def written(self, arguments: Mapping[str, Any]) -> str:
        """A call of it in CWM's syntax."""
        names = list(self.parameters.get("properties", {}))
        only = arguments[names[0]] if len(names) == 1 and list(arguments) == names else arguments
        body = only if isinstance(only, str) else json.dumps(only, ensure_ascii=False) if names else ""
        return f"<tool: {self.name}>\n{body}\n</tool>"

    def takes(self, arguments: Any) -> dict[str, Any]:
        """The arguments as the schema has them, e.g. 3 for 3.0. Raises BadCall."""
        try:
            return dict(_fitted(arguments, {**self.parameters, "type": "object"}, "the arguments"))
        except BadCall as wrong:
            raise BadCall(f"{self.name}: {wrong}", self.name) from None

    def body(self, text: str) -> dict[str, Any]:
        """The arguments that the body of a call in CWM's syntax stands for. Raises BadCall."""
        names = list(self.parameters.get("properties", {}))
        if not names:
            return {}
        if len(names) == 1:
            kind = self.parameters["properties"][names[0]].get("type", "string")
            return self.takes({names[0]: text if kind == "string" else _json(text, self.name)})
        return self.takes(_json(text, self.name))


def schema(function: Callable[..., Any], leave_out: Collection[str] = ()) -> dict[str, Any]:
    """The OpenAI function call of a function with type hints and a docstring. Raises ValueError: see `Tool.of`."""
    return Tool.of(function, leave_out).schema


def call(action: str, tools: Mapping[str, Tool]) -> Call | None:
    """The single call in what the policy said, arguments checked; None where there is none. Raises BadCall."""
    cwm, openai = action.find("<tool:"), action.find("<tool_call>")
    if cwm < 0 and openai < 0:
        return None
    if openai < 0 or 0 <= cwm < openai:
        found = tool_call(action)
        if found is None:
            raise BadCall("the tool call cannot be read; expected one <tool: NAME>, its body and </tool> on lines")
        return Call(found.name, _known(found.name, tools).body(found.body))
    calls = _JSON_CALL.findall(action)
    if len(calls) != 1:
        raise BadCall(f"got {len(calls)} whole tool calls; expected one <tool_call>…</tool_call>")
    read = _json(calls[0], "")
    if not isinstance(read, dict) or not isinstance(read.get("name"), str):
        raise BadCall('the tool call cannot be read; expected {"name": …, "arguments": {…}}')
    tool, arguments = _known(read["name"], tools), read.get("arguments", {})
    return Call(tool.name, tool.takes(_json(arguments, tool.name) if isinstance(arguments, str) else arguments))


def prompt(tools: Sequence[Tool]) -> str:
    """What tells a policy of its tools, for a system message."""
    shown = (json.dumps(tool.schema["function"], ensure_ascii=False, separators=(",", ":")) for tool in tools)
    return "\n".join(["Tools:", *shown, "To call one:", "<tool: NAME>", "its argument, or JSON of several", "</tool>"])


def _known(name: str, tools: Mapping[str, Tool]) -> Tool:
    if name not in tools:
        raise BadCall(f"there is no tool {name[:40]!r}; available: {', '.join(tools) or 'none'}")
    return tools[name]


def _json(text: str, tool: str) -> Any:
    def number(word: str) -> float:
        if not math.isfinite(value := float(word)):
            raise ValueError(f"{word[:20]} is no number that JSON has")
        return value

    try:
        read = json.loads(text, parse_constant=number, parse_float=number)
        json.dumps(read, ensure_ascii=False).encode()  # an escape may stand for half a character
        return read
    except (ValueError, RecursionError) as error:
        lead = f"{tool}: " if tool else ""
        raise BadCall(f"{lead}expected JSON: {str(error)[:80] or 'too deep'}", tool) from None


def _documented(name: str, text: str) -> tuple[str, dict[str, str]]:
    """What a docstring says before its first section, and of each argument (Google's style)."""
    lines = text.splitlines()
    heads = [at for at, line in enumerate(lines) if re.fullmatch(r"(Args|Arguments|Returns|Raises|Yields):", line)]
    description = " ".join(" ".join(lines[: heads[0]] if heads else lines).split())
    if not description:
        raise ValueError(f"tool {name} has no docstring; expected one that tells the policy what it does")
    about: dict[str, list[str]] = {}
    start = next((at for at in heads if lines[at] in ("Args:", "Arguments:")), None)
    indent, said = None, None
    for line in lines[start + 1 : next((at for at in heads if at > start), None)] if start is not None else ():
        match = _ARGUMENT.match(line)
        if match and (indent is None or len(match[1]) <= indent):
            indent, said = len(match[1]), about.setdefault(match[2], [match[3]])
        elif said is not None:
            said.append(line)
    return description, {given: " ".join(" ".join(words).split()) for given, words in about.items()}


def _typed(hint: Any, where: str) -> dict[str, Any]:
    """The JSON schema of a type hint."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return {}
    if hint in _NAMED:
        return {"type": _NAMED[hint]}
    if origin is Literal:
        kinds = dict.fromkeys(_NAMED.get(type(value), "") for value in inner)
        if "" not in kinds:
            return {"type": next(iter(kinds)) if len(kinds) == 1 else [*kinds], "enum": list(inner)}
    if origin is list:
        return {"type": "array", "items": _typed(inner[0], where)}
    if origin is dict and inner[0] is str:
        return {"type": "object", "additionalProperties": _typed(inner[1], where)}
    if origin in (Union, types.UnionType):
        kinds_of = [_typed(one, where) for one in inner if one is not type(None)]
        if len(kinds_of) == 1:
            found = kinds_of[0]
        elif all(set(one) == {"type"} for one in kinds_of):
            found = {"type": sorted({one["type"] for one in kinds_of})}
        else:
            found = {"anyOf": kinds_of}
        return found | ({"nullable": True} if type(None) in inner else {})
    named = str(hint) if origin else getattr(hint, "__name__", str(hint))
    expected = "str, int, float, bool, list[…], dict[str, …], Literal[…], Any or a union of these"
    raise ValueError(f"{where} has the type {named}, which no JSON schema expresses here; expected {expected}")


def _fitted(value: Any, schema: Mapping[str, Any], where: str) -> Any:
    """The value as the schema has it. Keywords beyond those of `Tool.of`, and `$ref`, are not looked at."""
    if value is None and schema.get("nullable"):
        return None
    if options := schema.get("anyOf") or schema.get("oneOf"):
        for option in options:
            try:
                return _fitted(value, option, where)
            except BadCall as wrong:
                last = wrong
        raise last if len(options) == 1 else BadCall(f"{where}: got {_seen(value)}; expected another type")
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds:
        value = _of_kind(value, kinds, where)
    if "enum" in schema and not any(type(one) is type(value) and one == value for one in schema["enum"]):
        raise BadCall(f"{where}: got {_seen(value)}; available: {', '.join(map(str, schema['enum']))}")
    if isinstance(value, list) and "items" in schema:
        return [_fitted(one, schema["items"], f"{where}[{at}]") for at, one in enumerate(value)]
    return _members(value, schema, where) if isinstance(value, dict) else value


def _of_kind(value: Any, kinds: Sequence[str], where: str) -> Any:
    own = {type(None): "null", **_NAMED}.get(type(value), "")
    if own in kinds or (own == "integer" and "number" in kinds):
        return value
    if own == "number" and "integer" in kinds and value.is_integer():
        return int(value)
    raise BadCall(f"{where}: got {_seen(value)}; expected {' or '.join(_SHOWN.get(kind, kind) for kind in kinds)}")


def _members(value: dict[str, Any], schema: Mapping[str, Any], where: str) -> dict[str, Any]:
    known, rest = schema.get("properties", {}), schema.get("additionalProperties", "properties" not in schema)
    for name in schema.get("required", ()):
        if name not in value:
            raise BadCall(f"{where}: {name!r} is missing; expected {', '.join(known)}")
    fitted = {}
    for name, one in value.items():
        if name not in known and rest is False:
            raise BadCall(f"{where}: there is no {str(name)[:40]!r}; expected {', '.join(known) or 'none'}")
        inner = known.get(name, rest if isinstance(rest, Mapping) else {})
        fitted[name] = _fitted(one, inner, name if where == "the arguments" else f"{where}.{name}")
    return fitted


def _seen(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 40 else f"{text[:40]}…"
