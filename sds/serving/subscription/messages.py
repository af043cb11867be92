"""The input and output of a subscription: requests, outcomes, answers.

Owns the types. Invariant: only :class:`Answer` has the content of resources, and it is written at
once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, NamedTuple, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from sds.secrets.store import ResourceKey, Version


class Receipt(NamedTuple):
    """What is kept of a resource once it was sent: never its content.

    Attributes:
        name: the resource name.
        version: its version on the wire.
        parts: the stored secrets that are in it, for the store's books.
    """

    name: str
    version: str
    parts: tuple[tuple[ResourceKey, Version], ...] = ()


class Named(Protocol):
    """What a subscription needs of a resource."""

    @property
    def receipt(self) -> Receipt:
        """Return name, version and parts."""
        ...

    @property
    def size(self) -> int:
        """Return the approximate length of the content in bytes."""
        ...


R = TypeVar("R", bound=Named)
R_co = TypeVar("R_co", bound=Named, covariant=True)


class View(Protocol[R_co]):
    """What a caller may have at this moment."""

    def find(self, name: str) -> R_co | None:
        """Return the resource under a name; None if it does not exist or is not the caller's."""
        ...

    def is_expected(self, name: str) -> bool:
        """Say whether a name that has nothing behind it will have, as far as one can know."""
        ...

    def everything(self) -> Collection[str]:
        """Return the names that the wildcard stands for."""
        ...


class SotwRequest(NamedTuple):
    """What a subscription needs of a DiscoveryRequest.

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
    """What a subscription needs of a DeltaDiscoveryRequest.

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
    """The meaning of one request, or of a slice of it (:mod:`sds.serving.slices`).

    Attributes:
        acked: what the client has accepted.
        nacked: what the client has refused.
        error: the client's own text about ``nacked``; None if it refused nothing.
        stale: whether the nonce is not one that an ACK is expected for.
        added: names that the client asks for from now on.
        dropped: names that the client no longer asks for.
        passing: bytes of names that are not asked for but are kept until they are looked at.
    """

    acked: tuple[Receipt, ...] = ()
    nacked: tuple[Receipt, ...] = ()
    error: str | None = None
    stale: bool = False
    added: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    passing: int = 0


@dataclass(slots=True)
class Answer(Generic[R]):
    """What to send now; not frozen, because a frozen object takes long to make.

    Attributes:
        resources: new content.
        removed: names to report as removed (delta only).
        absent: names that were asked for and do not exist for this caller; reported once per
            request.
        held: what the client kept from an earlier stream, so it is not sent again (delta only).
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
        error: the client's text about ``refused``.
    """

    name: str
    sent: str | None
    acked: str | None
    refused: str | None
    error: str
