"""Makes text of others safe to show in a line of a terminal or of an event.

Invariant: text from a client, a peer or a file neither ends a line nor controls the terminal.
"""

from __future__ import annotations


def printable(text: str, *, lines: bool = False) -> str:
    """Return the text with escapes in place of characters that a terminal obeys, such as ESC.

    Args:
        text: the text, from any source.
        lines: whether the text may have several lines.
    """
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or (lines and each == "\n") else _escape(each) for each in text
    )


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()
