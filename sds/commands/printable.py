"""Text of others, as a line on a terminal.

Invariant: text that a client, a peer or a file chose neither ends a line nor controls the terminal.
"""

from __future__ import annotations


def printable(text: str, *, lines: bool = False) -> str:
    """Return the text with escapes in place of what a terminal would obey, such as ESC.

    Args:
        text: from anywhere.
        lines: whether it may have several lines.
    """
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or (lines and each == "\n") else _escape(each) for each in text
    )


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()
