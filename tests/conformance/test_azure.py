"""Azure's vTPM kinds: real evidence, a paravisor played by swtpm, and what is refused."""

from __future__ import annotations

import asyncio
import json
import struct
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import pytest
import yaml
from click.testing import CliRunner, Result

from sds.attestation.azure.attester import VtpmAttester, azure_attester
from sds.attestation.azure.blob import NV_INDEX, azure_kind, read_blob
from sds.attestation.azure.metadata import MetadataService
from sds.attestation.azure.runtime import parse_runtime, report_data_of
from sds.attestation.build import Verification, make_attester
from sds.attestation.collateral.followed_files import Places, examined_files
from sds.attestation.evidence import Evidence, EvidenceKind, ReportData
from sds.attestation.guest import attester as guest
from sds.attestation.kind import Demands
from sds.attestation.other_formats import parse_hcl
from sds.attestation.pem import der_certificates
from sds.attestation.recognise import describe, kind_of
from sds.attestation.reference_values import ReferenceValues, SnpReferenceValues
from sds.attestation.registry import kind_module
from sds.attestation.settings import AttestationSection, VerificationSection
from sds.attestation.snp.report import Report
from sds.attestation.tpm import commands
from sds.attestation.tpm.parcel import Piece, pack, parts_of, unpack
from sds.attestation.tpm.quote import SignedQuote
from sds.attestation.tpm.wire import Algorithm, sized
from sds.cli import main
from sds.errors import (
    ConfigurationError,
    EndorsementUnavailableError,
    EvidenceError,
    EvidenceMalformedError,
)
from sds.pki import certificate_pem
from tests.support import azure_vectors, machines, made_quotes, need, software_tpm
from tests.support.clock import PatientClock
from tests.support.intel import NOW as INTEL_NOW
from tests.support.intel import Intel
from tests.support.paravisor import Host, blob, paravisor, reported, runtime_data
from tests.support.refusals import refused

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sds.attestation.checks import Verdict
    from sds.attestation.snp.simulated import SimulatedMachine

AT = datetime(2026, 11, 1, tzinfo=UTC)
DATA = ReportData(bytes(range(64)))
SNP = EvidenceKind("azure-snp-vtpm")
TDX = EvidenceKind("azure-tdx-vtpm")


def examined(
    evidence: Evidence,
    values: ReferenceValues | None = None,
    *,
    roots: tuple[bytes, ...] = (),
    collateral: Path | None = None,
    data: ReportData | None = None,
    now: datetime = AT,
) -> Verdict:
    files = examined_files(Places(collateral=collateral, roots=roots))
    make = kind_module(evidence.kind).examiner
    assert make is not None
    demands = Demands(values=values or ReferenceValues(), roots=roots, files=lambda: files)
    return make(demands).examine(evidence, data=data, now=now)


def reasons(verdict: Verdict) -> list[str]:
    return [check.error.reason for check in verdict.checks if check.error is not None]


def demanding(kind: EvidenceKind, **own: object) -> ReferenceValues:
    return ReferenceValues.model_validate({"others": {kind: own}})


def changed(evidence: Evidence, piece: Piece, content: bytes | None) -> Evidence:
    parts = unpack(evidence.report)
    if content is None:
        del parts[piece]
    else:
        parts[piece] = content
    return replace(evidence, report=pack(parts))


# --- real machines --------------------------------------------------------------------------------


def test_a_real_snp_machine_is_accepted_and_judged_by_its_pcrs() -> None:
    evidence = azure_vectors.evidence(need.evidence_sets(), "snp")
    verdict = examined(evidence)
    assert reasons(verdict) == []
    claims = verdict.claims_or_raise()
    assert claims.attributes["vm_secure_boot"] == "true"
    assert claims.attributes["pcr_bank"] == "sha256"
    pcr4 = claims.attributes["pcr4"]
    good = demanding(
        SNP,
        pcrs={"4": [pcr4]},
        measurements=[claims.measurement],
        require_secure_boot=True,
        vm_ids=[claims.attributes["vm_vmuniqueid"]],
    )
    assert reasons(examined(evidence, good)) == []
    lower = claims.attributes["vm_vmuniqueid"].lower()
    assert lower != claims.attributes["vm_vmuniqueid"]
    assert reasons(examined(evidence, demanding(SNP, vm_ids=[lower]))) == []
    assert reasons(examined(evidence, demanding(SNP, pcrs={"4": ["00" * 32]}))) == ["pcr"]
    assert reasons(examined(evidence, demanding(SNP, measurements=["00" * 48]))) == ["measurement"]
    assert reasons(examined(evidence, demanding(SNP, vm_ids=["x"]))) == ["guest_identity"]
    # What is demanded of every kind's measurement does not let another guest in here.
    both = good.model_copy(update={"measurements": ["11" * 48]})
    assert reasons(examined(evidence, both)) == []
    assert "report_data_mismatch" in reasons(examined(evidence, data=DATA))


