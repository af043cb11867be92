"""Converts the messages of our API to our types and back.

Invariant: what comes off the wire leaves this module as checked types or as an error; the module
decides nothing. It parses raw bytes itself instead of leaving that to gRPC, so that a malformed
message gets an answer of ours.
"""

from __future__ import annotations

from typing import Final

from google.protobuf.message import DecodeError

from sds._proto.sds.ca.v1 import ca_pb2
from sds.attestation.evidence import (
    Evidence,
    EvidenceKind,
    ExchangeProof,
)
from sds.attestation.exchange_key.events import MAX_EVENTS
from sds.errors import (
    AuthorityAnswerError,
    AuthorityRefusedError,
    EvidenceError,
    EvidenceMalformedError,
    RefusedError,
    SdsError,
)
from sds.exchange.challenge import NONCE_BYTES, AuthorityStatement
from sds.exchange.message_bounds import RESPONSE, check_shape

EXCHANGE: Final = "/sds.ca.v1.CertificateAuthority/Exchange"
SERVICE: Final = "sds.ca.v1.CertificateAuthority"
DIGEST_BYTES: Final = 32
_MAX_WORDS: Final = 500
"""How many characters of the peer's own text we repeat."""
_MAX_PROOF_PART: Final = 128
"""The most bytes of a key, event or signature in an exchange proof; the longest real one has 64."""
_MAX_REPORT: Final = 64 * 1024
"""The most bytes of a report, quote or token; the longest that we know are tokens of 16 KiB."""
_MAX_CERTIFICATES: Final = 16
_MAX_CERTIFICATE: Final = 64 * 1024
"""The most bytes of one certificate beside the report, or of several in PEM."""


def parse_request(data: bytes) -> ca_pb2.ExchangeRequest:
    """Parse an agent's message.

    Raises:
        RefusedError: ``request_malformed``: it is no ExchangeRequest, or has far too many parts.
    """
    check_shape(data)
    try:
        return ca_pb2.ExchangeRequest.FromString(data)
    except DecodeError as error:
        raise RefusedError(
            "the message is not an ExchangeRequest",
            advice="speak sds.ca.v1, see proto/",
            reason="request_malformed",
        ) from error


def parse_response(data: bytes) -> ca_pb2.ExchangeResponse:
    """Parse the authority's message.

    Raises:
        AuthorityAnswerError: it is no ExchangeResponse, or has far too many parts.
    """
    try:
        check_shape(data, RESPONSE)
        return ca_pb2.ExchangeResponse.FromString(data)
    except (DecodeError, RefusedError) as error:
        raise AuthorityAnswerError(
            "the answer is not an ExchangeResponse",
            advice="check that this is the address of an attested-sds authority",
        ) from error


def evidence_to_wire(evidence: Evidence) -> ca_pb2.Evidence:
    """Convert evidence to its message."""
    proof = evidence.proof
    return ca_pb2.Evidence(
        kind=evidence.kind,
        report=evidence.report,
        certificates=evidence.certificates,
        exchange_proof=None
        if proof is None
        else ca_pb2.ExchangeProof(
            public_key=proof.public_key, events=proof.events, signature=proof.signature
        ),
    )


def evidence_from_wire(message: ca_pb2.Evidence) -> Evidence:
    """Read evidence from its message; it is not verified yet.

    Raises:
        RefusedError: ``evidence_kind_not_accepted``: this version does not know its kind.
        EvidenceMalformedError: it is larger than any evidence.
    """
    if (
        len(message.report) > _MAX_REPORT
        or len(message.certificates) > _MAX_CERTIFICATES
        or any(len(one) > _MAX_CERTIFICATE for one in message.certificates)
    ):
        raise EvidenceMalformedError(
            f"the evidence is too large: a report has at most {_MAX_REPORT} bytes, and at most "
            f"{_MAX_CERTIFICATES} certificates of {_MAX_CERTIFICATE} bytes come with it"
        )
    try:
        kind = EvidenceKind(message.kind)
    except ValueError as error:
        raise RefusedError(
            f"evidence of the kind {message.kind[:40]!r} is not known here",
            advice=f"this version knows {', '.join(EvidenceKind.all())}",
            reason="evidence_kind_not_accepted",
        ) from error
    return Evidence(
        kind=kind,
        report=message.report,
        certificates=tuple(message.certificates),
        proof=_proof_from_wire(message) if message.HasField("exchange_proof") else None,
    )


