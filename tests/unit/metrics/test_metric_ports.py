from __future__ import annotations

import ast
import asyncio
import datetime as dt
import resource
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry

from sds.attestation.evidence import Claims, Evidence, EvidenceKind, ReportData
from sds.authority.port import Issuance
from sds.errors import (
    AuthorityAnswerError,
    AuthorityError,
    AuthorityRefusedError,
    AuthorityUnavailableError,
    EvidenceError,
    PolicyNotInForceError,
)
from sds.exchange.item import CertificateItem, IssuedChain
from sds.identity import Identity, SpiffeId
from sds.operations.metrics.families import (
    MAX_REASONS,
    AgentFamilies,
    AuthorityFamilies,
    ProcessFamilies,
    memory_locked,
)
from sds.operations.metrics.ports import (
    VERDICTS,
    MeteredAttester,
    MeteredAuthority,
    MeteredRootsAuthority,
    MeteredVerifier,
)
from tests.support.refusals import refused
from tests.support.source import modules

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ITEM = CertificateItem(identity=Identity(spiffe_id=SpiffeId.parse("spiffe://a.test/b")), csr=b"c")
DATA = ReportData(bytes(64))
EVIDENCE = Evidence(kind=EvidenceKind.SEV_SNP, report=b"report")
CLAIMS = Claims(kind=EvidenceKind.SEV_SNP, measurement="00", simulated=True)
NOW = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)


class Inner:
    """An authority, attester and verifier that does as the test says."""

    def __init__(self, answer: Callable[[], object]) -> None:
        self.answer = answer

    async def issue(self, items: Sequence[CertificateItem]) -> Issuance:
        return self.answer()  # type: ignore[return-value]  # the test gives the right kind

    async def attest(self, data: ReportData) -> Evidence:
        return self.answer()  # type: ignore[return-value]  # as above

    async def roots(self) -> tuple[bytes, ...]:
        return self.answer()  # type: ignore[return-value]  # as above

    def verify(self, evidence: Evidence, *, data: ReportData, now: dt.datetime) -> Claims:
        return self.answer()  # type: ignore[return-value]  # as above


def failing(error: BaseException) -> Callable[[], object]:
    def answer() -> object:
        raise error

    return answer


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


async def test_outcomes_of_an_exchange_are_counted_by_item(registry: CollectorRegistry) -> None:
    answer = Issuance(
        outcomes=(
            IssuedChain(chain=(b"leaf",)),
            AuthorityRefusedError("no", wire_reason="not_permitted"),
            IssuedChain(chain=(b"leaf",)),
        ),
        roots=(),
    )
    authority = MeteredAuthority(Inner(lambda: answer), AgentFamilies(registry))
    assert await authority.issue([ITEM] * 3) is answer
    name = "sds_certificates_requested_total"
    assert registry.get_sample_value(name, {"outcome": "issued"}) == 2
    assert registry.get_sample_value(name, {"outcome": "not_permitted"}) == 1
    assert registry.get_sample_value("sds_authority_latency_seconds_count") == 1


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (AuthorityUnavailableError("down"), "authority_unavailable"),
        (asyncio.CancelledError(), "cancelled"),
        (KeyError("bug"), "internal"),
    ],
)
async def test_an_exchange_that_fails_counts_every_item_and_raises_the_same(
    registry: CollectorRegistry, error: BaseException, outcome: str
) -> None:
    authority = MeteredAuthority(Inner(failing(error)), AgentFamilies(registry))
    with pytest.raises(type(error)) as caught:
        await authority.issue([ITEM, ITEM])
    assert caught.value is error
    name = "sds_certificates_requested_total"
    assert registry.get_sample_value(name, {"outcome": outcome}) == 2


@pytest.mark.parametrize(
    ("error", "up"),
    [
        (AuthorityUnavailableError("no address answers"), 0),
        (AuthorityRefusedError("no", wire_reason="measurement_not_allowed"), 1),
        (AuthorityAnswerError("it speaks something else"), 1),
        (EvidenceError("another measurement", reason="authority_evidence"), 1),
        (PolicyNotInForceError("it has expired", reason="policy_expired"), 1),
        (AuthorityError("no token, so nobody was asked", reason="authority_token"), None),
        (KeyError("bug"), None),
    ],
)
@pytest.mark.parametrize("before", [0, 1])
async def test_whether_the_authority_answered_is_what_the_error_says(
    registry: CollectorRegistry, error: Exception, up: int | None, before: int
) -> None:
    families = AgentFamilies(registry)
    authority = MeteredRootsAuthority(Inner(failing(error)), families)
    for ask in (lambda: authority.issue([ITEM]), authority.roots):
        families.authority_up.set(before)
        with pytest.raises(type(error)):
            await ask()
        assert registry.get_sample_value("sds_authority_up") == (before if up is None else up)


