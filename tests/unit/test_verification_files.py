"""Revocation lists and collateral on disk: used, or refused with their file; followed while
running."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.serialization import Encoding

from sds.attestation.build import Verification
from sds.attestation.collateral import followed_files
from sds.attestation.collateral.age import documents
from sds.attestation.evidence import Evidence, EvidenceKind, ReportData
from sds.attestation.reference_values import ReferenceValues
from sds.attestation.settings import FetchSection, VerificationSection
from sds.attestation.snp.report import Product
from sds.clock import SystemClock
from sds.errors import ConfigurationError, EvidenceError
from sds.operations.instruments import Instruments
from sds.pki import certificate_pem
from tests.support.intel import FMSPC, Intel
from tests.support.intel import NOW as INTEL_NOW
from tests.support.machines import NOW, crl, simulated

if TYPE_CHECKING:
    from collections.abc import Callable

    from sds.attestation.evidence import Verifier
    from sds.attestation.snp.simulated import SimulatedRoot

DATA = ReportData(bytes(range(64)))
ASK_SERIAL = 0x10001
LONG_AGO = timedelta(days=3)


@pytest.fixture(scope="module")
def root() -> SimulatedRoot:
    return simulated()


@pytest.fixture(scope="module")
def intel() -> Intel:
    return Intel()


def section(root: SimulatedRoot, folder: Path, *lists: Path, **more: Any) -> VerificationSection:
    ark = folder / "ark.pem"
    ark.write_bytes(certificate_pem([root.ark_der]))
    return VerificationSection(trusted_roots=[ark], revocation_lists=list(lists), **more)


def snp(verifier: Verifier, root: SimulatedRoot) -> str:
    try:
        verifier.verify(root.machine().evidence(DATA), data=DATA, now=NOW)
    except EvidenceError as error:
        return error.reason
    return "accepted"


def tdx(verifier: Verifier, intel: Intel) -> str:
    quote = intel.quote(tee_tcb_svn=bytes([5, 1] + [5] * 14), fields={520: DATA})
    evidence = Evidence(kind=EvidenceKind.TDX, report=quote)
    try:
        verifier.verify(evidence, data=DATA, now=INTEL_NOW)
    except EvidenceError as error:
        return error.reason
    return "accepted"


def delta(root: SimulatedRoot) -> bytes:
    ark = x509.load_der_x509_certificate(root.ark_der)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(ark.subject)
        .last_update(NOW - timedelta(hours=1))
        .next_update(NOW + timedelta(days=1))
        .add_extension(x509.CRLNumber(2), critical=False)
        .add_extension(x509.DeltaCRLIndicator(1), critical=True)
    )
    pss = padding.PSS(mgf=padding.MGF1(hashes.SHA384()), salt_length=48)
    signed = builder.sign(root.ark_key, hashes.SHA384(), rsa_padding=pss)
    return signed.public_bytes(Encoding.DER)


def changed(der: bytes, index: int) -> bytes:
    mutant = bytearray(der)
    mutant[index] ^= 1
    return bytes(mutant)


def broken_name(root: SimulatedRoot) -> bytes:
    """A list whose issuer's common name is a text that is not UTF-8."""
    return crl(root).replace(b"ARK-Genoa", b"ARK-\xff\xfeoa")


BROKEN: dict[str, Callable[[SimulatedRoot], bytes]] = {
    "cut short": lambda root: crl(root, ASK_SERIAL)[:-7],
    "bytes after it": lambda root: crl(root, ASK_SERIAL) + b"\0",
    "one byte of the signature": lambda root: changed(crl(root, ASK_SERIAL), -1),
    "one byte of a revoked serial": lambda root: changed(
        crl(root, ASK_SERIAL), crl(root, ASK_SERIAL).index(b"\x02\x03\x01\x00\x01") + 4
    ),
    "a delta": delta,
    "an unknown critical extension": lambda root: crl(root, critical=True),
    "a broken issuer name": broken_name,
    "by another key": lambda root: crl(root, key=root.ask_key),
    "another algorithm's salt": lambda root: crl(root, salt=32),
    "an unknown issuer": lambda _: Intel().crl(Intel().tcb, Intel().tcb_key),
    "nothing": lambda _: b"",
    "not a list": lambda root: root.ark_der,
    "PEM that is not closed": lambda _: b"-----BEGIN X509 CRL-----\nMIIB\n",
}


