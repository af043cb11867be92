"""Objects of which each event loop has one.

Owns how such an object is found. Invariant: nothing here keeps one alive. It refers to its loop and
to what waits there, so nothing of a closed loop would ever be freed; who uses it keeps it.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, ClassVar, Self

if TYPE_CHECKING:
    import asyncio


class OnePerLoop:
    """The base of a class of which each event loop has one object; :meth:`of` gives it."""

    _found: ClassVar[weakref.WeakValueDictionary[Any, Any]]
    """By loop; each class has its own."""

    def __init_subclass__(cls) -> None:
        """Begin without objects."""
        super().__init_subclass__()
        cls._found = weakref.WeakValueDictionary()

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Make the object of a loop; call :meth:`of` instead."""
        self._loop = loop

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> Self:
        """Return the object of a loop."""
        found: Self | None = cls._found.get(loop)
        if found is None:
            found = cls._found[loop] = cls(loop)
        return found