def test_a_real_tdx_machine_holds_but_for_its_collateral() -> None:
    folder = need.evidence_sets()
    evidence = azure_vectors.evidence(folder, "tdx")
    assert reasons(examined(evidence)) == ["collateral_missing"]
    collateral = folder / "tdx/f51db4d1-00806f050000-20251019-e12d-c61c/collateral"
    then = datetime(2025, 10, 31, 14, 17, 11, tzinfo=UTC)
    verdict = examined(evidence, collateral=collateral, now=then)
    failed = {check.name: check.found_text.split()[0] for check in verdict.checks if not check.ok}
    assert failed == {"platform_tcb": "OutOfDate", "tdx_module_tcb": "OutOfDate"}
    assert verdict.error is not None
    assert verdict.error.reason == "tcb_status"
    assert verdict.claims is not None
    assert verdict.claims.attributes["vm_secure_boot"] == "true"


def test_the_other_files_of_real_snp_machines_do_not_belong_together() -> None:
    """A report and its VCEK; a quote by another machine's key; a third machine's VCEK."""
    folder = need.evidence_sets() / "azure/snp"
    certificates = [(folder / f"imds-chain-{index}.der").read_bytes() for index in (0, 1)]
    (leaf,) = der_certificates((folder / "vcek.pem").read_bytes(), what="vcek.pem")[:1]
    head = struct.pack(">HH", Algorithm.RSASSA, Algorithm.SHA256)
    quote = SignedQuote(
        attest=(folder / "tpm-quote.msg").read_bytes(),
        signature=head + sized((folder / "tpm-quote.sig").read_bytes()),
        values=bytes(32 * 9),  # nobody recorded them
    )
    parts = {**parts_of(quote), Piece.HCL: (folder / "hcl-report.bin").read_bytes()}
    evidence = Evidence(kind=SNP, report=pack(parts), certificates=(leaf, *certificates))
    assert set(reasons(examined(evidence))) == {
        "provisional_firmware",
        "signature_invalid",
        "pcr_values",
    }
    third = (folder / "imds-vcek.der").read_bytes()
    verdict = examined(replace(evidence, certificates=(third, *certificates)))
    assert "endorsement_chip_mismatch" in reasons(verdict)


@pytest.mark.parametrize("kind", ["snp", "tdx"])
def test_real_evidence_has_words(kind: str) -> None:
    evidence = azure_vectors.evidence(need.evidence_sets(), kind)
    assert kind_of(evidence.report) is evidence.kind
    shown = describe(evidence.report)
    assert shown.platform.startswith("Azure confidential VM")
    assert shown.claims["pcr_digest"]
    assert "HCLAkPub" in shown.claims["runtime_data"]


# --- a paravisor in software ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def machine() -> SimulatedMachine:
    return machines.simulated().machine()


@pytest.fixture(scope="module")
def vtpm(machine: SimulatedMachine) -> Iterator[Path]:
    with paravisor(machine.report) as path:
        yield path


def attester(vtpm: Path, host: Host, kind: EvidenceKind = SNP) -> VtpmAttester:
    service = MetadataService(host.url, PatientClock())
    return VtpmAttester(kind, device=vtpm, service=service, sources=[service], clock=PatientClock())


