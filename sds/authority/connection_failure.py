"""Why a connection to an authority failed, in words that name the field to look at.

Owns the reading of gRPC's description of a failed connection. Invariant: nothing is decided by it;
a description that is not known is shown as it is.

Source: the texts of gRPC's core (``ssl_transport_security.cc``) and of BoringSSL's errors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFields:
    """Names of the settings that TLS is verified by.

    Attributes:
        root: of the file with roots.
        server_name: of the name that the certificate must have.
        addresses: of the list of addresses.
        title: what people call the authority.
    """

    root: str
    server_name: str
    addresses: str = "authority.addresses"
    title: str = "the authority"


OWN_AUTHORITY: Final = TlsFields(root="authority.tls.root", server_name="authority.tls.server_name")
ISTIO: Final = TlsFields(root="authority.root", server_name="authority.server_name", title="istiod")
# The first that matches counts: words of gRPC in lower case, what it means, what to do.
_FAILURES: Final[Sequence[tuple[tuple[str, ...], str, str]]] = (
    (
        ("hostname verification", "peer name"),
        "its TLS certificate is not for the name in {0.server_name}",
        "set {0.server_name} to a DNS name that the certificate has",
    ),
    (
        ("certificate has expired",),
        "its TLS certificate, or one above it, has expired",
        "renew it on the authority's host; is this machine's clock right?",
    ),
    (
        ("certificate is not yet valid",),
        "its TLS certificate is not valid yet",
        "are the clocks of both machines right?",
    ),
    (
        ("wrong_version_number",),
        "what answers there does not speak TLS",
        "does {0.addresses} name the authority's own port?",
    ),
    (
        ("certificate_verify_failed", "bad_signature", "certificate signature failure"),
        "its TLS certificate does not verify under the roots of {0.root}",
        "put the root that issued the certificate into the file of {0.root}",
    ),
    (
        ("connection refused",),
        "nothing listens there",
        "is {0.title} running, and is its port the one in {0.addresses}?",
    ),
    (
        ("no route to host", "network is unreachable", "host is unreachable", "timed out"),
        "it cannot be reached from this machine",
        "does a firewall or a network policy let this machine reach {0.addresses}?",
    ),
    (
        ("dns resolution failed", "name resolution", "domain name not found"),
        "its name does not resolve",
        "is the name in {0.addresses} right, and does DNS answer on this machine?",
    ),
)


def explained(details: str, fields: TlsFields) -> tuple[str, str] | None:
    """Turn a failed connection into an error that says what it means and what to do.

    Args:
        details: of gRPC's status.
        fields: names of the settings.

    Returns:
        None if the description is not known.
    """
    lowered = details.lower()
    for words, what, cure in _FAILURES:
        if any(word in lowered for word in words):
            return what.format(fields), cure.format(fields)
    return None
