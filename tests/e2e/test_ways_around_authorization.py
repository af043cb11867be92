"""The ways around authorization, what stops each, and the test that tries it.

:data:`WAYS` is the table. This file has the ways that no other file tries.
"""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from envoy.extensions.transport_sockets.tls.v3 import secret_pb2
from google.protobuf.json_format import MessageToDict

from sds.agent.policy_peers import PolicyPeers
from sds.bootstrap.build import make_bootstrap
from sds.bootstrap.commented_yaml import to_dict
from sds.bootstrap.plan import Endpoint, Inbound, Outbound, SecretSource
from sds.identity import Identity, TrustDomain
from sds.secrets.store import SecretStore
from sds.serving.secret_catalog import Aliases, Catalog
from sds.workload.entitlement import Caller
from tests.support.bootstrap_rules import nodes
from tests.support.envoy import NEWEST, VERSIONS, running_envoy
from tests.support.envoy_peers import (
    OURS,
    PARTNER,
    TARGET,
    Certificates,
    Question,
    answer,
    bootstrap,
    ports_of,
)
from tests.support.policy_mesh import Author

pytestmark = pytest.mark.e2e

TESTS: Final = Path(__file__).parents[1]
ANYWHERE: Final = Endpoint(host="127.0.0.1", port=0)


class Way(NamedTuple):
    """One way around, and what stops it."""

    way: str
    stopped_by: str
    tests: tuple[str, ...]


_MATRIX = "e2e/test_authorization_matrix.py"
_PUSHED = "e2e/test_authorization_pushed.py"
_HERE = "e2e/test_ways_around_authorization.py"
WAYS: Final = (
    Way(
        "paths that mean another: //, .., ..;, %2f, %5c, %2e, case, a trailing slash, ?, #",
        "Envoy matches one normal form; a star matches plain characters only",
        (f"{_MATRIX}::test_no_way_around_the_paths_of_a_rule", f"{_MATRIX}::test_explain_and"),
    ),
    Way(
        "a host with a port, a final dot, upper case, or a longer one",
        "host patterns match the whole name without those",
        (f"{_MATRIX}::test_no_way_around_the_paths_of_a_rule",),
    ),
    Way(
        "a forged x-forwarded-client-cert, an upper-case or foreign trust domain, plaintext",
        "rules match the URI SAN of the verified certificate",
        (f"{_MATRIX}::test_the_certificate_names_the_peer_and_nothing_else",),
    ),
    Way(
        "a certificate of a foreign authority with one of our names as its second",
        "contexts have the bundles of the rules' domains; filters look at the first name",
        (f"{_HERE}::test_a_second_name_gains_nothing",),
    ),
    Way(
        "a TLS session from before the change",
        "no resumption in our bootstraps; a changed context and new ticket keys elsewhere",
        ("e2e/test_policy_handshake.py::test_a_session_from_before_does_not_get_in",),
    ),
    Way(
        "a connection from before the change",
        "the filter decides every request",
        (f"{_PUSHED}::test_a_new_epoch_is_enforced_on_a_connection_that_is_open",),
    ),
    Way(
        "a stream or a TCP connection that runs on",
        "max_stream_duration, max_downstream_connection_duration",
        (
            "unit/test_bootstrap.py::test_the_examples_keep_the_rules",
            "unit/test_bootstrap.py::test_every_role_keeps_the_rules",
        ),
    ),
    Way(
        "a second listener of the same Envoy",
        "each listener asks its own filter; a rule's ports are the listener's",
        (f"{_HERE}::test_a_second_listener_is_no_way_around",),
    ),
    Way(
        "HTTP rules through a TCP listener",
        "a network filter allows nothing by a rule that asks for methods, paths or hosts",
        (f"{_PUSHED}::test_tcp_connections_are_decided_by_the_network_filter",),
    ),
    Way(
        "wait for what an application says first through TCP, before the filter decides",
        "the handshake refuses whom the policy does not know: `inbound` in TCP listeners",
        (
            f"{_HERE}::test_what_an_application_says_first",
            "unit/test_bootstrap.py::test_the_handshake_of_a_tcp_listener",
        ),
    ),
    Way(
        "start Envoy while the agent is down",
        "the default of the filter denies everything",
        (f"{_HERE}::test_an_envoy_that_starts_while_the_agent_is_down_denies",),
    ),
    Way(
        "stop the agent, so that an old filter stays",
        "the filter's time to live, which ends no later than the policy",
        (
            f"{_PUSHED}::test_heartbeats_keep_it_and_the_agent_s_end_ends_it",
            f"{_PUSHED}::test_it_ends_with_the_policy_also_without_the_agent",
        ),
    ),
    Way(
        "replace the agent's socket",
        "its directory is the agent's own; a lost socket is put back, and reported",
        ("e2e/test_agent_process.py::test_a_socket_that_somebody_replaced_is_put_back",),
    ),
    Way(
        "another workload's node id, cluster or metadata",
        "the socket and the kernel say who the caller is; the node decides nothing",
        ("conformance/test_authorization.py::test_what_a_client_says_of_its_node_decides_nothing",),
    ),
    Way(
        "ask for another workload's authorization by name",
        "a name that is not the caller's looks absent",
        ("conformance/test_authorization.py::test_every_identity_of_the_caller_and_nobody_else_s",),
    ),
    Way(
        "an unset `rules`, which would allow everything",
        "rules are always present",
        ("conformance/test_authorization.py::test_empty_rules_are_present_in_the_bytes",),
    ),
    Way(
        "an edited, unsigned, expired or older policy",
        "signatures, epochs, not_after",
        (
            "security/test_policy_bytes.py::",
            "property/test_policy_epochs.py::class Epochs",
            "conformance/test_authorization.py::test_what_is_refused_changes_nothing",
        ),
    ),
)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.way[:40])
def test_each_way_has_a_test_that_exists(way: Way) -> None:
    assert way.stopped_by
    assert way.tests
    for test in way.tests:
        file, _, name = test.partition("::")
        wanted = name if name.startswith("class ") else f"def {name or 'test_'}"
        assert wanted in (TESTS / file).read_text(), test


