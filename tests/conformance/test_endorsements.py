"""VCEKs from a directory and from a server in the layout of AMD's KDS."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from sds.attestation.evidence import Evidence, EvidenceKind, ReportData
from sds.attestation.snp import endorsements, sources
from sds.attestation.snp.certificate import Certificate
from sds.attestation.snp.endorsements import KeptEndorsements
from sds.attestation.snp.kds import ATTEMPTS, KdsEndorsements, vcek_path
from sds.attestation.snp.report import Product, Report, SigningKey
from sds.attestation.snp.simulated_certificates import certificate, leaf_extensions
from sds.attestation.snp.sources import (
    MAX_ANSWER_BYTES,
    DirectoryEndorsements,
    EndorsedAttester,
    Endorsements,
)
from sds.attestation.snp.verifier import SnpVerifier
from sds.errors import EndorsementUnavailableError
from sds.files import replace_file
from sds.pki import certificate_pem
from tests.support import evidence_vectors as vectors
from tests.support.clock import PatientClock, PauseCounter
from tests.support.machines import NOW, simulated
from tests.support.web_site import site

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from sds.attestation.snp.simulated import SimulatedMachine

DATA = ReportData(bytes(range(64)))


class Bare:
    """A guest whose host gives no certificates."""

    def __init__(self, machine: SimulatedMachine) -> None:
        self._machine = machine

    async def attest(self, data: ReportData) -> Evidence:
        return Evidence(kind=EvidenceKind.SEV_SNP, report=self._machine.report(data))


class Kds:
    """A server of one chip; ``failures`` answers are 429 first."""

    def __init__(self, machine: SimulatedMachine) -> None:
        self.machine = machine
        self.failures = 0
        self.later = ""
        self.content: bytes | None = None
        self.chain: bytes | None = None
        self.asked: list[str] = []

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(request.path_qs)
        if self.failures:
            self.failures -= 1
            return web.Response(status=429, headers={"Retry-After": self.later})
        leaf, ask, ark = self.machine.certificates
        if request.path.endswith("/cert_chain"):
            chain = certificate_pem([ask, ark]) if self.chain is None else self.chain
            return web.Response(body=chain)
        return web.Response(body=leaf if self.content is None else self.content)

    @asynccontextmanager
    async def served(self) -> AsyncIterator[str]:
        application = web.Application()
        application.router.add_get("/{path:.*}", self.answer)
        async with site(application) as port:
            yield f"http://127.0.0.1:{port}"


async def holds(machine: SimulatedMachine, *sources: Endorsements) -> None:
    evidence = await EndorsedAttester(Bare(machine), sources).attest(DATA)
    SnpVerifier(trusted_roots=[machine.ark_der]).verify(evidence, data=DATA, now=NOW)


@pytest.mark.parametrize("product", list(Product))
async def test_a_server_completes_evidence_once(product: Product) -> None:
    machine = simulated(product).machine()
    kds = Kds(machine)
    async with kds.served() as url:
        source = KdsEndorsements(url + "/", PauseCounter())
        await holds(machine, source)
        await holds(machine, source)
    title = product.certificate_name
    chip = machine.chip_id.hex() if product is not Product.TURIN else machine.chip_id[:8].hex()
    leaf, chain = kds.asked
    assert leaf.startswith(f"/vcek/v1/{title}/{chip}?")
    assert ("fmcSPL=01" in leaf) is (product is Product.TURIN)
    assert chain == f"/vcek/v1/{title}/cert_chain"


def test_the_address_of_a_real_chip() -> None:
    report = Report.parse(vectors.evidence("turin-v5").report)
    assert vcek_path(report, Product.TURIN) == (
        "/vcek/v1/Turin/59790fb1c39f35c1?fmcSPL=01&blSPL=01&teeSPL=01&snpSPL=04&ucodeSPL=81"
    )


async def test_a_server_that_throttles_is_asked_again_and_only_so_often() -> None:
    machine = simulated().machine()
    kds, clock = Kds(machine), PauseCounter()
    async with kds.served() as url:
        kds.failures = 2
        await holds(machine, KdsEndorsements(url, clock))
        assert len(clock.pauses) == 2
        kds.failures, kds.asked = 1000, []
        with pytest.raises(EndorsementUnavailableError, match="status 429"):
            await holds(machine, KdsEndorsements(url, clock))
        assert len(kds.asked) == ATTEMPTS
    with pytest.raises(EndorsementUnavailableError, match="does not answer"):
        await holds(machine, KdsEndorsements(url, clock))


async def test_a_server_that_says_later_is_left_alone_until_then() -> None:
    machine = simulated().machine()
    kds, clock = Kds(machine), PatientClock()
    async with kds.served() as url:
        source = KdsEndorsements(url, clock)
        kds.failures, kds.later = 1, "900"
        with pytest.raises(EndorsementUnavailableError, match="again in 900 s"):
            await holds(machine, source)
        for _ in range(50):
            with pytest.raises(EndorsementUnavailableError, match="again in"):
                await holds(machine, source)
        assert len(kds.asked) == 1
        await clock.sleep(901)
        await holds(machine, source)
        assert len(kds.asked) == 3


async def test_certificates_are_kept_over_a_restart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    machine, other = simulated().machine(), simulated().machine()
    kds = Kds(machine)
    async with kds.served() as url:
        for _ in range(3):
            await holds(machine, KeptEndorsements(KdsEndorsements(url, PauseCounter()), tmp_path))
        assert len(kds.asked) == 2  # one leaf, one chain
        kds.machine = other
        await holds(other, KeptEndorsements(KdsEndorsements(url, PauseCounter()), tmp_path))
        await holds(machine, KeptEndorsements(KdsEndorsements(url, PauseCounter()), tmp_path))
        assert len(kds.asked) == 4
        (tmp_path / "file").touch()
        kds.machine = machine
        full = KeptEndorsements(KdsEndorsements(url, PauseCounter()), tmp_path / "file")
        await holds(machine, full)
    assert "cannot be stored" in caplog.text


@pytest.mark.parametrize("written", [0, 1, 2])
async def test_certificates_that_were_not_all_stored_are_fetched_again(
    written: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, a leaf that was stored alone (a full disk, SIGKILL) was given for good."""
    machine = simulated().machine()
    kds = Kds(machine)
    left = iter(range(written))

    def full(path: Path, content: bytes, *, mode: int) -> None:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace_file(path, content, mode=mode)

    async with kds.served() as url:
        with monkeypatch.context() as patched:
            patched.setattr(endorsements, "replace_file", full)
            await holds(machine, KeptEndorsements(KdsEndorsements(url, PauseCounter()), tmp_path))
        for _ in range(2):
            await holds(machine, KeptEndorsements(KdsEndorsements(url, PauseCounter()), tmp_path))
        assert len(kds.asked) == 4, "twice for a leaf and a chain, and then it is stored"


