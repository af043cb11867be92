"""The exchange key on the real path: the kernel's file, a restart of the process, an exchange."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pydantic import ValidationError

from sds.attestation.azure.attester import VtpmAttester
from sds.attestation.azure.metadata import MetadataService
from sds.attestation.build import keyed
from sds.attestation.checks import Checks
from sds.attestation.collateral.followed_files import Places, examined_files
from sds.attestation.evidence import EvidenceKind, ReportData
from sds.attestation.exchange_key.holding import KeyedAttester, hold_key
from sds.attestation.kind import Demands
from sds.attestation.reference_values import ReferenceValues
from sds.attestation.registry import kind_module
from sds.attestation.settings import AttestationSection, ExchangeKeySection
from sds.attestation.tdx.quote import parse_quote
from sds.attestation.tdx.verifier import TdxVerifier
from sds.attestation.tpm.attest import parse_attest
from sds.attestation.tpm.parcel import Piece
from sds.attestation.tpm.quote import VerifiedQuote
from sds.attestation.tpm.register import PcrRegister
from sds.attestation.tpm.values import PcrValues, appraise_exchange_key
from tests.support import machines, made_quotes, need
from tests.support.authority import World, configured, items, rule, wish
from tests.support.clock import PatientClock
from tests.support.intel import NOW, Intel
from tests.support.measurement_registers import NAME
from tests.support.paravisor import Host, paravisor
from tests.support.refusals import refused
from tests.support.tdx_guest import ServiceManager, SimulatedRegister, TdxGuest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from sds.attestation.evidence import Claims, Evidence

PATIENCE_SECONDS = 20.0
MRTD = (b"m" * 48).hex()
# What `sds agent` does with its section at a real start; it prints the public key.
START = """
import sys
from pathlib import Path
from sds.attestation.build import keyed
from sds.attestation.settings import AttestationSection
key = {"runtime_register": sys.argv[1]}
section = AttestationSection.model_validate({"kind": "tdx", "exchange_key": key})
print(keyed(None, section)._held.public_key.hex())
"""


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    if not Path("/dev/fuse").exists() or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        need.missing("/dev/fuse")
    need.tool("fusermount3")
    folder = tmp_path / "measurements"
    folder.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.measurement_registers", str(folder)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=need.ROOT,
    )
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not os.path.ismount(folder):
            if process.poll() is not None:
                need.missing("a mount of FUSE")
            assert time.monotonic() < deadline, "the file system is not mounted"
            time.sleep(0.02)
        yield folder / NAME
    finally:
        subprocess.run(["fusermount3", "-u", str(folder)], check=False, capture_output=True)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        process.kill()
        process.wait()


def start(register: Path, manager: ServiceManager) -> subprocess.CompletedProcess[str]:
    """A process as systemd starts it: the kept descriptors from 3 on, LISTEN_PID is its own."""
    kept = [descriptor for _, descriptor in manager.kept]
    moved = " ".join(f"{3 + at}<&{descriptor}" for at, descriptor in enumerate(kept))
    shell = f'LISTEN_PID=$$ exec "$0" "$@" {moved}'
    return subprocess.run(
        ["bash", "-c", shell, sys.executable, "-c", START, str(register)],
        env=os.environ | manager.environment("set by the shell"),
        pass_fds=kept,
        capture_output=True,
        text=True,
        check=False,
        cwd=need.ROOT,
    )


def test_a_restarted_process_has_the_key_that_the_kernels_register_shows(
    mounted: Path, tmp_path: Path
) -> None:
    manager = ServiceManager(tmp_path)
    first = start(mounted, manager)
    assert first.returncode == 0, first.stderr
    measured = mounted.read_bytes()
    assert measured != bytes(48)
    second = start(mounted, manager)
    assert second.stdout == first.stdout, second.stderr
    assert mounted.read_bytes() == measured
    assert len(manager.kept) == 1
    manager.close()
    forgetful = tmp_path / "forgetful"
    forgetful.mkdir()
    lost = ServiceManager(forgetful)
    third = start(mounted, lost)
    assert third.returncode != 0
    assert "restart the machine" in third.stderr
    assert mounted.read_bytes() == measured
    lost.close()


def test_a_configuration_without_it_touches_nothing() -> None:
    attester = TdxGuest(Intel(), SimulatedRegister())
    assert keyed(attester, AttestationSection()) is attester


@dataclass
class AtThatTime:
    """The verifier at the time for which the test's collateral is made."""

    inner: TdxVerifier

    def verify(self, evidence: Evidence, *, data: ReportData, now: datetime) -> Claims:
        del now
        return self.inner.verify(evidence, data=data, now=NOW)


async def test_an_authority_serves_the_keys_holder_and_nobody_else_in_the_guest(
    tmp_path: Path,
) -> None:
    intel, register, manager = Intel(), SimulatedRegister(), ServiceManager(tmp_path)
    guest = TdxGuest(intel, register)
    held = hold_key(register, environment=manager.environment(), pid=os.getpid())
    verifier = TdxVerifier(
        values=ReferenceValues.model_validate({"tdx": {"require_exchange_key": True}}),
        trusted_roots=[intel.root_der],
        collateral=intel.collateral(tmp_path / "collateral"),
    )
    world = World()
    async with world.running(
        verifier=AtThatTime(verifier), policy=configured(rule(MRTD))
    ) as authority:
        async with world.client(authority.port, attester=KeyedAttester(guest, held)) as agent:
            for _ in range(2):
                [outcome] = (await agent.issue(items([wish()]))).outcomes
                assert not isinstance(outcome, Exception), outcome
        # A root container that reaches configfs-tsm asks with everything but the key.
        async with world.client(authority.port, attester=guest) as intruder:
            with refused("authority_refused", match="exchange_key_missing"):
                await intruder.issue(items([wish()]))
    assert [record.reason for record in world.journal] == [
        "issued",
        "issued",
        "exchange_key_missing",
    ]
    manager.close()


