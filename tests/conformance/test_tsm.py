"""Collection of evidence over a real file system that behaves as configfs-tsm."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from sds.attestation.evidence import EvidenceKind, ReportData
from sds.attestation.guest.attester import guest_attester
from sds.attestation.guest.sev_guest import SevGuestAttester
from sds.attestation.guest.tsm import ATTEMPTS, TsmAttester, directory_of_reports
from sds.attestation.snp.verifier import SnpVerifier
from sds.clock import SystemClock
from sds.errors import EvidenceError, EvidenceUnavailableError
from tests.support import need
from tests.support.machines import NOW, simulated
from tests.support.refusals import refused
from tests.support.tsm_mount import PATIENCE_SECONDS, mounted_reports

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.tsm_mount import Mounted

DATA = ReportData(bytes(range(64)))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    with mounted_reports(tmp_path_factory.mktemp("tsm")) as found:
        found.told(machine=simulated().machine().to_bytes().hex())
        yield found


@pytest.fixture
def mounted(shared: Mounted) -> Mounted:
    """Without anything that an earlier test told it."""
    shared.told()
    return shared


def attester(mounted: Mounted) -> TsmAttester:
    return TsmAttester(SystemClock(), reports=mounted.folder)


async def test_a_report_with_the_hosts_certificates_is_accepted(mounted: Mounted) -> None:
    mounted.told(certificates=True)
    evidence = await attester(mounted).attest(DATA)
    assert len(evidence.certificates) == 3
    verifier = SnpVerifier(trusted_roots=[simulated().ark_der])
    assert verifier.verify(evidence, data=DATA, now=NOW).simulated
    assert mounted.told() == 0, "the directory of the request is gone"


async def test_without_certificates_there_is_the_report_alone(mounted: Mounted) -> None:
    mounted.told()
    evidence = await attester(mounted).attest(DATA)
    assert evidence.certificates == ()


async def test_a_second_writer_is_noticed_and_the_request_made_again(mounted: Mounted) -> None:
    mounted.told(race=2)
    evidence = await attester(mounted).attest(DATA)
    assert evidence.report[0x50:0x90] == DATA
    assert mounted.told() == 0


async def test_a_second_writer_that_never_rests_is_an_error(mounted: Mounted) -> None:
    mounted.told(race=1000)
    with pytest.raises(EvidenceUnavailableError, match="another process wrote"):
        await TsmAttester(HurriedClock(), reports=mounted.folder).attest(DATA)
    assert mounted.told() == 0


@pytest.mark.parametrize("trouble", ["busy", "throttle"])
async def test_what_passes_is_tried_again_and_only_so_often(mounted: Mounted, trouble: str) -> None:
    mounted.told(**{trouble: 2})
    evidence = await attester(mounted).attest(DATA)
    assert evidence.report[0x50:0x90] == DATA
    mounted.told(**{trouble: 1000})
    clock = HurriedClock()
    with pytest.raises(EvidenceUnavailableError):
        await TsmAttester(clock, reports=mounted.folder).attest(DATA)
    assert len(clock.pauses) == ATTEMPTS - 1
    assert mounted.told() == 0


async def test_ten_at_once_each_get_their_own(mounted: Mounted) -> None:
    mounted.told(certificates=True)
    wanted = [ReportData(bytes([index]) * 64) for index in range(10)]
    found = await asyncio.gather(*(attester(mounted).attest(data) for data in wanted))
    assert [evidence.report[0x50:0x90] for evidence in found] == wanted


async def test_a_privilege_level_is_asked_for(mounted: Mounted) -> None:
    mounted.told()
    asked = TsmAttester(SystemClock(), reports=mounted.folder, privilege_level=1)
    assert (await asked.attest(DATA)).kind is EvidenceKind.SEV_SNP


async def test_a_quote(mounted: Mounted) -> None:
    quote = (need.vectors() / "tdx" / "quote-v5.dat").read_bytes()
    mounted.told(tdx=quote.hex())
    data = ReportData(quote[54 + 520 : 54 + 584])
    guest = guest_attester(SystemClock(), reports=mounted.folder)
    assert (await guest.attest(data)).kind is EvidenceKind.TDX
    other = guest_attester(SystemClock(), reports=mounted.folder, kind=EvidenceKind.SEV_SNP)
    with refused("evidence_unsupported", match="configured is sev-snp"):
        await other.attest(data)
    with pytest.raises(EvidenceUnavailableError, match="another request"):
        await TsmAttester(HurriedClock(), reports=mounted.folder).attest(DATA)


async def test_a_cancelled_request_leaves_nothing(mounted: Mounted) -> None:
    mounted.told(throttle=1000)
    task = asyncio.create_task(attester(mounted).attest(DATA))
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    deadline = time.monotonic() + PATIENCE_SECONDS
    while mounted.told(throttle=0):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def test_a_kernel_without_a_driver_behind_it(mounted: Mounted, tmp_path: Path) -> None:
    """The core makes the directory, and each mkdir in it fails: that is said at the start."""
    mounted.told(driverless=True)
    with refused("evidence_unsupported", match="no driver is behind it"):
        guest_attester(SystemClock(), reports=mounted.folder, device=tmp_path / "none")
    device = tmp_path / "sev-guest"
    device.touch()
    found = guest_attester(SystemClock(), reports=mounted.folder, device=device)
    assert isinstance(found, SevGuestAttester)
    mounted.told(driverless=False)
    found = guest_attester(SystemClock(), reports=mounted.folder, device=device)
    assert isinstance(found, TsmAttester)
    assert mounted.told() == 0, "nothing is left"


async def test_a_machine_without_it(tmp_path: Path) -> None:
    with refused("evidence_unsupported"):
        await TsmAttester(SystemClock(), reports=tmp_path / "none").attest(DATA)
    with refused("evidence_unsupported", match=r"has no .*, nor "):
        guest_attester(SystemClock(), reports=tmp_path / "none", device=tmp_path / "none")
    # A directory without the kernel behind it.
    with pytest.raises(EvidenceError):
        await TsmAttester(SystemClock(), reports=tmp_path).attest(DATA)


class HurriedClock(SystemClock):
    """Counts pauses instead of making them."""

    def __init__(self) -> None:
        self.pauses: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        await asyncio.sleep(0)


def test_a_container_has_it_elsewhere(tmp_path: Path) -> None:
    usual, in_container = tmp_path / "usual", tmp_path / "in_container"
    assert directory_of_reports(usual, in_container) == usual, "an error names the usual one"
    in_container.mkdir()
    assert directory_of_reports(usual, in_container) == in_container
    usual.mkdir()
    assert directory_of_reports(usual, in_container) == usual