async def test_folders_that_hang_cost_a_request_and_not_the_evidence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answers, machine = threading.Event(), simulated().machine()
    monkeypatch.setattr(sources, "ANSWER_SECONDS", 0.02)
    monkeypatch.setattr(endorsements, "ANSWER_SECONDS", 0.02)
    monkeypatch.setattr(DirectoryEndorsements, "_look", lambda *_: answers.wait())
    monkeypatch.setattr(KeptEndorsements, "_keep", lambda *_: answers.wait())
    kds = Kds(machine)
    try:
        async with kds.served() as url, asyncio.timeout(20):
            kept = KeptEndorsements(KdsEndorsements(url, PauseCounter()), tmp_path)
            attester = EndorsedAttester(Bare(machine), [DirectoryEndorsements(tmp_path), kept])
            for _ in range(3):  # more often than there are threads for it
                evidence = await attester.attest(DATA)
                assert evidence.certificates == machine.certificates
    finally:
        answers.set()
    assert "cannot be stored, and will be fetched again: no answer in time" in caplog.text


@pytest.mark.parametrize("content", [b"", b"nothing", bytes(100_000)])
async def test_an_answer_that_is_no_certificate(content: bytes) -> None:
    machine = simulated().machine()
    kds = Kds(machine)
    kds.content = content
    async with kds.served() as url:
        with pytest.raises(EndorsementUnavailableError):
            await holds(machine, KdsEndorsements(url, PauseCounter()))


