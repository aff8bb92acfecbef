"""HTML that cannot be broken out of: all text is escaped here, and nowhere else, unless it is markup already."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

VOID = {"meta", "br", "hr", "link", "col"}

_VISIBLE = {
    **{code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"},
    0x7F: "\u2421",
    **dict.fromkeys([*range(0x80, 0xA0), *range(0xD800, 0xE000), 0xFFFE, 0xFFFF], "\ufffd"),
    **{code: f"⟨U+{code:04X}⟩" for code in [0x200E, 0x200F, 0x061C, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]},
}
"""Control codes, halves of surrogate pairs and marks that turn the direction of writing, as something to see."""


class Markup(str):
    """Text that is HTML already."""


def clean(text: str) -> str:
    """The text with what a page or a terminal would obey instead of show made visible."""
    return text.replace("\r\n", "\n").translate(_VISIBLE)


def tag(name: str, /, *children: str | Iterable[Markup], **attributes: str | bool | None) -> Markup:
    """An element. A child is text, markup, or several pieces of markup; `class_` is the attribute class."""
    given = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{escape(clean(value))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in VOID:
        return Markup(f"<{name}{given}>")
    return Markup(f"<{name}{given}>{''.join(_child(child) for child in children)}</{name}>")


def join(pieces: Iterable[Markup]) -> Markup:
    return Markup("".join(pieces))


def _child(child: str | Iterable[Markup]) -> str:
    if isinstance(child, Markup):
        return child
    return escape(clean(child)) if isinstance(child, str) else "".join(_child(piece) for piece in child)
