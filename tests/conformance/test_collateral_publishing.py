"""An authority gives its fleet the collateral that it fetched: the manufacturers are asked once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from typing import TYPE_CHECKING

import aiohttp
import pytest
from prometheus_client import CollectorRegistry

from sds.attestation.build import Verification
from sds.attestation.collateral import publishing as shelf_module
from sds.attestation.collateral.fetching import Fetcher, Wanted
from sds.attestation.collateral.publishing import PublishedCollateral
from sds.attestation.collateral.wanted_by_owners import MOST
from sds.attestation.settings import FetchSection, VerificationSection
from sds.attestation.snp.kds import KdsEndorsements, vcek_path
from sds.attestation.snp.report import Product, Report
from sds.attestation.snp.sources import is_vcek_target
from sds.ca.collateral import collateral_listener, published_collateral
from sds.ca.config import AuthorityConfig, CollateralSection
from sds.ca.run import check
from sds.errors import ConfigurationError, EndorsementUnavailableError
from sds.operations.metrics.collateral import CollateralCollector
from sds.pki import certificate_pem
from tests.support.clock import PatientClock
from tests.support.intel import FMSPC, NOW, Intel, damaged
from tests.support.machines import NOW as AMD_NOW
from tests.support.machines import crl, simulated

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from sds.attestation.snp.simulated import SimulatedMachine
    from tests.support.publishers import Publishers

FLEET = int(os.environ.get("SDS_FLEET", "20"))
"""Agents; `SDS_FLEET` sets another number."""


@pytest.fixture
def publishers(publishers: Publishers) -> Publishers:
    publishers.lists["genoa"] = crl(simulated(), 7, now=NOW)
    return publishers


@contextlib.asynccontextmanager
async def authority(
    publishers: Publishers, intel: Intel, folder: Path
) -> AsyncIterator[tuple[str, Verification]]:
    """The listener of an authority that has fetched everything; its URL."""
    roots = []
    for name, der in (("intel", intel.root_der), ("amd", simulated().ark_der)):
        roots.append(folder / f"{name}.pem")
        roots[-1].write_bytes(certificate_pem([der]))
    (folder / "ask.pem").write_bytes(certificate_pem([simulated().machine().certificates[1]]))
    section = VerificationSection(
        trusted_roots=roots,
        certificates=[folder / "ask.pem"],
        collateral=folder / "collateral",
        fetch=FetchSection(
            fmspcs=[FMSPC.hex()],
            authorities=["platform"],
            products=[Product.GENOA],
            pcs=publishers.url,
            kds=publishers.url,
        ),
    )
    clock = PatientClock(NOW)
    verification = Verification(section, clock=clock)
    verification.tasks()
    assert verification.refresher is not None
    await verification.refresher.once()
    verification.files.reload()
    async with asyncio.TaskGroup() as tasks:
        shown = CollateralSection(listen="127.0.0.1:0", spacing=0)
        async with collateral_listener(shown, verification, tasks, clock=clock) as bound:
            yield f"http://{bound}", verification


async def test_a_fleet_that_starts_cold_costs_one_request_for_each_file(
    publishers: Publishers, intel: Intel, tmp_path: Path
) -> None:
    machine = simulated().machine()
    publishers.vceks = {machine.chip_id.hex(): machine.certificates[0]}
    async with authority(publishers, intel, tmp_path) as (url, _):
        asked = dict(publishers.hits)
        assert set(asked.values()) == {1}, asked
        wanted = Wanted(
            fmspcs=(FMSPC.hex(),),
            authorities=("platform",),
            products=(Product.GENOA,),
            pcs=url,
            root_list=None,
            kds=url,
            roots=(intel.root_der, simulated().ark_der),
        )
        turn = asyncio.Semaphore(20)

        async def agent(number: int) -> int:
            async with turn:
                folder = tmp_path / f"agent{number % 20}"
                found = await Fetcher(wanted, clock=PatientClock(NOW)).fetch(folder)
                assert (await vcek(url, machine))[0] == machine.certificates[0]
                return len(found)

        counts = await asyncio.gather(*map(agent, range(FLEET)))
        assert set(counts) == {6}
        assert publishers.hits == {**asked, f"/vcek/v1/Genoa/{machine.chip_id.hex()}": 1}


async def vcek(url: str, machine: SimulatedMachine) -> tuple[bytes, ...]:
    """A machine's certificates, once the authority has them: until then it says "later"."""
    report = Report.parse(machine.report(bytes(64)))
    while True:
        try:
            return await KdsEndorsements(url, PatientClock(AMD_NOW)).certificates(report)
        except EndorsementUnavailableError:
            await asyncio.sleep(0.01)