async def test_a_server_that_answered_junk_is_asked_again_when_its_time_has_come() -> None:
    machine = simulated().machine()
    kds, clock = Kds(machine), PatientClock()
    async with kds.served() as url:
        source = KdsEndorsements(url, clock)
        for junk in ("leaf", "chain"):
            kds.content, kds.chain = (
                b"<html>" if junk == one else None for one in ("leaf", "chain")
            )
            kds.asked = []
            for _ in range(5):
                with pytest.raises(EndorsementUnavailableError):
                    await holds(machine, source)
            assert len(kds.asked) == ATTEMPTS + (junk == "chain"), "and left alone after a failure"
            await clock.sleep(3600)
        # A chain of another product is readable, and no use.
        kds.chain = certificate_pem(simulated(Product.MILAN).machine().certificates[1:])
        with pytest.raises(EndorsementUnavailableError, match="chain of another"):
            await holds(machine, source)
        await clock.sleep(3600)
        kds.chain = None
        await holds(machine, source)


async def test_the_certificate_of_another_chip_is_not_taken() -> None:
    machine = simulated().machine()
    async with Kds(simulated().machine()).served() as url:
        with pytest.raises(EndorsementUnavailableError, match="another chip"):
            await holds(machine, KdsEndorsements(url, PauseCounter()))


async def test_version_2_names_no_product() -> None:
    machine = simulated(Product.MILAN).machine().changed(version=2)
    async with Kds(machine).served() as url:
        await holds(machine, KdsEndorsements(url, PauseCounter(), product=Product.MILAN))
        with pytest.raises(EndorsementUnavailableError, match="no source"):
            await holds(machine, KdsEndorsements(url, PauseCounter()))


async def test_a_directory(tmp_path: Path) -> None:
    machine, other = simulated().machine(), simulated().machine()
    vlek = simulated(Product.GENOA, SigningKey.VLEK).machine()
    source = DirectoryEndorsements(tmp_path)
    with pytest.raises(EndorsementUnavailableError, match="no source"):
        await holds(machine, source)
    (tmp_path / "other.cer").write_bytes(other.certificates[0])
    (tmp_path / "vlek.der").write_bytes(vlek.certificates[0])
    (tmp_path / "junk.pem").write_bytes(b"junk")
    (tmp_path / "notes.txt").write_bytes(b"not looked at")
    with pytest.raises(EndorsementUnavailableError):
        await holds(machine, source)
    (tmp_path / "chain.pem").write_bytes(certificate_pem(machine.certificates[1:]))
    (tmp_path / "gone.cer").symlink_to("nowhere")
    (tmp_path / "large.der").write_bytes(bytes(MAX_ANSWER_BYTES + 1))
    with pytest.raises(EndorsementUnavailableError, match=r"large\.der cannot be read: it is"):
        await holds(machine, source)
    (tmp_path / "mine.cer").write_bytes(machine.certificates[0])
    await holds(machine, source)  # what cannot be read takes nothing from the others
    with pytest.raises(EndorsementUnavailableError, match="cannot be read"):
        await holds(machine, DirectoryEndorsements(tmp_path / "none"))
    # Every firmware update and every product leaves its issuers; evidence has room for few.
    for name in ("again", "and again"):
        (tmp_path / f"{name}.pem").write_bytes(certificate_pem(machine.certificates[1:]))
    milan = simulated(Product.MILAN).machine()
    (tmp_path / "milan.pem").write_bytes(certificate_pem(milan.certificates[1:]))
    evidence = await EndorsedAttester(Bare(machine), [source]).attest(DATA)
    assert set(evidence.certificates) == set(machine.certificates)
    assert len(evidence.certificates) == len(machine.certificates)


async def test_a_leaf_that_was_renewed_gives_way_to_the_new_one(tmp_path: Path) -> None:
    """Both are in the folder, and which name comes first says nothing."""
    root = simulated()
    machine = root.machine()
    leaf, *issuers = machine.certificates
    start = root.start - timedelta(days=800)
    former = certificate(
        issuer=Certificate.parse(leaf).issuer,
        subject=Certificate.parse(leaf).subject,
        public_key=machine.vcek_key.public_key(),
        extensions=leaf_extensions(
            root.product, root.kind, tcb=machine.tcb, identity=machine.chip_id
        ),
        signer=root.ask_key,
        serial=0,
        validity=(start, start + timedelta(days=730)),
    )
    for file, content in (("1.cer", former), ("2.cer", leaf), ("3.cer", former)):
        (tmp_path / file).write_bytes(content)
    (tmp_path / "chain.pem").write_bytes(certificate_pem(issuers))
    await holds(machine, DirectoryEndorsements(tmp_path))


