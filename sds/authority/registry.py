"""The registry of other authorities that an agent may ask: one line each.

Owns the list, and what the agent needs to know of such an authority. It is one module with a
``KIND`` in it (:class:`AuthorityKind`) and one line here; ``docs/extending.md`` has the recipe. Our
own authority is not on the list: it is asked with evidence, and :mod:`sds.agent.build` makes its
client. Invariant: this module loads no client, so an agent does not pay for those that it does not
use.
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
"""Maps ``authority.kind`` in the agent's configuration to the module that has ``KIND``."""


class AuthorityClient(Authority, Protocol):
    """The client of an authority, as a running agent uses it."""

    async def aclose(self) -> None:
        """Close its connections; a later exchange opens new ones."""
        ...


class AuthorityKind(Protocol):
    """What the agent needs to know of another authority.

    Attributes:
        elsewhere: the longest lifetime of certificates that it gives to others under the same
            roots; an old root is kept for that time. Zero if it serves only this agent.
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
            problem: is called for each problem with the field and what is wrong with it.
        """
        ...


def authority_kind(name: str) -> AuthorityKind:
    """Load the authority of this name.

    Raises:
        KeyError: there is none.
    """
    found: AuthorityKind = importlib.import_module(AUTHORITIES[name]).KIND
    return found
