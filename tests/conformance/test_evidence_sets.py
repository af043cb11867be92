"""Evidence of real machines, with the collateral of its day: the verdict and reason of each set."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from sds.attestation.evidence import Evidence, EvidenceKind
from sds.attestation.other_formats import parse_hcl
from sds.attestation.pem import der_certificates
from sds.attestation.reference_values import ReferenceValues
from sds.attestation.snp.chain import amd_certificates
from sds.attestation.snp.verifier import SnpVerifier
from sds.attestation.tdx.verifier import TdxVerifier
from sds.cli import main
from tests.support import need

if TYPE_CHECKING:
    from pathlib import Path

    from sds.attestation.checks import Verdict


@dataclass(frozen=True, slots=True)
class Right:
    """The right verdict: the reason, and every check that fails with what it says."""

    reason: str = "accepted"
    failed: dict[str, str] = field(default_factory=dict)


ACCEPTED = Right()
NO_LEVEL = "the platform reaches no TCB level"
OLD = "OutOfDate"


def tcb(platform: str = "", module: str = "") -> Right:
    """Refused for its TCB."""
    said = {"platform_tcb": platform, "tdx_module_tcb": module}
    return Right("tcb_status", {name: status for name, status in said.items() if status})


TDX = {
    "00b2526a-00806f050000-20251019-e12d-c61c": ACCEPTED,
    "00b2526a-00806f050000-20260612-2b14-895d": tcb(OLD, OLD),
    "0c699dd4-b0c06f000000-20260813-6055-495c": ACCEPTED,
    "140cbd8c-90c06f000000-20260316-c5e1-fa6d": ACCEPTED,
    "149ed840-b0c06f000000-20260813-6055-495c": tcb(NO_LEVEL, OLD),
    "32f07013-b0c06f000000-20250619-49ce-cefb": tcb(NO_LEVEL),
    "3507b5f7-50806f000000-20230618-7f02-8623": tcb(NO_LEVEL),
    "4b23198a-00806f050000-20251019-e12d-c61c": tcb(OLD),
    "4c453ea4-90c06f000000-20260218-1189-59c8": tcb(NO_LEVEL),
    "509f50f8-90c06f000000-20260608-9405-95c7": ACCEPTED,
    "55d278a9-00806f050000-20250527-fd5a-8db8": ACCEPTED,
    "55d278a9-00806f050000-20260612-2b14-895d": tcb(OLD, OLD),
    # A service TD is bound: dcap-qvl refuses it for that too, Intel's library does not look at it.
    "67adfc4a-00806f050000-20260612-2b14-895d": Right(
        "migration_agent",
        {"td_migratable": "set", "mr_service_td": "", "platform_tcb": OLD, "tdx_module_tcb": OLD},
    ),
    "85ef3b3f-00806f050000-20260612-2b14-895d": tcb(OLD),
    "85ef3b3f-00806f050000-20260630-36dc-95c7": ACCEPTED,
    "9069d475-20a06f000000-20250902-5f4c-7c0f": ACCEPTED,
    "a123d490-b0c06f000000-20250619-49ce-cefb": tcb(NO_LEVEL),
    "b789d779-00a06d080000-20251027-ad1e-ac0e": tcb(OLD),
    "b9e238b2-b0c06f000000-20260813-6055-495c": ACCEPTED,
    "cbdb5b2f-90c06f000000-20260608-9405-95c7": ACCEPTED,
    "cf77a6e9-90c06f000000-20260201-1cd5-4bce": ACCEPTED,
    "d0ee491c-00806f050000-20260612-2b14-895d": tcb(OLD, OLD),
    "d0ee491c-00806f050000-20260630-36dc-95c7": ACCEPTED,
    "d21a11db-90c06f000000-20250226-7f01-d57f": tcb("", "TDRelaunchAdvised"),
    "d21a11db-90c06f000000-20250605-f3a4-f222": ACCEPTED,
    # SEPT_VE_DISABLE is clear: dcap-qvl always refuses that, here a policy may demand it.
    "f51db4d1-00806f050000-20251019-e12d-c61c": ACCEPTED,
    "f51db4d1-00806f050000-20260612-2b14-895d": tcb(OLD, OLD),
    "f8f82dc7-90c06f000000-20250605-f3a4-f222": tcb(NO_LEVEL),
}
SNP = {
    "v2-120d77b2-3bbfb6": ACCEPTED,
    "v2-2e63568e-fcd6cc": Right("provisional_firmware", {"firmware_committed": "current"}),
    "v2-377e6241-0d057f": Right("debug_allowed", {"policy_debug": "set"}),
    "v2-597d1fae-63cb5e": ACCEPTED,
    "v2-8aa04429-914363": ACCEPTED,
    "v3-05b7438a-b67b09": ACCEPTED,
    "v3-2cf09fff-b67b09": ACCEPTED,
    "v3-40a2778d-176f84": ACCEPTED,
    "v3-49d19193-d63fc2": ACCEPTED,
    "v3-4ae0e73a-1b40c1": ACCEPTED,
    "v3-8a73d9be-5dddf7": ACCEPTED,
    "v3-8d8bfb3e-ab5a6b": ACCEPTED,
    "v3-a20e02a2-1b35b8": ACCEPTED,
    "v3-c51f6f70-5dddf7": ACCEPTED,
    "v3-e75e8d4e-6444b5": ACCEPTED,
    "v3-ec43daae-fc6581": ACCEPTED,
    "v5-6d1ceffa-b6563a": ACCEPTED,
    "v5-7ea4daeb-05788a": ACCEPTED,
    "v5-7ea4daeb-a267ef": ACCEPTED,
    "v5-8fd94192-05788a": ACCEPTED,
}


def moment(folder: Path) -> datetime:
    return datetime.fromisoformat(json.loads((folder / "meta.json").read_text())["at"])


def tdx(folder: Path, **values: object) -> Verdict:
    return TdxVerifier(
        values=ReferenceValues.model_validate({"tdx": values}), collateral=folder / "collateral"
    ).examine(
        Evidence(kind=EvidenceKind.TDX, report=(folder / "quote.bin").read_bytes()),
        data=None,
        now=moment(folder),
    )


def snp() -> SnpVerifier:
    """With the issuers that ship with the package, as everybody uses it."""
    return SnpVerifier(certificates=[one.der for one in amd_certificates()])


def require(verdict: Verdict, right: Right) -> None:
    assert (verdict.error.reason if verdict.error else "accepted") == right.reason
    failed = {check.name: check.found_text for check in verdict.checks if not check.ok}
    assert failed.keys() == right.failed.keys()
    for name, said in right.failed.items():
        assert failed[name].startswith(said), name


def test_every_set_is_judged() -> None:
    folder = need.evidence_sets()
    assert {path.name for path in (folder / "tdx").iterdir()} == TDX.keys()
    assert {path.name for path in (folder / "snp").iterdir()} == SNP.keys()


@pytest.mark.parametrize("name", list(TDX))
def test_a_quote(name: str) -> None:
    require(tdx(need.evidence_sets() / "tdx" / name), TDX[name])


@pytest.mark.parametrize("name", list(SNP))
def test_a_report_and_its_leaf(name: str) -> None:
    folder = need.evidence_sets() / "snp" / name
    evidence = Evidence(
        kind=EvidenceKind.SEV_SNP,
        report=(folder / "report.bin").read_bytes(),
        certificates=((folder / "leaf.der").read_bytes(),),
    )
    require(snp().examine(evidence, data=None, now=moment(folder)), SNP[name])


def test_relaunch_advised_can_be_permitted_by_itself() -> None:
    folder = need.evidence_sets() / "tdx" / "d21a11db-90c06f000000-20250226-7f01-d57f"
    assert tdx(folder, tcb_statuses=["UpToDate", "TDRelaunchAdvised"]).accepted
    assert tdx(folder, tcb_statuses=["UpToDate", "OutOfDate"]).accepted


def test_a_minimum_holds_for_every_document() -> None:
    """The sets whose TCB info is of a newer recovery than their QE identity."""
    seen = 0
    for name in TDX:
        folder = need.evidence_sets() / "tdx" / name
        numbers = [
            json.loads((folder / "collateral" / file).read_text())[part]["tcbEvaluationDataNumber"]
            for file, part in (
                ("tcb_info.json", "tcbInfo"),
                ("qe_identity.json", "enclaveIdentity"),
            )
        ]
        verdict = tdx(folder, minimum_tcb_evaluation_number=max(numbers))
        failed = {check.name for check in verdict.checks if not check.ok}
        assert ("qe_evaluation_number" in failed) is (numbers[1] < max(numbers))
        seen += numbers[0] != numbers[1]
    assert seen > 0


@pytest.mark.parametrize("list_", ["root.crl", "pck.crl"])
def test_without_one_of_its_lists_a_quote_is_refused(list_: str, tmp_path: Path) -> None:
    folder = need.evidence_sets() / "tdx" / "00b2526a-00806f050000-20251019-e12d-c61c"
    for path in (folder / "collateral").iterdir():
        if path.name != list_:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    arguments = ["evidence", "verify", folder / "quote.bin", "--collateral", tmp_path]
    arguments += ["--at", moment(folder).isoformat(), "--output", "json"]
    done = CliRunner().invoke(main, list(map(str, arguments)))
    assert done.exit_code == 1
    assert json.loads(done.stdout)["reason"] == "revocation_list"


def test_azure_is_named_and_the_report_inside_verifies() -> None:
    folder = need.evidence_sets() / "azure"
    for name, words in (("snp", "AMD SEV-SNP"), ("tdx", "Intel TDX")):
        path = str(folder / name / "hcl-report.bin")
        shown = CliRunner().invoke(main, ["evidence", "show", path])
        assert shown.exit_code == 0
        assert f"Azure confidential VM, {words}" in shown.output
        refused = CliRunner().invoke(main, ["evidence", "verify", path])
        assert refused.exit_code == 1
        assert "Azure" in refused.output
    sent = json.loads((folder / "snp" / "evidence-v2.json").read_text())
    leaf = der_certificates((folder / "snp" / "vcek.pem").read_bytes(), what="vcek.pem")[0]
    for raw, certificate, right in (
        ((folder / "snp" / "hcl-report.bin").read_bytes(), leaf, SNP["v2-2e63568e-fcd6cc"]),
        (decoded(sent["hcl_report"]), decoded(sent["vcek"]), ACCEPTED),
    ):
        evidence = Evidence(
            kind=EvidenceKind.SEV_SNP, report=parse_hcl(raw).report, certificates=(certificate,)
        )
        verdict = snp().examine(evidence, data=None, now=AZURE_AT)
        require(verdict, right)


def decoded(text: str) -> bytes:
    """Base64 for URLs, without padding."""
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


AZURE_AT = datetime(2025, 6, 1, tzinfo=UTC)