# --- a second name in a certificate -------------------------------------------------------------


def contexts(certificates: Certificates, *sources: str) -> dict[str, Any]:
    """What the agent serves as ``inbound`` where these may connect, in JSON."""
    author = Author()
    holder = author.holder()
    author.publish(holder, allow=[{"from": one, "to": str(TARGET)} for one in sources])
    store = SecretStore()
    for domain, root in certificates.roots.items():
        store.put_bundle(TrustDomain(domain), [root.certificate.public_bytes(Encoding.DER)])
    caller = Caller(name="db", selectors=frozenset(), identities=(Identity(spiffe_id=TARGET),))
    found = Catalog(store, aliases=Aliases(), peers=PolicyPeers(holder)).find(caller, "inbound")
    assert found is not None
    secret = secret_pb2.Secret.FromString(found.secret)
    context: dict[str, Any] = MessageToDict(
        secret.validation_context, preserving_proto_field_name=True
    )
    return context


def question(*sources: str, ports: tuple[int, ...] = ()) -> Question:
    more = {"requests": [{"ports": list(ports)}]} if ports else {}
    allow = [{"from": one, "to": str(TARGET), **more} for one in sources]
    return Question(allow=allow, enforce=True, peer="", method="GET", path="/", host="h.org")


@pytest.mark.parametrize("version", [VERSIONS[0], VERSIONS[-1]])
async def test_a_second_name_gains_nothing(version: str, tmp_path: Path) -> None:
    """The forged certificate names ``partner.org/x`` first and ``example.org/web`` second.

    Where no rule names its trust domain, the handshake fails. Where one does, Envoy's SAN matchers
    take any name, so that the handshake succeeds (the partner's authority could name itself
    ``partner.org/web`` as well), and the filter denies what the second name may ask for.
    """
    certificates = Certificates(tmp_path)
    web, partner = f"{OURS}/web", f"{PARTNER}/web"
    cases = [(web,), (web, partner), (partner,)]
    config = bootstrap([question(*one) for one in cases], certificates.secrets())
    for sources, listener in zip(cases, config["static_resources"]["listeners"], strict=True):
        socket = listener["filter_chains"][0]["transport_socket"]["typed_config"]
        socket["common_tls_context"] = {
            **certificates.secrets(),
            "validation_context": contexts(certificates, *sources),
        }
    async with running_envoy(config, folder=tmp_path, version=version) as envoy:
        await envoy.until_live()
        ports = await ports_of(envoy, len(cases))
        got = {
            peer: [
                await answer(port, certificates.clients[peer], question(*one))
                for one, port in zip(cases, ports, strict=True)
            ]
            for peer in ("web", "partner", "forged", "forged too")
        }
    assert got == {
        "web": [200, 200, 0],
        "partner": [0, 200, 200],
        "forged": [0, 403, 0],
        "forged too": [0, 0, 0],
    }


