"""A real Prometheus beside the processes under test, with the alerts of ``deploy/monitoring``."""

from __future__ import annotations

import asyncio
import contextlib
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

import aiohttp
import yaml

from tests.support import need
from tests.support.node import free_port
from tests.support.process import PATIENCE_SECONDS, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from collections.abc import Set as AbstractSet
    from pathlib import Path

RULES = need.ROOT / "deploy" / "monitoring" / "alerts.yaml"
SCRAPE_SECONDS = 2
"""Prometheus waits as long for an answer, which takes half a second where much else runs."""
STEADY_SECONDS = 4
"""How long an alert is watched for staying as it is."""


@dataclass
class Watch:
    """Prometheus beside a node."""

    session: aiohttp.ClientSession
    url: str

    async def firing(self) -> set[str]:
        async with self.session.get(f"{self.url}/api/v1/alerts") as response:
            body = json.loads(await response.text())
        return {
            alert["labels"]["alertname"]
            for alert in body["data"]["alerts"]
            if alert["state"] == "firing"
        }

    async def scraped(self, processes: int) -> None:
        """Wait until Prometheus has read the metrics of so many processes twice or more."""
        query = f"count(count_over_time(sds_build_info[1h]) >= 2) >= {processes}"
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not await self._result(query):
                await asyncio.sleep(0.2)

    async def _result(self, query: str) -> list[object]:
        async with self.session.get(
            f"{self.url}/api/v1/query", params={"query": query}
        ) as response:
            body = json.loads(await response.text())
        return list(body["data"]["result"])

    async def until(
        self, *, firing: AbstractSet[str] = frozenset(), silent: AbstractSet[str] = frozenset()
    ) -> None:
        seen: set[str] = set()
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not (firing <= (seen := await self.firing()) and not silent & seen):
                    await asyncio.sleep(0.2)
        except TimeoutError:
            message = f"wanted {firing} without {silent}, saw {seen}; {await self._scrapes()}"
            raise AssertionError(message) from None

    async def _scrapes(self) -> list[str]:
        """How the last scrape of each process went."""
        async with self.session.get(f"{self.url}/api/v1/targets") as response:
            body = json.loads(await response.text())
        return [
            f"{one['scrapeUrl']}: {one['health']} after {one['lastScrapeDuration']} s "
            f"{one['lastError']}"
            for one in body["data"]["activeTargets"]
        ]

    async def stays(self, *names: str) -> None:
        """The alerts go on firing while the cause lasts."""
        end = asyncio.get_running_loop().time() + STEADY_SECONDS
        while asyncio.get_running_loop().time() < end:
            assert set(names) <= await self.firing()
            await asyncio.sleep(0.3)


async def until_ready(session: aiohttp.ClientSession, url: str) -> None:
    """Wait until Prometheus can answer: it listens before, and says 503 until then."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            with contextlib.suppress(aiohttp.ClientConnectionError):
                async with session.get(f"{url}/-/ready") as response:
                    if response.status == HTTPStatus.OK:
                        return
            await asyncio.sleep(0.1)


@asynccontextmanager
async def prometheus(
    folder: Path, *ports: int, scrape_seconds: int = SCRAPE_SECONDS, hurried: bool = True
) -> AsyncIterator[Watch]:
    """Scrape these ports.

    Args:
        folder: for its files.
        ports: on loopback.
        scrape_seconds: between two scrapes, and between two evaluations.
        hurried: shorten the minute for which a start is left alone, and the minutes of ``for``.
    """
    program = need.tool("prometheus")
    rules = RULES.read_text()
    if hurried:
        assert "process_start_time_seconds > 60" in rules
        rules = rules.replace("process_start_time_seconds > 60", "process_start_time_seconds > 3")
    spec = yaml.safe_load(rules)
    for group in spec["spec"]["groups"]:
        for rule in group["rules"]:
            if hurried and rule.get("for") == "1m":
                rule["for"] = "2s"
    (folder / "rules.yaml").write_text(yaml.safe_dump(spec["spec"]))
    every = f"{scrape_seconds}s"
    configuration = {
        "global": {"scrape_interval": every, "evaluation_interval": every},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [
            {
                "job_name": "attested-sds",
                "static_configs": [{"targets": [f"127.0.0.1:{port}" for port in ports]}],
            }
        ],
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(configuration))
    port = free_port()
    command = [
        program,
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    async with running(command, name="prometheus"), aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{port}"
        await until_ready(session, url)
        yield Watch(session=session, url=url)