# --- a vTPM that is bound to the report -----------------------------------------------------------

PCR = 13
SNP_VTPM = EvidenceKind("azure-snp-vtpm")
TDX_VTPM = EvidenceKind("azure-tdx-vtpm")
REPORT_DATA = ReportData(bytes(range(64)))


def judged(evidence: Evidence, *, pcr: int | None = PCR) -> list[str]:
    """Reasons of the checks that failed."""
    own = {} if pcr is None else {"exchange_key_pcr": pcr}
    values = ReferenceValues.model_validate({"others": {SNP_VTPM: own}})
    root = machines.simulated().ark_der
    files = examined_files(Places(roots=(root,)))
    make = kind_module(SNP_VTPM).examiner
    assert make is not None
    examiner = make(Demands(values=values, roots=(root,), files=lambda: files))
    verdict = examiner.examine(evidence, data=REPORT_DATA, now=machines.NOW)
    return [check.error.reason for check in verdict.checks if check.error is not None]


async def test_a_vtpms_register_shows_the_key_and_nothing_after_the_cap(tmp_path: Path) -> None:
    machine, manager = machines.simulated().machine(), ServiceManager(tmp_path)
    with paravisor(machine.report) as vtpm:
        register = PcrRegister(vtpm, PCR)
        held = hold_key(register, environment=manager.environment(), pid=os.getpid())
        async with Host(chain=machine.certificates).running() as host:
            service = MetadataService(host.url, PatientClock())
            anybody = VtpmAttester(
                SNP_VTPM, device=vtpm, service=service, sources=[service], clock=PatientClock()
            )
            own = await KeyedAttester(anybody, held).attest(REPORT_DATA)
            theirs = await anybody.attest(REPORT_DATA)
            assert judged(own) == []
            assert judged(theirs) == ["exchange_key_missing"]
            assert judged(theirs, pcr=None) == []
            assert judged(own, pcr=12) == ["exchange_key_register"]
            # Another key after the cap changes the register for everybody.
            register.extend(held.events[0])
            assert judged(own) == [], "evidence of before stays what it was"
            late = await KeyedAttester(anybody, held).attest(REPORT_DATA)
            assert judged(late) == ["exchange_key_register"]
        with refused("exchange_key_lost"):
            hold_key(register, environment=manager.environment(), pid=os.getpid())
    with refused("runtime_register", match="PCR 13"):
        register.read()
    with refused("runtime_register", match="cannot be extended"):
        register.extend(bytes(32))
    manager.close()


async def test_a_process_of_a_td_makes_up_no_vtpm_with_a_key_of_its_own(tmp_path: Path) -> None:
    """It gets quotes of its TD, which say nothing of a paravisor unless policy names that."""
    intel, manager, quotes = Intel(), ServiceManager(tmp_path), list[bytes]()

    def report(data: bytes) -> bytes:
        quotes.append(intel.quote(fields={520: data}))
        return bytes(128) + data + bytes(1024 - 192)

    with paravisor(report, kind=4) as vtpm:
        register = PcrRegister(vtpm, PCR)
        held = hold_key(register, environment=manager.environment(), pid=os.getpid())
        async with Host(quote=lambda _: quotes[0]).running() as host:
            service = MetadataService(host.url, PatientClock())
            made_up = VtpmAttester(
                TDX_VTPM, device=vtpm, service=service, sources=[service], clock=PatientClock()
            )
            evidence = await KeyedAttester(made_up, held).attest(REPORT_DATA)
    manager.close()
    measured = parse_quote(quotes[0]).body.mrtd.hex()
    files = examined_files(Places(roots=(intel.root_der,)))
    make = kind_module(TDX_VTPM).examiner
    assert make is not None
    for own, wrong in (({}, ["exchange_key_missing"]), ({"measurements": [measured]}, [])):
        demanded = {
            "measurements": [measured],
            "tdx": {"require_exchange_key": True},
            "others": {TDX_VTPM: {"exchange_key_pcr": PCR, **own}},
        }
        values = ReferenceValues.model_validate(demanded)
        examiner = make(Demands(values=values, roots=(intel.root_der,), files=lambda: files))
        verdict = examiner.examine(evidence, data=REPORT_DATA, now=NOW)
        found = [check.error.reason for check in verdict.checks if check.error is not None]
        assert found == [*wrong, "collateral_missing"]


def test_only_the_bank_that_was_capped_counts() -> None:
    values = PcrValues(exchange_key_pcr=PCR)
    attest = parse_attest(made_quotes.rsa_parts(REPORT_DATA)[Piece.ATTEST])
    for bank, pcrs in (("sha384", {PCR: bytes(48)}), ("sha256", {})):
        checks = Checks()
        quote = VerifiedQuote(attest=attest, bank=bank, pcrs=pcrs)
        claims = appraise_exchange_key(checks, quote, values, proof=None, data=REPORT_DATA)
        assert claims == {}
        assert [check.error and check.error.reason for check in checks.done] == [
            "exchange_key_register"
        ]
    for wrong in ({"exchange_key_pcr": 16}, {"exchange_key_pcr": 3, "pcrs": {3: ["00" * 32]}}):
        with pytest.raises(ValidationError):
            PcrValues.model_validate(wrong)


def test_the_section_names_the_register(tmp_path: Path) -> None:
    section = AttestationSection(
        kind="azure-snp-vtpm", tpm_device=tmp_path / "tpm", exchange_key=ExchangeKeySection(pcr=PCR)
    )
    with refused("runtime_register", match="PCR 13"):
        keyed(TdxGuest(Intel(), SimulatedRegister()), section)