async def test_a_foreign_server_s_second_name_gains_nothing(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    forged = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    forged.load_cert_chain(tmp_path / "forged.pem")
    plain = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    plain.load_cert_chain(tmp_path / "web.pem")

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        writer.close()

    servers = [
        await asyncio.start_server(respond, "127.0.0.1", 0, ssl=one) for one in (plain, forged)
    ]
    made = to_dict(
        make_bootstrap(
            node="client",
            secrets=SecretSource(socket=Path("/nowhere")),
            admin=ANYWHERE,
            outbound=[
                Outbound(
                    listen=ANYWHERE,
                    upstreams={
                        "*": Endpoint(host="127.0.0.1", port=one.sockets[0].getsockname()[1])
                    },
                )
                for one in servers
            ],
        )
    )
    clusters = made["static_resources"]["clusters"]
    clusters[:] = [one for one in clusters if "transport_socket" in one]
    for cluster in clusters:
        cluster["transport_socket"]["typed_config"]["common_tls_context"] = {
            **certificates.secrets(),
            "validation_context": contexts(certificates, f"{OURS}/web"),
        }
    async with servers[0], servers[1], running_envoy(made, folder=tmp_path) as envoy:
        await envoy.until_live()
        statuses = []
        for name in ("outbound", "outbound-2"):
            host, port = await envoy.address(name)
            async with envoy.http.get(f"http://{host}:{port}/") as response:
                statuses.append(response.status)
        assert statuses == [200, 503]


# --- listeners ----------------------------------------------------------------------------------


async def test_a_second_listener_is_no_way_around(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    web = f"{OURS}/web"
    asked = [question(web, ports=(1,)), question(f"{OURS}/ops/a"), question(web)]
    async with running_envoy(bootstrap(asked, certificates.secrets()), folder=tmp_path) as envoy:
        await envoy.until_live()
        ports = await ports_of(envoy, 3)
        client = certificates.clients["web"]
        statuses = [
            await answer(port, client, one, f"x-envoy-original-dst-host: 127.0.0.1:{ports[2]}")
            for port, one in zip(ports, asked, strict=True)
        ]
        assert statuses == [403, 403, 200]


@pytest.mark.parametrize("version", [NEWEST, VERSIONS[-1]])
async def test_an_envoy_that_starts_while_the_agent_is_down_denies(
    version: str, tmp_path: Path
) -> None:
    """Without certificates nobody connects; with certificates from elsewhere the default denies."""
    certificates = Certificates(tmp_path)
    entry: dict[str, Any] = {"listen": ANYWHERE, "authorization": "authorization"}
    made = to_dict(
        make_bootstrap(
            node="early",
            secrets=SecretSource(socket=tmp_path / "nobody.sock", validation="inbound"),
            admin=ANYWHERE,
            inbound=[
                Inbound(**entry),
                Inbound(**entry),
                Inbound(**entry, upstream=Endpoint(host="127.0.0.1", port=1), tcp=True),
            ],
        )
    )
    for node in nodes(made):
        if "api_config_source" in node:
            node["initial_fetch_timeout"] = "0.5s"  # then Envoy gives up waiting; 15 s by itself
    for listener in made["static_resources"]["listeners"][1:]:
        (chain,) = listener["filter_chains"]
        chain["transport_socket"]["typed_config"]["common_tls_context"] = certificates.secrets()
    async with running_envoy(made, folder=tmp_path, version=version) as envoy:
        await envoy.until_live()
        web = certificates.clients["web"]
        ports = await ports_of(envoy, 3)
        assert [await answer(port, web, question()) for port in ports] == [0, 403, 0]


async def test_what_an_application_says_first_reaches_only_whom_the_policy_knows(
    tmp_path: Path,
) -> None:
    """A network filter decides at the client's first byte; by then Envoy has let the banner out.

    So that this can fail, the second listener verifies clients by the bundle alone.
    """
    certificates = Certificates(tmp_path)

    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 ready")
        writer.close()

    application = await asyncio.start_server(greet, "127.0.0.1", 0)
    upstream = Endpoint(host="127.0.0.1", port=application.sockets[0].getsockname()[1])
    made = to_dict(
        make_bootstrap(
            node="tcp",
            secrets=SecretSource(socket=tmp_path / "nobody.sock"),
            admin=ANYWHERE,
            inbound=[Inbound(listen=ANYWHERE, upstream=upstream, tcp=True)] * 2,
        )
    )
    listeners = made["static_resources"]["listeners"]
    for listener in listeners:
        (chain,) = listener["filter_chains"]
        chain["filters"].insert(0, denying())
        chain["transport_socket"]["typed_config"]["common_tls_context"] = certificates.secrets()
    listeners[0]["filter_chains"][0]["transport_socket"]["typed_config"]["common_tls_context"][
        "validation_context"
    ] = contexts(certificates, f"{OURS}/web")

    async def heard(port: int, peer: str) -> bytes:
        try:
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port, ssl=certificates.clients[peer]
            )
        except (ssl.SSLError, ConnectionError):
            return b""
        try:
            return await reader.read(9)
        except (ssl.SSLError, ConnectionError):
            return b""
        finally:
            writer.close()

    async with application, running_envoy(made, folder=tmp_path) as envoy:
        await envoy.until_live()
        by_policy, by_bundle = await ports_of(envoy, 2)
        assert await heard(by_policy, "web-2") == b""
        assert await heard(by_bundle, "web-2") == b"220 ready"


def denying() -> dict[str, Any]:
    """A network filter that denies everything."""
    kind = "type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC"
    return {
        "name": "envoy.filters.network.rbac",
        "typed_config": {"@type": kind, "rules": {}, "stat_prefix": "authorization."},
    }
