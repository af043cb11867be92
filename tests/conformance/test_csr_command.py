"""``sds csr`` from the nonce to a verdict, with a simulated machine."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
import yaml
from click.testing import CliRunner, Result

from sds.attestation.snp.simulated import SimulatedMachine
from sds.cli import main
from sds.exchange.challenge import attested_csr_report_data, new_nonce
from sds.identity import KeyType
from sds.pki import certificate_pem, generate_private_key, private_key_pem, spki_sha256
from tests.support.intel import Intel

if TYPE_CHECKING:
    from pathlib import Path

NAME = "spiffe://example.org/ns/a/sa/web"


def sds(*arguments: object) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)))


@pytest.fixture(scope="module")
def machine() -> SimulatedMachine:
    return SimulatedMachine.create()


@pytest.fixture
def site(tmp_path: Path, machine: SimulatedMachine) -> Path:
    key = generate_private_key(KeyType.EC_P256)
    (tmp_path / "key.pem").touch(mode=0o600)
    (tmp_path / "key.pem").write_bytes(private_key_pem(key))
    (tmp_path / "ark.pem").write_bytes(certificate_pem([machine.ark_der]))
    (tmp_path / "chain.pem").write_bytes(certificate_pem(machine.certificates[:2]))
    (tmp_path / "ark.der").write_bytes(machine.ark_der)
    return tmp_path


def test_from_a_report_that_was_collected_already(site: Path, machine: SimulatedMachine) -> None:
    nonce, key, out = new_nonce(), site / "key.pem", site / "csr.der"
    wanted = sds("csr", "report-data", "--key", key, "--nonce", nonce.hex())
    (site / "report").write_bytes(machine.report(bytes.fromhex(wanted.output)))
    made = sds(
        *("csr", "new", "--key", key, "--spiffe-id", NAME, "--dns-name", "web.test"),
        *("--report", site / "report", "--chain", site / "chain.pem"),
        *("--chain", site / "ark.der", "--out", out),
    )
    assert made.exit_code == 0, made.output
    check = ("csr", "verify", out, "--trusted-root", site / "ark.pem")
    good = sds(*check, "--nonce", nonce.hex())
    assert good.exit_code == 0, good.output
    assert NAME in good.output
    assert "SIMULATION" in good.output
    answer = json.loads(sds(*check, "--nonce", nonce.hex(), "--output", "json").stdout)
    assert (answer["verdict"], answer["reason"], answer["dns_names"]) == (
        "accepted",
        None,
        ["web.test"],
    )
    assert answer["claims"]["measurement"] == machine.measurement.hex()
    other = sds(*check, "--nonce", new_nonce().hex(), "--output", "json")
    assert other.exit_code == 1
    assert json.loads(other.stdout)["reason"] == "report_data_mismatch"
    untrusted = sds("csr", "verify", out, "--nonce", nonce.hex())
    assert untrusted.exit_code == 1


def test_collected_now(site: Path, machine: SimulatedMachine) -> None:
    nonce, descriptor = new_nonce(), os.dup(machine.send())
    section = {"attestation": {"kind": "simulated", "descriptor": descriptor}}
    (site / "attestation.yaml").write_text(yaml.safe_dump(section))
    made = sds(
        *("csr", "new", "--key", site / "key.pem", "--spiffe-id", NAME),
        *("--attestation", site / "attestation.yaml", "--nonce", nonce.hex()),
        *("--out", site / "csr.der"),
    )
    assert made.exit_code == 0, made.output
    values = {"measurements": [machine.measurement.hex()]}
    (site / "values.yaml").write_text(yaml.safe_dump(values))
    check = ("csr", "verify", site / "csr.der", "--trusted-root", site / "ark.pem")
    good = sds(*check, "--nonce", nonce.hex(), "--reference-values", site / "values.yaml")
    assert good.exit_code == 0, good.output
    (site / "values.yaml").write_text(yaml.safe_dump({"measurements": ["00" * 48]}))
    bad = sds(*check, "--nonce", nonce.hex(), "--reference-values", site / "values.yaml")
    assert bad.exit_code == 1


def test_a_tdx_quote_needs_its_collateral(site: Path) -> None:
    intel, nonce, key = Intel(), new_nonce(), site / "key.pem"
    wanted = sds("csr", "report-data", "--key", key, "--nonce", nonce.hex())
    module = bytes([5, 1] + [5] * 14)
    quote = intel.quote(tee_tcb_svn=module, fields={520: bytes.fromhex(wanted.output)})
    (site / "quote").write_bytes(quote)
    (site / "intel.pem").write_bytes(certificate_pem([intel.root_der]))
    made = sds(
        *("csr", "new", "--key", key, "--spiffe-id", NAME, "--kind", "tdx"),
        *("--report", site / "quote", "--out", site / "csr.der"),
    )
    assert made.exit_code == 0, made.output
    check = (
        *("csr", "verify", site / "csr.der", "--nonce", nonce.hex()),
        *("--trusted-root", site / "intel.pem", "--at", "2026-06-01T00:00:00Z"),
    )
    without = sds(*check, "--output", "json")
    assert json.loads(without.stdout)["reason"] == "collateral_missing"
    folder = intel.collateral(site / "collateral")
    good = sds(*check, "--collateral", folder)
    assert good.exit_code == 0, good.output
    revoked = site / "revoked.crl"
    serial = intel.pck.serial_number
    revoked.write_bytes(intel.crl(intel.ca, intel.ca_key, serial, number=2))
    bad = sds(*check, "--collateral", folder, "--crl", revoked, "--output", "json")
    assert json.loads(bad.stdout)["reason"] == "certificate_revoked"
    revoked.write_bytes(revoked.read_bytes()[:-3])
    assert sds(*check, "--collateral", folder, "--crl", revoked).exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["csr", "verify", "missing", "--nonce", "00" * 32], 2),
        (["csr", "verify", "key.pem", "--nonce", "00" * 32], 1),
        (["csr", "verify", "key.pem"], 2),
        (["csr", "verify", "key.pem", "--nonce", "00"], 2),
        (["csr", "report-data", "--key", "ark.pem", "--nonce", "00" * 32], 2),
        (["csr", "new", "--key", "key.pem", "--spiffe-id", NAME, "--out", "out"], 2),
        (
            [
                "csr",
                "new",
                "--key",
                "key.pem",
                "--spiffe-id",
                "x",
                "--report",
                "ark.pem",
                "--out",
                "out",
            ],
            2,
        ),
    ],
)
def test_bad_input_is_told(
    site: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], status: int
) -> None:
    monkeypatch.chdir(site)
    done = sds(*arguments)
    assert done.exit_code == status, done.output
    assert "Traceback" not in done.output
    assert "PRIVATE" not in done.output


def test_report_data_is_what_the_authority_demands(site: Path) -> None:
    nonce = new_nonce()
    key = generate_private_key(KeyType.ED25519)
    (site / "key.pem").write_bytes(private_key_pem(key))
    done = sds("csr", "report-data", "--key", site / "key.pem", "--nonce", nonce.hex())
    wanted = attested_csr_report_data(nonce=nonce, key_digest=spki_sha256(key.public_key()))
    assert done.output.strip() == wanted.hex()
