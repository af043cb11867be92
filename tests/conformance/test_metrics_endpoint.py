"""``/metrics`` over real sockets, read by real parsers."""

from __future__ import annotations

import asyncio
import re
import stat
import subprocess
from typing import TYPE_CHECKING

import aiohttp
import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from sds import faults
from sds.clock import SystemClock
from sds.errors import ConfigurationError, SocketError
from sds.operations.http_listener import HttpRequest, listening
from sds.operations.metrics.exposition import SHARED_SECONDS, handler
from sds.operations.metrics.families import AgentFamilies, AuthorityFamilies, ProcessFamilies
from sds.operations.metrics.store import MeteredStore, StoreCollector
from sds.settings.listen import ListenAddress
from tests.support import need

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from prometheus_client.metrics_core import Metric

LOOPBACK = ListenAddress(host="127.0.0.1", port=0)


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    ProcessFamilies(registry, component="agent")
    AuthorityFamilies(registry)
    store = MeteredStore(AgentFamilies(registry))
    StoreCollector(store, SystemClock(), registry)
    return registry


async def test_the_scraper_chooses_the_format(registry: CollectorRegistry) -> None:
    async with (
        listening(LOOPBACK, {"/metrics": handler(registry)}) as bound,
        aiohttp.ClientSession() as session,
    ):
        url = f"http://{bound.host}:{bound.port}/metrics"
        async with session.get(url) as response:
            assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            assert "# HELP sds_build_info" in await response.text()
        accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
        async with session.get(url, headers=accept) as response:
            assert response.headers["Content-Type"].startswith("application/openmetrics-text")
            text = await response.text()
        parse: Callable[[str], Iterable[Metric]] = text_string_to_metric_families
        families = {family.name for family in parse(text)}
        assert {"sds_streams", "sds_push_latency_seconds", "sds_nacks"} <= families
        async with session.post(url) as response:
            assert response.status == 405
        async with session.get(url.replace("metrics", "other")) as response:
            assert response.status == 404


@pytest.mark.parametrize("version", [b"2.\xff", b"1.x", b"\xff=1.0.0", b"9" * 5000, b""])
@pytest.mark.parametrize("kind", [b"application/openmetrics-text", b"text/plain"])
async def test_a_format_with_an_odd_version_is_no_fault_of_ours(
    registry: CollectorRegistry, kind: bytes, version: bytes
) -> None:
    before = dict(faults.counts())
    async with listening(LOOPBACK, {"/metrics": handler(registry)}) as bound:
        reader, writer = await asyncio.open_connection(bound.host, bound.port)
        accept = b"%b; version=%b" % (kind, version)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: a\r\nAccept: %b\r\n\r\n" % accept)
        assert await reader.readline() == b"HTTP/1.1 200 \r\n"
        writer.close()
    assert faults.counts() == before


async def test_promtool_accepts_what_is_exported(registry: CollectorRegistry) -> None:
    promtool = need.tool("promtool")
    async with (
        listening(LOOPBACK, {"/metrics": handler(registry)}) as bound,
        aiohttp.ClientSession() as session,
        session.get(f"http://{bound.host}:{bound.port}/metrics") as response,
    ):
        text = await response.read()
    checked = await asyncio.to_thread(
        subprocess.run,
        [promtool, "check", "metrics"],
        input=text,
        capture_output=True,
        check=False,
        timeout=30,
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")


async def test_a_unix_socket_is_private_and_a_dead_one_is_replaced(
    registry: CollectorRegistry, tmp_path: Path
) -> None:
    path = tmp_path / "metrics.sock"
    address = ListenAddress.parse(f"unix:{path}", field="metrics.listen")
    for _ in range(2):
        async with listening(address, {"/metrics": handler(registry)}):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            async with (
                aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session,
                session.get("http://localhost/metrics") as response,
            ):
                assert response.status == 200
            with pytest.raises(SocketError, match=r"metrics\.listen: another process listens on"):
                async with listening(address, {}, field="metrics.listen"):
                    pass
        assert not path.exists()
    path.write_text("no socket")
    with pytest.raises(SocketError, match="is not a socket"):
        async with listening(address, {}):
            pass
    assert path.read_text() == "no socket"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0.0.0.0:1", "not a loopback address"),
        ("example.org:1", "not an IP address and a port"),
        ("127.0.0.1", "not an IP address and a port"),
        ("127.0.0.1:70000", "a port from 0 to 65535"),
        ("127.0.0.1:+1", "a port from 0 to 65535"),
        ("127.0.0.1:1_0", "a port from 0 to 65535"),
        ("127.0.0.1: 1", "a port from 0 to 65535"),
        ("::1:9464", "not an IP address and a port"),
        ("[127.0.0.1]:1", "not an IP address and a port"),
        ("[[::1]]:1", "not an IP address and a port"),
        ("unix:relative", "not an absolute path"),
        ("unix:", "expected a path"),
        ("unix:~/m.sock", "nothing here replaces ~"),
        ("unix:$XDG_RUNTIME_DIR/m.sock", "nothing here replaces ~ or .NAME"),
        ("unix:/run/sds/", "names a directory"),
        ("unix:/run/a\0b", "printable characters"),
        ("unix:/" + "a" * 107, "has at most 107 bytes"),
    ],
)
def test_a_bad_address_is_said_with_its_field(text: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as caught:
        ListenAddress.parse(text, field="metrics.listen")
    assert "metrics.listen" in str(caught.value)
    if said.startswith("not a loopback"):
        assert ListenAddress.parse(text, field="x", remote=True).host == "0.0.0.0"


def test_a_crowd_shares_an_answer() -> None:
    """A scrape takes milliseconds, so a flood of them left no time for anybody else's."""
    now, registry = [0.0], CollectorRegistry()
    asked = Counter("asked", "How often.", registry=registry)
    answer = handler(registry, now=lambda: now[0])

    def said(*, crowded: bool, accept: str = "") -> float:
        request = HttpRequest(path="/metrics", headers={"accept": accept}, crowded=crowded)
        asked.inc()
        body = answer(request).body.decode()
        return float(re.findall(r"^asked_total (\S+)$", body, re.MULTILINE)[0])

    assert [said(crowded=True) for _ in range(3)] == [1, 1, 1]
    assert said(crowded=True, accept="application/openmetrics-text") == 4
    assert said(crowded=False) == 5
    assert said(crowded=True) == 6
    now[0] += SHARED_SECONDS
    assert said(crowded=True) == 7
