"""Renders bootstraps for people: YAML in which every rule of ours carries its reason.

Owns the reasons. Invariant: rendering changes nothing that Envoy reads.
"""

from __future__ import annotations

import re
import textwrap
from typing import TYPE_CHECKING, Any, Final

import betterproto2
import yaml

if TYPE_CHECKING:
    from envoy_data_plane.envoy.config.bootstrap import v3 as bootstrap_v3

ADS_AND_CLUSTERS: Final = (
    "Static clusters ask for their secrets on streams of their own: every Envoy from 1.36 to 1.40 "
    "crashes at start where one takes them over ADS (it creates that stream only after them)."
)
"""Why only listeners use ADS in a bootstrap with ADS; measured on all five versions."""

REASONS: Final[dict[str, str]] = {
    "admin": "Loopback only: anyone who reaches the admin interface controls this Envoy.",
    "set_node_on_first_message_only": (
        "A node of Envoy 1.40 is 61 KB: say it once a stream, not with every ACK."
    ),
    "retry_back_off": (
        "With Envoy's defaults a stream came back 22 s after the agent did; with these, 0.2 s."
    ),
    "disable_stateless_session_resumption": (
        "A resumed TLS session checks neither expiry nor, with the SPIFFE validator, SAN "
        "matchers: a server that must know its peer makes a full handshake every time."
    ),
    "require_client_certificate": "Without it a client may stay anonymous: this is mTLS.",
    "validation_context_sds_secret_config": (
        "Never combined_validation_context: its SAN matchers are joined by OR with those "
        "that come over SDS, so a matcher there weakens the policy."
    ),
    "max_session_keys": "Keep no session: every connection is a full handshake.",
    "tls_minimum_protocol_version": (
        "TLS 1.3 hides certificates from the network; lower it only for peers that are older."
    ),
    "explicit_http_config": "One HTTP/2 connection carries every SDS stream of this Envoy.",
    "connection_keepalive": "Notice an agent that no longer answers (a frozen guest, say).",
    "forward_client_cert_details": (
        "The application learns the peer's SPIFFE ID from x-forwarded-client-cert; what a "
        "client itself writes there is dropped."
    ),
    "config_discovery": (
        "Who may ask for what: the agent serves this filter from the signed policy. Envoy waits "
        "for it before it listens; if it does not come, or ends, the default denies everything. "
        "An agent without a signed policy denies everything: sds bootstrap --no-authorization."
    ),
    "normalize_path": (
        "Rules name paths in one form: without dot segments, repeated or escaped slashes."
    ),
    "max_connection_duration": (
        "An open connection outlives the certificates that it began with: after this time, which "
        "must be shorter than their life, the client makes a new one. Running requests go on."
    ),
    "http1_safe_max_connection_duration": (
        "An HTTP/1.1 connection is closed after an answer that says so, never under a request."
    ),
    "max_stream_duration": (
        "No filter acts on a stream that already runs: after this time it must be asked for again."
    ),
    "max_downstream_connection_duration": (
        "No filter acts on a connection that is open: after this time it must be made again."
    ),
    "max_requests_per_connection": "A fresh TLS connection for every request.",
}
"""Why each field is set; the first place of the field in the YAML gets this comment."""


def to_dict(bootstrap: bootstrap_v3.Bootstrap) -> dict[str, Any]:
    """Return the bootstrap in Envoy's JSON form, with the field names of Envoy's documents."""
    rendered = bootstrap.to_dict(casing=betterproto2.Casing.SNAKE)
    return {key: rendered[key] for key in sorted(rendered, key=_ORDER.index)}


_ORDER: Final = ["node", "admin", "dynamic_resources", "static_resources"]


def to_yaml(bootstrap: bootstrap_v3.Bootstrap) -> str:
    """Return the bootstrap as YAML, with the reason of each of our rules at its first use."""
    told: set[str] = set()
    lines = _comment(ADS_AND_CLUSTERS, "") if bootstrap.dynamic_resources is not None else []
    for line in yaml.safe_dump(to_dict(bootstrap), sort_keys=False, width=1000).splitlines():
        found = re.match(r"((?:\s|- )*)([a-z_0-9]+):", line)
        if found and found[2] in REASONS and found[2] not in told:
            told.add(found[2])
            lines.extend(_comment(REASONS[found[2]], " " * len(found[1])))
        lines.append(line)
    return "\n".join(lines) + "\n"


def _comment(text: str, indentation: str) -> list[str]:
    return textwrap.wrap(
        text, 96, initial_indent=f"{indentation}# ", subsequent_indent=f"{indentation}# "
    )