async def test_evidence_is_timed_and_failures_counted(registry: CollectorRegistry) -> None:
    families = ProcessFamilies(registry, component="agent")
    assert await MeteredAttester(Inner(lambda: EVIDENCE), families).attest(DATA) is EVIDENCE
    with pytest.raises(EvidenceError):
        await MeteredAttester(Inner(failing(EvidenceError("none"))), families).attest(DATA)
    assert registry.get_sample_value("sds_evidence_latency_seconds_count") == 2
    assert registry.get_sample_value("sds_evidence_failures_total", {"reason": "evidence"}) == 1


def test_verdicts_are_counted_by_kind_and_reason(registry: CollectorRegistry) -> None:
    families = ProcessFamilies(registry, component="ca")
    accepting = MeteredVerifier(Inner(lambda: CLAIMS), families)
    assert accepting.verify(EVIDENCE, data=DATA, now=NOW) is CLAIMS
    refusing = MeteredVerifier(
        Inner(failing(EvidenceError("other nonce", reason="report_data_mismatch"))), families
    )
    with refused("report_data_mismatch"):
        refusing.verify(EVIDENCE, data=DATA, now=NOW)
    for verdict in ("accepted", "report_data_mismatch"):
        labels = {"kind": "sev-snp", "verdict": verdict}
        assert registry.get_sample_value("sds_attestation_verdicts_total", labels) == 1


def test_a_question_to_the_attester_is_no_verdict(registry: CollectorRegistry) -> None:
    """Each machine with an endorsement key is asked one: an alert on refused evidence is silent."""
    families = ProcessFamilies(registry, component="ca")
    asked = EvidenceError("prove it", reason="credential_needed", challenge=b"credential")
    with refused("credential_needed"):
        MeteredVerifier(Inner(failing(asked)), families).verify(EVIDENCE, data=DATA, now=NOW)
    (family,) = families.verdicts.collect()
    assert {sample.value for sample in family.samples} == {0}


def test_every_verdict_is_exported_before_it_is_given() -> None:
    """Prometheus sees no increase in a series that begins at 1."""
    raised = {
        text.value
        for name, tree in modules().items()
        if name.startswith("sds/attestation/")
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and "Evidence" in ast.unparse(call).partition("reason=")[0]
        for word in call.keywords
        if word.arg == "reason"
        for text in ast.walk(word.value)
        if isinstance(text, ast.Constant)
    }
    assert "certificate_malformed" in raised
    assert raised - set(VERDICTS) == set()


async def test_reasons_that_an_authority_makes_up_are_bounded(registry: CollectorRegistry) -> None:
    numbers = iter(range(1000))

    def answer() -> Issuance:
        refused = AuthorityRefusedError("no", wire_reason=f"made-up-{next(numbers)}")
        return Issuance(outcomes=(refused,), roots=())

    authority = MeteredAuthority(Inner(answer), AgentFamilies(registry))
    for _ in range(MAX_REASONS + 20):
        await authority.issue([ITEM])
    labels = {"outcome": "other"}
    assert registry.get_sample_value("sds_certificates_requested_total", labels) == 20


def test_every_family_has_help_and_a_name_of_ours(registry: CollectorRegistry) -> None:
    ProcessFamilies(registry, component="agent")
    AgentFamilies(registry)
    AuthorityFamilies(registry)
    families = list(registry.collect())
    assert len(families) > 25
    for family in families:
        assert family.documentation.strip(), family.name
        assert family.name.startswith(("sds_", "process_")), family.name


def test_a_process_without_descriptors_has_its_other_metrics(registry: CollectorRegistry) -> None:
    """They matter most then; the kernel opens no file for it, not even its own status."""
    ProcessFamilies(registry, component="agent")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        found = {family.name for family in registry.collect()}
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert {"sds_ready", "sds_unexpected_errors"} <= found


@pytest.mark.parametrize(("locked", "value"), [(0, 0.0), (40_000, 0.0), (90_000, 1.0), (None, 0.0)])
def test_locked_memory_is_what_the_kernel_says(locked: int | None, value: float) -> None:
    lines = ["Name:\tsds", "VmSize:\t  100000 kB"]
    if locked is not None:
        lines.append(f"VmLck:\t  {locked} kB")
    assert memory_locked("\n".join(lines), swaps=lambda: True) == value
    # As `sds status` says: what nothing can swap needs no lock.
    assert memory_locked("\n".join(lines), swaps=lambda: False) == 1
    assert memory_locked() in {0.0, 1.0}
