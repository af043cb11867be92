"""``sds ca`` says what is wrong with its configuration, in one line that names the field."""

from __future__ import annotations

import contextlib
import os
import socket
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from sds.commands.ca import ca
from tests.e2e.test_ca_process import AUTHORITY, Site
from tests.support.node import chips
from tests.support.policies import Signatory, document, sign
from tests.support.process import output, sds

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.e2e


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def checked(path: Path) -> str:
    """What `sds ca --check-config` says; empty if it accepts."""
    result = CliRunner().invoke(ca, ["--config", str(path), "--check-config"])
    if result.exit_code == 0:
        assert "the configuration can be used" in result.output
        return ""
    assert result.exception is not None
    return str(result.exception)


def policy_files(site: Site, **fields: Any) -> dict[str, Any]:
    alice = Signatory("alice")
    now = datetime.now(UTC)
    made = document(
        **{"not_before": now - timedelta(hours=1), "not_after": now + timedelta(days=1)} | fields
    )
    (site.path / "policy.json").write_bytes(sign(made, alice))
    (site.path / "alice.pub").write_text(alice.public.pem)
    (site.path / "alice.key").write_bytes(alice.private_pem)
    return {"file": str(site.path / "policy.json"), "keys": [str(site.path / "alice.pub")]}


def test_what_can_be_used_is_accepted(site: Site) -> None:
    assert checked(site.config("ca")) == ""
    policy = policy_files(site)
    assert checked(site.config("policy", identities=[], policy=policy)) == ""


