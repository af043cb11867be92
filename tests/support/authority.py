"""A running authority for tests, and a machine that attests in a few microseconds.

The machine stands in for hardware where a test is about the exchange, not about evidence: its
reports are real signatures over measurement and report data, checked by a verifier that raises
what the project's verifiers raise.
"""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sds.attestation.evidence import Claims, Evidence, EvidenceKind, ReportData
from sds.authority.attested import AttestedAuthority, AuthoritySettings
from sds.authority.channel import AttestedTls, connect
from sds.ca.app import AuthorityParts, RunningAuthority, running_authority
from sds.ca.issuance import ConfiguredIssuance
from sds.ca.issuer import self_sign
from sds.ca.journal import Journal
from sds.ca.signers import SelfSigned
from sds.ca.tls import self_signed_tls
from sds.clock import SystemClock
from sds.errors import EvidenceError, EvidenceMalformedError
from sds.exchange.item import CertificateItem
from sds.exchange.wire import SERVICE
from sds.identity import Identity, KeyType, SpiffeId, parse_trust_domain
from sds.pki import PrivateKey, generate_private_key, make_csr
from sds.policy.ruleset import AuthorityGrant, Grant, NodeGroup, RuleSet
from sds.rules.pattern import parse_dns_pattern, parse_spiffe_pattern

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

TRUST_DOMAIN = parse_trust_domain("example.org")
AGENT = "aa" * 48
AUTHORITY = "cc" * 48


@dataclass
class Machine:
    """A chip of a kind of its own: one key, one measurement."""

    measurement: str
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    reports: int = 0

    async def attest(self, data: ReportData) -> Evidence:
        self.reports += 1
        body = bytes.fromhex(self.measurement) + data
        return Evidence(kind=EvidenceKind.SEV_SNP, report=body + self.key.sign(body))


@dataclass
class MachineVerifier:
    """Accepts reports of these chips with one of these measurements."""

    chips: list[Ed25519PublicKey]
    measurements: set[str]

    def verify(self, evidence: Evidence, *, data: ReportData, now: datetime) -> Claims:
        report = evidence.report
        if len(report) != 48 + 64 + 64:
            raise EvidenceMalformedError(f"a report of {len(report)} bytes")
        for chip in self.chips:
            with contextlib.suppress(InvalidSignature):
                chip.verify(report[-64:], report[:-64])
                break
        else:
            raise EvidenceError("the report was signed by another chip")
        if report[48:112] != data:
            raise EvidenceError(
                "the report data is not what was demanded", reason="report_data_mismatch"
            )
        measurement = report[:48].hex()
        if measurement not in self.measurements:
            raise EvidenceError(f"the measurement {measurement} is not accepted")
        return Claims(
            kind=evidence.kind,
            measurement=measurement,
            simulated=True,
            attributes={"chip_id": chip.public_bytes_raw().hex()},
        )


def verifier_of(*machines: Machine) -> MachineVerifier:
    return MachineVerifier(
        [machine.key.public_key() for machine in machines],
        {machine.measurement for machine in machines},
    )


def rule(measurement: str = AGENT, **changes: Any) -> NodeGroup:
    """What one measurement may ask for, with these fields changed."""
    fields: dict[str, Any] = {
        "spiffe_ids": (parse_spiffe_pattern("spiffe://example.org/ns/**"),),
        "dns_names": (parse_dns_pattern("**.test"),),
        "max_lifetime": timedelta(hours=1),
        "key_types": frozenset(KeyType),
        "signing_path_length": None,
    }
    assert changes.keys() <= fields.keys()
    fields |= changes
    bounds = {"max_lifetime": fields["max_lifetime"], "key_types": sorted(fields["key_types"])}
    path_length = fields["signing_path_length"]
    return NodeGroup(
        name=f"group-{next(_NUMBERS)}",
        measurements=[measurement],
        grants=[
            Grant(
                spiffe_ids=list(fields["spiffe_ids"]),
                dns_names=list(fields["dns_names"]),
                **bounds,
            )
        ],
        authority=None
        if path_length is None
        else AuthorityGrant(path_length=path_length, **bounds),
    )