@pytest.mark.parametrize("name", list(BROKEN))
def test_a_list_that_cannot_be_used_ends_the_start_and_is_named(
    name: str, root: SimulatedRoot, tmp_path: Path
) -> None:
    path = tmp_path / "amd.crl"
    path.write_bytes(BROKEN[name](root))
    with pytest.raises(ConfigurationError) as refused:
        Verification(section(root, tmp_path, path))
    assert "amd.crl" in str(refused.value)


def test_a_missing_list_or_folder_ends_the_start(root: SimulatedRoot, tmp_path: Path) -> None:
    for lists, collateral in (([tmp_path / "none.crl"], None), ([], tmp_path / "none")):
        with pytest.raises(ConfigurationError) as refused:
            Verification(section(root, tmp_path, *lists, collateral=collateral))
        assert "none" in str(refused.value)


def test_a_folder_that_cannot_be_read_is_not_an_empty_one(
    root: SimulatedRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> None:  # root may read everything
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="file cannot be read: Not a directory"):
        Verification(section(root, tmp_path, collateral=tmp_path / "file"))
    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(ConfigurationError, match="cannot be read: Permission denied"):
        Verification(section(root, tmp_path, collateral=tmp_path))


def test_a_list_is_followed(root: SimulatedRoot, tmp_path: Path) -> None:
    path = tmp_path / "amd.crl"
    path.write_bytes(crl(root))
    verification = Verification(section(root, tmp_path, path))
    verifier = verification.verifier()
    assert snp(verifier, root) == "accepted"
    path.write_bytes(crl(root, ASK_SERIAL, number=2))
    verification.files.reload()
    assert snp(verifier, root) == "certificate_revoked"
    # An older one never replaces it.
    path.write_bytes(crl(root, number=1))
    with pytest.raises(ConfigurationError, match=r"number 1.*number 2"):
        verification.files.reload()
    assert snp(verifier, root) == "certificate_revoked"
    # What cannot be used leaves what was read before.
    path.write_bytes(BROKEN["one byte of the signature"](root))
    with pytest.raises(ConfigurationError, match=r"amd\.crl is damaged"):
        verification.files.reload()
    assert snp(verifier, root) == "certificate_revoked"
    path.write_bytes(crl(root, number=3))
    verification.files.reload()
    assert snp(verifier, root) == "accepted"


def test_an_expired_list_starts_refuses_and_is_cured_by_a_fresh_one(
    root: SimulatedRoot, tmp_path: Path
) -> None:
    path = tmp_path / "amd.crl"
    path.write_bytes(crl(root, age=LONG_AGO))
    verification = Verification(section(root, tmp_path, path))
    verifier = verification.verifier()
    assert snp(verifier, root) == "revocation_list_stale"
    path.write_bytes(crl(root, number=2))
    verification.files.reload()
    assert snp(verifier, root) == "accepted"


def test_a_number_that_no_list_may_have_is_refused_and_never_said(
    root: SimulatedRoot, tmp_path: Path
) -> None:
    """Python writes no number of more than 4,300 digits into a message."""
    path = tmp_path / "amd.crl"
    path.write_bytes(crl(root, number=10**5000))
    with pytest.raises(ConfigurationError, match=r"amd\.crl has a CRL number of 16610 bits"):
        Verification(section(root, tmp_path, path))


def test_collateral_is_followed(root: SimulatedRoot, intel: Intel, tmp_path: Path) -> None:
    folder = intel.collateral(tmp_path / "c")
    other = tmp_path / "intel.pem"
    other.write_bytes(certificate_pem([intel.root_der]))
    made = section(root, tmp_path, collateral=folder)
    verification = Verification(made.model_copy(update={"trusted_roots": [other]}))
    verifier = verification.verifier()
    assert tdx(verifier, intel) == "accepted"
    pck = intel.pck.serial_number
    (folder / "pck.crl").write_bytes(intel.crl(intel.ca, intel.ca_key, pck, number=2))
    verification.files.reload()
    assert tdx(verifier, intel) == "certificate_revoked"
    intel.collateral(folder, info={"nextUpdate": "2026-05-31T00:00:00Z"})
    with pytest.raises(ConfigurationError, match="number 1"):
        verification.files.reload()
    (folder / "tcb_info.json").unlink()
    with pytest.raises(ConfigurationError, match="tcb_info"):
        verification.files.reload()
    assert tdx(verifier, intel) == "certificate_revoked"


