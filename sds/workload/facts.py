"""The facts about a caller: typed selectors, and what could not be found out.

Owns :class:`Facts` and the port :class:`Attestor`. Invariant: a selector is here only if the
kernel or the kubelet said so; a type that is *unknown* is neither present nor absent, and no
decision may treat it as either.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from sds.errors import WorkloadError
    from sds.workload.entitlement import Selector
    from sds.workload.peer import Peer

LABEL_TYPE: Final = "k8s:pod-label:"
"""The prefix of selector types that end with a label's key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known about one caller at one moment.

    Attributes:
        selectors: the facts, as rules match them.
        unknown: selector types, or prefixes of them ending in ``:``, that could not be found out,
            with the reason. Absent types that are not listed here are known to be absent.
        services: ``(namespace, name)`` of the Kubernetes Services that select the caller's pod.
        title: the caller's name for people (``namespace/pod``), or the empty string.
        hints: reasons, in words, why selectors that people may expect are absent.
    """

    selectors: frozenset[Selector] = frozenset()
    unknown: Mapping[str, WorkloadError] = field(default_factory=dict)
    services: frozenset[tuple[str, str]] = frozenset()
    title: str = ""
    hints: tuple[str, ...] = ()

    def why_unknown(self, selector_type: str) -> WorkloadError | None:
        """Return why this type is unknown, or None if it is known (present or absent)."""
        for name, error in self.unknown.items():
            if selector_type == name or (name.endswith(":") and selector_type.startswith(name)):
                return error
        return None

    def values(self, selector_type: str) -> frozenset[str]:
        """Return all values found for this type."""
        return frozenset(s.value for s in self.selectors if s.type == selector_type)

    def by_type(self) -> dict[str, list[str]]:
        """Return the values found for each type, for many questions about the same facts."""
        found: dict[str, list[str]] = {}
        for selector in self.selectors:
            found.setdefault(selector.type, []).append(selector.value)
        return found


def merge(parts: Iterable[Facts]) -> Facts:
    """Merge the facts of several attestors, tried in this order."""
    selectors: set[Selector] = set()
    unknown: dict[str, WorkloadError] = {}
    services: set[tuple[str, str]] = set()
    hints: tuple[str, ...] = ()
    title = ""
    for part in parts:
        selectors |= part.selectors
        unknown = {**part.unknown, **unknown}
        services |= part.services
        title = title or part.title
        hints += part.hints
    return Facts(
        selectors=frozenset(selectors),
        unknown=unknown,
        services=frozenset(services),
        title=title,
        hints=hints,
    )


class Attestor(Protocol):
    """Finds out facts of one kind about a caller."""

    @property
    def name(self) -> str:
        """Return the attestor's name in the configuration (:mod:`sds.workload.attestors`)."""
        ...

    @property
    def costly(self) -> frozenset[str]:
        """Return the selector types that are gathered only if they can decide about a caller."""
        ...

    async def attest(self, peer: Peer, needed: frozenset[str]) -> Facts:
        """Return everything that can be known about ``peer`` now; wait only a short, bounded time.

        A fact that cannot be found out is in :attr:`Facts.unknown`, never left out.

        Args:
            peer: the caller.
            needed: the selector types that rules ask for; costly ones that are not among them may
                be left out.

        Raises:
            PeerGoneError: the process has ended.
        """
        ...

    def notices(self) -> tuple[str, ...]:
        """Return what an operator should know about it now, in words."""
        ...

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call ``listener`` whenever facts may have changed, until the result is called."""
        ...
