import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from sds.bootstrap.plan import Endpoint, Protocol
from sds.cli import main
from sds.commands.bootstrap import EnvoyRole
from sds.errors import ConfigurationError
from tests.support import bootstrap_rules
from tests.support.need import ROOT

PEERS = {
    EnvoyRole.SERVER: [],
    EnvoyRole.CLIENT: ["--peer", "127.0.0.1:8443"],
    EnvoyRole.SIDECAR: ["--peer", "peer.example:8443", "--application", "127.0.0.1:8080"],
    EnvoyRole.GATEWAY: ["--peer", "a.example=a.internal:1", "--peer", "*=[::1]:2"],
}


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["bootstrap", *arguments])


def made(*arguments: str) -> dict[str, Any]:
    result = run("--socket", "/run/a/sds.sock", *arguments)
    assert result.exit_code == 0, result.stderr
    bootstrap: dict[str, Any] = yaml.safe_load(result.stdout)
    return bootstrap


@pytest.mark.slow
@pytest.mark.no_cover
@pytest.mark.parametrize(("role", "protocol"), list(itertools.product(EnvoyRole, Protocol)))
def test_every_role_keeps_the_rules(role: EnvoyRole, protocol: Protocol) -> None:
    arguments = ["--role", role.value, "--protocol", protocol.value, *PEERS[role]]
    bootstrap = made(*arguments)
    bootstrap_rules.check(bootstrap)
    assert made(*arguments, "--output", "json") == bootstrap
    names = [entry["name"] for entry in bootstrap["static_resources"]["listeners"]]
    assert ("inbound" in names) == (role in {EnvoyRole.SERVER, EnvoyRole.SIDECAR})
    assert ("outbound" in names) == (role is not EnvoyRole.SERVER)


@pytest.mark.no_cover
@pytest.mark.parametrize(
    ("role", "protocol", "more"),
    [
        (role, protocol, more)
        for role, protocol in itertools.product(EnvoyRole, Protocol)
        for more in ((), ("--tcp",))
        if not more or role is EnvoyRole.SIDECAR
    ],
)
def test_every_mtls_listener_asks_the_discovered_filter(
    role: EnvoyRole, protocol: Protocol, more: tuple[str, ...]
) -> None:
    arguments = ["--role", role.value, "--protocol", protocol.value, *more]
    bootstrap = made(*arguments, *PEERS[role])
    bootstrap_rules.check(bootstrap)
    bootstrap_rules.check_authorization(bootstrap)


def test_the_filter_can_be_left_out() -> None:
    assert "config_discovery" not in json.dumps(made("--role", "server", "--no-authorization"))


@pytest.mark.parametrize(
    ("more", "verified"),
    [
        ((), {"inbound": "ROOTCA", "outbound": "ROOTCA"}),
        (("--tcp",), {"inbound": "inbound", "outbound": "ROOTCA"}),
        (("--tcp", "--no-authorization"), {"inbound": "ROOTCA", "outbound": "ROOTCA"}),
        (("--tcp", "--validation", "ALL"), {"inbound": "ALL", "outbound": "ALL"}),
    ],
)
def test_the_handshake_of_a_tcp_listener_refuses_whom_policy_does_not_know(
    more: tuple[str, ...], verified: dict[str, str]
) -> None:
    """Envoy connects to the application before a network filter decides (Envoy issue 9023)."""
    bootstrap = made("--application", "127.0.0.1:1", "--peer", "127.0.0.1:2", *more)
    resources = bootstrap["static_resources"]
    parts = {"inbound": resources["listeners"][0], "outbound": resources["clusters"]}
    for name, part in parts.items():
        names = {
            node["validation_context_sds_secret_config"]["name"]
            for node in bootstrap_rules.nodes(part)
            if "validation_context_sds_secret_config" in node
        }
        assert names == {verified[name]}


def test_what_runs_long_must_be_asked_again_after_the_time_that_was_given() -> None:
    arguments = ["--application", "127.0.0.1:1", "--peer", "127.0.0.1:2", "--longest", "90s"]
    assert '"90s"' in json.dumps(made(*arguments))
    assert '"3600s"' not in json.dumps(made(*arguments, "--tcp"))


def test_a_servers_connections_end_before_the_certificates_that_they_began_with() -> None:
    peer = ["--application", "127.0.0.1:1", "--peer", "127.0.0.1:2"]
    for more, expected in (((), ["1800s"]), (("--longest-connection", "8s"), ["8s"])):
        found = [
            node["max_connection_duration"]
            for node in bootstrap_rules.nodes(made(*peer, *more))
            if "max_connection_duration" in node
        ]
        assert found == expected


def test_each_rule_in_the_yaml_carries_its_reason_once() -> None:
    text = run(
        "--socket", "/s", "--role", "sidecar", "--peer", "[::1]:1", "--full-handshakes"
    ).stdout
    for reason in ["22 s after the agent did", "checks neither expiry", "joined by OR"]:
        assert text.count(reason) == 1, reason
    assert "max_session_keys: 0" in text


