"""The configuration of ``sds ca``: read once, frozen.

Invariants: a valid configuration is complete and consistent; every refusal names the field.
``docs/exchange.md`` shows a whole file.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from sds.attestation.settings import AttestationSection, VerificationSection
from sds.authority.settings import AuthoritySection  # noqa: TC001  pydantic reads it at run time
from sds.ca.issuance import ConfiguredIssuance
from sds.ca.kubernetes import KubernetesSection  # noqa: TC001  pydantic reads it at run time
from sds.ca.longest_lifetime import longest_lifetime
from sds.ca.server import ExchangeLimits
from sds.identity import KeyType
from sds.operations.settings import HealthSection, ListenSection, MetricsSection
from sds.policy.rule_fields import Measurement  # noqa: TC001  as above
from sds.policy.ruleset import AuthorityGrant, Grant, NodeGroup, RuleLimits, RuleSet
from sds.policy.settings import PolicySettings  # noqa: TC001  pydantic reads it at run time
from sds.rules.duration import format_duration
from sds.rules.pattern import format_spiffe_pattern
from sds.settings.field_types import (
    MOST,
    CertificateDnsName,
    Count,
    DnsPattern,
    Duration,
    PathField,
    Settings,
    Size,
    SpiffePattern,
    TrustDomainField,
)
from sds.settings.https_url import check_host
from sds.settings.listen import ListenAddress, host_and_port
from sds.settings.overwriting import require_files_of_their_own
from sds.workload.mapping import check_trust_domain

_SIGNING_KEYS = frozenset({KeyType.EC_P256, KeyType.EC_P384, KeyType.ED25519})
_LEAVES_IN_A_ROOT = 4
"""A root lives at least this many times as long as the longest leaf: it is renewed at half of its
life, and the next one is in the bundle for a leaf's life before it signs."""


def _signing_key(key_type: KeyType) -> KeyType:
    if key_type not in _SIGNING_KEYS:
        raise ValueError(f"an authority's key is one of {', '.join(sorted(_SIGNING_KEYS))}")
    return key_type


def _backdate(backdate: timedelta) -> timedelta:
    if backdate > timedelta(days=1):
        raise ValueError("a certificate becomes valid at most one day before it is made")
    return backdate


SigningKey = Annotated[KeyType, AfterValidator(_signing_key)]


