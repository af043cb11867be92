"""The authority's decisions from a request to certificates, without streams and sockets.

Owns the order: size, policy epoch, evidence, then each item by itself. Invariants: certificates are
issued only from :class:`Accepted`, which only :meth:`RegistrationAuthority.accept` makes; one
request is signed by one signer throughout; every issued or refused certificate is in the journal,
and a request that is refused as a whole is in it once.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from sds._proto.sds.ca.v1 import ca_pb2
from sds.attestation.csr import parse_attested_csr
from sds.attestation.evidence import item_digest
from sds.ca.issuer import issue
from sds.ca.journal import ISSUED
from sds.errors import CertificateError, EvidenceError, RefusedError, SdsError
from sds.exchange import wire
from sds.exchange.challenge import (
    MAX_ITEMS,
    AuthorityStatement,
    attested_csr_report_data,
    request_report_data,
)
from sds.identity import MAX_DNS_NAMES, SpiffeId, TrustDomain, parse_dns_name
from sds.pki import certificate_der, csr_public_key, key_type_of, spki_sha256
from sds.policy.nodes import RequestedCertificate

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sds.attestation.evidence import Claims, Evidence, ReportData, Verifier
    from sds.ca.issuance import IssuancePolicy
    from sds.ca.issuer import Signer
    from sds.ca.journal import Journal
    from sds.ca.signers import SigningState
    from sds.ca.tls import ServerTls
    from sds.clock import Clock
    from sds.pki import PublicKey

_LOGGER = logging.getLogger(__name__)
MAX_CSR_BYTES: Final = 32 * 1024
"""The longest CSR of one item: agents write the names into it too, and the 100 longest ones have 25
KiB. Of the names in it, nothing is parsed."""
MAX_ATTESTED_CSR_BYTES: Final = 256 * 1024
"""The longest CSR that carries its own evidence."""
_YIELD_EVERY: Final = 16
"""How many items are handled before other streams may run: about 4 ms of signing."""
ITEMS_A_TURN: Final = 32
"""How many items of one request are handled before other requests have their turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """A request whose evidence was accepted.

    Attributes:
        claims: what the evidence proved.
        evidence: the SHA-256 of its report.
        items: the requested items, each still to be decided.
        signer: signs all of them.
        roots: the trust bundle at that moment.
        peer: where it came from; it is only recorded and decides nothing.
    """

    claims: Claims
    evidence: str
    items: Sequence[ca_pb2.Item]
    signer: Signer
    roots: tuple[bytes, ...]
    peer: str


