r"""The text of an answer: where it stands in what was said, and one spelling for what is written in many ways.

`normalise` knows nothing of mathematics. Its result is ASCII of an allow-list of characters, in which `"..."` is text
(`\text{cm}` becomes `"cm"`), `\circ` only ever means degrees, and every `\frac` and `\sqrt` has braces.
"""

from __future__ import annotations

import re

MAX_CHARS = 400
MAX_DEPTH = 16
_BRACES = re.compile(r"(?<!\\)\\(?:boxed|fbox)\s*\{|(?<!\\)[{}]")
_CHARACTERS = {
    "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": "/", "∕": "/", "⁄": "/", "°": r"^\circ ",
    "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "±": r"\pm ", "∪": r"\cup ", "∩": r"\cap ",
    "∈": r"\in ", "∅": r"\emptyset ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "…": r"\ldots ",
    "⟨": r"\langle ", "⟩": r"\rangle ",
    "²": "^2 ", "³": "^3 ", "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}",
    "€": '"euro"', "£": '"gbp"', "′": "'", "’": "'", "\u00a0": " ", "\u2009": " ", "\u202f": " ", "\n": " ", "\t": " ",
}  # fmt: skip
_ALLOWED = re.compile(r"""[0-9A-Za-z\\{}^_+\-*/=().,:;|<>!%& \[\]'"]*""")
_GONE = re.compile(
    r"\\(?:left|right|big|Big|bigg|Bigg|bigl|bigr|Bigl|Bigr|displaystyle|textstyle|limits|quad|qquad)(?![A-Za-z])"
    r"|(?<!\\)\\[(),;:!>]|(?<!\\)\$|(?<!\\)\\$"
)
_TEXT = re.compile(
    r"\\(text|textrm|textbf|textit|textnormal|mbox|mathrm|mathbf|mathit|rm|bf|operatorname\*?)\s*\{([^{}]*)\}"
)
_FUNCTION = re.compile("(?:arc)?(?:sin|cos|tan)h?|cot|sec|csc|log|ln|lg|exp|gcd|lcm|min|max|det|mod")
_SPELLINGS = (
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\(?:l|c|v)?dots(?![A-Za-z])|\.\.\.+"), r"\\ldots "),
    (re.compile(r"\\(le|ge|ne)q(?![A-Za-z])|\\(le|ge)qslant(?![A-Za-z])"), r"\\\1\2 "),
    (re.compile(r"<="), r"\\le "),
    (re.compile(r">="), r"\\ge "),
    (re.compile(r"\\lt(?![A-Za-z])"), "<"),
    (re.compile(r"\\gt(?![A-Za-z])"), ">"),
    (re.compile(r"\\(?:degree|deg)(?![A-Za-z])|\^\s*\{\s*\\circ\s*\}|\^\s*\\circ(?![A-Za-z])"), r"\\circ "),
    (re.compile(r"\\(?:lbrace|\{)"), r"\\{"),
    (re.compile(r"\\(?:rbrace|\})"), r"\\}"),
    (re.compile(r"\\(?:varnothing|empty)(?![A-Za-z])"), r"\\emptyset"),
    (re.compile(r"\\infin(?![A-Za-z])"), r"\\infty"),
    (re.compile(r"\\mathbb\s*\{\s*R\s*\}|\\R(?![A-Za-z])"), r"(-\\infty,\\infty)"),
    (re.compile(r"\\imath(?![A-Za-z])"), "i"),
    (re.compile(r"\\div(?![A-Za-z])"), "/"),
    (re.compile(r"\\[lr]vert(?![A-Za-z])|\\mid(?![A-Za-z])"), "|"),
    (re.compile(r"\\%"), "%"),
    (re.compile(r"\\\$\s*"), '"dollar"'),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"(?<!\\)\\ |~"), " "),
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"(?<![A-Za-z\\])sqrt\s*\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(r"(?<![A-Za-z\\])pi(?![A-Za-z])"), r"\\pi "),
    (re.compile(r"(?<![A-Za-z\\])(?:inf|infinity|oo)(?![A-Za-z])"), r"\\infty "),
)  # fmt: skip


class Refused(Exception):
    """A text that is no answer: too long, too deep, or with characters outside the allow-list."""


