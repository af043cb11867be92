"""Remembers the last problem of each thing, so that one that lasts is logged once.

Owns :class:`Problems`. Invariants: a problem is worth a line if it is new, or if its words changed;
when the thing works again its problem is forgotten, so that the next one is worth a line, even if
it has the same words. The things are those of the configuration. For what callers cause, and for
events without an end, :mod:`sds.repeats` decides by time and bounds its table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable


class Problems:
    """The last problem of each thing."""

    __slots__ = ("_asked", "_last")

    def __init__(self) -> None:
        self._last: dict[Hashable, str] = {}
        self._asked: set[Hashable] = set()
        """The things whose problem is to be told again."""

    def is_news(self, why: object, *, of: Hashable = None) -> bool:
        """Note a problem, and say whether it is worth a line.

        Args:
            why: the problem, in the words of the line.
            of: the thing that has it; may be left out where there is only one.
        """
        words = str(why)
        if self._last.get(of) == words and of not in self._asked:
            return False
        self._last[of] = words
        self._asked.discard(of)
        return True

    def over(self, *, of: Hashable = None) -> bool:
        """Note that the thing works, and say whether it had a problem."""
        self._asked.discard(of)
        return self._last.pop(of, None) is not None

    def now(self) -> tuple[str, ...]:
        """Return the words of every problem that lasts."""
        return tuple(self._last.values())

    def tell_again(self) -> None:
        """Let each problem that lasts be worth a line once more: somebody asks (SIGHUP)."""
        self._asked.update(self._last)
