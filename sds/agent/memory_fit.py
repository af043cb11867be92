"""Fits what callers may make the agent keep to the memory that its control group allows.

Owns :class:`MemoryFit`. Invariant: with the defaults, the program itself and all that callers can
fill (budgets of owners, and the names that they watch) stay below the limit of the control group,
even if that is less than the 256 MiB for which the defaults are made.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sds.serving.name_budget import NameLimits
    from sds.transport.budget_sizes import Share, Total

_MIB: Final = 1024 * 1024
_ITSELF: Final = 80 * _MIB
"""The memory of the program itself (measured: 60 to 90 MiB)."""
_ENOUGH: Final = 256 * _MIB
_LEAST: Final = 112 * _MIB
"""The least memory; with less there is hardly room for callers."""
_LEAST_PART: Final = 1 / 16


class MemoryFit:
    """The bounds that fit into the memory.

    Args:
        limit: how many bytes the process may use; None if nothing bounds it.
    """

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        part = 1.0 if limit is None else (limit - _ITSELF) / (_ENOUGH - _ITSELF)
        self._part = min(1.0, max(_LEAST_PART, part))

    @property
    def notices(self) -> tuple[str, ...]:
        """Return what an operator should know about it."""
        if self._limit is None or self._limit >= _LEAST:
            return ()
        allowed, enough, least = (each // _MIB for each in (self._limit, _ENOUGH, _LEAST))
        return (
            f"the control group allows {allowed} MiB: give the agent {enough}, at least {least}",
        )

    def total(self, total: Total) -> Total:
        """Return what all owners together may hold."""
        return dataclasses.replace(
            total,
            held_bytes=self._fitted(total.held_bytes),
            spared_bytes=self._fitted(total.spared_bytes),
        )

    def share(self, share: Share) -> Share:
        """Return what one owner may hold, or all strangers together."""
        return dataclasses.replace(share, held_bytes=self._fitted(share.held_bytes))

    def names(self, limits: NameLimits) -> NameLimits:
        """Return how much memory names may take."""
        return dataclasses.replace(
            limits,
            owner=self._fitted(limits.owner),
            guaranteed=self._fitted(limits.guaranteed),
            everybody=self._fitted(limits.everybody),
        )

    def _fitted(self, count: int) -> int:
        return int(count * self._part)