def both_vendors(root: SimulatedRoot, intel: Intel, tmp_path: Path) -> tuple[Path, Verification]:
    """Intel's collateral and AMD's list, which revokes the ASK, in one folder; what reads it."""
    folder = intel.collateral(tmp_path / "c")
    other = tmp_path / "intel.pem"
    other.write_bytes(certificate_pem([intel.root_der]))
    made = section(root, tmp_path, collateral=folder)
    made = made.model_copy(update={"trusted_roots": [*made.trusted_roots, other]})
    (folder / "genoa.crl").write_bytes(crl(root, ASK_SERIAL))
    return folder, Verification(made)


def test_a_list_that_is_taken_away_takes_nothing_back(
    root: SimulatedRoot, intel: Intel, tmp_path: Path
) -> None:
    folder, verification = both_vendors(root, intel, tmp_path)
    verifier = verification.verifier()
    assert snp(verifier, root) == "certificate_revoked"
    (folder / "genoa.crl").rename(tmp_path / "genoa.crl")
    with pytest.raises(ConfigurationError, match=r"genoa\.crl.*is gone"):
        verification.files.reload()
    assert snp(verifier, root) == "certificate_revoked"
    (tmp_path / "genoa.crl").rename(folder / "genoa.crl")
    verification.files.reload()


def test_a_list_that_is_still_to_be_fetched_is_missed(root: SimulatedRoot, tmp_path: Path) -> None:
    """Where AMD's lists are configured, nothing is accepted before the first is there."""
    folder = tmp_path / "c"
    folder.mkdir()
    made = section(root, tmp_path, collateral=folder, fetch=FetchSection(products=[Product.GENOA]))
    verification = Verification(made)
    verifier = verification.verifier()
    assert snp(verifier, root) == "collateral_missing"
    (folder / "genoa.crl").write_bytes(crl(root))
    verification.files.reload()
    assert snp(verifier, root) == "accepted"


def test_an_older_document_or_a_list_without_a_number_is_refused(
    root: SimulatedRoot, intel: Intel, tmp_path: Path
) -> None:
    folder = intel.collateral(tmp_path / "c")
    other = tmp_path / "intel.pem"
    other.write_bytes(certificate_pem([intel.root_der]))
    made = section(root, tmp_path, collateral=folder)
    verification = Verification(made.model_copy(update={"trusted_roots": [other]}))
    intel.collateral(folder, info={"issueDate": "2020-01-01T00:00:00Z"})
    with pytest.raises(ConfigurationError, match=r"tcb_info\.json was issued at 2020"):
        verification.files.reload()
    intel.collateral(folder)
    verification.files.reload()


def test_a_document_of_an_earlier_tcb_recovery_is_refused_however_new_it_is(
    intel: Intel, tmp_path: Path
) -> None:
    """Intel signs several recoveries anew every day; the earlier one knows fewer faults."""
    newer = {"tcbEvaluationDataNumber": 17, "issueDate": "2026-05-28T00:00:00Z"}
    older = {"tcbEvaluationDataNumber": 18, "issueDate": "2026-05-27T00:00:00Z"}
    folder = intel.collateral(tmp_path / "c", info=older, identity=older)
    root = tmp_path / "intel.pem"
    root.write_bytes(certificate_pem([intel.root_der]))
    verification = Verification(VerificationSection(trusted_roots=[root], collateral=folder))
    for name in ("info", "identity"):
        intel.collateral(folder, **({"info": older, "identity": older} | {name: newer}))
        with pytest.raises(ConfigurationError, match=r"of TCB recovery 17, and one of recovery 18"):
            verification.files.reload()
    # Beside the later one, it does not count.
    earlier = (intel.collateral(tmp_path / "d", info=newer) / "tcb_info.json").read_bytes()
    intel.collateral(folder, info=older, identity=older)
    (folder / "tcb_info-0.json").write_bytes(earlier)
    verification.files.reload()
    later = {"tcbEvaluationDataNumber": 19, "issueDate": "2026-05-20T00:00:00Z"}
    intel.collateral(folder, info=later, identity=later)
    verification.files.reload()