UPSTREAM = {"kind": "upstream", "authority": {"addresses": ["127.0.0.1:1"]}}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"listen": "127.0.0.1"}, "listen"),
        ({"listen": "127.0.0.1:99999"}, "listen"),
        ({"health": {"listen": "0.0.0.0"}}, "health.listen"),
        ({"metrics": {"listen": "127.0.0.1"}}, "metrics"),
        ({"tls": {"certificate": "{path}/none.pem", "key": "{path}/none.key"}}, "none.pem"),
        ({"tls": {"certificate": "{path}/ark.pem", "key": "{path}/ark.pem"}}, "tls"),
        ({"tls": {"certificate_out": "{path}/nowhere/tls.pem"}}, "tls.certificate_out"),
        ({"verification": {"trusted_roots": ["{path}/none.pem"]}}, "none.pem"),
        ({"attestation": {"kind": "simulated"}}, "attestation.descriptor"),
        ({"signer": UPSTREAM | {"verification": {}}}, "attestation.kind"),
        (
            {
                "signer": {
                    "kind": "operator",
                    "csr_file": "{path}/nowhere/csr.pem",
                    "chain_file": "{path}/chain.pem",
                    "roots_file": "{path}/roots.pem",
                }
            },
            "signer.csr_file",
        ),
        (
            {
                "signer": {
                    "kind": "operator",
                    "csr_file": "{path}/csr.pem",
                    "chain_file": "{path}/nowhere/chain.pem",
                    "roots_file": "{path}/roots.pem",
                }
            },
            "signer.chain_file: there is no directory {path}/nowhere; signer.roots_file: {path}",
        ),
        ({"tls": {"certificate_out": "{path}"}}, "tls.certificate_out: {path} is a directory"),
        ({"tls": {"server_names": ["10.0.0.1"]}}, "tls.server_names[0]: expected a DNS name"),
        ({"listen": "*:8443"}, "listen: expected an address of this machine: '*' is not"),
        ({"listen": ":8443"}, "listen: expected host:port"),
        ({"listen": "127.0.0.1:+1"}, "listen: expected host:port"),
        (
            {"listen": "127.0.0.1:8443", "health": {"listen": "0.0.0.0:8443"}},
            "health.listen: 0.0.0.0:8443 is the address of listen too",
        ),
        ({"metrics": {"listen": "unix:{path}/empty"}}, "exists and is not a socket"),
        ({"collateral": {"listen": "8080"}}, "collateral.listen: '8080' is not an IP address"),
        (
            {
                "kubernetes": {
                    "service_accounts": ["a/b"],
                    "api": {"url": "https://127.0.0.1:1", "ca_file": "{path}/empty"},
                }
            },
            "empty",
        ),
        (
            {
                "kubernetes": {
                    "service_accounts": ["a/b"],
                    "api": {
                        "url": "https://127.0.0.1:1",
                        "ca_file": "{path}/ark.pem",
                        "token_file": "{path}/ark.pem",
                    },
                    "jwks_file": "{path}/ark.pem",
                }
            },
            "jwks_file",
        ),
        (
            {"identities": [{"measurement": AUTHORITY.hex(), "spiffe_ids": ["spiffe://other/x"]}]},
            "other",
        ),
    ],
)
def test_what_cannot_be_used_is_named(site: Site, changes: dict[str, Any], text: str) -> None:
    (site.path / "empty").write_bytes(b"")

    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: filled(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [filled(inner) for inner in value]
        return value.replace("{path}", str(site.path)) if isinstance(value, str) else value

    assert filled(text) in checked(site.config("ca", **filled(changes)))


@pytest.mark.parametrize(
    ("policy", "fields", "text"),
    [
        ({"file": "{path}/none.json"}, {}, "none.json"),
        ({"keys": ["{path}/none.pub"]}, {}, "none.pub"),
        ({"keys": ["{path}/alice.key"]}, {}, "private"),
        ({"threshold": 3}, {}, "threshold"),
        ({}, {"trust_domain": "other.test"}, "other.test"),
        ({}, {"not_after": datetime(2020, 1, 1, tzinfo=UTC)}, "policy"),
        ({"file": "{path}/ca.yaml"}, {}, "policy"),
        ({"file": "{path}"}, {}, "is a directory (name it as policy.directory)"),
    ],
)
def test_a_policy_that_cannot_be_in_force_is_named(
    site: Site, policy: dict[str, Any], fields: dict[str, Any], text: str
) -> None:
    if "not_after" in fields:
        fields = fields | {"not_before": datetime(2019, 1, 1, tzinfo=UTC)}
    given = policy_files(site, **fields) | {
        key: [one.format(path=site.path) for one in value]
        if isinstance(value, list)
        else value.format(path=site.path)
        if isinstance(value, str)
        else value
        for key, value in policy.items()
    }
    site.config("ca")
    assert text in checked(site.config("with", identities=[], policy=given))


def test_every_problem_is_said_at_once(site: Site) -> None:
    config = site.config(
        "ca",
        verification={"trusted_roots": ["/nope.pem"]},
        identities=[],
        policy={"file": "/nope.json", "keys": ["/nope.pub"]},
        tls={"certificate": "/nope.crt", "key": "/nope.key"},
    )
    said = checked(config)
    for path in ("/nope.pem", "/nope.pub", "/nope.crt"):
        assert path in said
    assert "\n" not in said


async def test_a_busy_port_is_one_line(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        for changes in (
            {"listen": f"127.0.0.1:{port}"},
            {"health": {"listen": f"127.0.0.1:{port}"}},
            {"metrics": {"listen": f"127.0.0.1:{port}"}},
        ):
            path = site.config("ca", **changes)
            status, _, err = await output(sds("ca", "--config", path))
            assert status in {1, 2}
            assert "Traceback" not in err
            assert str(port) in err.splitlines()[-1]


def test_a_simulated_machine_passes_too(site: Site) -> None:
    descriptor = chips().machine(measurement=AUTHORITY).send()
    try:
        attestation = {"kind": "simulated", "descriptor": descriptor}
        assert checked(site.config("ca", attestation=attestation)) == ""
    finally:
        with contextlib.suppress(OSError):  # whoever reads it closes it
            os.close(descriptor)


def test_an_attester_that_cannot_be_made_is_not_called_missing(site: Site) -> None:
    """What follows from another problem sends people to a wrong place."""
    above = UPSTREAM | {"verification": {"reference_values": {"measurements": ["ab" * 48]}}}
    nobody = {"kind": "simulated", "descriptor": 9999}
    found = checked(site.config("ca", signer=above, attestation=nobody))
    assert "attestation.descriptor" in found
    assert "attestation.kind is missing" not in found
    assert "attestation.kind is missing" in checked(site.config("ca", signer=above))
