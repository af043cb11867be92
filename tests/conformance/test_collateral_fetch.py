"""``sds collateral fetch`` against a local imitation of PCS, PCCS and KDS."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from pydantic import ValidationError

from sds.attestation.collateral import fetching
from sds.attestation.collateral.fetching import Fetcher, Wanted
from sds.attestation.collateral.followed_files import FollowedFiles, Places
from sds.attestation.evidence import Evidence, EvidenceKind
from sds.attestation.settings import FetchSection
from sds.attestation.snp.report import Product
from sds.attestation.tdx.verifier import TdxVerifier
from sds.cli import main
from sds.errors import ConfigurationError, SdsError
from sds.files import read_file
from sds.pki import certificate_pem
from tests.support import need
from tests.support.clock import PatientClock
from tests.support.intel import FMSPC, NOW, Intel, damaged
from tests.support.machines import crl, simulated
from tests.support.process import output, sds
from tests.support.publishers import Publishers
from tests.support.refusals import refused

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

REAL = "55d278a9-00806f050000-20250527-fd5a-8db8"
TCB = "/tdx/certification/v4/tcb"
NAMES = {
    f"tcb_info-{FMSPC.hex()}.json",
    "qe_identity.json",
    "tcb_signing_chain.pem",
    "pck-platform.crl",
    "root.crl",
}


def wanted(publishers: Publishers, intel: Intel) -> Wanted:
    return Wanted(
        fmspcs=(FMSPC.hex(),),
        authorities=("platform",),
        pcs=publishers.url,
        root_list=None,
        roots=(intel.root_der,),
    )


def accepted(intel: Intel, folder: Path) -> bool:
    quote = intel.quote(tee_tcb_svn=bytes([5, 1] + [5] * 14))
    verifier = TdxVerifier(trusted_roots=[intel.root_der], collateral=folder)
    evidence = Evidence(kind=EvidenceKind.TDX, report=quote)
    return verifier.examine(evidence, data=None, now=NOW).accepted


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


async def test_recorded_answers_of_intel_judge_a_real_quote(tmp_path: Path) -> None:
    real = need.evidence_sets() / "tdx" / REAL
    now = datetime.fromisoformat(json.loads((real / "meta.json").read_text())["at"])
    made = Publishers.of_folder(real / "collateral", "00806f050000")
    async with made.running():
        asked = Wanted(
            fmspcs=("00806F050000",), authorities=("platform",), pcs=made.url, root_list=None
        )
        await Fetcher(asked, clock=PatientClock(now)).fetch(tmp_path / "out")
    evidence = Evidence(kind=EvidenceKind.TDX, report=(real / "quote.bin").read_bytes())
    verdict = TdxVerifier(collateral=tmp_path / "out").examine(evidence, data=None, now=now)
    assert verdict.accepted


async def test_each_file_is_asked_once_and_written_where_it_changed(
    publishers: Publishers, intel: Intel, tmp_path: Path
) -> None:
    fetcher = Fetcher(wanted(publishers, intel), clock=PatientClock(NOW))
    first = await fetcher.fetch(tmp_path / "out")
    assert {one.path.name for one in first} == NAMES
    assert all(one.changed for one in first)
    assert set(publishers.hits.values()) == {1}
    assert accepted(intel, tmp_path / "out")
    assert not any(one.changed for one in await fetcher.fetch(tmp_path / "out"))
    publishers.lists["platform"] = intel.crl(
        intel.ca, intel.ca_key, intel.pck.serial_number, number=2
    )
    again = {one.path.name for one in await fetcher.fetch(tmp_path / "out") if one.changed}
    assert again == {"pck-platform.crl"}
    assert not accepted(intel, tmp_path / "out")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("forged", "collateral_untrusted"),
        ("another platform's", "collateral_untrusted"),
        ("older", "collateral_untrusted"),
        ("a stranger's chain", "chain_untrusted"),
        ("no chain", "certificate_malformed"),
        ("an older list", "revocation_list"),
        ("a damaged list", "revocation_list"),
        ("a stranger's list", "revocation_list"),
        ("an expired list", "revocation_list_stale"),
        ("missing", "endorsement_unavailable"),
    ],
)
async def test_an_answer_that_does_not_hold_changes_nothing(
    fault: str, reason: str, publishers: Publishers, intel: Intel, tmp_path: Path
) -> None:
    clock = PatientClock(NOW)
    publishers.lists["root"] = intel.crl(intel.root, intel.root_key, number=5)
    await Fetcher(wanted(publishers, intel), clock=clock).fetch(tmp_path / "out")
    before = content(tmp_path / "out")
    made = tmp_path / "changed"
    fmspc = FMSPC.hex()
    newer = {"issueDate": "2026-05-25T00:00:00Z"}
    folder = intel.collateral(made, identity=newer)
    publishers.qe_identity = (folder / "qe_identity.json").read_bytes()
    match fault:
        case "forged":
            publishers.tcb_infos[fmspc] = publishers.tcb_infos[fmspc].replace(b"OutOf", b"UpTo_")
        case "another platform's":
            folder = intel.collateral(made, info={"fmspc": "00806f050000"})
            publishers.tcb_infos[fmspc] = (folder / "tcb_info.json").read_bytes()
        case "older":
            folder = intel.collateral(made, info={"issueDate": "2026-05-01T00:00:00Z"})
            publishers.tcb_infos[fmspc] = (folder / "tcb_info.json").read_bytes()
        case "a stranger's chain":
            publishers.chain = (Intel().collateral(made) / "tcb_signing_chain.pem").read_bytes()
        case "no chain":
            publishers.chain = b""
        case "an older list":
            publishers.lists["root"] = intel.crl(intel.root, intel.root_key, number=4)
        case "a damaged list":
            publishers.lists["root"] = damaged(publishers.lists["root"])
        case "a stranger's list":
            publishers.lists["root"] = Intel().crl(Intel().tcb, Intel().tcb_key)
        case "an expired list":
            publishers.lists["platform"] = intel.crl(
                intel.ca, intel.ca_key, number=9, age=timedelta(days=9)
            )
        case _:
            publishers.tcb_infos.clear()
    with pytest.raises(SdsError) as refused:
        await Fetcher(wanted(publishers, intel), clock=clock).fetch(tmp_path / "out")
    assert refused.value.reason == reason
    assert content(tmp_path / "out") == before
    assert accepted(intel, tmp_path / "out")


async def test_the_list_of_another_authority_is_not_what_was_asked_for(
    publishers: Publishers, intel: Intel, tmp_path: Path
) -> None:
    publishers.lists["platform"] = intel.crl(intel.root, intel.root_key, number=9)
    with refused("revocation_list", match="Platform CA, the answer is that of"):
        await Fetcher(wanted(publishers, intel), clock=PatientClock(NOW)).fetch(tmp_path / "out")
    assert not (tmp_path / "out").exists()


async def test_a_platform_that_nobody_knows_keeps_no_other_from_the_disk(
    publishers: Publishers, intel: Intel, tmp_path: Path
) -> None:
    """A typing error, or a platform that was withdrawn: the others' collateral must not end."""
    asked = replace(wanted(publishers, intel), fmspcs=("00906ea10000", FMSPC.hex()))
    with refused("endorsement_unavailable", match="fmspc=00906ea10000.*status 404"):
        await Fetcher(asked, clock=PatientClock(NOW)).fetch(tmp_path / "out")
    assert content(tmp_path / "out").keys() == NAMES
    assert accepted(intel, tmp_path / "out")
    # A publisher that is away is another matter: it is not asked for anything else.
    publishers.hits.clear()
    publishers.refusals[TCB] = [(500, "")] * 99
    with refused("endorsement_unavailable", match="status 500"):
        await Fetcher(asked, clock=PatientClock(NOW)).fetch(tmp_path / "out")
    assert set(publishers.hits) == {TCB}