def test_a_configuration_that_names_an_earlier_tcb_recovery_gets_it(
    intel: Intel, tmp_path: Path
) -> None:
    """The folder still has the later one when the process starts with the changed configuration."""
    root = tmp_path / "intel.pem"
    root.write_bytes(certificate_pem([intel.root_der]))
    folder = intel.collateral(tmp_path / "c")  # of 17
    fetch = FetchSection(fmspcs=[FMSPC.hex()], tcb_evaluation_data_number=16)
    section = VerificationSection(trusted_roots=[root], collateral=folder, fetch=fetch)
    verification = Verification(section)
    earlier = {"tcbEvaluationDataNumber": 16}
    intel.collateral(folder, info=earlier, identity=earlier)
    verification.files.reload()
    assert {one.recovery for one in documents(verification.files.current)} == {16}


def test_an_older_document_under_another_name_is_refused(intel: Intel, tmp_path: Path) -> None:
    """What a document is about counts, not the name of its file."""
    folder = intel.collateral(tmp_path / "c", info={"issueDate": "2026-05-15T00:00:00Z"})
    older = (folder / "tcb_info.json").read_bytes()
    intel.collateral(folder)
    root = tmp_path / "intel.pem"
    root.write_bytes(certificate_pem([intel.root_der]))
    verification = Verification(VerificationSection(trusted_roots=[root], collateral=folder))
    newer = folder / "tcb_info.json"
    (folder / "tcb_info-0.json").write_bytes(older)
    verification.files.reload()  # the newer one counts
    newer.rename(tmp_path / "newer")
    with pytest.raises(ConfigurationError, match=r"tcb_info-0\.json was issued at 2026-05-15"):
        verification.files.reload()
    (tmp_path / "newer").rename(folder / "tcb_info-9.json")
    verification.files.reload()
    # Another platform's may be older.
    other = intel.collateral(
        tmp_path / "other", info={"issueDate": "2026-05-15T00:00:00Z", "fmspc": "00806f050000"}
    )
    (folder / "tcb_info-0.json").write_bytes((other / "tcb_info.json").read_bytes())
    verification.files.reload()


@pytest.mark.parametrize("name", ["tcb_info.json", "qe_identity.json", "tcb_signing_chain.pem"])
def test_a_document_that_cannot_be_used_is_noticed_before_evidence_comes(
    name: str, intel: Intel, tmp_path: Path
) -> None:
    folder = intel.collateral(tmp_path / "c")
    root = tmp_path / "intel.pem"
    root.write_bytes(certificate_pem([intel.root_der]))
    made = VerificationSection(trusted_roots=[root], collateral=folder)
    verification = Verification(made)
    verifier = verification.verifier()
    good = (folder / name).read_bytes()
    for bad in (b"", b"{}", good[:-20], good.replace(b"2026", b"2099").replace(b"M", b"N")):
        (folder / name).write_bytes(bad)
        for load in (verification.files.reload, lambda: Verification(made)):
            with pytest.raises(ConfigurationError, match=name):
                load()
        assert tdx(verifier, intel) == "accepted"
    (folder / name).write_bytes(good)
    verification.files.reload()


def test_a_folder_that_this_process_fills_may_be_damaged_at_its_start_and_is_never_rolled_back(
    intel: Intel, tmp_path: Path
) -> None:
    folder = intel.collateral(tmp_path / "c", info={"issueDate": "2026-05-10T00:00:00Z"})
    older = (folder / "tcb_info.json").read_bytes()
    root = tmp_path / "intel.pem"
    root.write_bytes(certificate_pem([intel.root_der]))
    fetch = FetchSection(fmspcs=[FMSPC.hex()])
    made = VerificationSection(trusted_roots=[root], collateral=folder, fetch=fetch)
    (folder / "qe_identity.json").write_bytes(b"half")
    verification = Verification(made)
    verifier = verification.verifier()
    assert tdx(verifier, intel) == "collateral_missing"
    intel.collateral(folder)
    verification.files.reload()
    assert tdx(verifier, intel) == "accepted"
    (folder / "tcb_info.json").unlink()
    verification.files.reload()
    assert tdx(verifier, intel) == "collateral_missing"
    (folder / "tcb_info.json").write_bytes(older)
    with pytest.raises(ConfigurationError, match=r"tcb_info\.json was issued at 2026-05-10"):
        verification.files.reload()


