"""What a caller on a socket was recognised as, and what it may have.

Owns :class:`Selector`, :class:`Caller` and the :class:`Entitlement` that lets a recognition
change while streams live (a Service was added, the policy changed). Invariant: the caller chooses
none of this: it comes from the socket that it connected to, the kernel, the kubelet and policy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sds.listeners import Listeners

if TYPE_CHECKING:
    from collections.abc import Callable

    from sds.errors import WorkloadError
    from sds.identity import Identity


@dataclass(frozen=True, slots=True, order=True)
class Selector:
    """One typed fact about a caller, written ``type:value``, such as ``unix:uid`` and ``1000``.

    Types: ``unix:uid``, ``unix:gid``, ``unix:path``, ``unix:sha256``, ``k8s:ns``, ``k8s:sa``,
    ``k8s:pod-label:KEY``, ``k8s:container-name``, ``k8s:image-digest``, ``socket:name``, ….
    """

    type: str
    value: str

    def __str__(self) -> str:
        """Return ``type:value``."""
        return f"{self.type}:{self.value}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """A recognised caller.

    Attributes:
        name: its name for people: the socket's workload name, or ``namespace/pod``.
        selectors: the facts that were found.
        identities: what it may have; the first is its ``default``.
        pid: the process, if it is known.
    """

    name: str
    selectors: frozenset[Selector]
    identities: tuple[Identity, ...]
    pid: int | None = None


class Entitlement:
    """A caller's recognition over time: the current :class:`Caller`, or the end of it."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._listeners: Listeners[[]] = Listeners()
        self._ended: WorkloadError | None = None

    @property
    def current(self) -> Caller:
        """Return who the caller is now."""
        return self._caller

    @property
    def ended(self) -> WorkloadError | None:
        """Return why streams of this caller must end, or None while they may live."""
        return self._ended

    def replace(self, caller: Caller) -> None:
        """Replace the caller and call every listener once; an equal caller is not a change."""
        if caller != self._caller:
            self._caller = caller
            self._listeners.tell()

    def end(self, error: WorkloadError) -> None:
        """End the entitlement: the caller's streams end with this error."""
        if self._ended is None:
            self._ended = error
            self._listeners.tell()

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call ``listener`` after each change until the returned function is called."""
        return self._listeners.add(listener)
