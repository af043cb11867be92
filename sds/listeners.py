"""Tells those who asked to be told of a change.

Owns :class:`Listeners`. Invariants: listeners are called in the order in which they asked, on the
event loop; one that fails is reported and keeps nobody else from being told; one may stop, or ask,
while others are told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, ParamSpec

from sds.faults import guarded

if TYPE_CHECKING:
    from collections.abc import Callable

_P = ParamSpec("_P")


class Listeners(Generic[_P]):
    """Those who are told of one kind of change, with what a listener takes.

    Args:
        where: the place under which failures are reported, one of :data:`sds.faults.PLACES`.
    """

    __slots__ = ("_listeners", "_where")

    def __init__(self, where: str = "listener") -> None:
        self._where = where
        self._listeners: dict[object, Callable[_P, None]] = {}
        """By the key that their stop function has."""

    def add(self, listener: Callable[_P, None]) -> Callable[[], None]:
        """Call ``listener`` after each change, until the returned function is called."""
        key = object()
        self._listeners[key] = listener

        def stop() -> None:
            self._listeners.pop(key, None)

        return stop

    def tell(self, *args: _P.args, **kwargs: _P.kwargs) -> None:
        """Call each of them once."""
        for listener in list(self._listeners.values()):
            # Guarded here and not when it was added: a caller has a listener for each stream.
            guarded(self._where, listener)(*args, **kwargs)
