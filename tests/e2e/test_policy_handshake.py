"""Policy in the handshake of real Envoys: who gets in, who does not, and what changes under load.

A may talk to B means: A's requests reach B's Envoy over mTLS, and B's Envoy saw A's SPIFFE ID. May
not means that the handshake fails by a validation context: B's (``inbound``) or A's own
(``outbound:…``).
"""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.envoy import VERSIONS
from tests.support.policy_mesh import Author, S, client, server, server_bootstrap, workload

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.policy_mesh import Client, Server

pytestmark = pytest.mark.e2e

MANY = 60
"""Requests of those who are allowed throughout, at least."""


async def refused_by(at: Server) -> int:
    stats = await at.envoy.stats("listener.")
    return sum(value for name, value in stats.items() if name.endswith("ssl.fail_verify_san"))


async def reused(at: Server) -> int:
    stats = await at.envoy.stats("listener.")
    return sum(value for name, value in stats.items() if name.endswith("ssl.session_reused"))


@pytest.mark.parametrize("version", [VERSIONS[0], VERSIONS[-1]])
async def test_the_policy_is_changed_under_load(tmp_path: Path, version: str) -> None:
    author = Author()
    holder = author.holder()
    author.allow(holder, ("a", "b"), ("d", "b"))
    async with contextlib.AsyncExitStack() as stack:
        at = {
            name: await stack.enter_async_context(workload(tmp_path, name, holder))
            for name in "abcd"
        }
        b = await stack.enter_async_context(
            server(server_bootstrap(at["b"]), tmp_path, version=version)
        )

        async def start(name: str, **options: Any) -> Client:
            return await stack.enter_async_context(
                client(at[name], b, tmp_path, version=version, **options)
            )

        a, c, d, kept = (
            await start("a"),
            await start("c"),
            await start("d"),
            await start("d", fresh=False),
        )
        assert await a.may()
        assert not await c.may()
        assert await refused_by(b) > 0
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            asking = [tasks.create_task(one.keep_asking(stop)) for one in (d, kept)]
            await asyncio.gather(d.until(may=True), kept.until(may=True))
            author.allow(holder, ("c", "b"), ("d", "b"))
            await asyncio.gather(c.until(may=True), a.until(may=False))
            # And nobody at all, then back: those who are allowed throughout never notice the rest.
            author.allow(holder, ("a", "b"), ("d", "b"))
            await asyncio.gather(a.until(may=True), c.until(may=False))
            await asyncio.gather(d.asked(MANY), kept.asked(MANY))
            stop.set()
        assert [task.result() for task in asking] == [0, 0]
        # No connection that was open was dropped.
        assert await kept.envoy.stat("cluster.outbound.upstream_cx_total") >= 1
        assert await kept.envoy.stat("cluster.outbound.upstream_cx_destroy") == 0
        # Whoever answered nothing was never let in by a session from before.
        assert await reused(b) == 0
        assert await b.envoy.stat("listener_manager.listener_modified") == 0


async def test_nobody_means_nobody(tmp_path: Path) -> None:
    author = Author()
    holder = author.holder()
    async with (
        workload(tmp_path, "a", holder) as at_a,
        workload(tmp_path, "b", holder) as at_b,
        server(server_bootstrap(at_b), tmp_path) as b,
        client(at_a, b, tmp_path) as a,
    ):
        # No policy was ever in force.
        assert not await a.may()
        author.allow(holder, ("a", "b"))
        await a.until(may=True)
        # An empty list.
        author.allow(holder)
        await a.until(may=False)
        # A pattern.
        author.publish(holder, allow=[{"from": f"{S}/**", "to": f"{S}/*"}])
        await a.until(may=True)
        # One that does not match.
        author.publish(holder, allow=[{"from": f"{S}/a/*", "to": f"{S}/b"}])
        await a.until(may=False)
        # A policy that ends and that nothing follows.
        following = asyncio.create_task(holder.run())
        try:
            soon = datetime.now(UTC) + timedelta(seconds=4)
            author.allow(holder, ("a", "b"), not_after=soon.isoformat())
            await a.until(may=True, seconds=3)
            await a.until(may=False)
            assert datetime.now(UTC) >= soon
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        assert await refused_by(b) > 3


