"""Reasons of errors of authorities as their clients see them, and of our authority's refusals."""

from __future__ import annotations

from typing import Final

from sds.reasons.row import Reason

NO_ANSWER: Final = "authority_no_answer"
"""The reason of an attempt that took the authority's time or the agent's, and had no answer."""
AUTHORITY: Final[dict[str, Reason]] = {
    "authority": Reason("A general reason: the message says what is wrong."),
    "authority_unavailable": Reason(
        "Check that the authority runs, that the address is right and that its TLS can be "
        "verified. Certificates in service stay until they expire.",
        retriable=True,
    ),
    NO_ANSWER: Reason(
        "Check that the authority runs, that firewalls let this machine reach it, and that it has "
        "enough processors for its agents. Certificates in service stay until they expire.",
        retriable=True,
    ),
    "authority_refused": Reason(
        "Read the authority's own reason in the message and look it up here."
    ),
    "authority_refused_for_now": Reason(
        "Wait. If the error stays for minutes, look at the authority (its keys, its limits, its "
        "view of pods).",
        retriable=True,
    ),
    "authority_token": Reason(
        "Mount the projected service-account token at the configured path, and let the "
        "agent's user read it.",
        retriable=True,
    ),
    "authority_root": Reason(
        "Put PEM certificates into the file, and let the agent's user read it. Every attempt reads "
        "it again.",
        retriable=True,
    ),
    "authority_answer": Reason(
        "The authority certified no identity, or not the one that the agent asked for, or its "
        "answer breaks the protocol. Set the workload's SPIFFE ID to what the authority "
        "certifies.",
    ),
    "authority_roots": Reason(
        "Find out why the authority keeps naming new roots. A root leaves the bundle when no "
        "certificate under it can be valid any more; certificates in service stay until they "
        "expire.",
        retriable=True,
    ),
    "refused": Reason("A general reason: the message says what is wrong."),
    "request_malformed": Reason(
        "Agent and authority speak different versions, or the caller is not an agent.",
    ),
    "batch_too_large": Reason(
        "An agent of this project never sends so many items. If the client is your own, let it "
        "send fewer in one request.",
    ),
    "nonce_unknown": Reason(
        "This passes by itself. A proxy in front of the authority must not move a stream from one "
        "replica to another.",
        retriable=True,
    ),
    "nonce_used": Reason(
        "This passes by itself. If it happens again, somebody replays requests.",
        retriable=True,
    ),
    "nonce_expired": Reason(
        "This passes by itself.",
        retriable=True,
    ),
    "challenge_stale": Reason(
        "This passes by itself: the agent says Hello again.",
        retriable=True,
    ),
    "authority_not_ready": Reason(
        "Give the authority its certificate (from upstream or from an operator), or wait for "
        "the renewal.",
        retriable=True,
    ),
    "evidence_kind_not_accepted": Reason(
        "The authority's version does not know this kind of evidence. Upgrade the authority.",
    ),
    "measurement_not_allowed": Reason(
        "If this image is yours, add its measurement to the policy (or `identities`) and sign "
        "the next epoch. If not, find out what runs there.",
    ),
    "spiffe_id_not_allowed": Reason(
        "Allow the SPIFFE ID for this measurement in the policy, or correct the workload's "
        "identity.",
    ),
    "dns_name_not_allowed": Reason(
        "Allow the DNS name in the policy, or take it out of the workload."
    ),
    "key_type_not_allowed": Reason("Ask for a key type that the policy allows."),
    "signing_not_allowed": Reason(
        "Allow this measurement to be an issuing authority, or correct the hierarchy's depth."
    ),
    "lifetime_not_allowed": Reason("Ask for a lifetime above zero and below the policy's maximum."),
    "policy_behind": Reason(
        "The agent takes the newer policy from the authority by itself. If the error stays, the "
        "agent does not trust the keys that signed that policy.",
    ),
    "pod_not_on_node": Reason(
        "This passes when the authority knows the pod. It refuses a token that is used away from "
        "its node.",
        retriable=True,
    ),
}
