"""Defines readiness, once for probes, gRPC health, the service manager and people.

Owns the rules. An agent is ready when all of these are true: every identity that a workload with
its own socket may have has a valid certificate; a policy is in force, if one is configured; each
socket is still the one that the agent opened; the agent does not drain. An authority is ready when
it can sign, a policy is in force, and agents accept its TLS certificate. Invariant: every "not
ready" comes with a reason.

Identities of callers of the node-wide socket do not count: otherwise one pod that the authority
refuses would stop every roll-out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

_NAMED: Final = 3


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether a process does what its configuration asks for.

    Attributes:
        lacking: what is missing, in words; empty when it is ready.
    """

    lacking: tuple[str, ...] = ()

    @property
    def ready(self) -> bool:
        """Say whether nothing is missing."""
        return not self.lacking


def agent_readiness(
    *,
    unserved: Sequence[str],
    no_policy: str = "",
    lost_sockets: Sequence[str] = (),
    draining: bool = False,
) -> Readiness:
    """Return the readiness of an agent.

    Args:
        unserved: the SPIFFE IDs that workloads with their own socket lack.
        no_policy: why no policy is in force; empty while one is, or if none is configured.
        lost_sockets: the paths of our sockets that somebody removed or replaced.
        draining: whether the agent is about to end.
    """
    lacking = []
    if draining:
        lacking.append("the agent is draining")
    if no_policy:
        lacking.append(f"no policy is in force: {no_policy}")
    if unserved:
        lacking.append(f"no certificate yet: {_some(unserved)}")
    if lost_sockets:
        lacking.append(f"somebody removed or replaced: {_some(lost_sockets)}")
    return Readiness(tuple(lacking))


def authority_readiness(
    *, able: bool, no_policy: str = "", tls_ended: bool = False, draining: bool = False
) -> Readiness:
    """Return the readiness of a certificate authority.

    Args:
        able: whether the authority has a signer whose chain is valid now.
        no_policy: why no policy is in force; empty while one is, or if none is configured.
        tls_ended: whether the TLS certificate that agents see has expired.
        draining: whether the authority is about to end.
    """
    lacking = []
    if draining:
        lacking.append("the authority is draining")
    if not able:
        lacking.append("it has no signer that is valid now")
    if no_policy:
        lacking.append(f"no policy is in force: {no_policy}")
    if tls_ended:
        lacking.append("its TLS certificate has expired (tls.certificate)")
    return Readiness(tuple(lacking))


def admission_readiness(*, no_policy: str) -> Readiness:
    """Return the readiness of ``sds admission``, which also answers while it is not ready.

    Args:
        no_policy: why no policy is in force; empty while one is.
    """
    return Readiness((f"no policy is in force: {no_policy}",) if no_policy else ())


def _some(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
