"""Authorities of others that an agent may ask: one line each.

Owns the list, and what such an authority is to the agent. It is one module with a ``KIND`` in it
(:class:`AuthorityKind`) and one line here; ``docs/extending.md`` has the recipe. Our own authority
is not among them: it is asked with evidence, and :mod:`sds.agent.build` makes its client.
Invariant: this module loads none of them, so that an agent does not pay for clients that it does
not use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final, Protocol

from sds.authority.port import Authority

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta

    from sds.clock import Clock

AUTHORITIES: Final[dict[str, str]] = {
    "istio": "sds.authority.istio_kind",
}
"""``authority.kind`` in the agent's configuration -> the module that has ``KIND``."""


class AuthorityClient(Authority, Protocol):
    """An authority that a running agent asks."""

    async def aclose(self) -> None:
        """Close its connections; a later exchange opens new ones."""
        ...


class AuthorityKind(Protocol):
    """What the agent needs to know of an authority of others.

    Attributes:
        elsewhere: the longest life of certificates that it gives to others under the same roots:
            so long an old root is kept. Zero where all of them are this agent's.
    """

    @property
    def elsewhere(self) -> timedelta: ...

    def client(self, section: Any, *, clock: Clock) -> AuthorityClient:
        """Make the client; nothing is connected before its first exchange.

        Args:
            section: the ``authority:`` section of the configuration.
            clock: time.

        Raises:
            ConfigurationError: the section cannot be used.
        """
        ...

    def check(self, section: Any, problem: Callable[[str, str], None]) -> None:
        """Open the files that the section names, without touching the network.

        Args:
            section: as for :meth:`client`.
            problem: notes one: the field, and what is wrong with it.
        """
        ...


def authority_kind(name: str) -> AuthorityKind:
    """Load the authority of this name.

    Raises:
        KeyError: there is none.
    """
    found: AuthorityKind = importlib.import_module(AUTHORITIES[name]).KIND
    return found