OTHER = "00806f050000"


async def test_a_cache_between_two_signers_changes_nothing(tmp_path: Path) -> None:
    """A PCCS keeps the chain with each document, and a folder has one for all of them."""
    intel = Intel()
    made = Publishers.of_folder(intel.collateral(tmp_path / "made"), FMSPC.hex())
    later = intel.collateral(tmp_path / "later", info={"fmspc": OTHER})
    made.tcb_infos[OTHER] = (later / "tcb_info.json").read_bytes()
    async with made.running():
        asked = replace(wanted(made, intel), fmspcs=(FMSPC.hex(), OTHER))
        await Fetcher(asked, clock=PatientClock(NOW)).fetch(tmp_path / "out")
        before = content(tmp_path / "out")
        intel.renew_signer()
        newer = {"fmspc": OTHER, "issueDate": "2026-05-25T00:00:00Z"}
        later = intel.collateral(tmp_path / "later", info=newer, identity=newer | {"fmspc": ""})
        made.tcb_infos[OTHER] = (later / "tcb_info.json").read_bytes()
        made.qe_identity = (later / "qe_identity.json").read_bytes()
        made.chains[OTHER] = intel.tcb_chain
        with refused("collateral_untrusted", match=f"tcb_info-{FMSPC.hex()}.*another signer"):
            await Fetcher(asked, clock=PatientClock(NOW)).fetch(tmp_path / "out")
    assert content(tmp_path / "out") == before
    assert accepted(intel, tmp_path / "out")