async def test_what_it_does_not_have_it_does_not_give(
    publishers: Publishers, intel: Intel, tmp_path: Path
) -> None:
    machine = simulated().machine()
    async with authority(publishers, intel, tmp_path) as (url, _), aiohttp.ClientSession() as web:
        for path in (
            "/tdx/certification/v4/tcb?fmspc=000000000000",
            "/tdx/certification/v4/tcb?fmspc=../../etc/passwd",
            f"/tdx/certification/v4/tcb?fmspc={FMSPC.hex()}&tcbEvaluationDataNumber=18",
            "/tdx/certification/v4/qe/identity?tcbEvaluationDataNumber=18",
            "/sgx/certification/v4/pckcrl?ca=processor",
            "/vcek/v1/Genoa/../../x?blSPL=10",
            "/vcek/v1/Rome/crl",
            "/vcek/v1/Genoa/00?blSPL=10&teeSPL=00&snpSPL=23&ucodeSPL=84",
            "/",
        ):
            async with web.get(f"{url}{path}") as answer:
                assert answer.status == 404, path
        path = f"/tdx/certification/v4/tcb?fmspc={FMSPC.hex()}&tcbEvaluationDataNumber=17"
        async with web.get(f"{url}{path}") as answer:
            assert json.loads(await answer.read())["tcbInfo"]["tcbEvaluationDataNumber"] == 17
        # A VCEK that AMD does not have, and one that is another chip's, are not given.
        publishers.vceks = {"0" * 128: machine.certificates[0]}
        report = Report.parse(machine.changed(chip_id=bytes(63) + b"\1").report(bytes(64)))
        with pytest.raises(EndorsementUnavailableError):
            await KdsEndorsements(url, PatientClock(AMD_NOW)).certificates(report)


async def test_an_answer_is_made_once_however_many_ask(
    publishers: Publishers, intel: Intel, tmp_path: Path
) -> None:
    """A fleet that starts at once asks for the same files: each costs the authority a look-up."""
    async with authority(publishers, intel, tmp_path) as (_, verification):
        section = CollateralSection(listen="127.0.0.1:0")
        shelf = published_collateral(section, verification, PatientClock(NOW))
        asked = [
            ("/tdx/certification/v4/tcb", f"fmspc={FMSPC.hex()}"),
            ("/tdx/certification/v4/qe/identity", ""),
            ("/sgx/certification/v4/pckcrl", "ca=platform&encoding=der"),
            ("/sgx/certification/v4/rootcacrl", ""),
            ("/vcek/v1/Genoa/crl", ""),
            ("/vcek/v1/Genoa/cert_chain", ""),
        ]
        first = [shelf.answer(*one, owner="") for one in asked]
        again = [shelf.answer(*one, owner="") for one in asked]
        assert {one.status for one in first} == {200}
        assert all(one is made for one, made in zip(again, first, strict=True))
        # What the files say later is what is given then.
        newer = intel.collateral(tmp_path / "newer", info={"issueDate": "2026-05-21T00:00:00Z"})
        body = (newer / "tcb_info.json").read_bytes()
        (tmp_path / f"collateral/tcb_info-{FMSPC.hex()}.json").write_bytes(body)
        verification.files.reload()
        assert shelf.answer(*asked[0], owner="").body == body != first[0].body


async def test_strangers_fill_a_bounded_queue(tmp_path: Path) -> None:
    asked: list[str] = []

    async def ask(path: str) -> tuple[int, bytes, float]:
        asked.append(path)
        return 429, b"", 0.0

    clock = PatientClock(NOW)
    shelf = PublishedCollateral(lambda: None, ask, tmp_path, clock=clock, spacing=10.0)  # type: ignore[arg-type, return-value]
    query = "blSPL=10&teeSPL=00&snpSPL=23&ucodeSPL=84"
    for number in range(MOST + 50):
        found = shelf.answer(f"/vcek/v1/Genoa/{number:0128x}", query, owner="")
        assert (found.status, found.headers) == (503, (("Retry-After", "4"),))
    running = asyncio.create_task(shelf.run())
    while len(asked) < 6:
        await asyncio.sleep(0.001)
    running.cancel()
    # Six refusals in a row: each pause is longer than the one before.
    assert sum(clock.slept[:5]) > 100
    assert len(set(asked)) == len(asked)


