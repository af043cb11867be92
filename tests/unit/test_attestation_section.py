"""The sections ``attestation:`` and ``verification:`` of agent and authority."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from pydantic import ValidationError

from sds.attestation.build import Verification, make_attester
from sds.attestation.evidence import Evidence, EvidenceKind, report_data
from sds.attestation.settings import AttestationSection, VerificationSection
from sds.attestation.snp.endorsements import endorsements_of
from sds.attestation.snp.simulated import SimulatedMachine
from sds.clock import SystemClock
from sds.errors import ConfigurationError, EvidenceError, EvidenceMalformedError
from sds.pki import certificate_pem
from tests.support import made_quotes
from tests.support.certificates import ca_wish, self_signed
from tests.support.intel import Intel

if TYPE_CHECKING:
    from pathlib import Path

DATA = report_data(b"test", [b"x"])


@pytest.fixture(scope="module")
def machine() -> SimulatedMachine:
    return SimulatedMachine.create()


@pytest.mark.slow
async def test_a_simulated_machine_comes_by_a_descriptor_and_is_trusted_by_its_named_root_only(
    machine: SimulatedMachine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ark = tmp_path / "ark.pem"
    ark.write_bytes(certificate_pem([machine.ark_der]))
    section = AttestationSection(kind="simulated", descriptor=machine.send())
    attester = make_attester(section)
    assert attester is not None
    evidence = await attester.attest(DATA)
    now = datetime.now(UTC)
    claims = (
        Verification(VerificationSection(trusted_roots=[ark]))
        .verifier()
        .verify(evidence, data=DATA, now=now)
    )
    assert claims.simulated
    with pytest.raises(EvidenceError):
        Verification(VerificationSection()).verifier().verify(evidence, data=DATA, now=now)
    loud = [record for record in caplog.records if "SIMULATED" in record.message]
    assert {record.levelno for record in loud} == {logging.WARNING}
    assert len(loud) == 2


ENDORSED = {
    "certificates": "/etc/vceks",
    "certificate_server": "https://kds.example.org",
    "certificate_cache": "/var/cache/kds",
    "product": "genoa",
}
TPM = {"tpm_device": "/dev/tpm1", "exchange_key": {"pcr": 15}}
AZURE = {**TPM, "metadata_server": "http://127.0.0.1:80"}


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("auto", {**ENDORSED, **AZURE, "privilege_level": 1}),
        ("sev-snp", {**ENDORSED, "privilege_level": 1}),
        ("tdx", {"exchange_key": {}}),
        ("azure-snp-vtpm", {**ENDORSED, **AZURE}),
        ("azure-tdx-vtpm", AZURE),
        ("tpm", {**TPM, "certificates": "/etc/tpm"}),
        ("kubernetes-token", {"projected_token": "/run/token"}),
    ],
)
def test_a_kind_may_have_what_its_attester_reads(kind: str, fields: dict[str, object]) -> None:
    section = AttestationSection.model_validate({"kind": kind, **fields})
    assert fields.keys() <= section.model_fields_set


@pytest.mark.parametrize(
    ("kind", "key"), [("tdx", {"pcr": 13}), ("tpm", {}), ("azure-snp-vtpm", {})]
)
def test_a_register_that_no_verifier_looks_at_is_refused(kind: str, key: dict[str, int]) -> None:
    with pytest.raises(ValidationError, match="exchange_key"):
        AttestationSection.model_validate({"kind": kind, "exchange_key": key})


def test_without_a_kind_there_is_no_evidence() -> None:
    assert make_attester(AttestationSection()) is None


@pytest.mark.parametrize("descriptor", [None, 987])
def test_a_machine_that_does_not_come_is_an_error_of_configuration(descriptor: int | None) -> None:
    with pytest.raises(ConfigurationError, match=r"attestation\.descriptor"):
        make_attester(AttestationSection(kind="simulated", descriptor=descriptor))


def test_a_folder_of_certificates_that_is_not_there_ends_the_start(tmp_path: Path) -> None:
    """Before, --check-config alone said so, and evidence was refused for its chain."""
    section = AttestationSection(kind="sev-snp", certificates=tmp_path / "none")
    with pytest.raises(ConfigurationError, match=r"attestation\.certificates: .*/none is not"):
        endorsements_of(section, SystemClock())
    found = endorsements_of(section.model_copy(update={"certificates": tmp_path}), SystemClock())
    assert len(found) == 1


def test_a_root_that_is_none_is_named(tmp_path: Path) -> None:
    file = tmp_path / "ark.pem"
    file.write_text("nothing")
    section = VerificationSection(trusted_roots=[file])
    with pytest.raises(ConfigurationError, match=r"ark\.pem"):
        Verification(section)


def test_a_root_that_cannot_be_used_is_an_error_beside_lists_too(tmp_path: Path) -> None:
    """The lists are checked under the roots before a verifier is made of them."""
    collateral = Intel().collateral(tmp_path / "collateral")
    key = made_quotes.rsa_key()
    for der in (b"\x30\x03abc", self_signed(ca_wish("root"), key).der):
        root = tmp_path / "root.pem"
        root.write_bytes(certificate_pem([der]))
        section = VerificationSection(trusted_roots=[root], collateral=collateral)
        with pytest.raises(ConfigurationError, match="trusted root"):
            Verification(section)


def test_quotes_are_examined_without_collateral() -> None:
    verifier = Verification(VerificationSection()).verifier()
    nonsense = Evidence(kind=EvidenceKind.TDX, report=b"nonsense")
    for _ in range(2):
        with pytest.raises(EvidenceMalformedError):
            verifier.verify(nonsense, data=DATA, now=datetime.now(UTC))
