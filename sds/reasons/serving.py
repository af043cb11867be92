"""Reasons of errors of the protocols on the sockets, and of federation."""

from __future__ import annotations

from typing import Final

from sds.reasons.row import Reason

SERVING: Final[dict[str, Reason]] = {
    "protocol": Reason("The client breaks the protocol; the message says how."),
    "bundle": Reason("A general reason: the message says what is wrong."),
    "bundle_malformed": Reason(
        "Tell the other trust domain; its document breaks the specification. The last good "
        "bundle stays in use.",
        retriable=True,
    ),
    "bundle_older": Reason(
        "A cache or a replica of the bundle endpoint is behind: it offers an older bundle. The "
        "newer one stays in use. If the trust domain's owner reset the sequence number, restart "
        "the agents.",
    ),
    "bundle_unavailable": Reason(
        "Check the URL, the TLS root or the endpoint's SPIFFE ID. The last good bundle stays in "
        "use.",
        retriable=True,
    ),
    "draining": Reason(
        "The agent is stopping or restarting; Envoy connects again by itself.",
        retriable=True,
    ),
    "limit_exceeded": Reason(
        "The message names the limit. If the client needs more, raise the limit in the agent's "
        "configuration.",
    ),
    "owner_budget": Reason(
        "The pod or user that the message names uses more than its share of connections, streams "
        "or memory, or is refused too often. Find out what it does with the socket.",
        retriable=True,
    ),
    "malformed_request": Reason(
        "The client sends something other than a DiscoveryRequest. Find out who connects to this "
        "socket."
    ),
    "wrong_type_url": Reason(
        "The message names the type that this call serves. On the aggregated stream, a request "
        "must name its type."
    ),
    "http2": Reason(
        "The client on that connection breaks RFC 9113 (HTTP/2); the message says how. Find out "
        "who connects to this socket.",
    ),
    "http2_stream": Reason(
        "One request on that connection breaks RFC 9113; the message says how. Find out who "
        "connects to this socket.",
    ),
    "compressed_message": Reason(
        "Send requests uncompressed (gRPC's default); compression gains nothing on a local socket."
    ),
    "call_ended": Reason("There is nothing to do: the client ended the call."),
}