async def test_a_stranger_who_asks_for_many_keeps_nobody_waiting(tmp_path: Path) -> None:
    """AMD is asked every ten seconds: 256 chips that do not exist took 43 minutes."""
    asked: list[str] = []

    async def ask(path: str) -> tuple[int, bytes, float]:
        asked.append(path.partition("?")[0])
        return 404, b"", 0.0

    shelf = PublishedCollateral(lambda: None, ask, tmp_path, clock=PatientClock(NOW), spacing=10.0)  # type: ignore[arg-type, return-value]
    query = "blSPL=10&teeSPL=00&snpSPL=23&ucodeSPL=84"
    for number in range(2 * MOST):
        shelf.answer(f"/vcek/v1/Genoa/{number:0128x}", query, owner="192.0.2.66")
    for owner in ("192.0.2.1", "192.0.2.2"):
        shelf.answer(f"/vcek/v1/Genoa/{'ab' * 64}", query, owner=owner)
    shelf.answer(f"/vcek/v1/Genoa/{'cd' * 64}", query, owner="192.0.2.2")
    running = asyncio.create_task(shelf.run())
    while len(asked) < 9:
        await asyncio.sleep(0.001)
    running.cancel()
    assert {one.rpartition("/")[2] for one in asked[:5]} >= {"ab" * 64, "cd" * 64}
    assert len(set(asked)) == len(asked), "each once, whoever asks"


async def test_strangers_fill_a_bounded_part_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AMD has a certificate for each TCB of each chip, and anybody may ask for all of them."""
    monkeypatch.setattr(shelf_module, "MAX_KEPT", 3)
    monkeypatch.setattr(PublishedCollateral, "_verify", lambda _self, _target, _der: None)

    async def ask(path: str) -> tuple[int, bytes, float]:
        return 200, path.encode(), 0.0

    def stored() -> set[str]:
        found = set()
        for each in tmp_path.glob("*.vcek"):
            with contextlib.suppress(FileNotFoundError):  # it was removed meanwhile
                found.add(each.read_bytes().partition(b"\n")[2].decode())
        return found

    def made() -> PublishedCollateral:
        clock = PatientClock(NOW)
        return PublishedCollateral(lambda: None, ask, tmp_path, clock=clock, spacing=10.0)  # type: ignore[arg-type, return-value]

    async def serving_until(shelf: PublishedCollateral, wanted: set[str]) -> None:
        running = asyncio.create_task(shelf.run())
        async with asyncio.timeout(10):
            while stored() != wanted or set(shelf._kept) != wanted:
                await asyncio.sleep(0.001)
        running.cancel()

    shelf = made()
    chip = f"/vcek/v1/Genoa/{'ab' * 64}"
    queries = [f"blSPL=10&teeSPL=00&snpSPL=23&ucodeSPL={number}" for number in range(80, 88)]
    for query in queries:
        assert shelf.answer(chip, query, owner="").status == 503
    await serving_until(shelf, {f"{chip}?{query}" for query in queries[-3:]})
    monkeypatch.setattr(shelf_module, "MAX_KEPT", 2)
    left = sorted(tmp_path.glob("*.vcek"))[:2]
    await serving_until(made(), {each.read_bytes().partition(b"\n")[2].decode() for each in left})


@pytest.mark.parametrize(
    ("path", "query"),
    [
        (f"Genoa/{'ab' * 64}", "teeSPL=00&blSPL=10&snpSPL=23&ucodeSPL=84"),
        (f"Genoa/{'ab' * 64}", "blSPL=10&blSPL=10&teeSPL=00&snpSPL=23&ucodeSPL=84"),
        (f"Genoa/{'ab' * 64}", "blSPL=010&teeSPL=00&snpSPL=23&ucodeSPL=84"),
        (f"Genoa/{'ab' * 64}", "blSPL=256&teeSPL=00&snpSPL=23&ucodeSPL=84"),
        (f"Genoa/{'ab' * 64}", "blSPL=10&teeSPL=00&snpSPL=23&ucodeSPL=84&"),
        (f"Genoa/{'ab' * 64}", "blSPL=\uff11\uff10&teeSPL=00&snpSPL=23&ucodeSPL=84"),
        (f"Genoa/{'ab' * 8}", "blSPL=10&teeSPL=00&snpSPL=23&ucodeSPL=84"),
        (f"Turin/{'ab' * 64}", "fmcSPL=01&blSPL=10&teeSPL=00&snpSPL=23&ucodeSPL=84"),
    ],
)
def test_a_vcek_has_one_name(path: str, query: str, tmp_path: Path) -> None:
    """AMD's service may fail at others, and a failure makes everybody wait for an hour at worst."""
    shelf = PublishedCollateral(lambda: None, None, tmp_path, clock=PatientClock(NOW), spacing=10.0)  # type: ignore[arg-type, return-value]
    assert shelf.answer(f"/vcek/v1/{path}", query, owner="").status == 404
    assert not is_vcek_target(f"/vcek/v1/{path}?{query}")
    assert is_vcek_target(
        f"/vcek/v1/Turin/{'ab' * 8}?fmcSPL=01&blSPL=10&teeSPL=00&snpSPL=23&ucodeSPL=255"
    )