class TlsSection(Settings):
    """The authority's TLS key. Without files, the authority makes one at start."""

    certificate: PathField | None = Field(
        default=None, description="PEM file with a TLS certificate chain of your own. Needs `key`."
    )
    key: PathField | None = Field(default=None, description="PEM file with its key, unencrypted.")
    server_names: list[CertificateDnsName] = Field(
        default=[],
        description="DNS names in the self-signed certificate, for agents that verify TLS by a "
        "root and a name.",
    )
    certificate_out: PathField | None = Field(
        default=None,
        description="Where to write the self-signed certificate (never the key), for agents "
        "that take it as their root.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("give certificate and key together, or neither")
        if self.certificate is not None and (self.server_names or self.certificate_out):
            raise ValueError("server_names and certificate_out belong to a self-signed certificate")
        return self


class SelfSignedSection(Settings):
    """The authority makes its own root."""

    kind: Literal["self-signed"] = Field(
        default="self-signed", description="The authority makes its own root."
    )
    key_type: SigningKey = Field(default=KeyType.EC_P256, description="Kind of the issuing key.")
    lifetime: Duration = Field(
        default=timedelta(days=30),
        description="Lifetime of the root. The authority makes the next one half-way through it.",
    )
    path_length: Annotated[int, Field(ge=0, le=6)] = Field(
        default=1, description="How many levels of authorities may be below this one."
    )


class UpstreamSection(Settings):
    """Another ``sds ca`` certifies the authority."""

    kind: Literal["upstream"] = Field(description="Another `sds ca` certifies this authority.")
    key_type: SigningKey = Field(default=KeyType.EC_P256, description="Kind of the issuing key.")
    lifetime: Duration = Field(
        default=timedelta(days=1),
        description="The lifetime that this authority asks for; the authority above may shorten"
        " it.",
    )
    authority: AuthoritySection = Field(description="The authority above.")
    verification: VerificationSection | None = Field(
        default=None,
        description="What the evidence of the authority above must show. Without this block it "
        "needs no evidence, unless the policy has `reference_values.authorities`; that requires "
        "`tls` with `root` and `server_name`.",
    )

    @model_validator(mode="after")
    def _vouched_for(self) -> Self:
        if self.verification is None and self.authority.tls == "attested":
            raise ValueError("attested TLS needs verification: what its evidence must show")
        return self


class OperatorSection(Settings):
    """A person or an existing PKI certifies the authority."""

    kind: Literal["operator"] = Field(
        description="A person or an existing PKI certifies this authority."
    )
    key_type: SigningKey = Field(default=KeyType.EC_P256, description="Kind of the issuing key.")
    csr_file: PathField = Field(
        description="Where the authority writes its certificate request, in PEM."
    )
    chain_file: PathField = Field(
        description="Where you put the chain, in PEM: the issuing certificate first."
    )
    roots_file: PathField = Field(
        description="PEM file with the roots of that chain. They become the bundle."
    )


class SigningSection(Settings):
    """What an authority below this one may have."""

    path_length: Annotated[int, Field(ge=0, le=6)] = Field(
        default=0, description="How many levels of authorities may be below that one."
    )


class IdentitySection(Settings):
    """What one measurement may ask for."""

    measurement: Measurement = Field(description="Launch measurement: 96 digits (SNP, TDX) or 64.")
    spiffe_ids: list[SpiffePattern] = Field(
        default=[], description="The SPIFFE IDs that this measurement may ask for."
    )
    dns_names: list[DnsPattern] = Field(
        default=[], description="The DNS names that it may ask for."
    )
    max_lifetime: Duration = Field(
        default=timedelta(hours=1),
        description="The longest lifetime. A request for more is shortened to it.",
    )
    key_types: Annotated[list[KeyType], Field(min_length=1)] = Field(
        default=list(KeyType), description="The kinds of key that it may use."
    )
    signing: SigningSection | None = Field(
        default=None,
        description="If this block is there, the measurement may be an authority below this one.",
    )

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.spiffe_ids and self.signing is None:
            raise ValueError("give spiffe_ids, signing or both: this rule grants nothing")
        if self.dns_names and not self.spiffe_ids:
            raise ValueError("dns_names: they come with a SPIFFE ID: give spiffe_ids too")
        return self

    def group(self, number: int) -> NodeGroup:
        """Return the same as an entry under ``nodes:`` of a policy."""
        grants = (
            [
                Grant(
                    spiffe_ids=self.spiffe_ids,
                    dns_names=self.dns_names,
                    max_lifetime=self.max_lifetime,
                    key_types=self.key_types,
                )
            ]
            if self.spiffe_ids
            else []
        )
        return NodeGroup(
            name=f"identities.{number}",
            measurements=[self.measurement],
            grants=grants,
            authority=AuthorityGrant(
                path_length=self.signing.path_length,
                max_lifetime=self.max_lifetime,
                key_types=self.key_types,
            )
            if self.signing
            else None,
        )


class ExchangeLimitsSection(Settings):
    """How much callers may make the authority keep."""

    streams: Count = Field(
        default=10_000,
        description="How many streams may be open. While fewer than an eighth are free, a machine "
        "that has more than an eighth loses its oldest; while fewer than a 32nd are free, the one "
        "with the most does, if it has more than eight.",
    )
    unproven: Count = Field(
        default=1_000,
        description="How many of them may be open without having shown valid evidence.",
    )
    unproven_bytes: Size = Field(
        default=64 * 1024 * 1024,
        description="How many bytes of unfinished messages such streams may send together.",
    )
    connections: Count | None = Field(
        default=None,
        description="Connections at once. Without it: what the memory limit of the control group "
        "and the limit on descriptors have room for, and at most one for each stream.",
    )
    nonces: Count = Field(
        default=65_536, description="How many nonces may be outstanding on all streams together."
    )
    hello: Duration = Field(
        default=timedelta(seconds=30),
        description="How long a stream may live without a request whose evidence is valid.",
    )
    write: Duration = Field(
        default=timedelta(seconds=30), description="How long a caller may take to read one answer."
    )
    message: Annotated[Size, Field(ge=64 << 10, le=MOST)] = Field(
        default=4 * 1024 * 1024, description="The largest message."
    )
    records: Count = Field(
        default=10_000,
        description="How many records of issued and refused certificates stay in memory.",
    )

    @model_validator(mode="after")
    def _room_for_a_message(self) -> Self:
        if self.unproven_bytes < self.message:
            why = "it is less than message, so that no machine could ever show its evidence in one"
            raise ValueError(f"unproven_bytes: {why}: raise it")
        return self

    def limits(self) -> ExchangeLimits:
        """Return the limits as the server takes them."""
        return ExchangeLimits(
            streams=self.streams,
            unproven=self.unproven,
            unproven_bytes=self.unproven_bytes,
            hello_seconds=self.hello.total_seconds(),
            write_seconds=self.write.total_seconds(),
            message_bytes=self.message,
        )


class CollateralSection(ListenSection):
    """Gives agents the public collateral that this authority has verified."""

    listen: str = Field(
        description="Where to listen, as `host:port`, by plain HTTP: all answers are public and "
        "signed. Agents name it as `verification.fetch.pcs`, `verification.fetch.kds` and "
        "`attestation.certificate_server`.",
    )
    spacing: Annotated[float, Field(ge=0)] = Field(
        default=10.0,
        description="Seconds between two requests for VCEKs: AMD's service gives an address about "
        "one in ten seconds.",
    )

    def address(self) -> ListenAddress:
        """Return the address to listen on; any is allowed, because all answers are public."""
        return ListenAddress.parse(self.listen, field="listen", remote=True)


class AuthorityConfig(Settings):
    """The whole file."""

    trust_domain: TrustDomainField = Field(
        description="The trust domain whose certificates this authority signs."
    )
    listen: str = Field(
        default="127.0.0.1:8443",
        description="Address of the authority, as `host:port`. Port 0 takes a free one.",
    )
    tls: TlsSection = Field(
        default=TlsSection(),
        description="The authority's TLS key. Without files, it makes one at start.",
    )
    signer: Annotated[
        SelfSignedSection | UpstreamSection | OperatorSection, Field(discriminator="kind")
    ] = Field(
        default=SelfSignedSection(), description="How the authority gets its own certificate."
    )
    attestation: AttestationSection = Field(
        default=AttestationSection(),
        description="The evidence that this authority gives to agents.",
    )
    verification: VerificationSection = Field(
        default=VerificationSection(), description="What the evidence of agents must show."
    )
    identities: list[IdentitySection] = Field(
        default=[],
        description="Which measurement may ask for which names. Anything else is refused.",
    )
    policy: PolicySettings | None = Field(
        default=None, description="The signed policy that decides in place of `identities`."
    )
    backdate: Annotated[Duration, AfterValidator(_backdate)] = Field(
        default=timedelta(seconds=30),
        description="How long before now a certificate becomes valid, for clocks that are behind. "
        "At most one day.",
    )
    kubernetes: KubernetesSection | None = Field(
        default=None,
        description="Accept Kubernetes tokens as evidence of nodes without confidential "
        "hardware. Without this block they are refused.",
    )
    health: HealthSection | None = Field(
        default=None, description="An HTTP listener for probes. Without this block there is none."
    )
    collateral: CollateralSection | None = Field(
        default=None,
        description="A listener that gives agents the public collateral that this authority has "
        "fetched and verified, so that a fleet asks the manufacturers once.",
    )
    limits: ExchangeLimitsSection = Field(
        default=ExchangeLimitsSection(), description="How much callers may make the authority keep."
    )
    metrics: MetricsSection | None = Field(
        default=None, description="Prometheus metrics. Without this block there are none."
    )

    @field_validator("listen")
    @classmethod
    def _is_an_address(cls, text: str) -> str:
        advice = "write 127.0.0.1:8443, [::]:8443 or 0.0.0.0:0"
        found = host_and_port(text)
        if found is None:
            raise ValueError(f"expected host:port: {advice}")
        try:
            check_host(found[0], bracketed=":" in found[0])
        except ValueError as error:
            raise ValueError(f"expected an address of this machine: {error}: {advice}") from error
        return text

    @property
    def address(self) -> ListenAddress:
        """Return the address on which the authority listens."""
        host, port = host_and_port(self.listen) or ("", 0)
        return ListenAddress(host=host, port=port)

    @property
    def max_lifetime(self) -> timedelta:
        """Return the lifetime of the longest leaf."""
        return longest_lifetime(
            self.rules(),
            tokens=None if self.kubernetes is None else self.kubernetes.max_lifetime,
            signed_policy=self.policy is not None,
        )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (
            self.attestation.kind == "kubernetes-token"
            and isinstance(self.signer, UpstreamSection)
            and self.signer.authority.tls == "attested"
        ):
            raise ValueError(
                "attestation.kind: a Kubernetes token is sent only over TLS that a configured root "
                "vouches for: write signer.authority.tls with root and server_name"
            )
        if self.attestation.kind == "kubernetes-token" and not isinstance(
            self.signer, UpstreamSection
        ):
            raise ValueError(
                "attestation.kind: a Kubernetes token is evidence for an authority above this one "
                "alone, and signer names none: remove attestation, or write signer.kind: upstream"
            )
        require_files_of_their_own(self, ["tls.certificate_out", "signer.csr_file"])
        if self.policy is not None and self.identities:
            raise ValueError("give policy or identities, not both: one decides")
        for number, section in enumerate(self.identities):
            for glob in section.spiffe_ids:
                if glob.parts[0] != self.trust_domain:
                    raise ValueError(
                        f"identities[{number}]: {format_spiffe_pattern(glob)} is not in "
                        f"{self.trust_domain}, the only trust domain that this authority signs for"
                    )
        if self.kubernetes is not None:
            try:
                check_trust_domain(self.kubernetes.spiffe_id, self.trust_domain)
            except ValueError as error:
                raise ValueError(f"kubernetes.{error}") from error
        shortest = _LEAVES_IN_A_ROOT * self.max_lifetime
        if isinstance(self.signer, SelfSignedSection) and self.signer.lifetime < shortest:
            raise ValueError(
                f"signer.lifetime of {format_duration(self.signer.lifetime)} is less than "
                f"{_LEAVES_IN_A_ROOT} times the longest max_lifetime "
                f"({format_duration(self.max_lifetime)}): lengthen the one or shorten the other"
            )
        return self

    def rules(self) -> RuleSet:
        """Turn the rules of this file into those of an unsigned policy."""
        return RuleSet(
            trust_domain=self.trust_domain,
            nodes=[section.group(number) for number, section in enumerate(self.identities)],
            limits=RuleLimits(
                max_lifetime=max(
                    (section.max_lifetime for section in self.identities),
                    default=timedelta(hours=1),
                )
            ),
        )

    def issuance(self) -> ConfiguredIssuance:
        """Make the decision that this file describes."""
        return ConfiguredIssuance.by(self.rules())
