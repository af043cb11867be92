"""Reasons of errors of the protocols on the sockets, and of federation."""

from __future__ import annotations

from typing import Final

from sds.reasons.row import Reason

SERVING: Final[dict[str, Reason]] = {
    "protocol": Reason("The client breaks the protocol; the message says how."),
    "bundle": Reason("Look at the more exact reason beside it."),
    "bundle_malformed": Reason(
        "Tell the other trust domain; its document breaks the specification. The last good "
        "bundle stays in use.",
        retriable=True,
    ),
    "bundle_older": Reason(
        "A cache or a replica of the bundle endpoint lags behind: it offers a bundle from before. "
        "The newer one stays. If the trust domain's owner started counting again, restart the "
        "agents.",
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
        "The message names the limit; raise it in the agent's configuration if the client is "
        "right.",
    ),
    "owner_budget": Reason(
        "The pod or user that the message names uses more than its share of connections, streams "
        "or memory, or is refused too often. Find out what it does with the socket.",
        retriable=True,
    ),
    "malformed_request": Reason(
        "The client sends something else than a DiscoveryRequest. Find out who connects to this "
        "socket."
    ),
    "wrong_type_url": Reason(
        "The message names the type that this call serves. On the aggregated stream, name one."
    ),
    "http2": Reason(
        "The client on that connection does not speak HTTP/2 as RFC 9113 says; the message "
        "says how. Find out who connects to this socket.",
    ),
    "http2_stream": Reason(
        "One request on that connection breaks RFC 9113; the message says how. Find out who "
        "connects to this socket.",
    ),
    "compressed_message": Reason(
        "Send requests uncompressed (gRPC's default); compression gains nothing on a local socket."
    ),
    "call_ended": Reason("Nothing to do; the client had gone."),
}
