"""A real Prometheus scrapes a running authority and agent with two Envoys' traffic between them.

Every query of the dashboard must return data, every alert rule must be evaluated without an error,
and the status page of the same agent must show what is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from sds.bootstrap.build import make_bootstrap
from sds.bootstrap.commented_yaml import to_dict
from sds.bootstrap.plan import Endpoint, Inbound, Outbound, SecretSource
from sds.demo.envoys import LOOPBACK, ReservedPort
from sds.demo.node import simulated_node
from tests.support import need
from tests.support.envoy import running_envoy
from tests.support.process import PATIENCE_SECONDS, running
from tests.support.prometheus import prometheus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import aiohttp

pytestmark = pytest.mark.e2e
MONITORING = need.ROOT / "deploy" / "monitoring"


@contextlib.asynccontextmanager
async def watched_node(folder: Path) -> AsyncIterator[dict[str, int]]:
    """An authority, an agent with both listeners, and a sidecar Envoy with traffic through it."""
    ports = {name: ReservedPort() for name in ("ca", "agent", "page", "authority", "in", "out")}
    with (
        contextlib.ExitStack() as closing,
        simulated_node(folder / "n", lifetime_seconds=8, port=ports["authority"].number) as node,
    ):
        for port in ports.values():
            closing.callback(port.close)
        for part in node.parts:
            path = folder / "n" / "etc" / f"{part.name}.yaml"
            configuration = yaml.safe_load(path.read_text())
            configuration["metrics"] = {"listen": ports[part.name].address}
            if part.name == "agent":
                configuration["status_page"] = {"listen": ports["page"].address}
            path.write_text(yaml.safe_dump(configuration))
        async with contextlib.AsyncExitStack() as stack:
            for part in node.parts:
                await stack.enter_async_context(
                    running(part.command, name=part.name, pass_fds=part.descriptors)
                )
            bootstrap = to_dict(
                make_bootstrap(
                    node="sidecar",
                    secrets=SecretSource(socket=node.sockets["server"]),
                    admin=Endpoint(host=LOOPBACK, port=0),
                    inbound=[Inbound(listen=ports["in"].endpoint)],
                    outbound=[
                        Outbound(
                            listen=ports["out"].endpoint, upstreams={"*": ports["in"].endpoint}
                        )
                    ],
                )
            )
            envoy = await stack.enter_async_context(
                running_envoy(bootstrap, folder=folder, name="sidecar")
            )
            await envoy.until_live()
            yield {name: port.number for name, port in ports.items()}


def filled(expression: str) -> str:
    """The expression as Grafana would send it."""
    return expression.replace("$__rate_interval", "1m").replace("$instance", ".*")


async def ask(session: aiohttp.ClientSession, url: str, **parameters: str) -> Any:
    async with session.get(url, params=parameters) as response:
        body = json.loads(await response.text())
    assert body["status"] == "success", (parameters, body)
    return body["data"]


async def test_every_query_of_the_dashboard_returns_data(tmp_path: Path) -> None:
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    wanted = {
        filled(target["expr"]) for panel in dashboard["panels"] for target in panel["targets"]
    }
    async with (
        watched_node(tmp_path) as at,
        prometheus(tmp_path, at["agent"], at["ca"], hurried=False) as watch,
    ):
        session, url = watch.session, watch.url
        missing = set(wanted)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_SECONDS):
                while missing:
                    for expression in sorted(missing):
                        data = await ask(session, f"{url}/api/v1/query", query=expression)
                        if data["result"]:
                            missing.discard(expression)
                    await asyncio.sleep(0.3)
        assert not missing
        data = await ask(session, f"{url}/api/v1/rules")
        found = [rule for group in data["groups"] for rule in group["rules"]]
        assert len(found) > 10
        assert [rule["lastError"] for rule in found if rule.get("lastError")] == []
        firing = {rule["name"] for rule in found if rule["state"] == "firing"}
        assert not firing & {"SdsSvidExpiring", "SdsNack", "SdsRenewalsFail", "SdsAgentsGone"}
        data = await ask(session, f"{url}/api/v1/query", query="sds_connected_workloads")
        assert data["result"][0]["value"][1] == "1"
        async with session.get(f"http://{LOOPBACK}:{at['page']}/") as response:
            page = await response.text()
        for text in ("spiffe://demo.test/server", "SIMULATED", "sidecar", "ACKed", ">ready<"):
            assert text in page, text
        assert "PRIVATE KEY" not in page
