"""Secrets without anything secret, as client status shows them.

Invariant: the result has no private key, ticket key or generic secret; everything else is
unchanged.
"""

from __future__ import annotations

from typing import Final

from envoy.extensions.transport_sockets.tls.v3 import secret_pb2

REDACTED: Final = "[redacted]"


def redact(secret: bytes) -> secret_pb2.Secret:
    """Return the Secret without anything secret, as Envoy's own config_dump shows it."""
    shown = secret_pb2.Secret.FromString(secret)
    if shown.HasField("tls_certificate"):
        shown.tls_certificate.private_key.inline_string = REDACTED
    for key in shown.session_ticket_keys.keys:
        key.inline_string = REDACTED
    if shown.HasField("generic_secret"):
        shown.generic_secret.secret.inline_string = REDACTED
    return shown
