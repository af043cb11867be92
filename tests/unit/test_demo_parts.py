import json
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from sds.bootstrap.listeners import PEER_BODY, SERVER_CERTIFICATE_HEADER
from sds.bootstrap.plan import Protocol
from sds.demo import envoys, traffic
from sds.demo.dev import own_program, typed
from sds.demo.simulation import configuration_of, manufacturer, overlaid, separated
from sds.demo.traffic import client_certificate, server_certificate
from sds.errors import ConfigurationError, RequestFailedError, SocketError
from tests.support import bootstrap_rules

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def installed(folder: Path, version: str) -> Path:
    binary = folder / ".envoy" / version / "envoy" / "_bin" / "envoy"
    binary.parent.mkdir(parents=True)
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    return binary


def test_the_envoy_is_found_where_it_should_be(tmp_path: Path) -> None:
    checkout, empty = tmp_path / "checkout", tmp_path / "empty"
    empty.mkdir()
    installed(checkout, "1.9.9")
    newest = installed(checkout, "1.40.0")
    on_path = installed(tmp_path / "elsewhere", "1.0.0")
    path = {"PATH": str(on_path.parent)}
    find = envoys.find_envoy
    assert find(None, environment=path, folders=[empty, checkout]) == newest
    assert find(None, environment=path, folders=[empty]) == on_path
    assert find(str(on_path), environment={}, folders=[checkout]) == on_path
    assert find(None, environment={"SDS_ENVOY": str(on_path)}, folders=[checkout]) == on_path
    with pytest.raises(ConfigurationError, match="make setup"):
        find(None, environment={"PATH": str(empty)}, folders=[empty])
    with pytest.raises(ConfigurationError, match="not a program"):
        find(str(empty), environment={}, folders=[checkout])


def test_a_reserved_port_is_kept_from_others_but_not_from_our_processes() -> None:
    port = envoys.ReservedPort()
    with socket.socket() as stranger, socket.socket() as ours:
        with pytest.raises(OSError, match="in use"):
            stranger.bind((envoys.LOOPBACK, port.number))
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        ours.bind((envoys.LOOPBACK, port.number))
    port.close()


@pytest.mark.slow
def test_the_demo_bootstraps_keep_the_rules_and_make_full_handshakes() -> None:
    ports = envoys.DemoPorts(
        entry=envoys.ReservedPort(),
        server=envoys.ReservedPort(),
        client_admin=envoys.ReservedPort(),
        server_admin=envoys.ReservedPort(),
    )
    sockets = {"client": Path("/run/c"), "server": Path("/run/s")}
    made = envoys.bootstraps(sockets=sockets, ports=ports, protocol=Protocol.SOTW)
    ports.close()
    for text in made.values():
        bootstrap_rules.check(yaml.safe_load(text))
    assert "max_session_keys: 0" in made["client"]
    assert "max_requests_per_connection: 1" in made["client"]
    assert traffic.SERVER_CERTIFICATE_HEADER == SERVER_CERTIFICATE_HEADER


def test_the_answer_of_the_server_names_its_client() -> None:
    filled = PEER_BODY
    for key, value in {
        "%DOWNSTREAM_PEER_URI_SAN%": "spiffe://t/client",
        "%DOWNSTREAM_PEER_SERIAL%": "0aBc",
        "%DOWNSTREAM_PEER_CERT_V_END(%Y-%m-%dT%H:%M:%SZ)%": "2026-01-01T00:00:00Z",
        "%RESPONSE_CODE%": "200",
        "%RESPONSE_CODE_DETAILS%": "direct_response",
    }.items():
        filled = filled.replace(key, value)
    assert "%" not in filled
    seen = client_certificate(filled)
    assert (seen.spiffe_id, seen.serial, seen.not_after) == ("spiffe://t/client", "abc", NOW)


@pytest.mark.parametrize(
    "body", ["", "[]", "null", "{}", json.dumps({"peer": "x", "serial": "-", "not_after": "-"})]
)
def test_another_answer_is_a_failure(body: str) -> None:
    with pytest.raises(RequestFailedError, match="names no peer"):
        client_certificate(body)


