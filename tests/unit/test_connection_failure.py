"""Why a connection to an authority failed, in words, from what gRPC 1.7x says."""

from __future__ import annotations

import pytest

from sds.authority.connection_failure import ISTIO, OWN_AUTHORITY, explained

_FAILED = "connections to all backends failing; last error: UNKNOWN: ipv4:127.0.0.1:1: "
_TLS = "Tls handshake failed (TSI_PROTOCOL_FAILURE): SSL_ERROR_SSL: error:1000007d:SSL routines:"


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ("Failed to connect to remote host: Connection refused", "authority.addresses"),
        ("Failed to connect to remote host: No route to host", "authority.addresses"),
        ("Failed to connect to remote host: Network is unreachable", "authority.addresses"),
        ("Failed to connect to remote host: Connection timed out", "authority.addresses"),
        ("DNS resolution failed for x:1: C-ares status is not ARES_SUCCESS", "authority.addresses"),
        (
            f"{_TLS}OPENSSL_internal:CERTIFICATE_VERIFY_FAILED: self signed certificate",
            "authority.tls.root",
        ),
        (f"{_TLS}OPENSSL_internal:WRONG_VERSION_NUMBER", "authority.addresses"),
        ("Hostname Verification Check failed.", "authority.tls.server_name"),
    ],
)
def test_a_failure_names_the_field_to_look_at(said: str, field: str) -> None:
    found = explained(_FAILED + said, OWN_AUTHORITY)
    assert found is not None
    assert field in " ".join(found)
    istio = explained(_FAILED + said, ISTIO)
    assert istio is not None
    assert field.replace(".tls", "") in " ".join(istio)


def test_what_is_not_known_is_left_as_it_is() -> None:
    assert explained("Received http2 header with status: 502", OWN_AUTHORITY) is None
