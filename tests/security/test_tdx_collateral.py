"""TDX quotes with collateral, under a root of our own made like Intel's."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from sds.attestation.evidence import Evidence, EvidenceKind
from sds.attestation.reference_values import ReferenceValues
from sds.attestation.tdx import chain as chain_module
from sds.attestation.tdx.chain import PCK_CHAIN, link_chain
from sds.attestation.tdx.material import Material
from sds.attestation.tdx.verifier import TdxVerifier
from sds.pki import certificate_pem
from tests.support.intel import FMSPC, NOW, PLATFORM_INSTANCE_ID, PPID, Intel, damaged, key, level
from tests.support.refusals import refused

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def intel() -> Intel:
    return Intel()


def reason(
    intel: Intel, quote: bytes, folder: Path | None, *, now: datetime = NOW, **tdx: object
) -> str:
    verdict = TdxVerifier(
        values=ReferenceValues.model_validate({"tdx": tdx}),
        trusted_roots=[intel.root_der],
        collateral=folder,
    ).examine(Evidence(kind=EvidenceKind.TDX, report=quote), data=None, now=now)
    assert verdict.claims is None or verdict.claims.simulated
    return verdict.error.reason if verdict.error else "accepted"


def test_nothing_at_all_is_refused(intel: Intel) -> None:
    """Not even the reason why there is no collateral."""
    verifier = TdxVerifier(trusted_roots=[intel.root_der], material=Material)
    evidence = Evidence(kind=EvidenceKind.TDX, report=intel.quote())
    verdict = verifier.examine(evidence, data=None, now=NOW)
    assert not verdict.accepted
    assert verdict.error is not None
    assert verdict.error.reason == "collateral_missing"


MODULE_1_5 = bytes([5, 1] + [5] * 14)


def _svn(value: object) -> dict[str, Any]:
    odd = level(5, "UpToDate")
    odd["tcb"] = odd["tcb"] | {"sgxtcbcomponents": [{"svn": value}] * 16}
    return odd


def _enclave(svn: int, status: str = "UpToDate") -> dict[str, Any]:
    return {"tcb": {"isvsvn": svn}, "tcbDate": "2026-01-01T00:00:00Z", "tcbStatus": status}


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("svn", [bytes([5, 0] + [5] * 14), MODULE_1_5])
def test_with_collateral_it_is_accepted(
    intel: Intel, tmp_path: Path, version: int, svn: bytes
) -> None:
    if svn[1] == 0:
        # A module before 1.5 is compared as a whole: its second component is zero everywhere.
        low = level(5, "UpToDate")
        low["tcb"]["tdxtcbcomponents"] = [{"svn": 0 if index == 1 else 5} for index in range(16)]
        folder = intel.collateral(tmp_path / "c", info={"tcbLevels": [low]})
    else:
        folder = intel.collateral(tmp_path / "c")
    assert reason(intel, intel.quote(version=version, tee_tcb_svn=svn), folder) == "accepted"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"info": {"fmspc": "00906ea10000"}}, "collateral_untrusted"),
        ({"info": {"pceId": "0001"}}, "collateral_untrusted"),
        ({"info": {"id": "SGX"}}, "collateral_untrusted"),
        ({"info": {"version": 2}}, "collateral_untrusted"),
        ({"info": {"nextUpdate": "2026-05-31T00:00:00Z"}}, "collateral_stale"),
        ({"info": {"issueDate": "2026-06-02T00:00:00Z"}}, "collateral_stale"),
        ({"info": {"issueDate": "yesterday"}}, "collateral_untrusted"),
        ({"info": {"tcbLevels": [level(5, "OutOfDate")]}}, "tcb_status"),
        ({"info": {"tcbLevels": [level(5, "Revoked")]}}, "tcb_status"),
        ({"info": {"tcbLevels": [level(6, "UpToDate")]}}, "tcb_status"),
        ({"info": {"tcbLevels": [level(6, "UpToDate"), level(3, "OutOfDate")]}}, "tcb_status"),
        ({"info": {"tcbLevels": [{}]}}, "collateral_untrusted"),
        ({"info": {"tdxModuleIdentities": []}}, "tdx_module"),
        ({"info": {"tcbType": 1}}, "collateral_untrusted"),
        ({"info": {"tcbType": None}}, "collateral_untrusted"),
        ({"info": {"tcbEvaluationDataNumber": float("inf")}}, "collateral_untrusted"),
        ({"info": {"tcbEvaluationDataNumber": True}}, "collateral_untrusted"),
        ({"info": {"tcbLevels": [_svn(float("inf"))]}}, "collateral_untrusted"),
        ({"info": {"tcbLevels": [_svn("5")]}}, "collateral_untrusted"),
        ({"info": {"tcbLevels": [_svn(5.0)]}}, "collateral_untrusted"),
        ({"info": {"tcbLevels": [_svn(10**400)]}}, "collateral_untrusted"),
        ({"info": {"tcbLevels": [_svn(-1)]}}, "collateral_untrusted"),
        ({"info": {"fmspc": 9}}, "collateral_untrusted"),
        ({"info": {"fmspc": "zz"}}, "collateral_untrusted"),
        ({"info": {"issueDate": "0001-01-01T00:00:00Z"}}, "accepted"),
        ({"info": {"nextUpdate": "9999-12-31T23:59:59Z"}}, "accepted"),
        ({"identity": {"isvprodid": float("nan")}}, "collateral_untrusted"),
        ({"identity": {"mrsigner": None}}, "collateral_untrusted"),
        ({"identity": {"tcbLevels": "none"}}, "collateral_untrusted"),
        ({"identity": {"mrsigner": "11" * 32}}, "quoting_enclave"),
        ({"identity": {"isvprodid": 1}}, "quoting_enclave"),
        ({"identity": {"attributes": "01" + "00" * 15}}, "quoting_enclave"),
        ({"identity": {"id": "QE"}}, "collateral_untrusted"),
        ({"identity": {"tcbLevels": []}}, "collateral_untrusted"),
        ({"identity": {"tcbLevels": [_enclave(9)]}}, "tcb_status"),
        ({"signer": key()}, "collateral_untrusted"),
    ],
)
def test_collateral_that_does_not_hold(
    intel: Intel, tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    folder = intel.collateral(tmp_path / "c", **changes)
    assert reason(intel, intel.quote(tee_tcb_svn=MODULE_1_5), folder) == expected


def test_statuses_and_advisories(intel: Intel, tmp_path: Path) -> None:
    levels = [level(5, "SWHardeningNeeded", "INTEL-SA-00001", "INTEL-SA-00002")]
    folder = intel.collateral(tmp_path / "c", info={"tcbLevels": levels})
    quote = intel.quote(tee_tcb_svn=MODULE_1_5)
    accepted = ["UpToDate", "SWHardeningNeeded"]
    assert reason(intel, quote, folder) == "tcb_status"
    assert reason(intel, quote, folder, tcb_statuses=accepted) == "accepted"
    one = ["INTEL-SA-00001"]
    assert (
        reason(intel, quote, folder, tcb_statuses=accepted, permitted_advisories=one)
        == "tcb_status"
    )
    both = [*one, "INTEL-SA-00002"]
    assert (
        reason(intel, quote, folder, tcb_statuses=accepted, permitted_advisories=both) == "accepted"
    )
    assert (
        reason(intel, quote, folder, tcb_statuses=accepted, minimum_tcb_evaluation_number=18)
        == "collateral_untrusted"
    )


def test_the_evaluation_number_is_asked_of_both_documents(intel: Intel, tmp_path: Path) -> None:
    quote = intel.quote(tee_tcb_svn=MODULE_1_5)
    for info, identity, expected in (
        (20, 20, "accepted"),
        (20, 19, "collateral_untrusted"),
        (19, 20, "collateral_untrusted"),
    ):
        folder = intel.collateral(
            tmp_path / "c",
            info={"tcbEvaluationDataNumber": info},
            identity={"tcbEvaluationDataNumber": identity},
        )
        assert reason(intel, quote, folder, minimum_tcb_evaluation_number=20) == expected


def test_several_kinds_of_platform_share_a_folder(intel: Intel, tmp_path: Path) -> None:
    folder = intel.collateral(tmp_path / "c", info={"fmspc": "00806f050000"})
    quote = intel.quote(tee_tcb_svn=MODULE_1_5)
    assert reason(intel, quote, folder) == "collateral_untrusted"
    other = intel.collateral(tmp_path / "other") / "tcb_info.json"
    (folder / "tcb_info-90c06f000000.json").write_bytes(other.read_bytes())
    assert reason(intel, quote, folder) == "accepted"


@pytest.mark.parametrize("name", ["tcb_info-0.json", "tcb_info.json.json"])
def test_of_two_documents_about_a_platform_the_newer_counts(
    name: str, intel: Intel, tmp_path: Path
) -> None:
    """A document from before a recovery is valid for a while, and names of files prove nothing."""
    levels = [level(5, "OutOfDate", "INTEL-SA-00001")]
    older = {"issueDate": "2026-05-15T00:00:00Z", "fmspc": FMSPC.hex()}
    before = (intel.collateral(tmp_path / "old", info=older) / "tcb_info.json").read_bytes()
    folder = intel.collateral(tmp_path / "c", info={"tcbLevels": levels})
    quote = intel.quote(tee_tcb_svn=MODULE_1_5)
    assert reason(intel, quote, folder) == "tcb_status"
    (folder / name).write_bytes(before)
    assert reason(intel, quote, folder) == "tcb_status"
    # One that is about to be valid takes nothing from the one that is.
    soon = {"issueDate": "2026-06-02T00:00:00Z", "tcbLevels": [level(6, "UpToDate")]}
    (folder / name).write_bytes(
        (intel.collateral(tmp_path / "soon", info=soon) / "tcb_info.json").read_bytes()
    )
    assert reason(intel, quote, folder) == "tcb_status"
    (folder / "tcb_info.json").unlink()
    (folder / name).write_bytes(before)
    assert reason(intel, quote, folder) == "accepted"


def _modules(*levels: tuple[int, str]) -> list[dict[str, Any]]:
    return [
        {
            "id": "TDX_01",
            "mrsigner": "00" * 48,
            "attributes": "00" * 8,
            "attributesMask": "ff" * 8,
            "tcbLevels": [_enclave(svn, status) for svn, status in levels],
        }
    ]


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        # As Intel's library: "TCB not supported" for the first, "TDX module mismatch" for others.
        (_modules((6, "UpToDate")), "tcb_status"),
        (_modules((5, "Revoked")), "tcb_status"),
        ([{**_modules((5, "UpToDate"))[0], "mrsigner": "11" * 48}], "tdx_module"),
        ([{**_modules((5, "UpToDate"))[0], "attributes": "01" + "00" * 7}], "tdx_module"),
        ([{**_modules((5, "UpToDate"))[0], "id": "TDX_03"}], "tdx_module"),
        ([{**_modules((5, "UpToDate"))[0], "id": "tdx_01"}], "accepted"),
    ],
)
def test_a_module_is_named_as_what_it_is(
    intel: Intel, tmp_path: Path, modules: list[dict[str, Any]], expected: str
) -> None:
    folder = intel.collateral(tmp_path / "c", info={"tdxModuleIdentities": modules})
    assert reason(intel, intel.quote(tee_tcb_svn=MODULE_1_5), folder) == expected


@pytest.mark.parametrize(
    ("now", "platform", "expected"),
    [
        # The module that runs now (TEE_TCB_SVN_2), the platform, what Intel's library calls it.
        (bytes([7, 1, 5]), "UpToDate", "TDRelaunchAdvised"),
        (bytes([6, 1, 5]), "SWHardeningNeeded", "TDRelaunchAdvised"),
        (bytes([7, 1, 5]), "ConfigurationNeeded", "TDRelaunchAdvisedConfigurationNeeded"),
        (bytes([5, 1, 5]), "UpToDate", "OutOfDate"),
        (bytes([7, 1, 4]), "UpToDate", "OutOfDate"),
        (bytes([7, 2, 5]), "UpToDate", "OutOfDate"),
        (bytes([7, 1, 5]), "OutOfDate", "OutOfDate"),
    ],
)
def test_td_relaunch_advised_is_a_status_of_its_own(
    intel: Intel, tmp_path: Path, now: bytes, platform: str, expected: str
) -> None:
    folder = intel.collateral(
        tmp_path / "c",
        info={
            "tcbLevels": [level(5, platform)],
            "tdxModuleIdentities": _modules((6, "UpToDate"), (4, "OutOfDate")),
        },
    )
    quote = intel.quote(version=5, tee_tcb_svn=MODULE_1_5, fields={584: now.ljust(16, b"\5")})
    both = ["UpToDate", platform]
    assert reason(intel, quote, folder, tcb_statuses=both) == (
        "accepted" if platform == "OutOfDate" else "tcb_status"
    )
    assert reason(intel, quote, folder, tcb_statuses=[*both, expected]) == "accepted"
    assert reason(intel, quote, folder, tcb_statuses=[*both, "OutOfDate"]) == (
        "tcb_status" if expected.endswith("ConfigurationNeeded") else "accepted"
    )
    # A quote of TDX 1.0 says nothing of the module that runs now.
    old = intel.quote(tee_tcb_svn=MODULE_1_5)
    assert reason(intel, old, folder, tcb_statuses=[*both, "TDRelaunchAdvised"]) == (
        "accepted" if platform == "OutOfDate" else "tcb_status"
    )


SERVICE_TD = 1 << 17


@pytest.mark.parametrize(
    ("body_type", "fields", "attributes", "expected"),
    [
        (3, {}, 0, "accepted"),
        (4, {}, SERVICE_TD, "accepted"),
        (3, {600: b"\1" * 48}, 0, "migration_agent"),
        (4, {600: b"\1" * 48}, SERVICE_TD, "migration_agent"),
        (4, {729: b"\1" * 48}, SERVICE_TD, "migration_agent"),
        (4, {829: b"\1" * 48}, SERVICE_TD, "migration_agent"),
    ],
)
def test_bodies_of_tdx_1_5_and_bound_service_tds(  # noqa: PLR0917  parameters of pytest
    intel: Intel,
    tmp_path: Path,
    body_type: int,
    fields: dict[int, bytes],
    attributes: int,
    expected: str,
) -> None:
    folder = intel.collateral(tmp_path / "c")
    quote = intel.quote(
        version=5,
        tee_tcb_svn=MODULE_1_5,
        body_type=body_type,
        fields=fields,
        attributes=attributes,
    )
    assert reason(intel, quote, folder) == expected
    assert reason(intel, quote, folder, permit_service_td=True) == "accepted"
    if 600 in fields:
        assert reason(intel, quote, folder, mr_service_td=["01" * 48]) == "accepted"
    assert reason(intel, quote, folder, mr_service_td=["02" * 48]) == "guest_identity"


def test_platforms_that_are_listed(intel: Intel, tmp_path: Path) -> None:
    folder = intel.collateral(tmp_path / "c")
    quote = intel.quote(tee_tcb_svn=MODULE_1_5)

    def listed(name: str, value: bytes) -> str:
        verdict = TdxVerifier(
            values=ReferenceValues.model_validate({"tdx": {name: [value.hex()]}}),
            trusted_roots=[intel.root_der],
            collateral=folder,
        ).examine(Evidence(kind=EvidenceKind.TDX, report=quote), data=None, now=NOW)
        return verdict.error.reason if verdict.error else "accepted"

    for name, found in (
        ("fmspcs", FMSPC),
        ("ppids", PPID),
        ("platform_instance_ids", PLATFORM_INSTANCE_ID),
    ):
        assert listed(name, found) == "accepted"
        assert listed(name, bytes(len(found))) == "chip_refused"


def test_bytes_and_files_of_collateral_count(intel: Intel, tmp_path: Path) -> None:
    quote = intel.quote(tee_tcb_svn=MODULE_1_5)
    for name in ("tcb_info.json", "qe_identity.json", "tcb_signing_chain.pem"):
        folder = intel.collateral(tmp_path / "c")
        good = (folder / name).read_bytes()
        for index in range(0, len(good), 41):
            mutant = bytearray(good)
            mutant[index] ^= 1
            (folder / name).write_bytes(bytes(mutant))
            # White space between lines of PEM means nothing.
            assert reason(intel, quote, folder) != "accepted" or good[index] in b"\n", index
        (folder / name).unlink()
        assert reason(intel, quote, folder) == "collateral_missing"


def test_files_may_be_as_other_programs_write_them(intel: Intel, tmp_path: Path) -> None:
    """Line ends of Windows; the NUL of texts in C; the root's list as a PCCS gives it."""
    quote = intel.quote(tee_tcb_svn=MODULE_1_5)
    folder = intel.collateral(tmp_path / "c")
    chain = folder / "tcb_signing_chain.pem"
    chain.write_bytes(chain.read_bytes().replace(b"\n", b"\r\n").rstrip() + b"\0")
    for name in ("tcb_info.json", "qe_identity.json"):
        (folder / name).write_bytes((folder / name).read_bytes() + b"\0")
    lists = list(folder.glob("*.crl"))
    assert lists
    for path in lists:
        path.write_text(path.read_bytes().hex() + "\n")
    assert reason(intel, quote, folder) == "accepted"
    # Nothing of that hides anything: a second document, a list that is cut short.
    (folder / "qe_identity.json").write_bytes((folder / "qe_identity.json").read_bytes() + b"{}")
    assert reason(intel, quote, folder) == "collateral_untrusted"
    lists[0].write_text(lists[0].read_text()[:-3])
    assert reason(intel, quote, folder) == "revocation_list"