async def test_the_client_side_refuses_servers_by_the_policy(tmp_path: Path) -> None:
    author = Author()
    holder = author.holder()
    services = {"db": f"{S}/b", "other": f"{S}/c"}
    author.allow(holder, ("a", "b"), ("a", "c"), services=services)
    async with contextlib.AsyncExitStack() as stack:
        enter = stack.enter_async_context
        at_a = await enter(workload(tmp_path, "a", holder))
        at_b = await enter(workload(tmp_path, "b", holder))
        # B lets everybody of the trust domain in: only A's own contexts decide here.
        b = await enter(server(server_bootstrap(at_b, "ROOTCA"), tmp_path))
        by: dict[str, Client] = {}
        for target in ("outbound:db", "outbound:other", f"outbound:{S}/b", "outbound:none"):
            folder = tmp_path / f"client-{len(by)}"
            folder.mkdir()
            by[target] = await enter(client(at_a, b, folder, validation=target))
        assert [await one.may() for one in by.values()] == [True, False, True, False]
        # What policy no longer knows is taken away, not merely no longer sent.
        author.allow(holder, ("a", "c"), services={"db": f"{S}/c", "none": f"{S}/b"})
        await asyncio.gather(*(one.until(may=False) for one in by.values()))
        author.allow(holder, ("a", "b"), services={"none": f"{S}/b", "db": f"{S}/b"})
        await asyncio.gather(
            *(by[target].until(may=True) for target in ("outbound:db", "outbound:none"))
        )


def without_our_defences(bootstrap: dict[str, Any]) -> dict[str, Any]:
    """The same server, but TLS sessions may be resumed."""
    (listener,) = bootstrap["static_resources"]["listeners"]
    context = listener["filter_chains"][0]["transport_socket"]["typed_config"]
    del context["disable_stateless_session_resumption"]
    del context["disable_stateful_session_resumption"]
    return bootstrap


@pytest.mark.parametrize("defended", [True, False])
async def test_a_session_from_before_does_not_get_in(tmp_path: Path, defended: bool) -> None:  # noqa: FBT001  a parameter
    author = Author()
    holder = author.holder()
    author.allow(holder, ("a", "b"))
    async with (
        workload(tmp_path, "a", holder) as at_a,
        workload(tmp_path, "b", holder) as at_b,
    ):
        bootstrap = server_bootstrap(at_b)
        if not defended:
            bootstrap = without_our_defences(bootstrap)
        async with (
            server(bootstrap, tmp_path) as b,
            client(at_a, b, tmp_path, full_handshakes=False) as a,
        ):
            for _ in range(5):
                assert await a.may()
            # So that the test can fail: without the bootstrap's settings sessions are resumed.
            assert (await reused(b) > 0) is not defended
            author.allow(holder)
            await a.until(may=False)
            before = await reused(b)
            for _ in range(5):
                assert not await a.may()
            assert await reused(b) == before


async def test_combined_validation_contexts_widen_what_policy_allows(tmp_path: Path) -> None:
    """Why no bootstrap of ours has one: Envoy joins the matchers of both parts by OR."""
    author = Author()
    holder = author.holder()
    author.allow(holder)
    async with workload(tmp_path, "a", holder) as at_a, workload(tmp_path, "b", holder) as at_b:
        bootstrap = server_bootstrap(at_b)
        (listener,) = bootstrap["static_resources"]["listeners"]
        common = listener["filter_chains"][0]["transport_socket"]["typed_config"][
            "common_tls_context"
        ]
        own = {"match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"prefix": S}}]}
        common["combined_validation_context"] = {
            "default_validation_context": own,
            "validation_context_sds_secret_config": common.pop(
                "validation_context_sds_secret_config"
            ),
        }
        async with server(bootstrap, tmp_path) as b, client(at_a, b, tmp_path) as a:
            assert await a.may(), "policy says nobody, and the prefix beside it lets A in"
        async with (
            server(server_bootstrap(at_b), tmp_path, name="plain") as b,
            client(at_a, b, tmp_path) as a,
        ):
            assert not await a.may()


@pytest.mark.parametrize("version", VERSIONS)
async def test_long_patterns_are_taken_by_every_envoy(tmp_path: Path, version: str) -> None:
    """Envoy refuses expressions of more than 100 instructions that do not ask for more."""
    author = Author()
    holder = author.holder()
    long = "long-" * 24
    author.publish(holder, allow=[{"from": f"{S}/{long}*", "to": f"{S}/b"}])
    async with contextlib.AsyncExitStack() as stack:
        enter = stack.enter_async_context
        at_a = await enter(workload(tmp_path, "a", holder, path=f"/{long}1"))
        at_c = await enter(workload(tmp_path, "c", holder))
        at_b = await enter(workload(tmp_path, "b", holder))
        b = await enter(server(server_bootstrap(at_b), tmp_path, version=version))
        a = await enter(client(at_a, b, tmp_path, version=version))
        c = await enter(client(at_c, b, tmp_path, version=version))
        assert [(await one.ask())[0] for one in (a, c)] == [200, 503]
