"""Cases that a policy must decide as its author expects: ``sds policy test``.

Owns the form of a file of cases. Invariant: the code that enforces decides each case.
"""

# ruff: noqa: RUF012  pydantic copies the defaults of fields

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from sds.attestation.evidence import Claims, EvidenceKind
from sds.errors import IdentityError, RefusedError
from sds.identity import SpiffeId
from sds.policy.decision import Decisions
from sds.policy.nodes import RequestedCertificate
from sds.policy.normal_path import normalized_path
from sds.policy.requests import Request
from sds.settings.field_types import Duration, SpiffeIdField, Written
from sds.workload.entitlement import Selector
from sds.workload.facts import Facts
from sds.workload.mapping import SelectorType  # noqa: TC001  as above

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sds.policy.document import PolicyDocument


class _Model(Written):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class Node(_Model):
    """A node as its verified evidence would describe it."""

    kind: EvidenceKind = EvidenceKind.SEV_SNP
    measurement: str
    attributes: dict[str, str] = {}


class AskedCertificate(_Model):
    """A certificate that a node asks for."""

    spiffe_id: SpiffeIdField
    dns_names: list[str] = []
    lifetime: Duration = timedelta(hours=1)


class AskedRequest(_Model):
    """A request as it is sent."""

    method: str = "GET"
    path: str = "/"
    host: str = ""
    port: int | None = None


class Case(_Model):
    """One question and the expected answer, in exactly one of three forms.

    Attributes:
        name: names the case in the report.
        caller: maps selector types to a value or values; ``identities`` are expected in their order
            (an empty list means none).
        services: ``namespace/name`` of Kubernetes Services that select the caller's pod.
        identities: SPIFFE IDs that the caller has.
        dns_names: DNS names of the caller's first identity, if they matter.
        node: a node, with what it ``asks`` for and ``expect``.
        asks: see ``node``.
        from: a SPIFFE ID, with ``to`` and ``expect``.
        to: a SPIFFE ID, or the name of a service.
        request: the request from ``from`` to ``to``, which must be a SPIFFE ID then.
        expect: ``allowed`` or ``refused``.
    """

    name: str = ""
    caller: dict[SelectorType, str | list[str]] | None = None
    services: list[Annotated[str, Field(pattern=r"^[^/]+/[^/]+$")]] = []
    identities: list[SpiffeIdField] | None = None
    dns_names: list[str] | None = None
    node: Node | None = None
    asks: AskedCertificate | None = None
    from_: Annotated[SpiffeIdField | None, Field(alias="from")] = None
    to: str | None = None
    request: AskedRequest | None = None
    expect: Literal["allowed", "refused"] | None = None

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        forms = (
            self.caller is not None and self.identities is not None,
            self.node is not None and self.asks is not None and self.expect is not None,
            self.from_ is not None and self.to is not None and self.expect is not None,
        )
        asked = sum(part is not None for part in (self.caller, self.node, self.from_))
        if sum(forms) != 1 or asked != 1:
            raise ValueError(
                "a case is one of: caller and identities; node, asks and expect; from, to and "
                "expect"
            )
        if self.request is not None:
            try:
                SpiffeId.parse(str(self.to))
            except IdentityError as error:
                raise ValueError(f"with request, to must be a SPIFFE ID: {error}") from error
        return self


class CaseFile(_Model):
    """What ``sds policy test`` reads."""

    cases: Annotated[list[Case], Field(min_length=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The outcome of one case."""

    name: str
    passed: bool
    expected: str
    found: str


def run(document: PolicyDocument, cases: CaseFile) -> Iterator[Result]:
    """Decide every case."""
    decisions = Decisions(document)
    for number, case in enumerate(cases.cases, start=1):
        name = case.name or f"case {number}"
        expected, found = _decide(decisions, case)
        yield Result(name=name, passed=expected == found, expected=expected, found=found)


def _decide(decisions: Decisions, case: Case) -> tuple[str, str]:
    if case.caller is not None:
        return _caller(decisions, case)
    if case.node is not None and case.asks is not None:
        found = "allowed"
        try:
            decisions.permit(
                Claims(
                    kind=case.node.kind,
                    measurement=case.node.measurement,
                    simulated=False,
                    attributes=case.node.attributes,
                ),
                RequestedCertificate(
                    spiffe_id=case.asks.spiffe_id,
                    dns_names=tuple(case.asks.dns_names),
                    lifetime=case.asks.lifetime,
                ),
            )
        except RefusedError:
            found = "refused"
        return str(case.expect), found
    assert case.from_ is not None
    if case.request is not None:
        found = "allowed" if _may_request(decisions, case, case.request) else "refused"
        return str(case.expect), found
    reachable = decisions.outbound(case.from_, str(case.to))
    return str(case.expect), "allowed" if reachable else "refused"


def _may_request(decisions: Decisions, case: Case, asked: AskedRequest) -> bool:
    assert case.from_ is not None
    try:
        request = Request(
            method=asked.method,
            path=normalized_path(asked.path),
            host=asked.host,
            port=asked.port,
        )
    except IdentityError:
        return False
    return decisions.may_request(case.from_, SpiffeId.parse(str(case.to)), request)


def _caller(decisions: Decisions, case: Case) -> tuple[str, str]:
    selectors = {
        Selector(kind, value)
        for kind, values in (case.caller or {}).items()
        for value in ([values] if isinstance(values, str) else values)
    }
    services = frozenset(
        (namespace, name) for namespace, _, name in (one.partition("/") for one in case.services)
    )
    decision = decisions.recognise(Facts(selectors=frozenset(selectors), services=services))
    expected = ", ".join(map(str, case.identities or [])) or "none"
    found = ", ".join(str(one.spiffe_id) for one in decision.identities) or "none"
    if case.dns_names is not None:
        names = decision.identities[0].dns_names if decision.identities else ()
        expected += f" with {', '.join(sorted(case.dns_names)) or 'no DNS name'}"
        found += f" with {', '.join(names) or 'no DNS name'}"
    return expected, found