class RegistrationAuthority:
    """Verifies callers, lets policy decide, and has certificates signed (RFC 5280, section 3)."""

    def __init__(
        self,
        *,
        trust_domain: TrustDomain,
        signers: SigningState,
        policy: IssuancePolicy,
        verifier: Verifier,
        journal: Journal,
        clock: Clock,
        tls: ServerTls,
        backdate: timedelta = timedelta(seconds=30),
    ) -> None:
        """Args: whose names, who signs, who decides, who verifies, where it is written down.

        ``tls`` names the key that answers; ``backdate`` is the time before now from which
        certificates are valid.
        """
        self._trust_domain = trust_domain
        self._signers = signers
        self._policy = policy
        self._verifier = verifier
        self._journal = journal
        self._clock = clock
        self._tls = tls
        self._backdate = backdate

    def statement(self) -> AuthorityStatement:
        """Return what we state about ourselves now.

        Raises:
            RefusedError: ``authority_not_ready``: we have nothing to sign with.
        """
        signer = self._signers.current()
        return AuthorityStatement(
            issuing_chain=signer.chain,
            issuing_key=signer.key_id,
            roots=self._signers.roots,
            tls_key=self._tls.key_digest,
            policy_digest=self._policy.digest,
            policy_epoch=self._policy.epoch,
        )

    def check_size(self, request: ca_pb2.CertificateRequest) -> None:
        """Run check 1: a request has at most 1,000 items.

        One without items asks only whether the agent's policy is ours.

        Raises:
            RefusedError: ``batch_too_large``: it has more.
        """
        if len(request.items) > MAX_ITEMS:
            raise RefusedError(
                f"the request has {len(request.items)} items, and at most {MAX_ITEMS} are accepted",
                reason="batch_too_large",
            )

    def accept(self, request: ca_pb2.CertificateRequest, peer: str) -> Accepted:
        """Run checks 4 and 5 of a request whose nonce was redeemed: policy, then evidence.

        An agent whose policy is behind is told so, and gets the newer policy, only after its
        evidence was accepted: a policy is not secret, but strangers need not have it.

        Raises:
            RefusedError: ``policy_behind``: the agent's policy is not ours.
            EvidenceError: the evidence is invalid, or not for this request.
        """
        behind: RefusedError | None = None
        try:
            self._policy.admit(
                digest=request.policy_digest,
                epoch=request.policy_epoch,
                document=request.signed_policy,
            )
        except RefusedError as error:
            if error.reason != "policy_behind":
                raise
            behind = error
        evidence = wire.evidence_from_wire(request.evidence)
        claims = self._verified(
            evidence,
            request_report_data(
                nonce=request.nonce,
                policy_digest=request.policy_digest,
                digests=[
                    item_digest(
                        csr=item.csr,
                        spiffe_id=item.spiffe_id,
                        dns_names=tuple(item.dns_names),
                        lifetime=item.lifetime_seconds,
                        signing=item.signing,
                    )
                    for item in request.items
                ],
            ),
            self._clock.now().wall,
        )
        if behind is not None:
            raise behind
        return Accepted(
            claims=claims,
            evidence=evidence.digest,
            items=request.items,
            signer=self._signers.current(),
            roots=self._signers.roots,
            peer=peer,
        )

    async def issue(self, accepted: Accepted, *, done: int) -> list[ca_pb2.ItemResult]:
        """Issue or refuse the next items, in order, and let the event loop run now and then.

        Args:
            accepted: the request.
            done: how many of its items have their result.
        """
        results = []
        for index, item in enumerate(accepted.items[done : done + ITEMS_A_TURN]):
            if index and index % _YIELD_EVERY == 0:
                await asyncio.sleep(0)
            results.append(self._item(accepted, item))
        return results

    def issue_attested_csr(
        self, request: ca_pb2.AttestedCsr, peer: str
    ) -> tuple[Accepted, ca_pb2.ItemResult]:
        """Issue for a CSR that carries its own evidence; its nonce was redeemed.

        Raises:
            CertificateError: ``csr_invalid``: it cannot be parsed.
            EvidenceError: the evidence is invalid, or not for this key and nonce.
        """
        if len(request.csr) > MAX_ATTESTED_CSR_BYTES:
            raise _too_long(MAX_ATTESTED_CSR_BYTES)
        csr = parse_attested_csr(request.csr)
        now = self._clock.now().wall
        claims = self._verified(
            csr.evidence,
            attested_csr_report_data(nonce=request.nonce, key_digest=spki_sha256(csr.public_key)),
            now,
        )
        accepted = Accepted(
            claims=claims,
            evidence=csr.evidence.digest,
            items=(),
            signer=self._signers.current(),
            roots=self._signers.roots,
            peer=peer,
        )
        try:
            wanted = self._wanted(
                key=csr.public_key,
                spiffe_id=str(csr.spiffe_id),
                dns_names=csr.dns_names,
                lifetime=request.lifetime_seconds,
                signing=False,
            )
            return accepted, self._decide(accepted, wanted, csr.public_key, now)
        except SdsError as error:
            return accepted, self._refuse(accepted, str(csr.spiffe_id), error, now)

    def _verified(self, evidence: Evidence, data: ReportData, now: datetime) -> Claims:
        """Return what the evidence proves; an error has the evidence's digest, for the journal."""
        try:
            return self._verifier.verify(evidence, data=data, now=now)
        except EvidenceError as error:
            error.digest = evidence.digest
            raise

    def refused(self, peer: str, error: SdsError) -> None:
        """Record that a whole request was refused; a question to the attester is no refusal."""
        if isinstance(error, EvidenceError) and error.challenge:
            _LOGGER.debug("asked for a proof", extra={"reason": error.reason, "peer": peer})
            return
        self._journal.append(
            at=self._clock.now().wall,
            identity="",
            reason=error.reason,
            policy_epoch=self._policy.epoch,
            evidence=error.digest if isinstance(error, EvidenceError) else "",
            measurement="",
            peer=peer,
            message=str(error),
        )

    def policy_for(self, error: SdsError) -> bytes:
        """Return the signed policy to hand to a caller that was refused with ``error``."""
        return self._policy.document if error.reason == "policy_behind" else b""

    def _item(self, accepted: Accepted, item: ca_pb2.Item) -> ca_pb2.ItemResult:
        now = self._clock.now().wall
        try:
            if len(item.csr) > MAX_CSR_BYTES:
                raise _too_long(MAX_CSR_BYTES)
            key = csr_public_key(item.csr)
            wanted = self._wanted(
                key=key,
                spiffe_id=item.spiffe_id,
                dns_names=item.dns_names,
                lifetime=item.lifetime_seconds,
                signing=item.signing,
            )
            return self._decide(accepted, wanted, key, now)
        except SdsError as error:
            return self._refuse(accepted, item.spiffe_id[:300], error, now)

    def _wanted(
        self,
        *,
        key: PublicKey,
        spiffe_id: str,
        dns_names: Sequence[str],
        lifetime: int,
        signing: bool,
    ) -> RequestedCertificate:
        parsed = SpiffeId.parse(spiffe_id)
        if parsed.trust_domain != self._trust_domain:
            raise RefusedError(
                f"this authority is {self._trust_domain}'s, and {parsed} is another trust domain's",
                reason="spiffe_id_not_allowed",
            )
        if len(dns_names) > MAX_DNS_NAMES:
            raise RefusedError(
                f"{len(dns_names)} DNS names were asked for, more than {MAX_DNS_NAMES}",
                reason="dns_name_not_allowed",
            )
        if lifetime < 1:
            raise RefusedError(
                "a lifetime of zero seconds was asked for", reason="lifetime_not_allowed"
            )
        return RequestedCertificate(
            spiffe_id=parsed,
            dns_names=tuple(sorted({parse_dns_name(name) for name in dns_names})),
            lifetime=timedelta(seconds=lifetime),
            key_type=key_type_of(key),
            signing=signing,
        )

    def _decide(
        self, accepted: Accepted, wanted: RequestedCertificate, key: PublicKey, now: datetime
    ) -> ca_pb2.ItemResult:
        permit = self._policy.decide(accepted.claims, wanted, now=now)
        certificate = issue(
            accepted.signer,
            wanted=wanted,
            permit=permit,
            public_key=key,
            now=now,
            backdate=self._backdate,
        )
        self._journal.append(
            at=now,
            identity=str(wanted.spiffe_id),
            reason=ISSUED,
            policy_epoch=self._policy.epoch,
            evidence=accepted.evidence,
            measurement=accepted.claims.measurement,
            peer=accepted.peer,
            serial=f"{certificate.serial_number:x}",
            not_after=certificate.not_valid_after_utc,
        )
        return ca_pb2.ItemResult(certificate=ca_pb2.Certificate(leaf=certificate_der(certificate)))

    def _refuse(
        self, accepted: Accepted, identity: str, error: SdsError, now: datetime
    ) -> ca_pb2.ItemResult:
        self._journal.append(
            at=now,
            identity=identity,
            reason=error.reason,
            policy_epoch=self._policy.epoch,
            evidence=accepted.evidence,
            measurement=accepted.claims.measurement,
            peer=accepted.peer,
            message=str(error),
        )
        return wire.item_refusal_to_wire(error)


def _too_long(most: int) -> CertificateError:
    return CertificateError(f"the CSR has more than {most} bytes", reason="csr_invalid")
