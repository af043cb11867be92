"""The section ``verification.fetch``: collateral fills itself; an outage changes nothing."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sds.attestation.build import Verification
from sds.attestation.collateral.fetching import Fetcher
from sds.attestation.collateral.refreshing import LATEST, SOONEST, CollateralRefresher, next_fetch
from sds.attestation.collateral.storing import Fetched
from sds.attestation.evidence import Evidence, EvidenceKind, ReportData
from sds.attestation.settings import FetchSection, VerificationSection
from sds.attestation.snp.report import Product
from sds.errors import EndorsementUnavailableError, EvidenceError
from sds.pki import certificate_pem
from tests.support.clock import FakeClock
from tests.support.intel import FMSPC, NOW, Intel
from tests.support.machines import crl, simulated

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from tests.support.publishers import Publishers

DATA = ReportData(bytes(range(64)))
TCB = "/tdx/certification/v4/tcb"


def clock_at(moment: datetime) -> FakeClock:
    clock = FakeClock()
    clock.wall = moment
    return clock


def section(publishers: Publishers, intel: Intel, folder: Path) -> VerificationSection:
    root = folder / "intel.pem"
    root.write_bytes(certificate_pem([intel.root_der]))
    return VerificationSection(
        trusted_roots=[root],
        collateral=folder / "kept",
        fetch=FetchSection(fmspcs=[FMSPC.hex()], authorities=["platform"], pcs=publishers.url),
    )


def judged(verification: Verification, intel: Intel) -> str:
    quote = intel.quote(tee_tcb_svn=bytes([5, 1] + [5] * 14), fields={520: DATA})
    evidence = Evidence(kind=EvidenceKind.TDX, report=quote)
    try:
        verification.verifier().verify(evidence, data=DATA, now=NOW)
    except EvidenceError as error:
        return error.reason
    return "accepted"


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0.02)


async def test_an_empty_folder_fills_itself_and_follows_the_publisher(
    publishers: Publishers, intel: Intel, tmp_path: Path
) -> None:
    clock = clock_at(NOW)
    verification = Verification(section(publishers, intel, tmp_path), clock=clock)
    assert not (tmp_path / "kept").exists()
    assert judged(verification, intel) == "collateral_missing"
    assert verification.refresher is not None
    tasks = [asyncio.ensure_future(run()) for _, run in verification.tasks()]
    try:
        await until(lambda: judged(verification, intel) == "accepted")
        assert set(publishers.hits.values()) == {1}
        # Away for a while: what is stored stays, and the publisher is not hammered.
        publishers.refusals[TCB] = [(500, "")] * 1000
        publishers.hits.clear()
        refresher = verification.refresher
        for _ in range(48):
            await clock.advance(3600)
            clock.wall = NOW
            await asyncio.sleep(0.01)
        assert refresher.failures > 0
        assert publishers.hits[TCB] < 150
        assert judged(verification, intel) == "accepted"
        # It is back, and has a list that revokes the platform.
        publishers.refusals.clear()
        serial = intel.pck.serial_number
        publishers.lists["platform"] = intel.crl(intel.ca, intel.ca_key, serial, number=2)
        # A list counts as soon as it is stored, and a round that succeeded when it is over.
        while judged(verification, intel) != "certificate_revoked" or refresher.failures:
            await clock.advance(600)
            clock.wall = NOW
            await asyncio.sleep(0.02)
        assert refresher.failures == 0
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Away(Fetcher):
    """A publisher that never answers."""

    def __init__(self) -> None:
        self.asked = 0

    async def fetch(self, folder: Path) -> list[Fetched]:
        del folder
        self.asked += 1
        raise EndorsementUnavailableError("away")


async def test_a_machine_that_was_paused_beyond_the_next_update_fetches_soon(
    tmp_path: Path,
) -> None:
    """A hypervisor that pauses a guest stops its boot time too; only the wall clock is set then."""
    clock = FakeClock()
    asked: list[datetime] = []

    class There(Away):
        async def fetch(self, folder: Path) -> list[Fetched]:
            asked.append(clock.wall)
            until = clock.wall + timedelta(days=30)
            return [Fetched(path=folder / "x", next_update=until, changed=True)]

    refresher = CollateralRefresher(There(), tmp_path, clock=clock, draw=lambda: 0.5)
    running = asyncio.create_task(refresher.run())
    await clock.advance(60)
    clock.step(31 * 86400)
    await clock.advance(SOONEST.total_seconds())
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert len(asked) == 2


async def test_a_week_without_the_publisher_is_tens_of_attempts_not_thousands(
    tmp_path: Path,
) -> None:
    clock, away = FakeClock(), Away()
    refresher = CollateralRefresher(away, tmp_path, clock=clock, draw=lambda: 0.5)
    running = asyncio.create_task(refresher.run())
    await clock.advance(7 * 86400)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert 28 <= away.asked <= 70


async def test_while_evidence_is_refused_for_want_of_collateral_an_outage_is_over_soon(
    tmp_path: Path,
) -> None:
    clock, away = FakeClock(), Away()
    missed = True
    refresher = CollateralRefresher(
        away, tmp_path, clock=clock, draw=lambda: 1.0, missed=lambda: missed
    )
    for _ in range(100):
        pause = await refresher.once()
    assert pause <= timedelta(minutes=15)
    missed = False
    assert await refresher.once() > timedelta(hours=5)


@pytest.mark.parametrize(
    ("there", "missed"),
    [({"intel", "amd"}, False), ({"intel"}, True), ({"amd"}, True), ({"intel", "stale amd"}, True)],
)
async def test_what_one_manufacturer_published_is_no_substitute_for_the_others(
    there: set[str], intel: Intel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, missed: bool
) -> None:
    """Evidence of the other kind is refused, so a failure is followed by minutes, not hours."""
    machines = simulated()
    roots = tmp_path / "intel.pem", tmp_path / "amd.pem"
    for path, der in zip(roots, (intel.root_der, machines.ark_der), strict=True):
        path.write_bytes(certificate_pem([der]))
    folder = tmp_path / "kept"
    folder.mkdir()
    if "intel" in there:
        intel.collateral(folder)
    if there & {"amd", "stale amd"}:
        age = timedelta(hours=1 if "amd" in there else 48)
        (folder / "genoa.crl").write_bytes(crl(machines, now=NOW, age=age))
    fetch = FetchSection(fmspcs=[FMSPC.hex()], products=[Product.GENOA])
    made = VerificationSection(trusted_roots=list(roots), collateral=folder, fetch=fetch)
    verification = Verification(made, clock=clock_at(NOW))
    assert verification.refresher is not None

    async def away(_: Fetcher, __: Path) -> list[Fetched]:
        raise EndorsementUnavailableError("nobody answers")

    monkeypatch.setattr(Fetcher, "fetch", away)
    pauses = [await verification.refresher.once() for _ in range(12)]
    assert (max(pauses) <= timedelta(minutes=15)) is missed


def fetched(left: timedelta) -> Fetched:
    return Fetched(path=Path("x"), next_update=NOW + left, changed=True)


@settings(deadline=None)
@given(
    hours=st.integers(-10, 24 * 60),
    draw=st.floats(0, 1, exclude_max=True),
)
def test_the_next_fetch_is_long_before_the_next_update(hours: int, draw: float) -> None:
    left = timedelta(hours=hours)
    found = [fetched(left), fetched(left + timedelta(days=3))]
    pause = next_fetch(NOW, found, draw=draw)
    assert SOONEST <= pause <= LATEST
    assert pause == SOONEST or pause <= 0.6 * left


def test_a_fleet_does_not_ask_at_one_moment() -> None:
    found = [fetched(timedelta(days=30))]
    pauses = {next_fetch(NOW, found, draw=index / 100) for index in range(100)}
    assert len(pauses) == 100
    assert max(pauses) - min(pauses) > timedelta(hours=5)


def test_fetch_needs_a_folder_and_something_to_fetch(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fetch needs collateral"):
        VerificationSection(fetch=FetchSection(fmspcs=["00806f050000"]))
    with pytest.raises(ValueError, match="name fmspcs"):
        VerificationSection.model_validate({"collateral": str(tmp_path), "fetch": {}})
