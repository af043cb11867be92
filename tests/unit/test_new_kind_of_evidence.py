"""A new kind of evidence is one module and one line of the registry: nothing else knows of it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from sds.attestation import registry
from sds.attestation.build import Verification, make_attester
from sds.attestation.csr import make_attested_csr, parse_attested_csr
from sds.attestation.evidence import Evidence, EvidenceKind, ReportData
from sds.attestation.guest.tsm import TsmReport, evidence_of
from sds.attestation.reference_values import ReferenceValues
from sds.attestation.settings import AttestationSection, VerificationSection
from sds.cli import main
from sds.errors import ConfigurationError, EvidenceError
from sds.exchange.wire import evidence_from_wire, evidence_to_wire
from sds.identity import Identity, KeyType, SpiffeId
from sds.pki import generate_private_key
from sds.policy.ruleset import NodeGroup
from tests.support import toy_kind

if TYPE_CHECKING:
    from pathlib import Path

DATA = ReportData(bytes(range(64)))
NOW = datetime(2026, 6, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one line."""
    registered = registry.Registered(
        module="tests.support.toy_kind", provider="toy_guest", statement="2.25.42"
    )
    monkeypatch.setitem(registry.KINDS, toy_kind.NAME, registered)


def reason(values: ReferenceValues, evidence: Evidence) -> str:
    verifier = Verification(VerificationSection()).verifier(values)
    try:
        verifier.verify(evidence, data=DATA, now=NOW)
    except EvidenceError as error:
        return error.reason
    return "accepted"


async def test_it_is_attested_sent_verified_and_appraised() -> None:
    attester = make_attester(AttestationSection(kind="toy"))
    assert attester is not None
    sent = evidence_to_wire(await attester.attest(DATA))
    evidence = evidence_from_wire(sent)
    assert (evidence.kind, str(evidence.kind)) == (EvidenceKind("toy"), "toy")
    assert reason(ReferenceValues(), evidence) == "accepted"
    assert reason(ReferenceValues(measurements=["11" * 48]), evidence) == "measurement"
    blue = ReferenceValues(others={"toy": {"colour": "blue"}})
    assert reason(blue, evidence) == "guest_identity"
    other = Evidence(kind=evidence.kind, report=toy_kind.make(b"x" * 64))
    assert reason(ReferenceValues(), other) == "report_data_mismatch"


def test_what_its_module_does_not_know_ends_the_start() -> None:
    values = ReferenceValues(others={"toy": {"shape": "round"}})
    with pytest.raises(ConfigurationError, match=r"others\.toy"):
        Verification(VerificationSection(reference_values=values))
    with pytest.raises(ValueError, match="further kind of evidence; known are azure-snp-vtpm, "):
        ReferenceValues(others={"snp": {}})


def test_it_travels_in_a_csr_and_comes_from_the_kernel() -> None:
    key = generate_private_key(KeyType.EC_P256)
    identity = Identity(
        spiffe_id=SpiffeId.parse("spiffe://example.org/a"), dns_names=(), key_type=KeyType.EC_P256
    )
    evidence = Evidence(kind=EvidenceKind("toy"), report=toy_kind.make(DATA))
    assert parse_attested_csr(make_attested_csr(key, identity, evidence)).evidence == evidence
    report = TsmReport(provider="toy_guest", outblob=evidence.report, auxblob=b"")
    assert evidence_of(report, DATA) == evidence


def test_policy_and_command_line_know_it(tmp_path: Path) -> None:
    grants = [{"spiffe_ids": ["spiffe://example.org/**"]}]
    group = NodeGroup.model_validate({"name": "toys", "kinds": ["toy"], "grants": grants})
    assert group.kinds == [EvidenceKind("toy")]
    path = tmp_path / "toy"
    path.write_bytes(toy_kind.make(DATA))
    shown = CliRunner().invoke(main, ["evidence", "show", str(path)])
    assert shown.exit_code == 0
    assert "red" in shown.output
    done = CliRunner().invoke(main, ["evidence", "verify", str(path), "--output", "json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["kind"] == "toy"


def test_without_its_line_it_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(registry.KINDS, toy_kind.NAME)
    with pytest.raises(ValueError, match="not a kind of evidence"):
        EvidenceKind("toy")
    with pytest.raises(ValueError, match="expected one of auto"):
        AttestationSection(kind="toy")
