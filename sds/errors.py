"""Defines the errors of this program as one tree of classes.

Every error that this program raises on purpose derives from :class:`SdsError` and carries a
``reason``. A class exists only if some code catches it; all other distinctions are data: the
reason's row in :mod:`sds.reasons`. Invariants:

* each ``reason`` is a row of :data:`sds.reasons.REASONS`, which says whether a retry can help and
  what a person does;
* the message says what was wrong and where; ``advice`` says what to do about it;
* no message, ``repr`` or attribute ever contains private key material.

Verification raises one of these; it never returns a bool.
"""

from __future__ import annotations

from typing import TypeVar

from sds.reasons import REASONS

_Error = TypeVar("_Error", bound=BaseException)


def without_frames(error: _Error) -> _Error:
    """Return an error that outlives its work, without the frames, whose locals may be keys.

    The frames of its causes lead to the same frames, so they go too. An error that is raised again
    and again needs this each time, because Python adds the frames of every time.
    """
    one: BaseException | None = error
    while one is not None:
        one.__traceback__ = None
        one = one.__context__ or one.__cause__
    return error


class SdsError(Exception):
    """The base of all errors of this program.

    Args:
        message: what was wrong, and where (one line, no secrets).
        reason: a row of :data:`sds.reasons.REASONS`; the class's own by default.
        advice: what a person can do about it (one line), or the empty string.
    """

    reason: str = "internal"

    def __init__(self, message: str, *, reason: str | None = None, advice: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice
        if reason is not None:
            self.reason = reason

    @property
    def retriable(self) -> bool:
        """Return whether the same call can succeed later without any change by a person."""
        row = REASONS.get(self.reason)
        return row is not None and row.retriable

    def __str__(self) -> str:
        """Return the message, then the advice in parentheses."""
        return f"{self.message} ({self.advice})" if self.advice else self.message


# --- configuration and command line -------------------------------------------------------------


class ConfigurationError(SdsError):
    """A configuration file or a command-line value cannot be used."""

    reason = "configuration"


class SocketError(SdsError):
    """A Unix socket or its directory cannot be used (path too long, not writable, in use)."""

    reason = "socket"


# --- identities, keys and certificates ----------------------------------------------------------


class IdentityError(SdsError):
    """A SPIFFE ID, trust domain or DNS name does not follow its specification."""

    reason = "identity"


class KeyTypeError(SdsError):
    """A key of this type cannot be made or cannot serve the purpose."""

    reason = "key_type"


class CertificateError(SdsError):
    """A certificate, chain or CSR is not valid; the reason says why."""

    reason = "certificate"


class SecretWipedError(SdsError):
    """A secret is read after it was wiped."""

    reason = "secret_wiped"


# --- attestation --------------------------------------------------------------------------------


class EvidenceError(SdsError):
    """Evidence cannot be collected, parsed, verified or accepted; the reason says why.

    Args:
        challenge: what the attester must answer before its evidence counts; empty if nothing is
            asked of it. Such an error is a question, and no verdict on the evidence.

    Attributes:
        digest: the SHA-256 of the evidence; empty if who caught the error did not know it.
    """

    reason = "evidence"
    digest: str = ""

    def __init__(
        self, message: str, *, reason: str | None = None, advice: str = "", challenge: bytes = b""
    ) -> None:
        super().__init__(message, reason=reason, advice=advice)
        self.challenge = challenge


class EvidenceMalformedError(EvidenceError):
    """Evidence does not follow its format (length, version, reserved bytes, encoding)."""

    reason = "evidence_malformed"


class EvidenceUnavailableError(EvidenceError):
    """Evidence cannot be collected now; the machine or its host may give it later."""

    reason = "evidence_unavailable"


class EndorsementUnavailableError(EvidenceError):
    """A certificate that evidence needs cannot be fetched."""

    reason = "endorsement_unavailable"


# --- certificate authority ----------------------------------------------------------------------


class AuthorityError(SdsError):
    """A certificate authority did not give what was asked for; the reason says why."""

    reason = "authority"


class AuthorityUnavailableError(AuthorityError):
    """The authority cannot be reached or does not answer in time."""

    reason = "authority_unavailable"


class AuthorityRefusedError(AuthorityError):
    """The authority answered and refused: for good (``authority_refused``) or only for now.

    Args:
        wire_reason: the stable reason label of the authority's answer.
    """

    reason = "authority_refused"

    def __init__(
        self, message: str, *, wire_reason: str, reason: str | None = None, advice: str = ""
    ) -> None:
        super().__init__(message, reason=reason, advice=advice)
        self.wire_reason = wire_reason


class AuthorityAnswerError(AuthorityError):
    """The authority's answer does not match the request or cannot be read."""

    reason = "authority_answer"


class RefusedError(AuthorityError):
    """Our certificate authority refuses a request or one of its items, and answers the reason."""

    reason = "refused"


# --- policy -------------------------------------------------------------------------------------


class PolicyError(SdsError):
    """A policy document cannot be used; the reason says why.

    Attributes:
        forged: whether it names a trusted key that did not make the signature.
    """

    reason = "policy"
    forged = False


class PolicyNotInForceError(PolicyError):
    """No policy is in force (``policy_absent``), or the last one ended (``policy_expired``)."""

    reason = "policy_absent"


# --- workloads ----------------------------------------------------------------------------------


class WorkloadError(SdsError):
    """A caller on the socket cannot be attested; the reason says why."""

    reason = "workload"


class PeerGoneError(WorkloadError):
    """The process that connected has ended, or its pid now belongs to another one."""

    reason = "peer_gone"


class CgroupError(WorkloadError):
    """A caller's control groups contradict each other."""

    reason = "cgroup_ambiguous"


class KubernetesError(WorkloadError):
    """The kubelet (``kubelet``) or the API server (``kubernetes_api``) did not answer as asked.

    Attributes:
        later: the seconds for which the server asks to be left alone; 0 if it does not say.
    """

    reason = "kubernetes_api"
    later: float = 0.0


# --- serving ------------------------------------------------------------------------------------


class ProtocolError(SdsError):
    """A request on an xDS stream breaks the protocol or a limit; the reason says how."""

    reason = "protocol"


class MalformedRequestError(ProtocolError):
    """Bytes on an xDS stream are not the message that the method takes."""

    reason = "malformed_request"


class LimitError(ProtocolError):
    """A request or a stream exceeds a limit of this server."""

    reason = "limit_exceeded"


class Http2Error(ProtocolError):
    """A client breaks HTTP/2 (RFC 9113), or TLS below it, in a way that ends its connection.

    Args:
        code: the error code (RFC 9113, section 7).
    """

    reason = "http2"

    def __init__(
        self, message: str, *, code: int, reason: str | None = None, advice: str = ""
    ) -> None:
        super().__init__(message, reason=reason, advice=advice)
        self.code = code


class Http2StreamError(Http2Error):
    """A client breaks HTTP/2 or gRPC in a way that ends one stream."""

    reason = "http2_stream"


class CallEndedError(ProtocolError):
    """The program writes to a remote call that has ended: the client cancelled or hung up."""

    reason = "call_ended"


# --- federation and demo ------------------------------------------------------------------------


class BundleError(SdsError):
    """A foreign trust domain's bundle cannot be fetched or used; the reason says why.

    Attributes:
        later: the seconds for which the server asks to be left alone; 0 if it does not say.
    """

    reason = "bundle"
    later: float = 0.0


class RequestFailedError(SdsError):
    """A request of the demo's traffic failed, or its answer does not name the expected peer."""

    reason = "request_failed"
