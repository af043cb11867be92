"""``sds evidence``: the interface that stays, on real evidence."""

from __future__ import annotations

import base64
import json
import struct
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, Result

from sds.attestation.checks import Checks, Verdict
from sds.cli import main
from sds.commands.evidence import verdict_text
from tests.support import evidence_vectors as vectors
from tests.support import need
from tests.support.certificates import NOW
from tests.support.paravisor import blob

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

GENOA = "6a6519d757e68c2e939c9dbbbc1828498e8de35d2766dd05f1a2cca5059d0cf4ae62a36d75c837974dd50b315506e73e"  # noqa: E501  one value


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["evidence", *map(str, arguments)])


def verify(name: str, *more: object, at: str | None = None) -> Result:
    report, leaf, chain = vectors.files(name)
    helpers = [part for path in chain for part in ("--chain", path)]
    moment = at or vectors.at(name).isoformat().replace("+00:00", "Z")
    return run("verify", report, "--leaf", leaf, *helpers, "--at", moment, *more)


def document(result: Result) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(result.stdout)
    assert set(parsed) == {"verdict", "kind", "reason", "checks", "claims"}
    for check in parsed["checks"]:
        assert {name: type(value) for name, value in check.items()} == {
            "name": str,
            "ok": bool,
            "found": str,
            "expected": str,
        }
    assert (result.exit_code == 0) is (parsed["verdict"] == "accepted")
    assert (parsed["reason"] is None) is all(check["ok"] for check in parsed["checks"])
    return parsed


@pytest.mark.parametrize(
    ("name", "status", "reason"),
    [
        ("milan-v2", 0, None),
        ("milan-v2-debug", 1, "debug_allowed"),
        ("milan-v2-provisional", 1, "provisional_firmware"),
        ("milan-v3-vlek-vmpl1", 1, "vmpl"),
        ("genoa-v3", 0, None),
        ("turin-v5", 0, None),
    ],
)
def test_json_verdicts(name: str, status: int, reason: str | None) -> None:
    result = verify(name, "--output", "json")
    assert result.exit_code == status
    assert document(result)["reason"] == reason


def test_text_lists_every_check_and_says_what_is_not_demanded() -> None:
    result = verify("milan-v2-debug")
    assert result.exit_code == 1
    assert "REFUSED, debug_allowed" in result.stdout
    assert "✗ policy_debug" in result.stdout
    assert "✓ report_signature" in result.stdout
    assert "no measurement is demanded" in result.stdout


def test_reference_values_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "values.yaml"
    file.write_text(f"measurements: [{GENOA}]\nsnp: {{products: [genoa]}}\n")
    accepted = verify("genoa-v3", "--reference-values", file)
    assert accepted.exit_code == 0
    assert "no measurement" not in accepted.stdout
    refused = verify("turin-v5", "--reference-values", file, "--output", "json")
    failed = {check["name"] for check in document(refused)["checks"] if not check["ok"]}
    assert failed == {"measurement", "product_accepted"}
    file.write_text("measurement: []\n")
    wrong = verify("genoa-v3", "--reference-values", file)
    assert wrong.exit_code == 2
    assert "did you mean measurements?" in wrong.stderr


@pytest.mark.parametrize("name", ["quote-v4-prod", "quote-v5", "quote-v4-debug"])
def test_a_quote_without_collateral_is_refused_and_everything_else_runs(name: str) -> None:
    result = run(
        "verify",
        need.vectors() / "tdx" / f"{name}.dat",
        "--at",
        "2026-11-01T00:00:00Z",
        "--output",
        "json",
    )
    assert result.exit_code == 1
    parsed = document(result)
    assert parsed["kind"] == "tdx"
    failed = {check["name"] for check in parsed["checks"] if not check["ok"]}
    # A service TD is bound to the TD of the third quote.
    first, reason = {
        "quote-v4-prod": (set(), "collateral_missing"),
        "quote-v4-debug": ({"td_debug"}, "debug_allowed"),
        "quote-v5": ({"mr_service_td"}, "migration_agent"),
    }[name]
    assert failed == {"collateral", *first}
    assert parsed["reason"] == reason
    assert {"quote_signature", "qe_report_signature", "pck_chain"} <= {
        check["name"] for check in parsed["checks"]
    }


