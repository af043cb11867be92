"""Real Envoys enforce the authorization that is pushed to them, on connections that are open."""

from __future__ import annotations

import asyncio
import contextlib
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from sds.agent.policy_authorizations import PolicyAuthorizations
from sds.agent.policy_peers import PolicyPeers
from sds.bootstrap.build import make_bootstrap
from sds.bootstrap.commented_yaml import to_dict
from sds.bootstrap.plan import Endpoint, Inbound, Protocol, SecretSource
from sds.identity import Identity, SpiffeId
from sds.serving.service import ServingOptions
from tests.support import policy_mesh
from tests.support.envoy import NEWEST, VERSIONS
from tests.support.kept_http2 import kept_http2
from tests.support.policy_mesh import ANY_PORT, Author, S, client, server
from tests.support.serving import TD, Serving, svid

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from sds.policy.holder import PolicyHolder
    from tests.support.kept_http2 import KeptHttp2
    from tests.support.policy_mesh import Client

pytestmark = pytest.mark.e2e

GET = [{"methods": ["GET"]}]
POST = [{"methods": ["POST"]}]
PERIOD = timedelta(hours=1)
WEB = Identity(spiffe_id=SpiffeId(TD, "/web"))


def workload(
    folder: Path, name: str, holder: PolicyHolder, *, ttl: timedelta = PERIOD
) -> AbstractAsyncContextManager[Serving]:
    options = ServingOptions(
        peers=PolicyPeers(holder),
        authorizations=PolicyAuthorizations(holder),
        authorization_ttl=ttl,
    )
    return policy_mesh.workload(folder, name, holder, options=options)


def bootstrap(at: Serving, protocol: Protocol = Protocol.SOTW) -> dict[str, Any]:
    return to_dict(
        make_bootstrap(
            node="server",
            secrets=SecretSource(socket=at.socket, validation="inbound", protocol=protocol),
            admin=ANY_PORT,
            inbound=[Inbound(listen=ANY_PORT, authorization="authorization")],
        )
    )


@contextlib.asynccontextmanager
async def mesh(
    folder: Path,
    holder: PolicyHolder,
    *,
    version: str = NEWEST,
    protocol: Protocol = Protocol.SOTW,
    ttl: timedelta = PERIOD,
) -> AsyncIterator[tuple[Serving, Client]]:
    """An agent's socket, and a client whose connection to a server's Envoy stays open."""
    async with (
        workload(folder, "server", holder, ttl=ttl) as at,
        workload(folder, "web", holder) as of_client,
        server(bootstrap(at, protocol), folder, version=version) as to,
        client(of_client, to, folder, fresh=False, version=version) as asking,
    ):
        yield at, asking


async def until(asking: Client | KeptHttp2, status: int, *, seconds: float = 10.0) -> float:
    """Ask until the answer is this; the seconds that it took."""
    began = time.monotonic()
    last: Any = None
    try:
        async with asyncio.timeout(seconds):
            while last != status:
                last, _ = await asking.ask()
                await asyncio.sleep(0.002)
    except TimeoutError:
        pytest.fail(f"{last} instead of {status} after {seconds} s")
    return time.monotonic() - began


def allow(author: Author, holder: PolicyHolder, requests: Any = None, **more: Any) -> None:
    rule = {"from": f"{S}/web", "to": f"{S}/server"}
    if requests is not None:
        rule["requests"] = requests
    author.publish(holder, allow=[rule], **more)


@pytest.mark.parametrize(
    ("version", "protocol"),
    [
        *((version, Protocol.SOTW) for version in VERSIONS),
        (NEWEST, Protocol.DELTA),
        (NEWEST, Protocol.ADS),
        (NEWEST, Protocol.DELTA_ADS),
    ],
)
async def test_a_new_epoch_is_enforced_on_a_connection_that_is_open(
    version: str, protocol: Protocol, tmp_path: Path
) -> None:
    author = Author()
    holder = author.holder()
    allow(author, holder, GET)
    async with mesh(tmp_path, holder, version=version, protocol=protocol) as (at, asking):
        await until(asking, 200, seconds=30)
        for _ in range(2):
            allow(author, holder, POST)
            await until(asking, 403)
            allow(author, holder, GET)
            await until(asking, 200)
        allow(author, holder)  # everything
        for _ in range(20):
            assert (await asking.ask())[0] == 200
        author.publish(holder, allow=[])  # the client may not even connect
        await until(asking, 403)
        watched = [
            each
            for session in at.service.sessions()
            for stream in session.streams
            for conversation in stream.conversations.values()
            for each in conversation.subscription.watched()
            if each.name == "authorization"
        ]
        assert [one.acked for one in watched] == [one.sent for one in watched]
        assert f"-epoch{author.epoch}-" in (watched[0].acked or "")


