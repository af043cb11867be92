"""``/dev/sev-guest``: the ioctl as the kernel's header has it, answered by a driver of ours."""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import os
import struct
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from sds import faults
from sds.attestation.evidence import EvidenceKind, ReportData
from sds.attestation.guest.attester import guest_attester
from sds.attestation.guest.sev_guest import SNP_GET_EXT_REPORT, SevGuestAttester
from sds.attestation.guest.tsm import ATTEMPTS, TsmAttester
from sds.attestation.snp import certificate_table
from sds.attestation.snp.certificate_table import (
    ARK,
    ASK,
    VCEK,
    chain_of_table,
    parse_certificate_table,
)
from sds.attestation.snp.verifier import SnpVerifier
from sds.clock import SystemClock
from sds.errors import EvidenceError, EvidenceMalformedError, EvidenceUnavailableError
from sds.pki import certificate_pem
from sds.problems import Problems
from tests.support.certificate_table import build_certificate_table
from tests.support.clock import PauseCounter
from tests.support.machines import NOW, simulated
from tests.support.refusals import refused

if TYPE_CHECKING:
    from pathlib import Path

    from sds.attestation.snp.simulated import SimulatedMachine

DATA = ReportData(bytes(range(64)))


class Driver:
    """The kernel's side: reads and writes the caller's memory where the request says."""

    def __init__(self, machine: SimulatedMachine, table: bytes = b"", busy: int = 0) -> None:
        self.machine = machine
        self.table = table
        self.busy = busy
        self.status = 0
        self.other_data = False
        self.levels: list[int] = []

    def __call__(self, descriptor: int, request: int, argument: bytearray) -> int:
        assert request == SNP_GET_EXT_REPORT == 3 << 30 | 32 << 16 | ord("S") << 8 | 2
        assert len(argument) == 32
        version, asked, answer, exit_information = struct.unpack("<B7xQQQ", argument)
        assert (version, exit_information) == (1, 0)
        raw = ctypes.string_at(asked, 112)
        data, level, certificates, room = struct.unpack("<64sI28xQI4x", raw)
        self.levels.append(level)
        if self.busy:
            self.busy -= 1
            struct.pack_into("<Q", argument, 24, 2 << 32)
            raise OSError(errno.EIO, "Input/output error")
        if len(self.table) > room:
            ctypes.memmove(asked + 104, struct.pack("<I", len(self.table)), 4)
            struct.pack_into("<Q", argument, 24, 1 << 32)
            raise OSError(errno.EIO, "Input/output error")
        ctypes.memmove(certificates, self.table, len(self.table))
        report = self.machine.report(bytes(64) if self.other_data else data)
        head = struct.pack("<II24x", self.status, len(report))
        ctypes.memmove(answer, head + report, len(head) + len(report))
        return 0


def attester(driver: Driver, device: Path, clock: PauseCounter | None = None) -> SevGuestAttester:
    device.touch()
    return SevGuestAttester(clock or PauseCounter(), device=device, privilege_level=1, ioctl=driver)


def table(machine: SimulatedMachine, padding: int = 0) -> bytes:
    leaf, ask, ark = machine.certificates
    return build_certificate_table({ARK: ark, VCEK: leaf, ASK: ask}) + bytes(padding)


@pytest.mark.parametrize("padding", [0, 100_000])
async def test_an_extended_report_is_accepted(tmp_path: Path, padding: int) -> None:
    machine = simulated().machine()
    driver = Driver(machine, table(machine, padding))
    evidence = await attester(driver, tmp_path / "sev-guest").attest(DATA)
    verifier = SnpVerifier(trusted_roots=[machine.ark_der])
    assert verifier.verify(evidence, data=DATA, now=NOW).simulated
    # A table that does not fit is asked for again with the size that the host told.
    assert driver.levels == [1] * (2 if padding else 1)


async def test_a_host_without_certificates(tmp_path: Path) -> None:
    driver = Driver(simulated().machine())
    evidence = await attester(driver, tmp_path / "sev-guest").attest(DATA)
    assert (evidence.kind, evidence.certificates) == (EvidenceKind.SEV_SNP, ())


async def test_a_busy_host_is_asked_again_and_only_so_often(tmp_path: Path) -> None:
    clock = PauseCounter()
    driver = Driver(simulated().machine(), busy=3)
    await attester(driver, tmp_path / "sev-guest", clock).attest(DATA)
    assert len(clock.pauses) == 3
    driver.busy = 1000
    with pytest.raises(EvidenceUnavailableError):
        await attester(driver, tmp_path / "sev-guest", PauseCounter()).attest(DATA)
    assert 1000 - driver.busy == ATTEMPTS


async def test_an_answer_to_another_request_is_not_taken(tmp_path: Path) -> None:
    driver = Driver(simulated().machine())
    driver.other_data = True
    with pytest.raises(EvidenceUnavailableError, match="another request"):
        await attester(driver, tmp_path / "sev-guest").attest(DATA)