@pytest.mark.parametrize(
    "arguments",
    [
        ["--at", "yesterday"],
        ["--at", "2026-01-01T00:00:00"],
        ["--report-data", "00"],
        ["--report-data", "xy"],
        ["--product", "rome"],
        ["--output", "xml"],
        ["--reference-values", "/does/not/exist"],
    ],
)
def test_wrong_usage(arguments: list[str]) -> None:
    assert verify("genoa-v3", *arguments).exit_code == 2


def test_a_chain_without_its_leaf_is_not_passed_over() -> None:
    report, _, chain = vectors.files("genoa-v3")
    result = run("verify", report, "--chain", chain[0])
    assert result.exit_code == 2
    assert "--leaf" in result.output


def test_report_data_and_product() -> None:
    data = vectors.evidence("genoa-v3").report[0x50:0x90].hex()
    assert verify("genoa-v3", "--report-data", data, "--product", "genoa").exit_code == 0
    other = verify("genoa-v3", "--report-data", "00" * 64, "--output", "json")
    assert document(other)["reason"] == "report_data_mismatch"
    other = verify("genoa-v3", "--product", "turin", "--output", "json")
    assert document(other)["reason"] == "product_mismatch"


def sgx_quote(version: int) -> bytes:
    """Header and body of an enclave's quote (DCAP, appendix A.4); the rest is not read."""
    named = struct.pack("<HI", 1, 384) if version == 5 else b""
    return struct.pack("<HHI", version, 2, 0).ljust(48, b"\0") + named + bytes(384) + bytes(600)


REPORT = "genoa-v3"
OTHER_BYTES: dict[str, tuple[Callable[[bytes], bytes], str, str]] = {
    "certificates": (lambda raw: raw + bytes(100), "report_length", "100 bytes follow it"),
    "answer": (
        lambda raw: struct.pack("<II24x", 0, 1184) + raw + bytes(2784),
        "report_length",
        "begins at byte 32",
    ),
    "cut": (lambda raw: raw[:1000], "report_length", "184 bytes of it are missing"),
    "base64": (base64.b64encode, "evidence_malformed", "AMD SEV-SNP attestation report, written"),
    "lines": (base64.encodebytes, "evidence_malformed", "written in base64"),
    "url": (
        lambda raw: b'"' + base64.urlsafe_b64encode(raw).rstrip(b"=") + b'"\n',
        "evidence_malformed",
        "written in base64",
    ),
    "hex": (lambda raw: raw.hex().encode(), "evidence_malformed", "written in hexadecimal"),
    "tdreport": (lambda _: b"\x81" + bytes(1023), "evidence_malformed", "this is a TDREPORT"),
    "sgx3": (lambda _: sgx_quote(3), "evidence_malformed", "Intel SGX enclave"),
    "sgx5": (lambda _: sgx_quote(5), "evidence_malformed", "Intel SGX enclave"),
    "words": (lambda _: b"no evidence at all", "evidence_malformed", "not known evidence"),
}


@pytest.mark.parametrize("name", list(OTHER_BYTES))
def test_what_is_given_in_place_of_evidence_is_named(name: str, tmp_path: Path) -> None:
    make, reason, words = OTHER_BYTES[name]
    file = tmp_path / name
    file.write_bytes(make(vectors.evidence(REPORT).report))
    result = run("verify", file, "--output", "json")
    assert result.exit_code == 1
    parsed = document(result)
    assert parsed["reason"] == reason
    assert words in parsed["checks"][0]["found"]
    shown = run("show", file)
    if name in {"tdreport", "sgx3", "sgx5"}:
        assert shown.exit_code == 0
        assert "not verified: Intel" in shown.stdout
    else:
        assert shown.exit_code != 0
        assert words in shown.output


def test_files_that_are_nothing_are_refused_not_fatal(tmp_path: Path) -> None:
    nothing = tmp_path / "nothing"
    nothing.write_bytes(b"nothing")
    for arguments in (
        ("verify", nothing),
        ("verify", vectors.files("genoa-v3")[0]),
        ("verify", vectors.files("genoa-v3")[0], "--leaf", nothing),
    ):
        result = run(*arguments, "--output", "json")
        assert result.exit_code == 1
        assert document(result)["verdict"] == "refused"
    result = verify("genoa-v3", "--crl", nothing, "--output", "json")
    assert document(result)["reason"] == "revocation_list"
    assert verify("genoa-v3", "--trusted-root", nothing).exit_code == 2
    assert run("show", nothing).exit_code == 1


