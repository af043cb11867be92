"""The policy document: what its author writes, as typed and checked data.

Owns the model, and through it the JSON Schema in ``docs/policy.schema.json``. Invariants: an
unknown field is an error; times are aware; every name and pattern is valid; everything here is
what the author wrote, nothing is decided (:mod:`sds.policy.decision` does that) and nothing says
that it was signed (:mod:`sds.policy.trust` does that).
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    StrictBool,
    StrictInt,
    WithJsonSchema,
    model_validator,
)

from sds.attestation.evidence import EvidenceKind  # noqa: TC001  pydantic reads annotations
from sds.attestation.reference_values import ReferenceValues  # noqa: TC001  as above
from sds.errors import CertificateError, ConfigurationError, IdentityError
from sds.identity import KeyType, SpiffeId, TrustDomain, parse_trust_domain
from sds.pki import certificates_from_pem
from sds.policy.pattern import (
    Glob,
    format_dns_pattern,
    format_spiffe_pattern,
    parse_dns_pattern,
    parse_spiffe_pattern,
)
from sds.policy.requests import (
    RequestPattern,
    format_path_pattern,
    parse_host_pattern,
    parse_method,
    parse_path_pattern,
)
from sds.policy.signature import TrustedKeys, verification_key
from sds.workload.mapping import Matching, WorkloadRule

if TYPE_CHECKING:
    from collections.abc import Callable

_MAX_EPOCH: Final = 2**63 - 1
_DURATION: Final = re.compile(r"(?P<number>[0-9]{1,9})(?P<unit>[smhd])", re.ASCII)
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LONGEST: Final = timedelta(days=366)


def _parser(parse: Callable[[str], Any]) -> Callable[[object], Any]:
    """``parse`` as a pydantic validator: only of text, our errors as ValueError."""

    def validate(value: object) -> Any:
        if not isinstance(value, str):
            raise ValueError("write it as text, in quotes where YAML takes it for something else")  # noqa: TRY004  pydantic reports ValueError
        try:
            return parse(value)
        except IdentityError as error:
            raise ValueError(str(error)) from error

    return validate


def parse_duration(value: object) -> timedelta:
    """A duration: whole seconds, or a number with ``s``, ``m``, ``h`` or ``d``.

    Raises:
        ValueError: not such a duration, not positive, or above 366 days.
    """
    duration: timedelta | None = None
    if isinstance(value, timedelta):
        duration = value
    elif isinstance(value, int) and not isinstance(value, bool):
        duration = timedelta(seconds=value) if value <= _LONGEST.total_seconds() else None
    elif isinstance(value, str) and (match := _DURATION.fullmatch(value)):
        seconds = int(match["number"]) * _UNITS[match["unit"]]
        duration = timedelta(seconds=seconds) if seconds <= _LONGEST.total_seconds() else None
    if duration is None or not timedelta(0) < duration <= _LONGEST:
        raise ValueError(f"{value!r} is no duration: write seconds, or 30s, 15m, 1h, 7d (at most)")
    return duration


def format_duration(duration: timedelta) -> str:
    """The duration as :func:`parse_duration` reads it, in the largest unit that fits."""
    seconds = int(duration.total_seconds())
    for unit in "dhm":
        if seconds % _UNITS[unit] == 0:
            return f"{seconds // _UNITS[unit]}{unit}"
    return f"{seconds}s"


def _utc(moment: datetime) -> datetime:
    return moment.astimezone(UTC)


Duration = Annotated[
    timedelta,
    PlainValidator(parse_duration),
    PlainSerializer(format_duration),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1},
                {"type": "string", "pattern": "^[0-9]{1,9}[smhd]$"},
            ],
            "description": "seconds, or a number with s, m, h or d",
        }
    ),
]
SpiffePattern = Annotated[
    Glob,
    PlainValidator(_parser(parse_spiffe_pattern)),
    PlainSerializer(format_spiffe_pattern),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": "^spiffe://[a-z0-9._-]+(/.*)?$",
            "description": "SPIFFE ID; * for (the rest of) one segment, ** at the end for more",
        }
    ),
]
DnsPattern = Annotated[
    Glob,
    PlainValidator(_parser(parse_dns_pattern)),
    PlainSerializer(format_dns_pattern),
    WithJsonSchema(
        {
            "type": "string",
            "description": "DNS name; * for (the rest of) one label, ** at the start for more",
        }
    ),
]
SpiffeIdField = Annotated[
    SpiffeId,
    PlainValidator(_parser(SpiffeId.parse)),
    PlainSerializer(str),
    WithJsonSchema({"type": "string", "pattern": "^spiffe://"}),
]
TrustDomainField = Annotated[
    TrustDomain,
    PlainValidator(_parser(parse_trust_domain)),
    WithJsonSchema({"type": "string", "pattern": "^[a-z0-9._-]{1,255}$"}),
]
Method = Annotated[
    str,
    PlainValidator(_parser(parse_method)),
    WithJsonSchema({"type": "string", "pattern": "^[A-Z][A-Z0-9_-]{0,31}$"}),
]
PathPattern = Annotated[
    Glob,
    PlainValidator(_parser(parse_path_pattern)),
    PlainSerializer(format_path_pattern),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": "^/",
            "description": "path; * for (the rest of) one segment, ** at the end for all below",
        }
    ),
]
HostPattern = Annotated[
    Glob,
    PlainValidator(_parser(parse_host_pattern)),
    PlainSerializer(format_dns_pattern),
    WithJsonSchema({"type": "string", "description": "DNS name, with stars as in dns_names"}),
]
Port = Annotated[StrictInt, Field(ge=1, le=65535)]
Moment = Annotated[AwareDatetime, AfterValidator(_utc)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,252}$")]
Measurement = Annotated[
    str,
    Field(pattern=r"^[0-9a-f]{96}$"),
]


def _listed(value: object) -> object:
    """One pattern may be written without a list."""
    return [value] if isinstance(value, str) else value


Patterns = Annotated[
    list[SpiffePattern],
    Field(min_length=1),
    BeforeValidator(_listed, json_schema_input_type=SpiffePattern | list[SpiffePattern]),
]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class SignerKey(_Model):
    """One who may sign the next epochs."""

    name: Name
    public_key: Annotated[str, Field(description="Ed25519, P-256 or P-384, PEM")]


class Signers(_Model):
    """Who must sign the epochs after this one. This one must be signed by them too."""

    threshold: Annotated[StrictInt, Field(ge=1)]
    keys: Annotated[list[SignerKey], Field(min_length=1, max_length=64)]

    @model_validator(mode="after")
    def _usable(self) -> Self:
        self.trusted()
        return self

    def trusted(self) -> TrustedKeys:
        """The keys as verification takes them."""
        try:
            return TrustedKeys(
                keys=tuple(verification_key(key.public_key, name=key.name) for key in self.keys),
                threshold=self.threshold,
            )
        except ConfigurationError as error:
            raise ValueError(str(error)) from error


class Grant(_Model):
    """Identities that a group of nodes may ask for, and what their certificates may hold.

    Attributes:
        spiffe_ids: patterns of the SPIFFE IDs.
        dns_names: patterns of the DNS names; none where empty.
        max_lifetime: longest lifetime; a longer one that is asked for is cut to it.
        key_types: kinds of key; those of the policy's ``limits`` where empty.
    """

    spiffe_ids: Patterns
    dns_names: list[DnsPattern] = []
    max_lifetime: Duration | None = None
    key_types: list[KeyType] = []


class AuthorityGrant(_Model):
    """Nodes that may be authorities below the one that they ask.

    Attributes:
        path_length: authorities that may stand below them in turn.
        max_lifetime: longest lifetime of their signing certificate.
    """

    path_length: Annotated[StrictInt, Field(ge=0, le=8)] = 0
    max_lifetime: Duration = timedelta(days=7)


class NodeGroup(_Model):
    """Nodes that are treated alike, recognised by verified evidence. All conditions must hold.

    Attributes:
        name: names the group in logs, records and explanations.
        kinds: kinds of evidence; any where empty.
        measurements: launch measurements (SEV-SNP MEASUREMENT, TDX MRTD), lower-case hex; any
            that the reference values accept where empty.
        nodes: node names (``*`` at the end allowed), for evidence that names a node.
        attributes: claim to value or values (``*`` at the end allowed), by the names of
            docs/attestation.md.
        grants: what they may ask for.
        authority: set where they may be authorities themselves.
    """

    name: Name
    kinds: list[EvidenceKind] = []
    measurements: list[Measurement] = []
    nodes: list[str] = []
    attributes: dict[str, list[str]] = {}
    grants: list[Grant] = []
    authority: AuthorityGrant | None = None

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.grants and self.authority is None:
            raise ValueError(f"{self.name} grants nothing: grants or authority is needed")
        return self


class RoleReferenceValues(_Model):
    """What evidence must show, by the role of whoever gives it (RFC 9334: reference values).

    Attributes:
        agents: of nodes that ask an authority; its configuration alone says where absent.
        authorities: of authorities, as agents see them; the agent's configuration alone says
            where absent.
    """

    agents: ReferenceValues | None = None
    authorities: ReferenceValues | None = None


class Limits(_Model):
    """What holds for every certificate.

    Attributes:
        max_lifetime: longest lifetime.
        key_types: kinds of key.
    """

    max_lifetime: Duration = timedelta(hours=24)
    key_types: list[KeyType] = list(KeyType)


class BundleEndpoint(_Model):
    """Where another trust domain serves its bundle (SPIFFE Federation, section 5)."""

    url: Annotated[str, Field(pattern=r"^https://[^\s]+$")]
    profile: Literal["https_web", "https_spiffe"] = "https_web"
    endpoint_spiffe_id: SpiffeIdField | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.profile == "https_spiffe") != (self.endpoint_spiffe_id is not None):
            raise ValueError("endpoint_spiffe_id is needed with https_spiffe, and only there")
        return self


def _roots(pem: str) -> str:
    try:
        certificates_from_pem(pem.encode())
    except CertificateError as error:
        raise ValueError(str(error)) from error
    return pem


class FederatedDomain(_Model):
    """Another trust domain whose identities are known here.

    Attributes:
        trust_domain: its name.
        roots: its root certificates, PEM; they are what is trusted where no endpoint is named,
            and how an https_spiffe endpoint is recognised the first time.
        endpoint: where to fetch newer bundles.
    """

    trust_domain: TrustDomainField
    roots: list[Annotated[str, AfterValidator(_roots)]] = []
    endpoint: BundleEndpoint | None = None

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.roots and self.endpoint is None:
            raise ValueError("roots or an endpoint are needed")
        if self.roots and self.endpoint is not None and self.endpoint.profile == "https_web":
            raise ValueError("https_web takes the bundle from the endpoint alone; leave roots out")
        if self.endpoint is not None and self.endpoint.profile == "https_spiffe" and not self.roots:
            raise ValueError("an https_spiffe endpoint needs roots to begin with")
        return self


class Requests(_Model):
    """Requests that are allowed together: each field that is given must match.

    Attributes:
        methods: HTTP methods, upper case.
        paths: patterns of paths after normalization: ``*`` for (the rest of) one segment, ``**``
            at the end for everything below.
        hosts: patterns of hosts; the request's case, port and final dot do not count.
        ports: of the server's listener; the only field that a TCP filter can ask.
    """

    methods: Annotated[list[Method], Field(min_length=1)] | None = None
    paths: Annotated[list[PathPattern], Field(min_length=1)] | None = None
    hosts: Annotated[list[HostPattern], Field(min_length=1)] | None = None
    ports: Annotated[list[Port], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not any((self.methods, self.paths, self.hosts, self.ports)):
            raise ValueError("name methods, paths, hosts or ports; leave requests out to allow all")
        return self

    def pattern(self) -> RequestPattern:
        """As decisions take it; the order of what is listed means nothing."""
        return RequestPattern(
            methods=tuple(sorted(set(self.methods or ()))),
            paths=_in_order(self.paths),
            hosts=_in_order(self.hosts),
            ports=tuple(sorted(set(self.ports or ()))),
        )


def _in_order(globs: list[Glob] | None) -> tuple[Glob, ...]:
    return tuple(sorted(set(globs or ()), key=lambda glob: (glob.parts, glob.rest)))


class AllowRule(_Model):
    """Who (``from``) may open connections to whom (``to``): any of these to any of those.

    Attributes:
        from: patterns of clients.
        to: patterns of servers.
        requests: what they may ask for; everything where absent.
        requests_enforce: false: requests that ``requests`` does not allow are counted (Envoy's
            shadow rules) and let through; who may connect is enforced all the same.
    """

    from_: Annotated[Patterns, Field(alias="from")]
    to: Patterns
    requests: Annotated[list[Requests], Field(min_length=1)] | None = None
    requests_enforce: StrictBool = True

    def request_patterns(self) -> tuple[RequestPattern, ...]:
        """What they may ask for, each once; empty: everything."""
        patterns = {requests.pattern(): None for requests in self.requests or ()}
        return tuple(sorted(patterns, key=str))


class PolicyDocument(_Model):
    """One epoch of the policy of one trust domain.

    Attributes:
        version: of this format.
        trust_domain: for which it is.
        epoch: rises with every change; a lower one is never accepted after a higher one.
        not_before: before this moment it is refused.
        not_after: from this moment on it is no longer in force, and nothing is allowed.
        description: for people.
        signers: who must sign the epochs after this one; unchanged where absent.
        reference_values: which evidence is acceptable at all.
        nodes: which nodes may ask for which identities.
        matching: whether the first workload rule that matches decides, or all of them.
        workloads: which callers on a node's socket have which identities.
        limits: what holds for every certificate.
        services: names for sets of identities, as ``outbound:<service>`` asks for them.
        federation: other trust domains.
        allow: who may talk to whom; nobody else may.
        requests_enforce: false: no rule's ``requests`` are enforced, see :class:`AllowRule`.
    """

    version: Literal[1]
    trust_domain: TrustDomainField
    epoch: Annotated[StrictInt, Field(ge=1, le=_MAX_EPOCH)]
    not_before: Moment
    not_after: Moment
    description: str = ""
    signers: Signers | None = None
    reference_values: RoleReferenceValues = RoleReferenceValues()
    nodes: list[NodeGroup] = []
    matching: Matching = Matching.FIRST
    workloads: list[WorkloadRule] = []
    limits: Limits = Limits()
    services: dict[Name, Patterns] = {}
    federation: list[FederatedDomain] = []
    allow: list[AllowRule] = []
    requests_enforce: StrictBool = True

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.not_after <= self.not_before:
            raise ValueError("not_after is not later than not_before")
        for what, names in (
            ("nodes", [group.name for group in self.nodes]),
            ("workloads", [rule.name for rule in self.workloads]),
            ("federation", [domain.trust_domain for domain in self.federation]),
        ):
            seen: set[str] = set()
            for name in names:
                if name in seen:
                    raise ValueError(f"{what} holds {name!r} twice")
                seen.add(name)
        if self.trust_domain in {domain.trust_domain for domain in self.federation}:
            raise ValueError("federation holds the policy's own trust domain")
        for group in self.nodes:
            for grant in group.grants:
                for glob in grant.spiffe_ids:
                    if glob.parts[0] != self.trust_domain:
                        raise ValueError(
                            f"nodes: {group.name} may not ask for {format_spiffe_pattern(glob)}: "
                            f"it is not in {self.trust_domain}"
                        )
        return self


def json_schema() -> dict[str, Any]:
    """The JSON Schema of the document, for editors."""
    schema = PolicyDocument.model_json_schema(by_alias=True)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "attested-sds policy",
        **{key: value for key, value in schema.items() if key != "title"},
    }