async def test_what_cannot_work_is_not_tried_again(tmp_path: Path) -> None:
    driver = Driver(simulated().machine())
    driver.status = 0x16
    with refused("evidence_unsupported", match="status 22"):
        await attester(driver, tmp_path / "sev-guest").attest(DATA)
    huge = Driver(simulated().machine(), bytes(2 * 1024 * 1024))
    with refused("evidence_unsupported", match="host 1"):
        await attester(huge, tmp_path / "sev-guest").attest(DATA)
    with refused("evidence_unsupported", match="cannot be opened"):
        await SevGuestAttester(PauseCounter(), device=tmp_path / "none").attest(DATA)
    # The real ioctl, on a file that is no such device.
    (tmp_path / "file").touch()
    with refused("evidence_unsupported", match="SNP_GET_EXT_REPORT"):
        await SevGuestAttester(PauseCounter(), device=tmp_path / "file").attest(DATA)


async def test_a_descriptor_may_be_free_in_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What this process lacks says nothing about the machine."""
    wanted, really, tried = tmp_path / "sev-guest", os.open, [0]

    def none_left(path: Any, *arguments: Any, **named: Any) -> int:
        if path == wanted:
            tried[0] += 1
            if tried[0] < 3:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return really(path, *arguments, **named)

    ready = attester(Driver(simulated().machine()), wanted)
    monkeypatch.setattr(os, "open", none_left)
    assert (await ready.attest(DATA)).kind is EvidenceKind.SEV_SNP
    assert tried == [3]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
async def test_what_the_interface_lacks_for_a_moment_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def none_left(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    clock = PauseCounter()
    monkeypatch.setattr("pathlib.Path.mkdir", none_left)
    with pytest.raises(EvidenceUnavailableError):
        await TsmAttester(clock, reports=tmp_path).attest(DATA)
    assert len(clock.pauses) == ATTEMPTS - 1


@pytest.mark.parametrize("kind", ["cut off", "junk for a leaf", "junk for its issuer"])
async def test_a_table_that_cannot_be_read_takes_no_report(
    tmp_path: Path,
    kind: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A host that gives nonsense gives as good as none: the certificates are found elsewhere."""
    machine = simulated().machine()
    leaf, ask, ark = machine.certificates
    given = {
        "cut off": table(machine)[:100],
        "junk for a leaf": build_certificate_table({ARK: ark, VCEK: b"nonsense", ASK: ask}),
        "junk for its issuer": build_certificate_table({ARK: ark, VCEK: leaf, ASK: b"nonsense"}),
    }[kind]
    monkeypatch.setattr(certificate_table, "_problems", Problems())
    before = faults.counts()["certificate file"]
    asked = attester(Driver(machine, given), tmp_path / "sev-guest")
    for _ in range(3):
        evidence = await asked.attest(DATA)
        assert evidence.certificates == ((leaf, ark) if kind == "junk for its issuer" else ())
    found = dataclasses.replace(evidence, certificates=(leaf, ask, ark))
    assert SnpVerifier(trusted_roots=[ark]).verify(found, data=DATA, now=NOW).simulated
    assert faults.counts()["certificate file"] == before + 3
    assert caplog.text.count("cannot be used, and evidence goes without it") == 1


def test_the_device_is_the_second_choice(tmp_path: Path) -> None:
    device = tmp_path / "sev-guest"
    device.touch()
    chosen = guest_attester(SystemClock(), reports=tmp_path / "none", device=device)
    assert isinstance(chosen, SevGuestAttester)


def test_what_the_machine_lacks_is_what_its_kind_needs(tmp_path: Path) -> None:
    """On an SEV-SNP guest the device is there, and a TDX quote does not come from it."""
    device = tmp_path / "sev-guest"
    device.touch()
    with pytest.raises(EvidenceError) as caught:
        guest_attester(
            SystemClock(), kind=EvidenceKind.TDX, reports=tmp_path / "none", device=device
        )
    assert caught.value.message == f"this machine has no {tmp_path / 'none'}"


def test_certificate_tables() -> None:
    machine = simulated().machine()
    leaf, ask, ark = machine.certificates
    found = parse_certificate_table(table(machine, 4096))
    assert chain_of_table(found, vlek=False) == (leaf, ask, ark)
    assert chain_of_table(found, vlek=True) == ()
    # As Google's hosts: more entries, unknown ones too; as others: files in PEM, one that is none.
    more = {uuid.UUID(int=7): b"endorsement", ARK: b"", VCEK: certificate_pem([leaf]), ASK: b"x"}
    found = parse_certificate_table(build_certificate_table(more))
    assert chain_of_table(found, vlek=False) == (leaf,)
    assert parse_certificate_table(b"") == {}
    assert parse_certificate_table(bytes(24)) == {}
    whole = table(machine)
    for length in range(1, 200):
        with pytest.raises(EvidenceMalformedError):
            parse_certificate_table(whole[:length])