@pytest.mark.parametrize("version", VERSIONS)
async def test_it_is_enforced_on_the_streams_of_one_http2_connection(
    version: str, tmp_path: Path
) -> None:
    author = Author()
    holder = author.holder()
    allow(author, holder, GET)
    async with (
        workload(tmp_path, "server", holder) as at,
        server(bootstrap(at), tmp_path, version=version) as to,
        kept_http2(to.endpoint, svid(WEB)) as asking,
    ):
        await until(asking, 200, seconds=30)
        allow(author, holder, POST)
        await until(asking, 403)
        allow(author, holder, GET)
        await until(asking, 200)
        for _ in range(20):
            assert (await asking.ask())[0] == 200
        author.publish(holder, allow=[])  # the client may not even connect
        await until(asking, 403)


@pytest.mark.parametrize("protocol", [Protocol.SOTW, Protocol.DELTA, Protocol.ADS])
@pytest.mark.parametrize("version", [VERSIONS[-1], NEWEST])
async def test_heartbeats_keep_it_and_the_agent_s_end_ends_it(
    version: str, protocol: Protocol, tmp_path: Path
) -> None:
    author = Author()
    holder = author.holder()
    allow(author, holder, GET)
    ttl = timedelta(seconds=4)
    async with mesh(tmp_path, holder, version=version, protocol=protocol, ttl=ttl) as (at, asking):
        await until(asking, 200, seconds=30)
        end = time.monotonic() + 2.5 * ttl.total_seconds()
        while time.monotonic() < end:  # heartbeats only: nothing changes
            assert (await asking.ask())[0] == 200
            await asyncio.sleep(0.05)
        at.service.close()  # the agent is gone: no stream comes back
        assert (await asking.ask())[0] == 200
        taken = await until(asking, 403, seconds=2 * ttl.total_seconds())
        assert taken > ttl.total_seconds() / 3


async def test_it_ends_with_the_policy_also_without_the_agent(tmp_path: Path) -> None:
    author = Author()
    holder = author.holder()
    end = datetime.now(UTC) + timedelta(seconds=25)
    allow(author, holder, GET, not_after=end.isoformat())
    async with mesh(tmp_path, holder) as (at, asking):
        await until(asking, 200, seconds=20)
        at.service.close()
        await until(asking, 403, seconds=40)
        assert datetime.now(UTC) > end - timedelta(seconds=3)  # and not before


async def test_what_is_only_counted_is_let_through(tmp_path: Path) -> None:
    author = Author()
    holder = author.holder()
    allow(author, holder, POST, requests_enforce=False)
    async with (
        workload(tmp_path, "server", holder) as at,
        workload(tmp_path, "web", holder) as of_client,
        server(bootstrap(at), tmp_path) as to,
        client(of_client, to, tmp_path, fresh=False) as asking,
    ):
        await until(asking, 200, seconds=30)
        for _ in range(3):
            assert (await asking.ask())[0] == 200
        counted = await to.envoy.get("/stats?filter=rbac")
        found = dict(line.split(": ") for line in counted.splitlines())
        (denied,) = (int(found[name]) for name in found if name.endswith("rbac.shadow_denied"))
        assert denied >= 4


async def test_tcp_connections_are_decided_by_the_network_filter(tmp_path: Path) -> None:
    author = Author()
    holder = author.holder()
    allow(author, holder)

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """An application that answers HTTP, seen through TCP."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        writer.close()

    application = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = application.sockets[0].getsockname()[1]
    async with application, workload(tmp_path, "server", holder) as at:
        config = to_dict(
            make_bootstrap(
                node="server",
                secrets=SecretSource(socket=at.socket, validation="inbound"),
                admin=ANY_PORT,
                inbound=[
                    Inbound(
                        listen=ANY_PORT,
                        upstream=Endpoint(host="127.0.0.1", port=port),
                        tcp=True,
                        authorization="authorization",
                    )
                ],
            )
        )
        async with (
            workload(tmp_path, "web", holder) as of_client,
            server(config, tmp_path) as to,
            client(of_client, to, tmp_path) as asking,  # a new connection for each request
        ):
            await until(asking, 200, seconds=30)
            allow(author, holder, [{"methods": ["GET"]}])  # a network filter sees no method
            await until(asking, 503)
            allow(author, holder)
            await until(asking, 200)