def test_the_servers_certificate_is_read_from_the_clients_report() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(0xABC)
        .not_valid_before(NOW - timedelta(days=1))
        .not_valid_after(NOW)
    )
    bare = builder.sign(key, hashes.SHA256())
    san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://t/server")])
    whole = builder.add_extension(san, critical=True).sign(key, hashes.SHA256())
    seen = server_certificate(quote(whole.public_bytes(Encoding.PEM).decode()))
    assert (seen.spiffe_id, seen.serial, seen.not_after) == ("spiffe://t/server", "abc", NOW)
    for wrong in ("", "-", quote(bare.public_bytes(Encoding.PEM).decode())):
        with pytest.raises(RequestFailedError, match="no server certificate"):
            server_certificate(wrong)


def test_printed_commands_start_the_program_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, elsewhere = tmp_path / "checkout", tmp_path / "else where"
    for program in (here / ".venv" / "bin" / "sds", elsewhere / "sds", here / "python"):
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(elsewhere))
    assert typed(here / ".venv" / "bin" / "sds", cwd=here) == ".venv/bin/sds"
    assert typed(elsewhere / "sds", cwd=here) == "sds"
    monkeypatch.setenv("PATH", "/nowhere")
    assert typed(elsewhere / "sds", cwd=here) == f"'{elsewhere}/sds'"
    module = str(here / "sds" / "__main__.py")
    assert own_program(module, executable=str(here / "python"), cwd=here) == "./python -m sds"
    assert own_program(".venv/bin/sds", executable="python", cwd=here) == ".venv/bin/sds"


def test_two_configurations_of_one_name_are_two_simulated_ones(tmp_path: Path) -> None:
    """Both may be started at the same moment, and each must run its own."""
    made = {}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        file = tmp_path / name / "agent.yaml"
        file.write_text(f"trust_domain: {name}.example\n")
        path, changes = overlaid(file, descriptor=3, ark=tmp_path / "ark.pem", into=tmp_path)
        made[path] = yaml.safe_load(path.read_text())["trust_domain"]
        assert len(changes) == 3
        assert changes[-1].startswith(f"configuration: {path} is the changed copy of {file};")
    assert sorted(made.values()) == ["a.example", "b.example"]


def test_no_machine_is_simulated_for_an_authority_that_takes_no_evidence(tmp_path: Path) -> None:
    file = tmp_path / "agent.yaml"
    istio = {"kind": "istio", "addresses": ["istiod:15012"], "root": "/r.pem", "token": "/t"}
    given = {"trust_domain": "a.example", "run_dir": "/run/x", "authority": istio}
    file.write_text(yaml.safe_dump(given))
    with pytest.raises(ConfigurationError, match="there is no machine to simulate"):
        overlaid(file, descriptor=3, ark=tmp_path / "ark.pem", into=tmp_path)


def test_a_manufacturer_that_was_made_in_part_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C, a kill or a full disk in the middle of the first start."""
    folder = tmp_path / "simulated"
    monkeypatch.setattr(json, "dumps", raises_interrupt)
    with pytest.raises(KeyboardInterrupt):
        manufacturer(folder)
    monkeypatch.undo()
    made, ark = manufacturer(folder)
    again, _ = manufacturer(folder)
    assert again.ark_der == made.ark_der
    root = x509.load_pem_x509_certificate(ark.read_bytes())
    assert root.public_bytes(Encoding.DER) == made.ark_der
    assert (folder / "manufacturer.json").stat().st_mode & 0o777 == 0o600


def raises_interrupt(*_: object, **__: object) -> str:
    raise KeyboardInterrupt


@pytest.mark.parametrize("content", ["", "[]", "{}", "[" * 100_000, '{"product": []}'])
def test_what_is_no_manufacturer_is_said_in_words(tmp_path: Path, content: str) -> None:
    folder = tmp_path / "simulated"
    folder.mkdir(mode=0o700)
    (folder / "manufacturer.json").write_text(content)
    with pytest.raises(ConfigurationError, match="is not a simulated manufacturer"):
        manufacturer(folder)


def test_an_option_and_its_file_may_be_one_word() -> None:
    words = separated(["sds", "agent", "--config=agent.yaml", "--log-level", "debug"])
    assert words[configuration_of(words)] == "agent.yaml"


def test_a_folder_that_others_can_enter_is_refused_with_the_option_that_chose_it(
    tmp_path: Path,
) -> None:
    tmp_path.chmod(0o755)
    with pytest.raises(SocketError) as refused:
        manufacturer(tmp_path)
    assert refused.value.advice.endswith("choose another one with --machines")