async def test_the_document_of_a_former_platform_spoils_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody fetches it again, so it stays signed by a signer whose chain is gone."""
    intel = Intel()
    made = Publishers.of_folder(intel.collateral(tmp_path / "made"), FMSPC.hex())
    former = intel.collateral(tmp_path / "former", info={"fmspc": OTHER})
    made.tcb_infos[OTHER] = (former / "tcb_info.json").read_bytes()
    async with made.running():
        asked = wanted(made, intel)
        both = replace(asked, fmspcs=(FMSPC.hex(), OTHER))
        await Fetcher(both, clock=PatientClock(NOW)).fetch(tmp_path / "out")
        places = Places(collateral=tmp_path / "out", filled=True, roots=[intel.root_der])
        files = FollowedFiles(places, clock=PatientClock(NOW))
        # The same signer still vouches for it, so it stays.
        await Fetcher(asked, clock=PatientClock(NOW)).fetch(tmp_path / "out")
        assert f"tcb_info-{OTHER}.json" in content(tmp_path / "out")
        intel.renew_signer()
        newer = intel.collateral(tmp_path / "newer")
        made.tcb_infos[FMSPC.hex()] = (newer / "tcb_info.json").read_bytes()
        made.qe_identity = (newer / "qe_identity.json").read_bytes()
        made.chain = intel.tcb_chain
        await Fetcher(asked, clock=PatientClock(NOW)).fetch(tmp_path / "out")
    files.reload()
    assert files.current.intel.collateral is not None
    assert FollowedFiles(places, clock=PatientClock(NOW)).current == files.current
    assert f"tcb_info-{OTHER}.json" in caplog.text
    assert accepted(intel, tmp_path / "out")


async def test_a_clock_that_is_wrong_writes_nothing(
    publishers: Publishers, intel: Intel, tmp_path: Path
) -> None:
    for days in (-60, 60):
        clock = PatientClock(NOW + timedelta(days=days))
        with pytest.raises(SdsError) as refused:
            await Fetcher(wanted(publishers, intel), clock=clock).fetch(tmp_path / "out")
        assert refused.value.reason == "collateral_stale"
        assert not (tmp_path / "out").exists()


async def test_later_means_later(publishers: Publishers, intel: Intel, tmp_path: Path) -> None:
    clock = PatientClock(NOW)
    at = (NOW + timedelta(seconds=40)).strftime("%a, %d %b %Y %H:%M:%S GMT")
    publishers.refusals[TCB] = [(429, "30"), (503, at), (429, "")]
    await Fetcher(wanted(publishers, intel), clock=clock).fetch(tmp_path / "out")
    assert publishers.hits[TCB] == 4
    first, second, third = clock.slept
    assert first >= 30
    assert first + second >= 40
    assert third > 0
    publishers.refusals[TCB] = [(429, "7200")]
    with pytest.raises(SdsError, match=r"later, in 7200 s"):
        await Fetcher(wanted(publishers, intel), clock=clock).fetch(tmp_path / "out")
    assert publishers.hits[TCB] == 5
    # A publisher that is away: a few attempts, further and further apart.
    clock.slept.clear()
    publishers.refusals[TCB] = [(500, "")] * 99
    with pytest.raises(SdsError) as refused:
        await Fetcher(wanted(publishers, intel), clock=clock).fetch(tmp_path / "out")
    assert refused.value.reason == "endorsement_unavailable"
    assert len(clock.slept) == 5
    assert accepted(intel, tmp_path / "out")


async def test_a_publisher_that_said_later_is_not_asked_sooner_however_often_we_fetch(
    publishers: Publishers, intel: Intel, tmp_path: Path
) -> None:
    clock = PatientClock(NOW)
    fetcher = Fetcher(wanted(publishers, intel), clock=clock)
    publishers.refusals[TCB] = [(429, "7200")]
    for passed in (0, 60, 7000):
        clock.boottime += passed
        with refused("endorsement_unavailable", match=f"in {7200 - clock.boottime + 5000:.0f} s"):
            await fetcher.fetch(tmp_path / "out")
    assert publishers.hits[TCB] == 1
    clock.boottime += 140
    await fetcher.fetch(tmp_path / "out")
    assert accepted(intel, tmp_path / "out")


async def test_the_last_attempt_says_what_it_met_and_nothing_waits_after_it(
    publishers: Publishers, intel: Intel, tmp_path: Path
) -> None:
    clock = PatientClock(NOW)
    fetcher = Fetcher(wanted(publishers, intel), clock=clock)
    publishers.refusals[TCB] = [(429, "1")] * 99
    with refused("endorsement_unavailable", match="asks us to try again later"):
        await fetcher.fetch(tmp_path / "out")
    assert publishers.hits[TCB] == fetching.ATTEMPTS
    assert len(clock.slept) == fetching.ATTEMPTS - 1
    with refused("endorsement_unavailable", match="asks us to try again later"):
        await fetcher.fetch(tmp_path / "out")
    assert publishers.hits[TCB] == fetching.ATTEMPTS


async def test_a_publisher_that_fails_asked_nobody_to_wait(
    publishers: Publishers, intel: Intel, tmp_path: Path
) -> None:
    impatient = Fetcher(wanted(publishers, intel), clock=PatientClock(NOW), patience=0.0)
    publishers.refusals[TCB] = [(500, "")]
    with refused("endorsement_unavailable", match="status 500"):
        await impatient.fetch(tmp_path / "out")
    await impatient.fetch(tmp_path / "out")
    assert accepted(intel, tmp_path / "out")


async def test_a_disk_that_is_full_leaves_what_was_there(
    publishers: Publishers, intel: Intel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetcher = Fetcher(wanted(publishers, intel), clock=PatientClock(NOW))
    await fetcher.fetch(tmp_path / "out")
    before = content(tmp_path / "out")
    publishers.lists["platform"] = intel.crl(intel.ca, intel.ca_key, number=3)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(ConfigurationError, match="No space left"):
            await fetcher.fetch(tmp_path / "out")
    assert content(tmp_path / "out") == before
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="cannot be written"):
        await fetcher.fetch(tmp_path / "file")


@pytest.mark.parametrize("older", ["list", "info"])
async def test_without_descriptors_nothing_older_takes_the_place_of_what_was_there(
    older: str,
    publishers: Publishers,
    intel: Intel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fetcher = Fetcher(wanted(publishers, intel), clock=PatientClock(NOW))
    publishers.lists["platform"] = intel.crl(intel.ca, intel.ca_key, number=3)
    await fetcher.fetch(tmp_path / "out")
    before = content(tmp_path / "out")
    names = {"list": "pck-platform.crl", "info": f"tcb_info-{FMSPC.hex()}.json"}
    if older == "list":
        publishers.lists["platform"] = intel.crl(intel.ca, intel.ca_key, number=2)

    def none_left(path: Path, *, max_bytes: int) -> bytes:
        if path.name == names[older]:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return read_file(path, max_bytes=max_bytes)

    with monkeypatch.context() as patched:
        patched.setattr("sds.attestation.collateral.storing.read_file", none_left)
        with pytest.raises(ConfigurationError, match="Too many open files"):
            await fetcher.fetch(tmp_path / "out")
    assert content(tmp_path / "out") == before


@pytest.mark.parametrize(
    "stored",
    [
        "",
        "[]",
        '{"tcbInfo": {"issueDate": "2026", "tcbEvaluationDataNumber": Infinity}}',
        '{"tcbInfo": {"issueDate": "2026", "tcbEvaluationDataNumber": [1]}}',
        "[" * 100_000,
    ],
)
async def test_a_stored_document_that_cannot_be_read_is_replaced(
    stored: str, publishers: Publishers, intel: Intel, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    for name in (f"tcb_info-{FMSPC.hex()}.json", "qe_identity.json"):
        (folder / name).write_text(stored)
    await Fetcher(wanted(publishers, intel), clock=PatientClock(NOW)).fetch(folder)
    assert accepted(intel, folder)


@pytest.mark.parametrize("document", ["info", "identity"])
async def test_a_cache_cannot_go_back_to_an_earlier_tcb_recovery(
    document: str, publishers: Publishers, intel: Intel, tmp_path: Path
) -> None:
    """Intel signs several anew every day, and a platform may be up to date by the earlier one."""
    await Fetcher(wanted(publishers, intel), clock=PatientClock(NOW)).fetch(tmp_path / "out")
    before = content(tmp_path / "out")
    newer = {"issueDate": "2026-05-25T00:00:00Z", "tcbEvaluationDataNumber": 16}
    changed = {document: newer}
    made = Publishers.of_folder(intel.collateral(tmp_path / "made", **changed), FMSPC.hex())
    publishers.tcb_infos, publishers.qe_identity = made.tcb_infos, made.qe_identity
    with refused("collateral_untrusted", match="of TCB recovery 17, the answer of 16"):
        await Fetcher(wanted(publishers, intel), clock=PatientClock(NOW)).fetch(tmp_path / "out")
    assert content(tmp_path / "out") == before
    # Who names that recovery means it.
    made = Publishers.of_folder(
        intel.collateral(tmp_path / "made", info=newer, identity=newer), FMSPC.hex()
    )
    publishers.tcb_infos, publishers.qe_identity = made.tcb_infos, made.qe_identity
    asked = replace(wanted(publishers, intel), recovery=16)
    await Fetcher(asked, clock=PatientClock(NOW)).fetch(tmp_path / "out")
    assert content(tmp_path / "out") != before


async def test_one_tcb_recovery_is_asked_for_by_its_number(
    publishers: Publishers, intel: Intel, tmp_path: Path
) -> None:
    asked = replace(wanted(publishers, intel), recovery=17)
    await Fetcher(asked, clock=PatientClock(NOW)).fetch(tmp_path / "out")
    assert accepted(intel, tmp_path / "out")
    assert publishers.recoveries == {"17"}
    # An answer of another recovery than was asked for is not taken.
    with refused("collateral_untrusted", match="recovery 18"):
        await Fetcher(replace(asked, recovery=18), clock=PatientClock(NOW)).fetch(tmp_path / "no")
    assert not (tmp_path / "no").exists()
    with pytest.raises(ValidationError, match="not both"):
        FetchSection(fmspcs=[FMSPC.hex()], update="early", tcb_evaluation_data_number=17)


async def test_intels_recorded_list_of_tcb_recoveries() -> None:
    told = json.loads((need.evidence_sets() / "pcs/tdx_tcb_eval_nums.json").read_text())
    body = told["tcb_evaluation_data_numbers_json"].encode()
    made = Publishers(numbers=(body, told["issuer_chain"].encode()))
    clock = PatientClock(datetime(2025, 6, 1, tzinfo=UTC))
    async with made.running():
        found = await Fetcher(Wanted(pcs=made.url), clock=clock).recoveries()
        assert [(one.number, one.tcb_date[:10]) for one in found] == [
            (19, "2025-05-14"),
            (18, "2024-11-13"),
            (17, "2024-03-13"),
        ]
        with refused("collateral_stale"):
            await Fetcher(Wanted(pcs=made.url), clock=PatientClock(NOW)).recoveries()
        made.numbers = (body.replace(b":17,", b":27,"), made.numbers[1])
        with refused("collateral_untrusted", match="signature"):
            await Fetcher(Wanted(pcs=made.url), clock=clock).recoveries()


async def test_the_command_lists_tcb_recoveries(tmp_path: Path) -> None:
    intel = Intel(now=datetime.now(UTC))
    root = tmp_path / "root.pem"
    root.write_bytes(certificate_pem([intel.root_der]))
    made = Publishers(numbers=(intel.recoveries(20, 21), intel.tcb_chain))
    async with made.running():
        asked = ["collateral", "recoveries", "--pcs", made.url, "--trusted-root", str(root)]
        for more, said in (
            ([], "21: announced 2025-05-13, TCB of 2025-05-14"),
            (["--output", "json"], '"tcb_evaluation_data_number": 21'),
        ):
            done = await asyncio.to_thread(CliRunner().invoke, main, [*asked, *more])
            assert done.exit_code == 0
            assert said in done.output


async def test_answers_are_read_outside_the_event_loop(
    publishers: Publishers, intel: Intel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list of 1 MiB, which anybody can make, held up everything else for half a second."""
    read: dict[str, set[int]] = {}

    def watched(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def do(*arguments: Any, **named: Any) -> Any:
            read.setdefault(name, set()).add(threading.get_ident())
            return work(*arguments, **named)

        return do

    for name in ("read_amd_list", "read_intel_list"):
        monkeypatch.setattr(fetching, name, watched(name, getattr(fetching, name)))
    root = simulated()
    publishers.lists["genoa"] = crl(root, now=NOW)
    asked = replace(
        wanted(publishers, intel),
        products=(Product.GENOA,),
        kds=publishers.url,
        roots=(intel.root_der, root.ark_der),
    )
    await Fetcher(asked, clock=PatientClock(NOW)).fetch(tmp_path / "files")
    assert len(read) == 2
    assert threading.get_ident() not in set.union(*read.values())


async def test_amds_lists(tmp_path: Path) -> None:
    root = simulated()
    made = Publishers(lists={"genoa": crl(root, now=NOW)})
    async with made.running():
        asked = Wanted(products=(Product.GENOA,), kds=made.url, roots=(root.ark_der,))
        (found,) = await Fetcher(asked, clock=PatientClock(NOW)).fetch(tmp_path)
        assert (found.path.name, found.changed) == ("genoa.crl", True)
        untrusted = Wanted(products=(Product.GENOA,), kds=made.url)
        with refused("revocation_list"):
            await Fetcher(untrusted, clock=PatientClock(NOW)).fetch(tmp_path)


async def test_nothing_that_fails_keeps_another_publishers_lists_from_the_disk(
    publishers: Publishers, intel: Intel, tmp_path: Path
) -> None:
    """Lists of AMD would end while Intel's service is away, or while one product has none."""
    root = simulated()
    publishers.lists["genoa"] = publishers.lists["turin"] = crl(root, now=NOW)
    asked = replace(
        wanted(publishers, intel),
        products=(Product.MILAN, Product.TURIN, Product.GENOA),
        kds=publishers.url,
        roots=(intel.root_der, root.ark_der),
    )
    publishers.refusals[TCB] = [(500, "")] * 99
    with refused("endorsement_unavailable") as failure:
        await Fetcher(asked, clock=PatientClock(NOW)).fetch(tmp_path)
    assert (tmp_path / "genoa.crl").read_bytes() == publishers.lists["genoa"]
    assert not (tmp_path / "turin.crl").exists(), "the list of another product's root"
    said = failure.value.message
    for part in ("status 500", "Milan/crl answered with status 404", "ARK-Turin, the answer is"):
        assert part in said
    # Whoever is away is not asked for anything else.
    publishers.refusals = {"/vcek/v1/Milan/crl": [(500, "")] * 99}
    publishers.hits.clear()
    with refused("endorsement_unavailable", match="status 500"):
        await Fetcher(asked, clock=PatientClock(NOW)).fetch(tmp_path)
    assert [path for path in publishers.hits if path.startswith("/vcek")] == ["/vcek/v1/Milan/crl"]
    assert accepted(intel, tmp_path)


async def test_a_header_that_is_no_text_is_an_answer_that_does_not_hold(tmp_path: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTCB-Info-Issuer-Chain: \xff\r\n\r\n{}"
        )
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        asked = Wanted(fmspcs=(FMSPC.hex(),), pcs=url)
        with refused("certificate_malformed"):
            await Fetcher(asked, clock=PatientClock(NOW)).fetch(tmp_path)


async def test_the_command(intel: Intel, tmp_path: Path) -> None:
    """With the machine's own clock: collateral of a manufacturer whose time is now."""
    root = simulated()
    made = Publishers(lists={"genoa": crl(root, now=datetime.now().astimezone())})
    ark = tmp_path / "ark.pem"
    ark.write_bytes(certificate_pem([root.ark_der]))
    async with made.running():
        arguments: list[str | Path] = ["collateral", "fetch", "--out", tmp_path / "out"]
        arguments += ["--product", "genoa", "--kds", made.url, "--trusted-root", ark]
        status, said, errors = await output(sds(*arguments))
        assert (status, errors) == (0, "")
        assert "genoa.crl: new, until" in said
        status, said, _ = await output(sds(*arguments, "--output", "json"))
        assert [row["changed"] for row in json.loads(said)] == [False]
        made.lists["genoa"] = made.lists["genoa"][:-5]
        status, _, errors = await output(sds(*arguments))
        assert status == 1
        assert "cannot be read" in errors or "can be read" in errors
    for wrong in (
        ["--product", "rome"],
        ["--fmspc", "00"],
        ["--product", "genoa", "--kds", "ftp://x"],
        [],
    ):
        status, _, _ = await output(sds("collateral", "fetch", "--out", tmp_path, *wrong))
        assert status == 2
