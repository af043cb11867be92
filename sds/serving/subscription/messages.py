"""What goes into a subscription and what comes out of it: requests, outcomes, answers.

Owns the types. Invariant: none of them has the content of a resource but :class:`Answer`, which is
written at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, NamedTuple, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from sds.secrets.store import ResourceKey, Version


class Receipt(NamedTuple):
    """What remains of a resource once it was sent: never its content.

    Attributes:
        name: the resource name.
        version: its version on the wire.
        parts: the stored secrets that are in it, for the store's books.
    """

    name: str
    version: str
    parts: tuple[tuple[ResourceKey, Version], ...] = ()


class Named(Protocol):
    """A resource, as far as a subscription has to know it."""

    @property
    def receipt(self) -> Receipt:
        """Name, version and parts."""
        ...

    @property
    def size(self) -> int:
        """Bytes of the content, about."""
        ...


R = TypeVar("R", bound=Named)
R_co = TypeVar("R_co", bound=Named, covariant=True)


class View(Protocol[R_co]):
    """What a caller may have at this moment."""

    def find(self, name: str) -> R_co | None:
        """The resource under a name; None if it is not there (yet) or not the caller's."""
        ...

    def everything(self) -> Collection[str]:
        """The names that the wildcard stands for."""
        ...


@dataclass(frozen=True, slots=True)
class SotwRequest:
    """A DiscoveryRequest, as far as a subscription has to know it.

    Attributes:
        names: ``resource_names``.
        nonce: ``response_nonce``, empty if there is none.
        error: the message of ``error_detail``; None if the request carries none.
    """

    names: tuple[str, ...] = ()
    nonce: str = ""
    error: str | None = None


@dataclass(frozen=True, slots=True)
class DeltaRequest:
    """A DeltaDiscoveryRequest, as far as a subscription has to know it.

    Attributes:
        subscribe: ``resource_names_subscribe``.
        unsubscribe: ``resource_names_unsubscribe``.
        initial_versions: ``initial_resource_versions``.
        nonce: ``response_nonce``, empty if there is none.
        error: the message of ``error_detail``; None if the request carries none.
    """

    subscribe: tuple[str, ...] = ()
    unsubscribe: tuple[str, ...] = ()
    initial_versions: Mapping[str, str] = field(default_factory=dict)
    nonce: str = ""
    error: str | None = None


@dataclass(slots=True)
class Outcome:
    """What one request meant, or a slice of it (:mod:`sds.serving.slices`).

    Attributes:
        acked: what the client has taken.
        nacked: what it has refused, with ``error`` in its own words.
        error: why, for ``nacked``; None if nothing was refused.
        stale: the nonce is not one that is waited for.
        added: names that are wanted from now on.
        dropped: names that are not asked for any more.
        passing: bytes of names that are not asked for, and are known until they are looked at.
    """

    acked: tuple[Receipt, ...] = ()
    nacked: tuple[Receipt, ...] = ()
    error: str | None = None
    stale: bool = False
    added: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    passing: int = 0


@dataclass(frozen=True, slots=True)
class Answer(Generic[R]):
    """What to send now.

    Attributes:
        resources: new content.
        removed: names to tell as removed (delta only).
        absent: names that were asked for and do not exist for this caller; told once per request.
        held: what the client had kept from an earlier stream and need not be sent (delta only).
    """

    resources: list[R] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    held: list[Receipt] = field(default_factory=list)


class Watched(NamedTuple):
    """The state of one name, for people.

    Attributes:
        name: the resource name.
        sent: version sent last, or None.
        acked: version ACKed last, or None.
        refused: version NACKed last, or None.
        error: the client's words about ``refused``.
    """

    name: str
    sent: str | None
    acked: str | None
    refused: str | None
    error: str
