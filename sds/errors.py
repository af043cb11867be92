"""The one tree of errors.

Every error that this project raises on purpose derives from :class:`SdsError`. Invariants:

* ``reason`` is a stable, lower-case label (``snake_case``): it goes into metrics, into answers
  on the wire and into the index of errors in the documentation; renaming one is a breaking change.
* ``retriable`` says whether the same call can succeed later with nothing changed by a person.
* the message says what was wrong and where; ``advice`` says what to do about it.
* no message, ``repr`` or attribute ever holds private key material.

Verification raises one of these; it never returns a bool.
"""

from __future__ import annotations

from typing import ClassVar


class SdsError(Exception):
    """Base of all our errors.

    Args:
        message: what was wrong, and where (one line, no secrets).
        advice: what a person can do about it (one line), or the empty string.
    """

    reason: ClassVar[str] = "internal"
    retriable: ClassVar[bool] = False

    def __init__(self, message: str, *, advice: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice

    def __str__(self) -> str:
        """The message, and the advice after it where there is one."""
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
    """A certificate, chain or CSR does not hold; subclasses say why."""

    reason = "certificate"


class CertificateMalformedError(CertificateError):
    """A certificate that cannot be parsed, or whose extensions break RFC 5280."""

    reason = "certificate_malformed"


class CertificateUntrustedError(CertificateError):
    """A chain that does not end in a trusted root, or whose signatures do not hold."""

    reason = "certificate_untrusted"


class CertificateKeyError(CertificateError):
    """A certificate for another key than ours."""

    reason = "certificate_key_mismatch"


class CertificateNameError(CertificateError):
    """A certificate whose names are not exactly those that were asked for."""

    reason = "certificate_name_mismatch"


class CertificateExpiredError(CertificateError):
    """A certificate of the chain has expired."""

    reason = "certificate_expired"


class CertificateNotYetValidError(CertificateError):
    """A certificate of the chain is not valid yet: often a clock that is behind."""

    reason = "certificate_not_yet_valid"
    retriable = True


class CertificateConstraintError(CertificateError):
    """Basic constraints, key usage or name constraints forbid this use of a certificate."""

    reason = "certificate_constraint"


class CertificatePathError(CertificateError):
    """A chain that is longer than its path length constraints allow, or empty."""

    reason = "certificate_path_length"


class CsrError(CertificateError):
    """A certificate signing request that cannot be parsed or whose signature does not hold."""

    reason = "csr_invalid"


# --- attestation --------------------------------------------------------------------------------


class EvidenceError(SdsError):
    """Evidence cannot be collected, parsed, verified or accepted; subclasses say why."""

    reason = "evidence"


class EvidenceMalformedError(EvidenceError):
    """Evidence that is not what its format says (length, version, reserved bytes, encoding)."""

    reason = "evidence_malformed"


class EvidenceBindingError(EvidenceError):
    """Evidence whose report data is not the value that was demanded."""

    reason = "report_data_mismatch"


class ReportLengthError(EvidenceMalformedError):
    """A report or quote has the wrong length."""

    reason = "report_length"


class ReportVersionError(EvidenceMalformedError):
    """A report or quote has a version that is not known here."""

    reason = "report_version"


class ReservedBytesError(EvidenceMalformedError):
    """Bytes that the specification reserves are not zero."""

    reason = "reserved_bytes"


class SignatureAlgorithmError(EvidenceError):
    """Evidence is not signed with the algorithm that its specification names."""

    reason = "signature_algorithm"


class SignatureRangeError(EvidenceError):
    """R or S of a signature is zero or not below the order of the curve."""

    reason = "signature_range"


class EvidenceSignatureError(EvidenceError):
    """The signature over the evidence does not hold."""

    reason = "signature_invalid"


class ProductError(EvidenceError):
    """The processor named by the evidence is unknown or differs from the chain's."""

    reason = "product_mismatch"


class EndorsementMissingError(EvidenceError):
    """A certificate that is needed to verify the evidence was not given."""

    reason = "endorsement_missing"


class EndorsementUntrustedError(EvidenceError):
    """The chain of the signing key does not end in a pinned or configured root."""

    reason = "chain_untrusted"


class EndorsementMalformedError(EvidenceError):
    """A certificate of the chain cannot be parsed, or holds what it must not."""

    reason = "certificate_malformed"


class EndorsementValidityError(EvidenceError):
    """A certificate of the chain is not valid at the time of verification."""

    reason = "certificate_validity"


class EndorsementRevokedError(EvidenceError):
    """A certificate of the chain was revoked."""

    reason = "certificate_revoked"


class RevocationListError(EvidenceError):
    """A revocation list cannot be used: not signed by the root, or not fresh."""

    reason = "revocation_list"


class EndorsementTcbError(EvidenceError):
    """The signing key was made for another TCB than the report tells."""

    reason = "endorsement_tcb_mismatch"


class EndorsementChipError(EvidenceError):
    """The signing key was made for another chip than the report tells."""

    reason = "endorsement_chip_mismatch"


class SigningKeyError(EvidenceError):
    """The report names another kind of signing key than the certificate is for."""

    reason = "signing_key_mismatch"


class AppraisalError(EvidenceError):
    """Authentic evidence that the reference values do not accept; subclasses name the field."""

    reason = "appraisal"


class DebugAllowedError(AppraisalError):
    """The guest may be debugged from outside."""

    reason = "debug_allowed"


class MigrationAgentError(AppraisalError):
    """The guest may be bound to a migration agent."""

    reason = "migration_agent"


class PrivilegeLevelError(AppraisalError):
    """The report was asked for at a virtual machine privilege level that is not accepted."""

    reason = "vmpl"


class MaskedChipKeyError(AppraisalError):
    """The report was made with the chip's key masked."""

    reason = "masked_chip_key"


class ProvisionalFirmwareError(AppraisalError):
    """The firmware that runs is not committed: it can still be rolled back."""

    reason = "provisional_firmware"


class TcbBelowMinimumError(AppraisalError):
    """A component of the trusted computing base is older than is accepted."""

    reason = "tcb_below_minimum"


class MeasurementError(AppraisalError):
    """The measurement of the code is not among the reference values."""

    reason = "measurement"


class GuestIdentityError(AppraisalError):
    """Host data, ID key, author key, family, image or security version is not accepted."""

    reason = "guest_identity"


class PlatformError(AppraisalError):
    """The product, the chip, its provider or a property of the platform is not accepted."""

    reason = "platform"


class EvidenceKindError(EvidenceError):
    """Evidence of a kind that nothing here verifies."""

    reason = "evidence_kind"


class EvidenceUnavailableError(EvidenceError):
    """Evidence cannot be collected now; the machine or its host may give it later."""

    reason = "evidence_unavailable"
    retriable = True


class EvidenceUnsupportedError(EvidenceError):
    """This machine cannot produce evidence of the kind that is asked for."""

    reason = "evidence_unsupported"


class EndorsementUnavailableError(EvidenceError):
    """A certificate that evidence needs cannot be fetched."""

    reason = "endorsement_unavailable"
    retriable = True


class RevocationListStaleError(RevocationListError):
    """A revocation list that is not current."""

    reason = "revocation_list_stale"
    retriable = True


class HostDataError(GuestIdentityError):
    """Host data that the reference values do not name."""

    reason = "host_data"


class IdKeyError(GuestIdentityError):
    """An identity block of an unknown key, or none."""

    reason = "id_key"


class AuthorKeyError(GuestIdentityError):
    """An identity block by an unknown author, or none."""

    reason = "author_key"


class GuestSvnError(GuestIdentityError):
    """A guest's security version below the minimum."""

    reason = "guest_svn_below_minimum"


class GuestPolicyError(GuestIdentityError):
    """The guest's policy lacks what the reference values demand."""

    reason = "guest_policy"


class ProductRefusedError(PlatformError):
    """A product that the reference values do not list."""

    reason = "product_refused"


class ChipRefusedError(PlatformError):
    """A chip on the deny list, or not on the list of allowed ones."""

    reason = "chip_refused"


class CspIdError(PlatformError):
    """A cloud provider's key (VLEK) of a provider that is not listed."""

    reason = "csp_id"


class MitigationError(PlatformError):
    """A mitigation that the reference values demand is missing."""

    reason = "mitigation_missing"


class CollateralMissingError(EvidenceError):
    """A quote without the signed collateral that it must be appraised with."""

    reason = "collateral_missing"


class CollateralError(EvidenceError):
    """Collateral that is malformed, wrongly signed, or for another platform."""

    reason = "collateral_untrusted"


class CollateralStaleError(CollateralError):
    """Collateral that is not current."""

    reason = "collateral_stale"
    retriable = True


class QuotingEnclaveError(EvidenceError):
    """A quoting enclave that its identity or the quote does not confirm."""

    reason = "quoting_enclave"


class TdxModuleError(EvidenceError):
    """A TDX module that the collateral does not confirm."""

    reason = "tdx_module"


class TcbStatusError(PlatformError):
    """A platform whose TCB status is not accepted."""

    reason = "tcb_status"


class TdAttributesError(AppraisalError):
    """Attributes or extended features of a TD that are not accepted."""

    reason = "td_attributes"


class AuthorityEvidenceError(EvidenceError):
    """The authority's own evidence is missing, for another connection, or replayed."""

    reason = "authority_evidence"


class TokenUnavailableError(EvidenceError):
    """A service-account token cannot be had."""

    reason = "token_unavailable"
    retriable = True


class TokenClaimsError(EvidenceError):
    """A service-account token lacks a claim, or has another one than is demanded."""

    reason = "token_claims"


class TokenTimeError(EvidenceError):
    """A service-account token is not valid at the time of verification."""

    reason = "token_time"


class TokenAccountError(EvidenceError):
    """A service account may not ask for certificates."""

    reason = "token_account"


# --- certificate authority ----------------------------------------------------------------------


class AuthorityError(SdsError):
    """A certificate authority did not give what was asked for; subclasses say why."""

    reason = "authority"


class AuthorityUnavailableError(AuthorityError):
    """The authority cannot be reached or does not answer in time."""

    reason = "authority_unavailable"
    retriable = True


class AuthorityRefusedError(AuthorityError):
    """The authority answered and refused. ``wire_reason`` is the reason that it gave."""

    reason = "authority_refused"

    def __init__(self, message: str, *, wire_reason: str, advice: str = "") -> None:
        """``wire_reason``: the stable reason label of the authority's answer."""
        super().__init__(message, advice=advice)
        self.wire_reason = wire_reason


class AuthorityRefusedForNowError(AuthorityRefusedError):
    """The authority refused for a reason that can pass by itself."""

    reason = "authority_refused_for_now"
    retriable = True


class AuthorityTokenError(AuthorityError):
    """The token that proves us to the authority cannot be read from its file."""

    reason = "authority_token"
    retriable = True


class AuthorityAnswerError(AuthorityError):
    """The authority's answer is not what was asked for or cannot be read."""

    reason = "authority_answer"


# --- what our own certificate authority refuses; ``reason`` stands in its answer -----------------


class RefusedError(AuthorityError):
    """Our certificate authority refuses a request or an item of it; subclasses say why."""

    reason = "refused"


class RequestMalformedError(RefusedError):
    """A message that breaks the protocol: unparsable, empty, a field out of its bounds."""

    reason = "request_malformed"


class BatchTooLargeError(RefusedError):
    """More items in one request than an authority takes."""

    reason = "batch_too_large"


class NonceUnknownError(RefusedError):
    """A nonce that this stream was never given (or that had to make room)."""

    reason = "nonce_unknown"
    retriable = True


class NonceUsedError(RefusedError):
    """A nonce that this stream has used already."""

    reason = "nonce_used"
    retriable = True


class NonceExpiredError(RefusedError):
    """A nonce older than the longest certificate lives."""

    reason = "nonce_expired"
    retriable = True


class ChallengeStaleError(RefusedError):
    """The authority's key, roots or policy changed since this stream's Challenge."""

    reason = "challenge_stale"
    retriable = True


class AuthorityBusyError(RefusedError):
    """The authority has no room for another stream now."""

    reason = "authority_busy"
    retriable = True


class AuthorityNotReadyError(RefusedError):
    """The authority has no certificate that it could sign with, or the one it has ends."""

    reason = "authority_not_ready"
    retriable = True


class EvidenceNotAcceptedError(RefusedError):
    """The authority takes no evidence of this kind."""

    reason = "evidence_kind_not_accepted"


class PodNotOnNodeError(RefusedError):
    """The authority knows no such pod on the node that asks (yet, or any more)."""

    reason = "pod_not_on_node"
    retriable = True


class SimulationRefusedError(RefusedError):
    """Evidence of a simulated machine, where no simulated root is configured."""

    reason = "simulation_refused"


class MeasurementNotAllowedError(RefusedError):
    """No rule names this measurement."""

    reason = "measurement_not_allowed"


class SpiffeIdNotAllowedError(RefusedError):
    """No rule lets this measurement ask for this SPIFFE ID."""

    reason = "spiffe_id_not_allowed"


class DnsNameNotAllowedError(RefusedError):
    """No rule lets this measurement ask for this DNS name together with this SPIFFE ID."""

    reason = "dns_name_not_allowed"


class KeyTypeNotAllowedError(RefusedError):
    """No rule allows a key of this kind."""

    reason = "key_type_not_allowed"


class SigningNotAllowedError(RefusedError):
    """No rule lets this measurement be an authority below this one, or the path ends here."""

    reason = "signing_not_allowed"


class LifetimeNotAllowedError(RefusedError):
    """A lifetime that is zero or cannot be granted at all."""

    reason = "lifetime_not_allowed"


class PolicyBehindError(RefusedError):
    """The agent's policy is older than the authority's, or another one."""

    reason = "policy_behind"


# --- policy -------------------------------------------------------------------------------------


class PolicyError(SdsError):
    """A policy document cannot be used; subclasses say why."""

    reason = "policy"


class PolicyMalformedError(PolicyError):
    """A signed policy that is not what its format says (envelope, payload type, document)."""

    reason = "policy_malformed"


class PolicyUnsignedError(PolicyError):
    """A policy without any signature by a trusted key."""

    reason = "policy_unsigned"


class PolicyThresholdError(PolicyError):
    """A policy signed by fewer distinct trusted keys than are demanded."""

    reason = "policy_below_threshold"


class PolicyTrustDomainError(PolicyError):
    """A policy for another trust domain."""

    reason = "policy_trust_domain"


class PolicyNotYetValidError(PolicyError):
    """A policy whose ``not_before`` has not come; it can be offered again then."""

    reason = "policy_not_yet_valid"
    retriable = True


class PolicyExpiredError(PolicyError):
    """A policy whose ``not_after`` has passed."""

    reason = "policy_expired"


class PolicyRollbackError(PolicyError):
    """A policy whose epoch is lower than one that was already seen."""

    reason = "policy_epoch_lower"


class PolicyConflictError(PolicyError):
    """A policy of the epoch already seen, with other content."""

    reason = "policy_epoch_conflict"


class PolicyAbsentError(PolicyError):
    """No policy is in force, so nothing is allowed until one is."""

    reason = "policy_absent"
    retriable = True


class SigningError(PolicyError):
    """A signing key or an external signer did not give a signature that holds."""

    reason = "policy_signing"


# --- workloads ----------------------------------------------------------------------------------


class WorkloadError(SdsError):
    """A caller on the socket cannot be attested; subclasses say why."""

    reason = "workload"


class PeerCredentialsError(WorkloadError):
    """The kernel does not say which process is at the other end of a connection."""

    reason = "peer_credentials"


class PeerGoneError(WorkloadError):
    """The process that connected has ended, or its pid now belongs to another one."""

    reason = "peer_gone"


class ExecutableError(WorkloadError):
    """A caller's executable cannot be read, so nothing can be said about it."""

    reason = "executable_unreadable"


class CgroupError(WorkloadError):
    """A caller's control groups contradict each other."""

    reason = "cgroup_ambiguous"


class NoMatchError(WorkloadError):
    """No rule matches what was found about a caller."""

    reason = "no_match"


class UndeterminedError(WorkloadError):
    """Facts that a rule asks for could not be found out in time."""

    reason = "undetermined"
    retriable = True


class UnknownConnectionError(WorkloadError):
    """A stream arrived on a connection that did not come through the front door."""

    reason = "unknown_connection"


class ConnectionLimitError(WorkloadError):
    """More connections than the limits allow."""

    reason = "connection_limit"
    retriable = True


class KubeletError(WorkloadError):
    """The kubelet did not give its list of pods."""

    reason = "kubelet"
    retriable = True


class KubernetesApiError(WorkloadError):
    """The Kubernetes API server did not give what was asked for."""

    reason = "kubernetes_api"
    retriable = True


# --- serving ------------------------------------------------------------------------------------


class ProtocolError(SdsError):
    """A request on an xDS stream breaks the protocol or a limit; subclasses say how."""

    reason = "protocol"


class MalformedRequestError(ProtocolError):
    """Bytes on an xDS stream are not the message that the method takes."""

    reason = "malformed_request"


class CompressedMessageError(MalformedRequestError):
    """A message is compressed, which no client of a secret discovery service needs."""

    reason = "compressed_message"


class TypeUrlError(ProtocolError):
    """A request asks for a type of resource that is not served on its stream."""

    reason = "wrong_type_url"


class LimitError(ProtocolError):
    """A request or a stream goes over a limit of this server."""

    reason = "limit_exceeded"


class Http2Error(ProtocolError):
    """A client breaks HTTP/2 (RFC 9113) in a way that ends its connection.

    Attributes:
        code: RFC 9113, section 7.
    """

    reason = "http2"

    def __init__(self, message: str, *, code: int, advice: str = "") -> None:
        super().__init__(message, advice=advice)
        self.code = code


class Http2StreamError(Http2Error):
    """A client breaks HTTP/2 or gRPC in a way that ends one stream."""

    reason = "http2_stream"


class CallEndedError(ProtocolError):
    """A message was written to a remote call that is over: the client cancelled or hung up."""

    reason = "call_ended"


# --- federation ---------------------------------------------------------------------------------


class BundleError(SdsError):
    """A foreign trust domain's bundle cannot be had; subclasses say why."""

    reason = "bundle"


class BundleMalformedError(BundleError):
    """A bundle document breaks the SPIFFE Trust Domain and Bundle specification, or a bound."""

    reason = "bundle_malformed"
    retriable = True


class BundleUnavailableError(BundleError):
    """A bundle endpoint cannot be reached, or does not prove to be the one that is meant."""

    reason = "bundle_unavailable"
    retriable = True
