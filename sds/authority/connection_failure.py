"""Explains why a connection to an authority failed, and names the field to look at.

Owns the interpretation of gRPC's description of a failed connection. Invariants: nothing is decided
by it; an unknown description is shown unchanged.

Source: the texts of gRPC's core (``ssl_transport_security.cc``) and of BoringSSL's errors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFields:
    """The names of the settings by which TLS is verified.

    Attributes:
        root: the setting of the file with roots.
        server_name: the setting of the name that the certificate must have.
        addresses: the setting of the list of addresses.
        title: the authority's name for people.
    """

    root: str
    server_name: str
    addresses: str = "authority.addresses"
    title: str = "the authority"


OWN_AUTHORITY: Final = TlsFields(root="authority.tls.root", server_name="authority.tls.server_name")
ISTIO: Final = TlsFields(root="authority.root", server_name="authority.server_name", title="istiod")
# The first match counts: gRPC's words in lower case, what they mean, what to do.
_FAILURES: Final[Sequence[tuple[tuple[str, ...], str, str]]] = (
    (
        ("hostname verification", "peer name"),
        "its TLS certificate is not for the name in {0.server_name}",
        "set {0.server_name} to a DNS name that the certificate has",
    ),
    (
        ("certificate has expired",),
        "its TLS certificate, or one above it, has expired",
        "renew it on the authority's host, and check this machine's clock",
    ),
    (
        ("certificate is not yet valid",),
        "its TLS certificate is not valid yet",
        "check the clocks of both machines",
    ),
    (
        ("wrong_version_number",),
        "what answers there does not speak TLS",
        "check that {0.addresses} names the authority's own port",
    ),
    (
        ("certificate_verify_failed", "bad_signature", "certificate signature failure"),
        "its TLS certificate is not valid under the roots of {0.root}",
        "put the root that issued the certificate into the file of {0.root}",
    ),
    (
        ("connection refused",),
        "nothing listens there",
        "check that {0.title} is running and that its port is the one in {0.addresses}",
    ),
    (
        ("no route to host", "network is unreachable", "host is unreachable", "timed out"),
        "it cannot be reached from this machine",
        "check that firewalls and network policies let this machine reach {0.addresses}",
    ),
    (
        ("dns resolution failed", "name resolution", "domain name not found"),
        "its name does not resolve",
        "check the name in {0.addresses}, and that DNS answers on this machine",
    ),
)


def explained(details: str, fields: TlsFields) -> tuple[str, str] | None:
    """Turn a failed connection into an error that says what it means and what to do.

    Returns:
        None if the description is not known.
    """
    lowered = details.lower()
    for words, what, cure in _FAILURES:
        if any(word in lowered for word in words):
            return what.format(fields), cure.format(fields)
    return None