def _proof_from_wire(message: ca_pb2.Evidence) -> ExchangeProof:
    proof = message.exchange_proof
    parts = (proof.public_key, proof.signature, *proof.events)
    if len(proof.events) > MAX_EVENTS or any(len(part) > _MAX_PROOF_PART for part in parts):
        raise EvidenceMalformedError(
            f"the exchange proof is too large: it has at most {MAX_EVENTS} events, and each part "
            f"at most {_MAX_PROOF_PART} bytes"
        )
    return ExchangeProof(
        public_key=proof.public_key, events=tuple(proof.events), signature=proof.signature
    )


def nonce_from_wire(nonce: bytes) -> bytes:
    """Check the length of a nonce, and return it.

    Raises:
        RefusedError: ``request_malformed``: it has another length.
    """
    if len(nonce) != NONCE_BYTES:
        raise RefusedError(
            f"a nonce has {NONCE_BYTES} bytes, this one {len(nonce)}", reason="request_malformed"
        )
    return nonce


def refusal_to_wire(
    error: SdsError, *, next_nonce: bytes = b"", signed_policy: bytes = b""
) -> ca_pb2.ExchangeResponse:
    """Make the message that refuses a whole request."""
    return ca_pb2.ExchangeResponse(
        refusal=ca_pb2.Refusal(
            reason=error.reason,
            message=_words(error),
            retriable=error.retriable,
            next_nonce=next_nonce,
            signed_policy=signed_policy,
            evidence_challenge=error.challenge if isinstance(error, EvidenceError) else b"",
        )
    )


def item_refusal_to_wire(error: SdsError) -> ca_pb2.ItemResult:
    """Make the message that refuses one item."""
    return ca_pb2.ItemResult(
        refusal=ca_pb2.ItemRefusal(
            reason=error.reason, message=_words(error), retriable=error.retriable
        )
    )


def _words(error: SdsError) -> str:
    """Return an error's text without lone surrogates: JSON permits them, protobuf does not."""
    return str(error)[:_MAX_WORDS].encode(errors="replace").decode()


def refusal_from_wire(refusal: ca_pb2.Refusal | ca_pb2.ItemRefusal) -> AuthorityRefusedError:
    """Turn the authority's refusal into the error that our caller sees."""
    return AuthorityRefusedError(
        f"the authority refused: {refusal.reason[:80]}: {refusal.message[:_MAX_WORDS]}",
        reason="authority_refused_for_now" if refusal.retriable else None,
        wire_reason=refusal.reason[:80],
    )


def statement_from_wire(challenge: ca_pb2.Challenge, *, issuing_key: bytes) -> AuthorityStatement:
    """Read what the authority states about itself; its evidence must bind exactly this.

    Args:
        challenge: the message.
        issuing_key: SHA-256 of the SubjectPublicKeyInfo in its first issuing certificate.

    Raises:
        AuthorityAnswerError: a digest has the wrong length.
    """
    for name in ("tls_spki_sha256", "policy_digest"):
        if len(getattr(challenge, name)) != DIGEST_BYTES:
            raise AuthorityAnswerError(f"the authority's {name} is not {DIGEST_BYTES} bytes long")
    return AuthorityStatement(
        issuing_chain=tuple(challenge.issuing_chain),
        issuing_key=issuing_key,
        roots=tuple(challenge.roots),
        tls_key=challenge.tls_spki_sha256,
        policy_digest=challenge.policy_digest,
        policy_epoch=challenge.policy_epoch,
    )


def challenge_to_wire(
    statement: AuthorityStatement,
    *,
    nonce: bytes,
    nonce_lifetime: float,
    evidence: Evidence | None,
    covered: tuple[bytes, ...],
) -> ca_pb2.ExchangeResponse:
    """Make the answer to a Hello."""
    return ca_pb2.ExchangeResponse(
        challenge=ca_pb2.Challenge(
            nonce=nonce,
            nonce_lifetime_seconds=int(nonce_lifetime),
            evidence=evidence_to_wire(evidence) if evidence is not None else None,
            issuing_chain=statement.issuing_chain,
            roots=statement.roots,
            policy_digest=statement.policy_digest,
            policy_epoch=statement.policy_epoch,
            tls_spki_sha256=statement.tls_key,
            covered_nonces=covered,
        )
    )