async def test_evidence_of_a_paravisor_is_accepted(vtpm: Path, machine: SimulatedMachine) -> None:
    root = machines.simulated().ark_der
    async with Host(chain=machine.certificates, later=2).running() as host:
        made = attester(vtpm, host)
        evidence = await made.attest(DATA)
        verdict = examined(evidence, roots=(root,), data=DATA, now=machines.NOW)
        assert reasons(verdict) == []
        claims = verdict.claims_or_raise()
        assert (claims.simulated, claims.measurement) == (True, machine.measurement.hex())
        again = await made.attest(ReportData(bytes(64)))
        # What the host gave for this boot is kept: one request, after two that said "later".
        assert host.hits["/metadata/THIM/amd/certification"] == 3
    assert reasons(examined(again, roots=(root,), data=DATA, now=machines.NOW)) == [
        "report_data_mismatch"
    ]
    booted = claims.attributes["pcr4"]
    with software_tpm.open_tpm(vtpm) as tpm:
        software_tpm.extend(tpm, 4, b"another loader".ljust(32))
    async with Host(chain=machine.certificates).running() as host:
        evidence = await attester(vtpm, host).attest(DATA)
    values = demanding(SNP, pcrs={"4": [booted]})
    verdict = examined(evidence, values, roots=(root,), data=DATA, now=machines.NOW)
    assert reasons(verdict) == ["pcr"]


async def test_a_guest_below_the_paravisor_makes_up_no_vtpm(machine: SimulatedMachine) -> None:
    """Its reports have the paravisor's measurement, and only the level tells them apart."""
    root, below = machines.simulated().ark_der, machine.changed(vmpl=2)
    with paravisor(below.report) as path:
        async with Host(chain=machine.certificates).running() as host:
            evidence = await attester(path, host).attest(DATA)
    # For other machines, such as guests under an SVSM.
    values = demanding(SNP, measurements=[machine.measurement.hex()]).model_copy(
        update={"snp": SnpReferenceValues(maximum_vmpl=2)}
    )
    verdict = examined(evidence, values, roots=(root,), data=DATA, now=machines.NOW)
    assert reasons(verdict) == ["vmpl"]


async def test_a_report_that_the_paravisor_signs_anew_needs_no_new_certificate(
    machine: SimulatedMachine,
) -> None:
    """OpenHCL makes a report for every reader: the VCEK of the first belongs to the next."""
    root = machines.simulated().ark_der
    with paravisor(machine.report) as path:
        async with Host(chain=machine.certificates).running() as host:
            made = attester(path, host)
            await made.attest(DATA)
            with software_tpm.open_tpm(path) as tpm:
                before = commands.nv_read(tpm, NV_INDEX)
                found = parse_hcl(before)
                again = machine.report(reported(found.runtime))
                assert again != found.report, "another signature"
                software_tpm.write(tpm, NV_INDEX, before.replace(found.report, again))
            evidence = await made.attest(DATA)
            assert host.hits["/metadata/THIM/amd/certification"] == 1
    assert parse_hcl(unpack(evidence.report)[Piece.HCL]).report == again
    assert reasons(examined(evidence, roots=(root,), data=DATA, now=machines.NOW)) == []


