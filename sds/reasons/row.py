"""Defines one row of the table of reasons."""

from __future__ import annotations

from typing import NamedTuple


class Reason(NamedTuple):
    """What one reason means for a person and for the program.

    Attributes:
        cure: what a person does about it, in Markdown.
        retriable: whether the same call can succeed later with nothing changed by a person.
    """

    cure: str
    retriable: bool = False