@pytest.mark.parametrize("name", ["root.crl", "genoa.crl"])
def test_a_list_that_is_damaged_where_this_process_fills_the_folder_is_fetched_anew(
    name: str, root: SimulatedRoot, intel: Intel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Until then nothing is accepted whose issuer it may have revoked."""
    folder = intel.collateral(tmp_path / "c")
    (folder / "genoa.crl").write_bytes(crl(root))
    other = tmp_path / "intel.pem"
    other.write_bytes(certificate_pem([intel.root_der]))
    fetch = FetchSection(fmspcs=[FMSPC.hex()])
    made = section(root, tmp_path, collateral=folder, fetch=fetch)
    made = made.model_copy(update={"trusted_roots": [*made.trusted_roots, other]})
    good = (folder / name).read_bytes()
    (folder / name).write_bytes(good[:-20])
    verification = Verification(made)
    verifier = verification.verifier()
    assert name in caplog.text
    # A list that cannot be read does not say whose it is.
    assert [tdx(verifier, intel), snp(verifier, root)] == ["revocation_list", "revocation_list"]
    with pytest.raises(ConfigurationError, match=name):
        verification.files.reload()
    (folder / name).write_bytes(good)
    verification.files.reload()
    assert [tdx(verifier, intel), snp(verifier, root)] == ["accepted", "accepted"]
    # A list that somebody else maintains is another matter, and so is a folder that nobody fills.
    (folder / name).write_bytes(good[:-20])
    elsewhere = tmp_path / f"other-{name}"
    elsewhere.write_bytes(good[:-20])
    for change in ({"fetch": None}, {"revocation_lists": [elsewhere]}):
        with pytest.raises(ConfigurationError, match=name):
            Verification(made.model_copy(update=change))


async def test_files_that_do_not_answer_are_noticed(
    root: SimulatedRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "amd.crl"
    path.write_bytes(crl(root))
    verification = Verification(section(root, tmp_path, path), clock=SystemClock())
    answers = threading.Event()
    monkeypatch.setattr(followed_files, "_ANSWER_SECONDS", 0.05)
    monkeypatch.setattr(followed_files, "read_files", lambda _: answers.wait())
    await verification.files._look()
    answers.set()
    assert "did not answer" in verification.files.problem
    assert verification.files.notices() == (
        f"what was read before stays in force: {verification.files.problem}",
    )
    assert verification.collateral_failing() == (1, 0)


def test_a_folder_of_collateral_may_have_amds_lists(
    root: SimulatedRoot, intel: Intel, tmp_path: Path
) -> None:
    folder, verification = both_vendors(root, intel, tmp_path)
    verifier = verification.verifier()
    assert snp(verifier, root) == "certificate_revoked"
    assert tdx(verifier, intel) == "accepted"
    (folder / "genoa.crl").write_bytes(changed(crl(root, ASK_SERIAL), -1))
    with pytest.raises(ConfigurationError, match=r"genoa\.crl is damaged"):
        verification.files.reload()


async def test_files_are_looked_at_after_a_change_and_a_fault_is_said_once(
    root: SimulatedRoot, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "amd.crl"
    path.write_bytes(crl(root))
    verification = Verification(section(root, tmp_path, path), clock=SystemClock())
    verifier = verification.verifier(ReferenceValues())
    instruments = Instruments("ca", clock=SystemClock())
    instruments.watch_collateral(verification)
    following = asyncio.create_task(verification.files.follow())

    def unreadable() -> float | None:
        return instruments.registry.get_sample_value("sds_collateral_failing", {"what": "read"})

    def end() -> float | None:
        return instruments.registry.get_sample_value(
            "sds_collateral_next_update_timestamp_seconds", {"file": "amd.crl"}
        )

    async def until(condition: Callable[[], bool]) -> None:
        while not condition():
            await asyncio.sleep(0.02)

    try:
        # Replaced, as Kubernetes and careful tools do.
        new = tmp_path / "new"
        new.write_bytes(crl(root, ASK_SERIAL, number=2))
        new.replace(path)
        await until(lambda: snp(verifier, root) == "certificate_revoked")
        ends = end()
        assert ends == (NOW + timedelta(hours=23)).timestamp()
        assert unreadable() == 0
        path.write_bytes(b"nothing")
        await until(lambda: verification.files.failures > 0)
        assert unreadable() == 1
        # What was read before counts, until then.
        assert end() == ends
        before = verification.files.failures
        verification.files.ask()
        await until(lambda: verification.files.failures > before)
        assert snp(verifier, root) == "certificate_revoked"
        said = [record for record in caplog.records if "cannot be used" in record.message]
        # Once by itself, and once because somebody asked.
        assert len(said) == 2
        assert unreadable() == verification.files.failures
        path.write_bytes(crl(root, number=3))
        await until(lambda: snp(verifier, root) == "accepted")
        await until(lambda: unreadable() == 0)
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