def test_names_and_addresses_are_those_that_were_asked_for() -> None:
    bootstrap = made(
        *["--role", "sidecar", "--peer", "peer.example:8443", "--node", "mine"],
        *["--certificate", "spiffe://a/b", "--validation", "outbound:b", "--admin", "none"],
        *["--inbound", "[::]:1", "--outbound", "127.0.0.1:2", "--application", "app.example:3"],
    )
    assert "admin" not in bootstrap
    assert bootstrap["node"]["id"] == "mine"
    secrets = {node["name"] for node in bootstrap_rules.nodes(bootstrap) if "sds_config" in node}
    assert secrets == {"spiffe://a/b", "outbound:b"}
    at = [
        (node["socket_address"]["address"], node["socket_address"]["port_value"])
        for node in bootstrap_rules.nodes(bootstrap)
        if "socket_address" in node
    ]
    assert at == [("::", 1), ("127.0.0.1", 2), ("app.example", 3), ("peer.example", 8443)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--socket", "/" + "a" * 107, "--role", "server"], "longer than 107 bytes"),
        (["--socket", "/s", "--role", "client"], "needs --peer"),
        (["--socket", "/s", "--role", "server", "--tcp"], "TCP needs an application"),
        (["--socket", "/s", "--role", "server", "--peer", "a:1"], "has no --peer"),
        (["--socket", "/s", "--role", "gateway", "--peer", "a:1"], "names no domain"),
        (["--socket", "/s", "--role", "client", "--peer", "a"], "not host:port"),
        (["--socket", "/s", "--role", "client", "--peer", "a:65536"], "not host:port"),
        (["--socket", "/s", "--role", "client", "--peer", "a:1", "--peer", "b:1"], "twice"),
        (["--socket", "/s", "--role", "server", "--inbound", "a:1"], "not an IP address"),
        (["--socket", "/s", "--role", "server", "--inbound", "[127.0.0.1]:1"], "not host:port"),
        (["--socket", "/s", "--role", "server", "--inbound", "1.2.3:1"], "not host:port"),
        (["--socket", "/s", "--role", "server", "--inbound", "127.0.0.1:\u0661"], "not host:port"),
        (["--socket", "/s", "--role", "server", "--application", "a:0"], "port 0 cannot be"),
        (["--socket", "/s", "--role", "client", "--peer", "a..b:1"], "is not the name of a host"),
        (["--socket", "/s", "--role", "client", "--peer", "a:0"], "port 0 cannot be connected to"),
        (
            ["--socket", "/s", "--role", "gateway", "--peer", "A.b=c:1", "--peer", "a.b=d:1"],
            "--peer names a.b twice",
        ),
        (["--socket", "~/s", "--role", "server"], "the shell did not replace ~"),
        (["--socket", "unix:/s", "--role", "server"], "without unix:"),
        (["--role", "server"], "--socket"),
        *(
            (["--socket", "/s", "--role", "client", "--peer", "a:1", *more], f"has no {more[0]}")
            for more in (
                ["--inbound", "127.0.0.1:1"],
                ["--application", "127.0.0.1:1"],
                ["--tcp"],
                ["--no-authorization"],
                ["--longest-connection", "1m"],
            )
        ),
        (["--socket", "/s", "--role", "server", "--full-handshakes"], "has no --full-handshakes"),
        (["--socket", "/s", "--role", "server", "--outbound", "127.0.0.1:1"], "has no --outbound"),
        (
            ["--socket", "/s", "--role", "server", "--tcp", "--longest-connection", "1m"],
            "--longest bounds a TCP connection",
        ),
        (["--socket", "/s", "--role", "server", "--inbound", "127.0.0.1:9901"], "of --admin too"),
        (
            ["--socket", "/s", "--role", "server", "--application", "127.0.0.1:8443"],
            "of --inbound too",
        ),
        (["--socket", "/s", "--role", "server", "--admin", "0.0.0.0:1"], "not a loopback address"),
        (["--socket", "/s", "--role", "server", "--admin", "ca.example:1"], "not a loopback"),
    ],
)
def test_bad_input_is_a_usage_error_with_a_reason(arguments: list[str], said: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr


def test_endpoints() -> None:
    assert Endpoint.parse("[::1]:80") == Endpoint(host="::1", port=80)
    assert Endpoint.parse("a.example:80").is_address is False
    for bad in ("::1:80", "127.0.0.1:" + "9" * 5000):
        with pytest.raises(ConfigurationError):
            Endpoint.parse(bad)


@pytest.mark.parametrize("example", sorted((ROOT / "envoy").iterdir()), ids=lambda path: path.name)
def test_the_examples_keep_the_rules(example: Path) -> None:
    assert example.suffix == ".yaml", "envoy/ holds configurations only, never Python"
    bootstrap = yaml.safe_load(example.read_text())
    bootstrap_rules.check(bootstrap)
    bootstrap_rules.check_authorization(bootstrap)


@pytest.mark.parametrize(
    "file",
    [
        *sorted((ROOT / "deploy/sample").glob("*-envoy.yaml")),
        *(ROOT / "deploy/federation").iterdir(),
    ],
    ids=lambda path: path.name,
)
def test_what_is_deployed_has_one_form_of_paths_and_ends_by_time(file: Path) -> None:
    bootstrap = yaml.safe_load(file.read_text())
    kinds = [one.get("@type", "") for one in bootstrap_rules.nodes(bootstrap)]
    assert any(kind.endswith(".HttpConnectionManager") for kind in kinds)
    bootstrap_rules.check_managers(bootstrap)