_NUMBERS = itertools.count()


def configured(*groups: NodeGroup) -> ConfiguredIssuance:
    """Issuance by these groups, as an authority's configuration makes it."""
    return ConfiguredIssuance.by(RuleSet(trust_domain=TRUST_DOMAIN, nodes=list(groups)))


@dataclass
class World:
    """One authority's machine and one agent's, who know each other."""

    agent: Machine = field(default_factory=lambda: Machine(AGENT))
    authority: Machine = field(default_factory=lambda: Machine(AUTHORITY))
    journal: Journal = field(default_factory=Journal)

    def parts(self, **changes: Any) -> AuthorityParts:
        clock = SystemClock()
        default = AuthorityParts(
            trust_domain=TRUST_DOMAIN,
            listen="127.0.0.1:0",
            tls=self_signed_tls(),
            source=SelfSigned(
                trust_domain=TRUST_DOMAIN,
                key_type=KeyType.EC_P256,
                lifetime=timedelta(days=1),
                path_length=1,
                backdate=timedelta(seconds=30),
                clock=clock,
            ),
            policy=configured(rule()),
            verifier=verifier_of(self.agent),
            attester=self.authority,
            clock=clock,
            max_lifetime=timedelta(hours=1),
            journal=self.journal,
        )
        return replace(default, **changes)

    @contextlib.asynccontextmanager
    async def running(self, **changes: Any) -> AsyncIterator[RunningAuthority]:
        async with running_authority(self.parts(**changes)) as running:
            await running.signing.ready.wait()
            yield running

    @contextlib.asynccontextmanager
    async def client(self, *ports: int, **changes: Any) -> AsyncIterator[AttestedAuthority]:
        settings = changes.pop("settings", None) or AuthoritySettings(
            addresses=tuple(f"127.0.0.1:{port}" for port in ports), connect_seconds=5
        )
        client = AttestedAuthority(
            settings,
            attester=changes.pop("attester", self.agent),
            verifier=changes.pop("verifier", verifier_of(self.authority)),
            clock=changes.pop("clock", SystemClock()),
            **changes,
        )
        try:
            yield client
        finally:
            await client.aclose()


def identity(path: str = "/ns/a/sa/web", **changes: Any) -> Identity:
    default = Identity(
        spiffe_id=SpiffeId.parse(f"spiffe://example.org{path}"),
        dns_names=("web.a.test",),
        lifetime=timedelta(minutes=5),
    )
    return replace(default, **changes)


def wish(
    wanted: Identity | None = None, key: PrivateKey | None = None
) -> tuple[PrivateKey, CertificateItem]:
    wanted = wanted or identity()
    key = key or generate_private_key(wanted.key_type)
    return key, CertificateItem(identity=wanted, csr=make_csr(key, wanted))


def items(wishes: Iterable[tuple[PrivateKey, CertificateItem]]) -> list[CertificateItem]:
    return [item for _, item in wishes]


async def replica_health(port: int) -> int:
    """What the authority on this port of the loopback says of itself (``grpc.health.v1``)."""
    connection = await connect([f"127.0.0.1:{port}"], AttestedTls(), seconds=5)
    try:
        stub = health_pb2_grpc.HealthStub(connection.channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=SERVICE))
        return int(answer.status)
    finally:
        await connection.channel.close()


def renew(authority: RunningAuthority) -> None:
    """Let it sign under another root, and with another key."""
    signer = self_sign(
        key=generate_private_key(KeyType.ED25519),
        trust_domain=TRUST_DOMAIN,
        lifetime=timedelta(hours=2),
        path_length=None,
        now=SystemClock().now().wall,
        backdate=timedelta(0),
    )
    authority.signing.publish((signer.root,))
    authority.signing.activate(signer)