def test_revocation(intel: Intel, tmp_path: Path) -> None:
    quote = intel.quote(tee_tcb_svn=MODULE_1_5)
    cases = (
        (intel.crl(intel.ca, intel.ca_key), "accepted"),
        (intel.crl(intel.ca, intel.ca_key, intel.pck.serial_number), "certificate_revoked"),
        (intel.crl(intel.root, intel.root_key, intel.ca.serial_number), "certificate_revoked"),
        (intel.crl(intel.root, intel.root_key, intel.tcb.serial_number), "certificate_revoked"),
        (intel.crl(intel.root, intel.root_key, intel.root.serial_number), "certificate_revoked"),
    )
    for content, expected in cases:
        folder = intel.collateral(tmp_path / "c")
        (folder / "list.crl").write_bytes(content)
        assert reason(intel, quote, folder) == expected


_NAME = x509.DirectoryName(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Another")]))


def _scope(
    *, only_contains_ca_certs: bool = False, indirect_crl: bool = False
) -> x509.IssuingDistributionPoint:
    return x509.IssuingDistributionPoint(
        full_name=[_NAME],
        relative_name=None,
        only_contains_user_certs=False,
        only_contains_ca_certs=only_contains_ca_certs,
        only_some_reasons=None,
        indirect_crl=indirect_crl,
        only_contains_attribute_certs=False,
    )


def test_each_issuer_needs_a_current_list_of_its_own(intel: Intel, tmp_path: Path) -> None:
    quote = intel.quote(tee_tcb_svn=MODULE_1_5)
    right = intel.lists()
    root, ca = (intel.root, intel.root_key), (intel.ca, intel.ca_key)
    long_ago = timedelta(days=9)
    delta = x509.DeltaCRLIndicator(1)
    stranger = Intel()
    pck = intel.pck.serial_number
    cases: dict[str, tuple[dict[str, bytes], str]] = {
        "both": (right, "accepted"),
        "none": ({}, "revocation_list"),
        "the root's alone": ({"root.crl": right["root.crl"]}, "revocation_list"),
        "the authority's alone": ({"pck.crl": right["pck.crl"]}, "revocation_list"),
        "by another of that name": (
            right | {"pck.crl": intel.crl(intel.ca, stranger.ca_key)},
            "revocation_list",
        ),
        "by the root in the authority's name": (
            right | {"pck.crl": intel.crl(intel.ca, intel.root_key)},
            "revocation_list",
        ),
        "a stranger's": (
            right | {"x.crl": Intel().crl(Intel().tcb, key())},
            "revocation_list",
        ),
        "expired": (right | {"pck.crl": intel.crl(*ca, age=long_ago)}, "revocation_list_stale"),
        "not yet": (
            right | {"pck.crl": intel.crl(*ca, age=timedelta(hours=-1))},
            "revocation_list_stale",
        ),
        "expired beside current": (right | {"a.crl": intel.crl(*ca, age=long_ago)}, "accepted"),
        "expired beside current, the root's": (
            right | {"z.crl": intel.crl(*root, age=long_ago)},
            "accepted",
        ),
        "an expired one that revoked": (
            right | {"a.crl": intel.crl(*ca, pck, age=long_ago)},
            "certificate_revoked",
        ),
        "a delta": (right | {"a.crl": intel.crl(*ca, extension=delta)}, "revocation_list"),
        # Not marked as critical, as they should be (RFC 5280, sections 5.2.5 and 5.3.3).
        "of a part": (
            right | {"pck.crl": intel.crl(*ca, extension=_scope(only_contains_ca_certs=True))},
            "revocation_list",
        ),
        "indirect": (
            right | {"pck.crl": intel.crl(*ca, extension=_scope(indirect_crl=True))},
            "revocation_list",
        ),
        "of another's certificates": (
            right | {"pck.crl": intel.crl(*ca, pck, entry=x509.CertificateIssuer([_NAME]))},
            "revocation_list",
        ),
        "damaged": (right | {"a.crl": damaged(right["root.crl"])}, "revocation_list"),
        "cut short": (right | {"a.crl": right["pck.crl"][:-9]}, "revocation_list"),
        "bytes after it": (right | {"a.crl": right["pck.crl"] + b"\0"}, "revocation_list"),
        "no list at all": (right | {"a.crl": b"nothing"}, "revocation_list"),
    }
    for name, (lists, expected) in cases.items():
        folder = intel.collateral(tmp_path / "c", lists=lists)
        assert reason(intel, quote, folder) == expected, name
    folder = intel.collateral(tmp_path / "c", lists={})
    assert reason(intel, quote, folder, permit_unchecked_revocation=True) == "accepted"
    folder = intel.collateral(tmp_path / "c", lists={"root.crl": right["root.crl"]})
    assert reason(intel, quote, folder, permit_unchecked_revocation=True) == "revocation_list"


def test_a_verdict_says_what_it_did_not_check(intel: Intel, tmp_path: Path) -> None:
    folder = intel.collateral(tmp_path / "c", lists={})
    values = {"tdx": {"permit_unchecked_revocation": True}}
    verdict = TdxVerifier(
        values=ReferenceValues.model_validate(values),
        trusted_roots=[intel.root_der],
        collateral=folder,
    ).examine(
        Evidence(kind=EvidenceKind.TDX, report=intel.quote(tee_tcb_svn=MODULE_1_5)),
        data=None,
        now=NOW,
    )
    assert verdict.accepted
    said = {check.name: check.found_text for check in verdict.checks}
    assert said["revocation"].startswith("not checked")
    assert said["collateral_revocation"].startswith("not checked")


def test_the_td_and_the_root(intel: Intel, tmp_path: Path) -> None:
    folder = intel.collateral(tmp_path / "c")
    for attributes, expected in (
        (1, "debug_allowed"),
        (1 << 3, "debug_allowed"),
        (1 << 29, "migration_agent"),
        (1 << 40, "reserved_bytes"),
        (1 << 16, "accepted"),
        (0, "accepted"),
    ):
        quote = intel.quote(tee_tcb_svn=MODULE_1_5, attributes=attributes)
        assert reason(intel, quote, folder) == expected
    quote = intel.quote(tee_tcb_svn=MODULE_1_5, attributes=0)
    assert reason(intel, quote, folder, require_sept_ve_disable=True) == "td_attributes"
    assert reason(intel, quote, folder, rtmr0=["11" * 48]) == "measurement"
    late = NOW + timedelta(days=200)
    assert reason(intel, quote, folder, now=late) == "certificate_validity"
    verdict = TdxVerifier(collateral=folder).examine(
        Evidence(kind=EvidenceKind.TDX, report=quote), data=None, now=NOW
    )
    assert verdict.error is not None
    assert verdict.error.reason == "chain_untrusted"


def test_a_serial_number_that_is_not_positive_is_malformed(intel: Intel) -> None:
    """Our library warns of it today, and here warnings are errors (RFC 5280, section 4.1.2.2)."""
    der = intel.pck.public_bytes(Encoding.DER)
    number = intel.pck.serial_number
    serial = number.to_bytes(number.bit_length() // 8 + 1, "big")
    assert der.count(serial) == 1
    odd = der.replace(serial, bytes([serial[0] | 0x80]) + serial[1:])
    above = (one.public_bytes(Encoding.DER) for one in (intel.ca, intel.root))
    chain = certificate_pem([odd, *above])
    with refused("certificate_malformed"):
        link_chain(chain, names=PCK_CHAIN, trusted=[], what="the chain")


def test_a_chain_of_very_many_bytes_is_not_read(
    intel: Intel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strangers choose what is in it: three certificates of 21 KiB each take 20 ms."""
    monkeypatch.setattr(chain_module, "common_name", lambda _: pytest.fail("read"))
    der = [one.public_bytes(Encoding.DER) for one in (intel.pck, intel.ca, intel.root)]
    chain = certificate_pem([der[0] + bytes(20_000), *der[1:]])
    with refused("certificate_malformed", match="more than 16384"):
        link_chain(chain, names=PCK_CHAIN, trusted=[], what="the chain")