def test_a_blob_that_changes_while_it_is_read_is_read_again(
    vtpm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A report that the paravisor replaced between two pieces is half of each."""
    with software_tpm.open_tpm(vtpm) as tpm:
        whole = commands.nv_read(tpm, NV_INDEX)
        torn = [whole[:700] + bytes(len(whole) - 700), whole, whole]
        monkeypatch.setattr(commands, "nv_read", lambda *_: torn.pop(0))
        assert read_blob(tpm) == whole
        assert not torn
        changing = iter(range(100))
        monkeypatch.setattr(commands, "nv_read", lambda *_: bytes([next(changing)]))
        with refused("evidence_unavailable", match="changes faster"):
            read_blob(tpm)


async def test_a_host_that_gives_another_certificate_or_none(
    vtpm: Path, machine: SimulatedMachine
) -> None:
    other = machines.simulated().machine(chip_id=b"\7" * 64)
    async with Host(chain=other.certificates).running() as host:
        with refused("endorsement_unavailable", match="no source has"):
            await attester(vtpm, host).attest(DATA)
    leaf, *issuers = machine.certificates
    damaged = leaf[:-1] + bytes([leaf[-1] ^ 1])
    async with Host(chain=(damaged, *issuers)).running() as host:
        with refused("endorsement_unavailable", match="no source has"):
            await attester(vtpm, host).attest(DATA)
    async with Host(chain=machine.certificates, later=99).running() as host:
        with pytest.raises(EndorsementUnavailableError, match="later"):
            await attester(vtpm, host).attest(DATA)
        assert host.hits.total() == 5
        with refused("evidence_unsupported", match="reports sev-snp"):
            await attester(vtpm, host, TDX).attest(DATA)
    with pytest.raises(EndorsementUnavailableError, match="does not answer"):
        await attester(vtpm, host).attest(DATA)


async def test_a_host_that_says_when_is_not_asked_sooner(machine: SimulatedMachine) -> None:
    """A crowd that asks again before its time is what the host refuses (429, Retry-After)."""
    report, clock = Report.parse(machine.report(DATA)), PatientClock()
    async with Host(chain=machine.certificates, later=2, wait="6").running() as host:
        service = MetadataService(host.url, clock)
        assert await service.certificates(report) == machine.certificates
        assert min(clock.slept) >= 6
        host.later, host.wait = 1, "900"
        for _ in range(20):
            with pytest.raises(EndorsementUnavailableError, match="in 900 s"):
                await service.certificates(report)
        assert host.hits.total() == 4, "it said so once"
        with pytest.raises(EndorsementUnavailableError, match="in 900 s"):
            await service.td_quote(bytes(1024))
        await clock.sleep(901)
        assert await service.certificates(report) == machine.certificates
        # A pause that was too short at the last attempt counts for the next request.
        host.later, host.wait, host.hits = 99, "7", Counter()
        with pytest.raises(EndorsementUnavailableError, match="later"):
            await service.certificates(report)
        with pytest.raises(EndorsementUnavailableError, match="later"):
            await service.certificates(report)
        assert host.hits.total() == 5


@pytest.mark.parametrize("answer", ["[]", "5", "{}", "null"])
async def test_an_answer_of_the_host_with_other_types_is_no_certificate(
    answer: str, machine: SimulatedMachine
) -> None:
    said = f'{{"vcekCert": {answer}, "certificateChain": {answer}}}'
    async with Host(certification=said).running() as host:
        service = MetadataService(host.url, PatientClock())
        with refused("endorsement_unavailable", match="gave no vcekCert"):
            await service.certificates(Report.parse(machine.report(DATA)))


async def test_a_tdx_paravisor() -> None:
    intel = Intel()
    quotes: list[bytes] = []

    def report(data: bytes) -> bytes:
        # REPORTMACSTRUCT has the report data at offset 128 (TDX module ABI).
        quotes.append(intel.quote(fields={520: data}))
        return bytes(128) + data + bytes(1024 - 192)

    with paravisor(report, kind=4) as path:
        async with Host(quote=lambda _: quotes[0]).running() as host:
            evidence = await attester(path, host, TDX).attest(DATA)
    verdict = examined(evidence, roots=(intel.root_der,), data=DATA, now=INTEL_NOW)
    assert reasons(verdict) == ["collateral_missing"]
    stolen = changed(evidence, Piece.TD_QUOTE, intel.quote(fields={520: bytes(64)}))
    verdict = examined(stolen, roots=(intel.root_der,), data=DATA, now=INTEL_NOW)
    assert "vtpm_unbound" in reasons(verdict)


def test_what_the_configuration_makes(tmp_path: Path) -> None:
    section = AttestationSection(kind="azure-snp-vtpm", tpm_device=tmp_path / "tpm")
    assert isinstance(make_attester(section), VtpmAttester)
    assert isinstance(azure_attester(section, SNP), VtpmAttester)
    with pytest.raises(ConfigurationError, match=r"others\.azure-snp-vtpm: pcrs: PCRs"):
        Verification(VerificationSection(reference_values=demanding(SNP, pcrs={"24": ["00" * 32]})))
    with pytest.raises(ConfigurationError, match=r"others\.azure-tdx-vtpm: pcr: unknown"):
        Verification(VerificationSection(reference_values=demanding(TDX, pcr=1)))


async def test_auto_finds_the_paravisor(
    vtpm: Path, machine: SimulatedMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert azure_kind(vtpm) == "azure-snp-vtpm"
    assert azure_kind(tmp_path / "none") is None
    with refused("evidence_unsupported", match="cannot be opened"):
        azure_kind(tmp_path / ("x" * 256))  # what cannot be asked is no "no"
    nowhere = partial(guest.guest_attester, reports=tmp_path / "no", device=tmp_path / "no")
    monkeypatch.setattr(guest, "guest_attester", nowhere)
    async with Host(chain=machine.certificates).running() as host:
        section = AttestationSection(kind="auto", tpm_device=vtpm, metadata_server=host.url)
        made_ = make_attester(section)
        assert isinstance(made_, VtpmAttester)
        evidence = await made_.attest(DATA)
    assert evidence.kind is SNP
    with software_tpm.software_tpm() as plain:
        assert azure_kind(plain) is None
        with pytest.raises(ConfigurationError, match=r"has no .*, nor "):
            make_attester(AttestationSection(kind="auto", tpm_device=plain))
        with software_tpm.open_tpm(plain) as tpm:
            software_tpm.define(tpm, NV_INDEX, blob(b"", b"{}", kind=3))
        with pytest.raises(ConfigurationError, match=r"has no .*, nor .*trusted launch"):
            make_attester(AttestationSection(kind="auto", tpm_device=plain))


def run(*words: object) -> Result:
    return CliRunner().invoke(main, ["evidence", *map(str, words)], catch_exceptions=False)


async def test_the_command_collects_what_the_agent_would_give(
    vtpm: Path, machine: SimulatedMachine, tmp_path: Path
) -> None:
    out, chain, root = tmp_path / "evidence", tmp_path / "chain.pem", tmp_path / "root.pem"
    root.write_bytes(certificate_pem([machines.simulated().ark_der]))
    async with Host(chain=machine.certificates).running() as host:
        section = {"kind": "azure-snp-vtpm", "tpm_device": str(vtpm), "metadata_server": host.url}
        (tmp_path / "a.yaml").write_text(yaml.safe_dump({"attestation": section}))
        words = ["collect", "--attestation", tmp_path / "a.yaml", "--out", out]
        words += ["--chain-out", chain, "--report-data", DATA.hex()]
        said = await asyncio.to_thread(run, *words)
    assert said.exit_code == 0, said.output
    assert "azure-snp-vtpm evidence" in said.stdout
    assert "3 certificates" in said.stdout
    shown = json.loads(run("show", out, "--output", "json").stdout)["claims"]
    given = ["--leaf", chain, "--trusted-root", root, "--at", machines.NOW.isoformat()]
    given += ["--report-data", DATA.hex(), "--output", "json"]
    judged = json.loads(run("verify", out, *given).stdout)
    assert judged["verdict"] == "accepted"
    # What is shown unverified is what a policy names.
    for name in ("measurement", "pcr4", "pcr7", "pcr_bank"):
        assert shown[name] == judged["claims"][name], name


def test_the_command_collects_a_tpms_evidence(tmp_path: Path) -> None:
    out = tmp_path / "evidence"
    with software_tpm.software_tpm() as device:
        section = {"kind": "tpm", "tpm_device": str(device)}
        (tmp_path / "a.yaml").write_text(yaml.safe_dump({"attestation": section}))
        said = run("collect", "--attestation", tmp_path / "a.yaml", "--out", out)
    assert said.exit_code == 0, said.output
    assert "no certificates came with it" in said.stdout
    shown = json.loads(run("show", out, "--output", "json").stdout)["claims"]
    values = tmp_path / "values.yaml"
    own = {"aks": [shown["ak"]], "pcrs": {"0": [shown["pcr0"]], "23": [shown["pcr23"]]}}
    values.write_text(yaml.safe_dump({"others": {"tpm": own}}))
    assert run("verify", out, "--reference-values", values).exit_code == 0
    (tmp_path / "empty.yaml").write_text("attestation: {}\n")
    missing = run("collect", "--attestation", tmp_path / "empty.yaml", "--out", out)
    assert missing.exit_code == 2
    assert "attestation.kind is missing" in missing.stderr
    nowhere = run("collect", "--kind", "sev-snp", "--out", tmp_path / "no" / "where")
    assert nowhere.exit_code == 2


@pytest.mark.parametrize(
    ("header", "match"),
    [
        ({"kind": 1}, "VBS"),
        ({"kind": 3}, "trusted launch"),
        ({"kind": 5}, "CCA"),
        ({"kind": 9}, "unknown"),
        ({"version": 3}, "version 3"),
        ({"version": 0}, "version 0"),
    ],
)
def test_other_blobs_of_paravisors_are_named(header: dict[str, int], match: str) -> None:
    with refused("evidence_malformed", match=match):
        parse_hcl(blob(bytes(1184), b"{}", **header))


# --- forgeries ------------------------------------------------------------------------------------


def made(machine: SimulatedMachine, **configuration: object) -> Evidence:
    """Evidence whose vTPM's key the tests have."""
    runtime = runtime_data(made_quotes.rsa_key().public_key(), **configuration)
    parts = made_quotes.rsa_parts(DATA)
    parts[Piece.HCL] = blob(machine.report(reported(runtime)), runtime)
    return Evidence(kind=SNP, report=pack(parts), certificates=machine.certificates)


def verdict_of(evidence: Evidence, values: ReferenceValues | None = None) -> list[str]:
    root = machines.simulated().ark_der
    return reasons(examined(evidence, values, roots=(root,), data=DATA, now=machines.NOW))


def test_forgeries_are_refused(machine: SimulatedMachine) -> None:
    evidence = made(machine)
    assert verdict_of(evidence) == []
    # Version 2 of the runtime data has four bytes more before the JSON.
    newer = blob(
        parse_hcl(unpack(evidence.report)[Piece.HCL]).report,
        parse_hcl(unpack(evidence.report)[Piece.HCL]).runtime,
        version=2,
    )
    assert verdict_of(changed(evidence, Piece.HCL, newer)) == []
    hcl = unpack(evidence.report)[Piece.HCL]
    # A key of the forger's in the runtime data, under a report over the real one.
    other = runtime_data(made_quotes.other_rsa_key().public_key())
    forged = changed(evidence, Piece.HCL, blob(parse_hcl(hcl).report, other))
    assert verdict_of(forged) == ["vtpm_unbound"]
    # The same, quoted by the forger's key.
    parts = made_quotes.rsa_parts(DATA, key=made_quotes.other_rsa_key())
    parts[Piece.HCL] = blob(parse_hcl(hcl).report, other)
    assert verdict_of(replace(evidence, report=pack(parts))) == ["vtpm_unbound"]
    # A quote by another key than the runtime data names.
    parts = made_quotes.rsa_parts(DATA, key=made_quotes.other_rsa_key())
    assert verdict_of(replace(evidence, report=pack({**parts, Piece.HCL: hcl}))) == [
        "signature_invalid"
    ]
    assert verdict_of(changed(evidence, Piece.HCL, hcl[:-2])) != []
    assert verdict_of(changed(evidence, Piece.HCL, None)) == ["evidence_malformed"]
    assert verdict_of(changed(evidence, Piece.PCRS, None)) == ["evidence_malformed"]
    assert verdict_of(changed(evidence, Piece.TD_QUOTE, b"q")) == ["evidence_malformed"]
    assert verdict_of(replace(evidence, report=hcl)) == ["evidence_malformed"]
    assert verdict_of(replace(evidence, certificates=())) == ["endorsement_missing"]
    wrong = replace(evidence, kind=TDX)
    root = machines.simulated().ark_der
    assert reasons(examined(wrong, roots=(root,), data=DATA, now=machines.NOW)) == ["evidence_kind"]
    off = made(machine, **{"secure-boot": False})
    assert verdict_of(off) == []
    assert verdict_of(off, demanding(SNP, require_secure_boot=True)) == ["guest_policy"]


@pytest.mark.parametrize(
    "runtime",
    [
        b"{}",
        b'{"keys":[]}',
        b'{"keys":[{"kid":"HCLAkPub","kty":"EC"}]}',
        b'{"keys":[{"kid":"HCLAkPub","kty":"RSA","e":"AQAB","n":"AQAB"}]}',
        b'{"keys":[{"kid":"HCLAkPub","kty":"RSA","e":"AQAB","n":"!"}]}',
        b'{"keys":[1],"keys":[]}',
        b"[" * 5000,
        b" " * 9000,
    ],
)
def test_runtime_data_without_one_key_is_malformed(runtime: bytes) -> None:
    with pytest.raises(EvidenceMalformedError):
        parse_runtime(runtime)


def test_two_keys_of_the_name_are_refused() -> None:
    one = runtime_data(made_quotes.rsa_key().public_key())
    doubled = one.replace(b'{"keys":[', b'{"keys":[{"kid":"HCLAkPub","kty":"RSA"},', 1)
    with pytest.raises(EvidenceMalformedError):
        parse_runtime(doubled)
    assert len(report_data_of(one, 3)) == 64
    with pytest.raises(EvidenceError):
        report_data_of(one, 4)


def test_the_commands_of_a_paravisor_are_bounded(vtpm: Path) -> None:
    with software_tpm.open_tpm(vtpm) as tpm, refused("tpm_refused"):
        commands.nv_read(tpm, 0x0140_0002)