def extract(said: str, marker: str = "") -> str | None:
    r"""What the last complete `\boxed{...}` holds; without one, the rest of the line after the last `marker`."""
    opened: list[tuple[int, bool]] = []
    start, found = -1, None
    for brace in _BRACES.finditer(said):
        if brace.group().endswith("{"):
            opened.append((brace.end(), len(brace.group()) > 1))
        elif opened:
            at, is_box = opened.pop()
            if is_box and at > start:
                start, found = at, said[at : brace.start()]
    if found is None and marker and marker in said:
        found = said.rpartition(marker)[2].strip().partition("\n")[0]
    return found.strip() if found is not None and found.strip() else None


def _group(text: str, at: int) -> str | None:
    """The content of the braces that open at `at`, None where they never close. `\\{` counts as a brace, too."""
    depth = 0
    for brace in re.compile(r"[{}]").finditer(text, at):
        depth += 1 if brace.group() == "{" else -1
        if depth == 0:
            return text[at + 1 : brace.start()]
    return None


def normalise(text: str) -> str:
    """One spelling of an answer. Raises Refused."""
    if len(text) > MAX_CHARS:
        raise Refused(f"{len(text)} characters, expected at most {MAX_CHARS}")
    text = "".join(_CHARACTERS.get(character, character) for character in text).strip()
    text = _TEXT.sub(_quote, text)
    for pattern, spelling in ((_GONE, ""), *_SPELLINGS):
        text = pattern.sub(spelling, text)
    text = _brace(text)
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r"(?<=[^.])\.$", "", text).strip()
    if not _ALLOWED.fullmatch(text) or "__" in text:
        raise Refused("characters outside the allow-list")
    if _depth(text) > MAX_DEPTH:
        raise Refused(f"brackets nested deeper than {MAX_DEPTH}")
    return text


def _quote(match: re.Match[str]) -> str:
    command, content = match.group(1), match.group(2).strip()
    if _FUNCTION.fullmatch(content):
        return f"\\{content} "
    if not content or '"' in content:
        return " "
    if len(content) == 1 and command != "text" and content in "eidxyznk":
        return content
    if re.fullmatch(r"[-+0-9.,/ ()=]+", content):
        return content
    return f'"{content}"'


def _depth(text: str) -> int:
    deepest = depth = 0
    for character in text:
        depth += (character in "({[") - (character in ")}]")
        deepest = max(deepest, depth)
    return deepest


def _brace(text: str) -> str:
    r"""Braces around the arguments of every `\frac` and `\sqrt`, which TeX does not ask for: `\frac12`, `\sqrt2`."""
    for command in reversed(list(re.finditer(r"\\(frac|sqrt)(?![A-Za-z])(\s*\[[^][{}]*\])?", text))):
        at, arguments = command.end(), ""
        for _ in range(2 if command.group(1) == "frac" else 1):
            argument = re.compile(r"\s*(\\[A-Za-z]+|[^\s{])?").match(text, at)
            assert argument is not None
            if text[argument.end() :].startswith("{") and not argument.group(1):
                content = _group(text, argument.end())
                if content is None:
                    return text
                arguments, at = f"{arguments}{{{content}}}", argument.end() + len(content) + 2
            else:
                arguments, at = f"{arguments}{{{argument.group(1) or ''}}}", argument.end()
        text = text[: command.end()] + arguments + text[at:]
    return text


def squeeze(text: str) -> str:
    """Without the spaces that mean nothing, to compare two normalised texts letter by letter."""
    text = re.sub(r"(?<=[0-9.,]) (?=[0-9])|(\\[A-Za-z]+) (?=[A-Za-z])", lambda gap: f"{gap.group(1) or ''}~", text)
    return text.replace(" ", "")


def top_level(text: str, separator: re.Pattern[str]) -> list[tuple[str, str]]:
    """Cut at every separator outside brackets and quotes: pairs of a part and the separator before it (first: "")."""
    parts, start, before, depth, at, quoted = [], 0, "", 0, 0, False
    while at < len(text):
        character = text[at]
        quoted ^= character == '"'
        if not quoted and depth == 0 and at > 0 and (cut := separator.match(text, at)) and cut.end() > at:
            parts.append((text[start:at].strip(), before))
            before, start = cut.group(), cut.end()
            at = cut.end()
            continue
        if not quoted:
            depth += (character in "({[") - (character in ")}]")
        at += 1
    return [*parts, (text[start:].strip(), before)]
