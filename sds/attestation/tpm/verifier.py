"""Verifies a TPM's evidence on an ordinary machine: the kind ``tpm``.

Owns the order of the checks. Invariant: claims are made only from a quote by a restricted key that
policy lists, or that is proven to be in the TPM of an endorsement key that policy trusts. A TPM
proves how a machine booted, to somebody who trusts its owner; it does not prove that the memory is
private.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from pydantic import Field, field_validator

from sds.attestation.evidence import Claims, EvidenceKind
from sds.attestation.examiner import KindExaminer
from sds.attestation.pem import der_certificates
from sds.attestation.reference_values import Hex32  # noqa: TC001  pydantic reads annotations
from sds.attestation.tpm.challenge import credential_for, proves
from sds.attestation.tpm.endorsement import (
    check_size,
    endorsement_key,
    key_digest,
    verify_endorsement,
)
from sds.attestation.tpm.keys import PublicArea, parse_public, require_restricted_signer
from sds.attestation.tpm.parcel import Piece, quote_of, unpack
from sds.attestation.tpm.quote import check_quote
from sds.attestation.tpm.values import (
    PcrValues,
    appraise_exchange_key,
    appraise_pcrs,
    claims_of_quote,
)
from sds.errors import EvidenceError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from sds.attestation.checks import Checks
    from sds.attestation.evidence import Evidence, ReportData
    from sds.attestation.tpm.keys import AttestationKey

KIND: Final = "tpm"
_KEY: Final = "a restricted signing key"
_LISTED: Final = "listed in aks, or bound to an endorsement key of eks or ek_roots"


class TpmValues(PcrValues):
    """The reference values ``others.tpm``; one of ``aks``, ``eks``, ``ek_roots`` must not be empty.

    Attributes:
        aks: accepted attestation keys, by the SHA-256 of their public area (the digest in their
            name).
        eks: accepted endorsement keys, by the SHA-256 of their SubjectPublicKeyInfo.
        ek_roots: manufacturers' roots in PEM, whose endorsement certificates are accepted.
    """

    aks: list[Hex32] = Field(default=[])
    eks: list[Hex32] = Field(default=[])
    ek_roots: list[str] = Field(default=[])

    @field_validator("ek_roots")
    @classmethod
    def _certificates(cls, roots: list[str]) -> list[str]:
        for text in roots:
            try:
                for der in der_certificates(text.encode(), what="ek_roots"):
                    endorsement_key(der)
            except EvidenceError as error:
                raise ValueError(error.message) from error
        return roots

    @property
    def roots(self) -> tuple[bytes, ...]:
        """Return the DER of ``ek_roots``."""
        return tuple(
            der
            for text in self.ek_roots
            for der in der_certificates(text.encode(), what="ek_roots")
        )


class TpmVerifier(KindExaminer):
    """Verifies and appraises a TPM's evidence."""

    def __init__(self, values: TpmValues) -> None:
        super().__init__(EvidenceKind(KIND))
        self._values = values
        self._roots = values.roots

    def _check(
        self, checks: Checks, evidence: Evidence, data: ReportData | None, now: datetime
    ) -> Claims | None:
        # 1. Layout; the key may attest (Part 1, section 25.1.4).
        try:
            parts = unpack(evidence.report)
            quote = quote_of(parts)
            public = parse_public(parts.get(Piece.PUBLIC, b""))
        except EvidenceError as error:
            checks.attempt("tpm_evidence", error, found=error.message, expected=_KEY)
            return None
        failure: EvidenceError | None = None
        try:
            require_restricted_signer(public)
        except EvidenceError as error:
            failure = error
        checks.attempt(
            "tpm_key",
            failure,
            found=f"attributes {int(public.attributes):#010x}",
            expected=_KEY,
        )
        # 2. - 5. The quote.
        verified = check_quote(checks, quote, public.key, data)
        # 6. The reference values of PCRs.
        appraise_pcrs(checks, verified, self._values)
        keyed = appraise_exchange_key(
            checks, verified, self._values, proof=evidence.proof, data=data
        )
        # 7. The owner of the key. This comes last, because it may need another round.
        digest = hashlib.sha256(public.raw).hexdigest()
        endorsed = self._check_owner(checks, evidence, parts, public=public, now=now)
        return Claims(
            kind=self._kind,
            measurement=digest,
            simulated=False,
            attributes={
                "ak": digest,
                **({"ek": endorsed} if endorsed else {}),
                **claims_of_quote(verified),
                **keyed,
            },
        )

    def _check_owner(
        self,
        checks: Checks,
        evidence: Evidence,
        parts: Mapping[Piece, bytes],
        *,
        public: PublicArea,
        now: datetime,
    ) -> str:
        """Return the digest of the endorsement key that the key is bound to, or nothing."""
        digest = hashlib.sha256(public.raw).hexdigest()
        if digest in self._values.aks:
            checks.attempt("tpm_owner", None, found=f"key {digest}, listed", expected=_LISTED)
            return ""
        held = all(check.ok for check in checks.done)
        try:
            endorsement = self._endorsement(evidence, parts, now)
            proof = parts.get(Piece.PROOF, b"")
            if not proves(proof, endorsement, public.name, now):
                raise EvidenceError(  # noqa: TRY301  one of several refusals of this check
                    "the TPM has not proven that the attestation key is in it",
                    reason="credential_needed",
                    # Do no work for evidence that fails anyway.
                    challenge=credential_for(endorsement, public.name, now) if held else b"",
                    advice="the agent answers by itself (TPM2_ActivateCredential)",
                )
        except EvidenceError as error:
            checks.attempt("tpm_owner", error, found=error.message, expected=_LISTED)
            return ""
        found = key_digest(endorsement)
        checks.attempt("tpm_owner", None, found=f"endorsement key {found}", expected=_LISTED)
        return found

    def _endorsement(
        self, evidence: Evidence, parts: Mapping[Piece, bytes], now: datetime
    ) -> AttestationKey:
        """Return the endorsement key, if policy trusts it."""
        if evidence.certificates:
            check_size(evidence.certificates)
            key = endorsement_key(evidence.certificates[0])
        elif Piece.ENDORSEMENT in parts:
            key = parse_public(parts[Piece.ENDORSEMENT]).key
        else:
            raise EvidenceError(
                "the attestation key is not listed, and no endorsement key is given",
                reason="tpm_key_unknown",
            )
        if key_digest(key) in self._values.eks:
            return key
        if not self._roots or not evidence.certificates:
            raise EvidenceError(
                f"neither the attestation key nor the endorsement key {key_digest(key)} is listed",
                reason="tpm_key_unknown",
            )
        verify_endorsement(evidence.certificates, self._roots, now=now)
        return key