async def test_a_service_that_says_when_is_not_asked_before(
    publishers: Publishers, intel: Intel, tmp_path: Path
) -> None:
    machine = simulated().machine()
    place = f"/vcek/v1/Genoa/{machine.chip_id.hex()}"
    async with authority(publishers, intel, tmp_path) as (_, verification):
        clock = PatientClock(NOW)
        shelf = published_collateral(CollateralSection(listen="127.0.0.1:0"), verification, clock)
        publishers.refusals[place] = [(503, "900"), (429, "")]
        publishers.vceks = {machine.chip_id.hex(): machine.certificates[0]}
        target = vcek_path(Report.parse(machine.report(bytes(64))), Product.GENOA)
        running = asyncio.create_task(shelf.run())
        while shelf.answer(*target.split("?"), owner="").status != 200:
            await asyncio.sleep(0.001)
        running.cancel()
    assert publishers.hits[place] == 3
    assert clock.slept[0] == 900
    assert clock.slept[1] < 30, "without a number, the pause is our own"


async def test_vceks_outlive_a_restart(
    publishers: Publishers, intel: Intel, tmp_path: Path
) -> None:
    machine = simulated().machine()
    publishers.vceks = {machine.chip_id.hex(): machine.certificates[0]}
    for _ in range(2):
        async with authority(publishers, intel, tmp_path) as (url, _):
            assert (await vcek(url, machine))[0] == machine.certificates[0]
            # It is given as soon as it is verified, and stored after that.
            while not (found := list((tmp_path / "collateral/vcek").glob("*.vcek"))):
                await asyncio.sleep(0.01)
        (kept,) = found
    assert publishers.hits[f"/vcek/v1/Genoa/{machine.chip_id.hex()}"] == 1
    kept.write_bytes(damaged(kept.read_bytes()))  # damaged: asked for again
    async with authority(publishers, intel, tmp_path) as (url, _):
        await vcek(url, machine)
    assert publishers.hits[f"/vcek/v1/Genoa/{machine.chip_id.hex()}"] == 2


async def test_metrics_tell_age_end_and_failures(
    publishers: Publishers, intel: Intel, tmp_path: Path
) -> None:
    registry = CollectorRegistry()
    collector = CollateralCollector(registry)
    assert registry.get_sample_value("sds_collateral_failures_total", {"what": "fetch"}) == 0
    async with authority(publishers, intel, tmp_path) as (_, verification):
        collector.sources = (verification,)
        names = {one.name for one in verification.collateral()}
        assert names == {
            "root.crl",
            "pck-platform.crl",
            "genoa.crl",
            "qe_identity.json",
            f"tcb_info-{FMSPC.hex()}.json",
        }
        for name in names:
            until = registry.get_sample_value(
                "sds_collateral_next_update_timestamp_seconds", {"file": name}
            )
            issued = registry.get_sample_value(
                "sds_collateral_issued_timestamp_seconds", {"file": name}
            )
            assert issued is not None
            assert until is not None
            assert issued <= NOW.timestamp() < until
        publishers.refusals["/tdx/certification/v4/tcb"] = [(500, "")] * 50
        assert verification.refresher is not None
        for number in (1, 2):
            await verification.refresher.once()
            for name in ("sds_collateral_failures_total", "sds_collateral_failing"):
                assert registry.get_sample_value(name, {"what": "fetch"}) == number
        publishers.refusals.clear()
        await verification.refresher.once()
        assert registry.get_sample_value("sds_collateral_failing", {"what": "fetch"}) == 0


def test_an_authority_that_fetches_nothing_gives_nothing() -> None:
    config = AuthorityConfig.model_validate(
        {"trust_domain": "example.org", "collateral": {"listen": "127.0.0.1:0"}}
    )
    with pytest.raises(ConfigurationError, match="fetches none"):
        check(config, what="ca.yaml")
