"""How many names the program looks at between two turns of the event loop, counted."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from typing import TYPE_CHECKING, Any

from sds.serving import wire
from sds.serving.secret_catalog import Catalog
from sds.serving.subscription import delta, state
from sds.serving.subscription.state import Watch
from sds.serving.watches import Watches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pytest


class NamesATurn:
    """Counts each kind of work on names; see the module.

    Attributes:
        most: of each kind, how often it was done in the turn that had the most of it.
        all: of each kind, how often it was done.
    """

    def __init__(self) -> None:
        self.most: dict[str, int] = {}
        self.all: dict[str, int] = {}
        self._now: dict[str, int] = {}
        self._running = True
        self._loop = asyncio.get_running_loop()
        self._turn()

    def stop(self) -> None:
        self._running = False

    def counted(self, kind: str, work: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(work)
        def done(*args: Any, **kwargs: Any) -> Any:
            self.add(kind, 1)
            return work(*args, **kwargs)

        return done

    def add(self, kind: str, count: int) -> None:
        self._now[kind] = now = self._now.get(kind, 0) + count
        self.most[kind] = max(now, self.most.get(kind, 0))
        self.all[kind] = self.all.get(kind, 0) + count

    def _turn(self) -> None:
        self._now.clear()
        if self._running:
            self._loop.call_soon(self._turn)


@contextlib.contextmanager
def names_a_turn(monkeypatch: pytest.MonkeyPatch) -> Iterator[NamesATurn]:
    """Count within the block: names decoded, watched, looked up, let go of, and told to streams."""
    counts = NamesATurn()
    with monkeypatch.context() as patch:
        patch.setattr(wire, "_text", counts.counted("decoded", wire._text))
        for module in (state, delta):
            patch.setattr(module, "Watch", counts.counted("subscribed", Watch))
        patch.setattr(Catalog, "find", counts.counted("looked up", Catalog.find))
        unwatch = Watches.unwatch

        def let_go(self: Watches, conversation: Any, names: Any) -> int:
            counts.add("let go of", len(names))
            return unwatch(self, conversation, names)

        patch.setattr(Watches, "unwatch", let_go)
        try:
            yield counts
        finally:
            counts.stop()
