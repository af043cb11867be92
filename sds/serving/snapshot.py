"""What one caller may have at this moment, each name looked up once.

Owns the memory of what was found for one caller. Invariants: a snapshot is emptied whenever the
content or the recognition of its caller may have changed, so nothing in it is out of date and no
retired key stays in it; names that clients can make up are not remembered, whether there is nothing
behind them or always something.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sds.serving.encode import Resource
    from sds.serving.watches import ResourceCatalog
    from sds.workload.entitlement import Caller


class Snapshot:
    """The catalog as one caller sees it, until :meth:`renew`.

    Args:
        catalog: finds the resources behind names.
        caller: the caller that looks.
        strong: whether the client asked for the SPIFFE validator.
    """

    __slots__ = ("_caller", "_catalog", "_found", "_strong")

    def __init__(self, catalog: ResourceCatalog, caller: Caller, *, strong: bool) -> None:
        self._catalog = catalog
        self._caller = caller
        self._strong = strong
        self._found: dict[str, Resource] = {}

    def find(self, name: str) -> Resource | None:
        try:
            return self._found[name]
        except KeyError:
            found = self._catalog.find(self._caller, name, strong=self._strong)
            if found is not None and found.ttl is None and not self._catalog.is_made_up(name):
                self._found[name] = found  # not a filter, because its remaining life changes
            return found

    def is_expected(self, name: str) -> bool:
        return self._catalog.is_expected(self._caller, name)

    def everything(self) -> tuple[str, ...]:
        return self._catalog.everything(self._caller)

    def renew(self, caller: Caller) -> None:
        """Forget what was found, and use the caller as it is recognised now."""
        self._caller = caller
        self._found.clear()