async def test_sources_are_asked_in_order_and_certificates_of_the_host_are_kept(
    tmp_path: Path,
) -> None:
    machine = simulated().machine()
    async with Kds(machine).served() as url:
        await holds(
            machine, DirectoryEndorsements(tmp_path / "none"), KdsEndorsements(url, PauseCounter())
        )
    evidence = await EndorsedAttester(machine, []).attest(DATA)
    assert evidence.certificates == machine.certificates


class Forgetful:
    """A machine whose host gives certificates that it had before an update."""

    def __init__(self, machine: SimulatedMachine, certificates: tuple[bytes, ...]) -> None:
        self._machine = machine
        self._certificates = certificates

    async def attest(self, data: ReportData) -> Evidence:
        return replace(await self._machine.attest(data), certificates=self._certificates)


async def test_a_leaf_of_the_host_that_does_not_belong_to_the_report_is_replaced(
    tmp_path: Path,
) -> None:
    maker = simulated()
    machine, other = maker.machine(), maker.machine(chip_id=b"\7" * 64)
    for index, der in enumerate(machine.certificates):
        (tmp_path / f"{index}.der").write_bytes(der)
    right, none = DirectoryEndorsements(tmp_path), DirectoryEndorsements(tmp_path / "none")
    for given in (other.certificates, (b"not a certificate",)):
        host = Forgetful(machine, given)
        evidence = await EndorsedAttester(host, [none, right]).attest(DATA)
        SnpVerifier(trusted_roots=[machine.ark_der]).verify(evidence, data=DATA, now=NOW)
        # Nobody has better ones: the verifier says what is wrong with those of the host.
        assert (await EndorsedAttester(host, [none]).attest(DATA)).certificates == given


@pytest.mark.parametrize("damaged", ["leaf", "issuer"])
async def test_a_certificate_that_was_damaged_on_its_way_is_not_kept(
    damaged: str, tmp_path: Path
) -> None:
    """Its fields are right and its signature is not; a cache on disk would keep it for good."""
    machine = simulated().machine()
    leaf, ask, ark = machine.certificates
    kds, clock = Kds(machine), PatientClock()
    async with kds.served() as url:
        source = KeptEndorsements(KdsEndorsements(url, clock), tmp_path / "kept")
        if damaged == "leaf":
            kds.content = leaf[:-1] + bytes([leaf[-1] ^ 1])
        else:
            kds.chain = certificate_pem([ask[:-1] + bytes([ask[-1] ^ 1]), ark])
        with pytest.raises(EndorsementUnavailableError, match="signed"):
            await holds(machine, source)
        assert not (tmp_path / "kept").exists()
        kds.content = kds.chain = None
        await clock.sleep(20)
        await holds(machine, source)


class Hosted(Bare):
    """A guest whose host gives these certificates."""

    def __init__(self, machine: SimulatedMachine, *certificates: bytes) -> None:
        super().__init__(machine)
        self._certificates = certificates

    async def attest(self, data: ReportData) -> Evidence:
        return replace(await super().attest(data), certificates=self._certificates)


async def test_a_damaged_certificate_gives_way_to_a_good_one(tmp_path: Path) -> None:
    """In a host's table, and in a folder: it has the fields of the report, and nobody signed it."""
    machine = simulated().machine()
    leaf, ask, ark = machine.certificates
    damaged = leaf[:-1] + bytes([leaf[-1] ^ 1])
    verifier = SnpVerifier(trusted_roots=[machine.ark_der])
    folder = DirectoryEndorsements(tmp_path)
    for name, der in (("0", damaged), ("1", leaf), ("2", ask), ("3", ark)):
        (tmp_path / f"{name}.der").write_bytes(der)
    for inner in (Bare(machine), Hosted(machine, damaged, ask, ark)):
        evidence = await EndorsedAttester(inner, [folder]).attest(DATA)
        verifier.verify(evidence, data=DATA, now=NOW)
    # What the host gave is kept if it holds, or if nothing here shows that it does not.
    for given in ((leaf, ask, ark), (leaf,), (damaged,)):
        evidence = await EndorsedAttester(Hosted(machine, *given), [folder]).attest(DATA)
        assert evidence.certificates == given
    evidence = await EndorsedAttester(Hosted(machine, damaged, ask, ark), []).attest(DATA)
    assert evidence.certificates == (damaged, ask, ark)