@pytest.mark.parametrize(
    ("file", "kind", "claim"),
    [
        ("turin-v5/report.bin", "sev-snp", ("product", "turin")),
        ("azure-hcl/hcl-report.bin", "sev-snp", ("report_version", "2")),
        ("tdx/quote-v5.dat", "tdx", ("quote_version", "5")),
        ("tdx/quote-v5.dat", "tdx", ("fmspc", "90c06f000000")),
    ],
)
def test_show_decodes_everything(file: str, kind: str, claim: tuple[str, str]) -> None:
    result = run("show", need.vectors() / file, "--output", "json")
    assert result.exit_code == 0
    parsed = json.loads(result.stdout)
    assert (parsed["kind"], parsed["verified"]) == (kind, False)
    assert parsed["claims"][claim[0]] == claim[1]
    assert claim[1] in run("show", need.vectors() / file).stdout


SGX_QUOTE = (
    (3).to_bytes(2, "little")
    + (2).to_bytes(2, "little")
    + bytes(44)
    + bytes(64)
    + b"e" * 32
    + bytes(288)
    + bytes(600)
)


def azure_tdx() -> bytes:
    """A paravisor's blob (OpenHCL) around a TDREPORT, made by its layout."""
    report = bytearray(1184)
    report[0] = 0x81
    report[128:192] = b"d" * 64
    report[528:576] = b"m" * 48
    runtime = b'{"keys":[{"kid":"HCLAkPub"}]}'
    head = b"HCLA" + (2).to_bytes(4, "little") + bytes(24)
    sizes = (20 + len(runtime), 1, 4, 1, len(runtime))
    return head + bytes(report) + b"".join(n.to_bytes(4, "little") for n in sizes) + runtime


@pytest.mark.parametrize(
    ("content", "kind", "words", "claim"),
    [
        (SGX_QUOTE, "sgx", "Intel SGX quote", ("mr_enclave", (b"e" * 32).hex())),
        (azure_tdx(), "tdx", "Azure confidential VM, Intel TDX", ("mrtd", (b"m" * 48).hex())),
    ],
)
def test_what_is_not_ours_is_named(
    content: bytes, kind: str, words: str, claim: tuple[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "evidence"
    path.write_bytes(content)
    parsed = json.loads(run("show", path, "--output", "json").stdout)
    assert (parsed["kind"], parsed["verified"]) == (kind, False)
    assert words in parsed["platform"]
    assert parsed["claims"][claim[0]] == claim[1]
    assert words in run("show", path).stdout
    refused = run("verify", path)
    assert refused.exit_code == 1
    assert "SGX" in refused.stdout or "Azure" in refused.stdout


@pytest.mark.parametrize("length", [0, 4, 8, 32, 1184, 1236])
def test_a_paravisors_blob_that_is_cut_short_is_refused(length: int, tmp_path: Path) -> None:
    path = tmp_path / "evidence"
    path.write_bytes(azure_tdx()[:length])
    assert run("show", path).exit_code == 1
    assert run("verify", path).exit_code == 1


def test_a_report_and_its_vcek_are_enough(tmp_path: Path) -> None:
    report, leaf, _ = vectors.files("genoa-v3")
    result = run("verify", report, "--leaf", leaf, "--at", "2026-11-01T00:00:00Z")
    assert result.exit_code == 0, result.stdout
    assert "not checked" in result.stdout


def test_evidence_controls_no_terminal_and_makes_no_line(tmp_path: Path) -> None:
    hostile = "x\n  ✓ chain  a pinned ARK\x1b[2J"
    path = tmp_path / "blob"
    path.write_bytes(blob(bytes(1184), hostile.replace("✓", "+").encode()))
    shown = CliRunner().invoke(main, ["evidence", "show", str(path)], color=True)
    checks = Checks()
    checks.add("chain", "chain_untrusted", ok=False, found=hostile, expected=hostile)
    verdict = Verdict(kind="sev-snp", checks=tuple(checks.done), claims=None)
    text = verdict_text(verdict, NOW, defaults=False, demanded=True)
    for said in (shown.output, text):
        assert "a pinned ARK" in said
        assert "\x1b" not in said
        assert not any(line.startswith(("  ✓", "  +")) for line in said.splitlines())
