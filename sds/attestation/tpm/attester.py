"""Collects evidence of a machine with a TPM 2.0: a quote of its PCRs by a key inside it.

Owns one attempt, and the answer to an authority's credential. Invariants: nothing blocks the event
loop; the evidence binds the requested data; the number of attempts is bounded; the attestation key
is the same at every start, because its template and the TPM's seed are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sds import threads
from sds.attestation.attempts import attempted
from sds.attestation.evidence import Evidence, EvidenceKind
from sds.attestation.tpm import commands
from sds.attestation.tpm.attest import SHA256_BANK
from sds.attestation.tpm.challenge import split_credential
from sds.attestation.tpm.device import RESOURCE_MANAGER, open_tpm
from sds.attestation.tpm.endorsement import issuers_above
from sds.attestation.tpm.issuers import IssuerFolder
from sds.attestation.tpm.parcel import Piece, pack, parts_of
from sds.attestation.tpm.quote import qualifying_data
from sds.backoff import Backoff
from sds.clock import SystemClock
from sds.errors import EvidenceError, EvidenceUnavailableError

if TYPE_CHECKING:
    from pathlib import Path

    from sds.attestation.evidence import ReportData
    from sds.attestation.settings import AttestationSection
    from sds.attestation.tpm.device import Tpm
    from sds.clock import Clock

ATTEMPTS: Final = 6
_BACKOFF: Final = Backoff(first=0.1, longest=2.0)
# TCG EK Credential Profile, section 2.2.1.4: NV index of the certificate -> the key's template.
_ENDORSEMENTS: Final = (
    (0x01C0_0002, commands.EK_RSA_TEMPLATE),
    (0x01C0_000A, commands.EK_ECC_TEMPLATE),
)
_LONG_FORM: Final = b"\x30\x82"


class TpmAttester:
    """Collects evidence from a TPM.

    Args:
        device: the TPM.
        clock: makes the pauses between attempts.
        issuers: the folder of the endorsement certificate's issuers, or None.
    """

    def __init__(self, device: Path, clock: Clock, *, issuers: IssuerFolder | None = None) -> None:
        self._device = device
        self._clock = clock
        self._folder = issuers
        self._proof = b""

    async def attest(self, data: ReportData) -> Evidence:
        """Collect evidence whose quote binds ``data``; try again if that can help.

        Raises:
            EvidenceError: ``evidence_unsupported``: there is no TPM; ``tpm_refused``.
            EvidenceUnavailableError: the TPM was busy, or its PCRs changed at every attempt.
        """
        return await attempted(
            lambda: threads.EVIDENCE.run(self._collect, data, self._proof),
            most=ATTEMPTS,
            pauses=_BACKOFF,
            clock=self._clock,
        )

    async def answer_challenge(self, challenge: bytes) -> None:
        """Open an authority's credential; all later evidence proves that.

        Raises:
            EvidenceError: ``tpm_refused``: it is not for these keys; ``evidence_malformed``.
        """
        credential, secret = split_credential(challenge)
        self._proof = await threads.EVIDENCE.run(self._activate, credential, secret)

    def _collect(self, data: ReportData, proof: bytes) -> Evidence:
        with open_tpm(self._device) as tpm:
            certificate, template = _endorsement(tpm)
            parts = {}
            if not certificate:
                endorsement = commands.create_primary(tpm, commands.ENDORSEMENT, template)
                parts[Piece.ENDORSEMENT] = endorsement.public
                tpm.flush(endorsement.handle)
            key = commands.create_primary(tpm, commands.ENDORSEMENT, commands.AK_TEMPLATE)
            quote = commands.quote(tpm, key.handle, qualifying_data(data), SHA256_BANK)
        parts |= {**parts_of(quote), Piece.PUBLIC: key.public}
        if proof:
            parts[Piece.PROOF] = proof
        chain = (certificate, *self._issuers(certificate)) if certificate else ()
        return Evidence(kind=EvidenceKind("tpm"), report=pack(parts), certificates=chain)

    def _issuers(self, certificate: bytes) -> tuple[bytes, ...]:
        """Return what the folder has above the endorsement certificate."""
        known = self._folder.certificates() if self._folder is not None else []
        return issuers_above(certificate, known) if known else ()

    def _activate(self, credential: bytes, secret: bytes) -> bytes:
        with open_tpm(self._device) as tpm:
            _, template = _endorsement(tpm)
            key = commands.create_primary(tpm, commands.ENDORSEMENT, commands.AK_TEMPLATE)
            endorsement = commands.create_primary(tpm, commands.ENDORSEMENT, template)
            return commands.activate_credential(
                tpm,
                key=key.handle,
                endorsement=endorsement.handle,
                credential=credential,
                secret=secret,
            )


def _endorsement(tpm: Tpm) -> tuple[bytes, bytes]:
    """Return certificate (or nothing) and template of the endorsement key."""
    for index, template in _ENDORSEMENTS:
        try:
            contents = commands.nv_read(tpm, index)
        except EvidenceUnavailableError:
            raise
        except EvidenceError:
            continue  # the TPM has no such index
        # Manufacturers pad the index, and the certificate says how long it is.
        if contents.startswith(_LONG_FORM):
            return contents[: 4 + int.from_bytes(contents[2:4], "big")], template
    return b"", commands.EK_RSA_TEMPLATE


def tpm_attester(section: AttestationSection) -> TpmAttester:
    """Make the attester that a section describes; the TPM is not opened yet.

    Raises:
        ConfigurationError: a file in the folder of certificates cannot be used.
    """
    issuers = None
    if section.certificates is not None:
        issuers = IssuerFolder(section.certificates)
        issuers.require()
    return TpmAttester(section.tpm_device or RESOURCE_MANAGER, SystemClock(), issuers=issuers)
