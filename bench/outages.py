"""An outage drill: a real Prometheus with the alerts of ``deploy/monitoring``, unchanged.

One authority and one agent live by a signed policy and a revocation list, with SVIDs of two
minutes. Each outage in turn: the cause comes, its alerts must fire within two scrape intervals of
it, every alert that fired must stay until the cause is gone, and all must go with it.

The alert about an authority that is gone counts from the first exchange that failed, those about an
SVID from the moment at which so much of its life was left.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import tempfile
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp

from tests.support.machines import crl
from tests.support.node import Node, chips, free_port, short_folder
from tests.support.policy_site import Site
from tests.support.prometheus import prometheus

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.prometheus import Watch

LIFETIME = 120
RESOLVE_SECONDS = 120


@dataclass
class Log:
    """When each alert began to fire and ended, on the monotonic clock; kept by a task."""

    watch: Watch
    firing: set[str] = field(default_factory=set)
    began: dict[str, float] = field(default_factory=dict)
    ended: dict[str, float] = field(default_factory=dict)

    async def keep(self) -> None:
        """Ask five times a second, until cancelled."""
        while True:
            seen = await self.watch.firing()
            now = time.monotonic()
            self.began |= dict.fromkeys(seen - self.firing, now)
            self.ended |= dict.fromkeys(self.firing - seen, now)
            self.firing = seen
            await asyncio.sleep(0.2)

    async def until(self, condition: Callable[[set[str]], bool], *, seconds: float) -> None:
        """Wait until the firing alerts are so."""
        async with asyncio.timeout(seconds):
            while not condition(self.firing):  # noqa: ASYNC110  Prometheus tells nobody
                await asyncio.sleep(0.1)


@dataclass
class Drill:
    """Everything that runs, and what was seen."""

    log: Log
    interval: int

    async def outage(
        self, name: str, causes: dict[str, float], *, until: float, cure: Callable[[], Any]
    ) -> None:
        """One outage.

        Args:
            name: for the table.
            causes: alert -> the moment of what it is about (monotonic).
            until: the moment of the cure.
            cure: ends the cause.
        """
        last = max(causes.values()) + 2 * self.interval + 2
        await self.log.until(
            lambda firing: causes.keys() <= firing, seconds=last - time.monotonic()
        )
        for alert, cause in causes.items():
            after = self.log.began[alert] - cause
            print(f"| {name} | {alert} | {after:.1f} s |", end="")
            kept = self.log.began[alert]
            print(" late |" if after > 2 * self.interval else " in time |", end="")
            while time.monotonic() < until and alert in self.log.firing:  # noqa: ASYNC110  as above
                await asyncio.sleep(0.2)
            gone = self.log.ended.get(alert, 0) > kept
            print(" RESOLVED EARLY |" if gone else f" stayed {time.monotonic() - kept:.0f} s |")
        await cure()
        cured = time.monotonic()
        await self.log.until(lambda firing: not firing & causes.keys(), seconds=RESOLVE_SECONDS)
        print(f"| {name} | all gone | {time.monotonic() - cured:.1f} s after the cure | | |")


async def run(interval: int) -> None:
    """All outages, one after the other."""
    with short_folder() as folder, tempfile.TemporaryDirectory() as scratch:
        node = Node(folder, workloads=("web",), lifetime=f"{LIFETIME}s")
        site = Site(node)
        lists = folder / "amd.crl"
        lists.write_bytes(crl(chips(), now=datetime.now(UTC)))
        judged = {"trusted_roots": [str(node.ark)], "revocation_lists": [str(lists)]}
        site.publish(site.signed(1, ("web", "web")), "ca", "agent")
        ports = {"ca": free_port(), "agent": free_port()}

        def metrics(name: str) -> dict[str, Any]:
            return {"metrics": {"listen": f"127.0.0.1:{ports[name]}"}}

        async with contextlib.AsyncExitStack() as stack:
            watch = await stack.enter_async_context(
                prometheus(Path(scratch), *ports.values(), scrape_seconds=interval, hurried=False)
            )

            async def authority() -> Any:
                return await stack.enter_async_context(
                    site.authority(verification=judged, **metrics("ca"))
                )

            async def agent() -> Any:
                return await stack.enter_async_context(site.agent(**metrics("agent")))

            running = {"ca": await authority(), "agent": await agent()}
            log = Log(watch)
            keeping = asyncio.create_task(log.keep())
            stack.callback(keeping.cancel)
            drill = Drill(log, interval)
            await asyncio.sleep(60 + 2 * interval)  # a start is left alone for a minute
            # Policy and list of this drill end within the day.
            assert log.firing == {
                "SdsPolicyExpires",
                "SdsCollateralEnds",
                "SdsCollateralExpires",
            }, log.firing
            print("| outage | alert | after its cause | two scrapes | until the cure |")
            print("|---|---|---|---|---|")

            async def list_back() -> None:
                kept.rename(lists)

            kept = lists.rename(lists.with_name("kept"))
            now = time.monotonic()
            await drill.outage(
                "revocation list gone",
                {"SdsCollateralRefused": now},
                until=now + 30,
                cure=list_back,
            )

            async def new_policy() -> None:
                site.publish(site.signed(3, ("web", "web")), "ca", "agent")

            end = datetime.now(UTC) + timedelta(seconds=15)
            site.publish(site.signed(2, ("web", "web"), not_after=end.isoformat()), "ca", "agent")
            now = time.monotonic() + (end - datetime.now(UTC)).total_seconds()
            await drill.outage(
                "policy expired",
                {"SdsNoPolicy": now, "SdsNotReady": now},
                until=now + 30,
                cure=new_policy,
            )

            async def authority_back() -> None:
                running["ca"] = await authority()

            lines = len(running["agent"].lines)
            await running["ca"].kill()
            now = time.monotonic()

            async def asked_in_vain() -> float:
                await running["agent"].line("authority failed", after=lines, seconds=LIFETIME)
                return time.monotonic()

            asked, (late, nearly, ended) = await asyncio.gather(
                asked_in_vain(), crossings(ports["agent"], 0.35, 0.15, 0.0)
            )
            await drill.outage(
                "authority killed",
                {
                    "SdsDown": now,
                    "SdsAuthorityGone": asked,
                    "SdsRenewalLate": late,
                    "SdsSvidExpiring": nearly,
                    "SdsNotReady": ended,
                },
                until=ended + 45,
                cure=authority_back,
            )

            async def agent_back() -> None:
                running["agent"] = await agent()

            await running["agent"].kill()
            now = time.monotonic()
            await drill.outage("agent killed", {"SdsDown": now}, until=now + 30, cure=agent_back)


async def crossings(port: int, *ratios: float) -> list[float]:
    """When so much of the SVID's life will be left, if nothing renews it (monotonic)."""
    seen = []
    async with aiohttp.ClientSession() as session:
        for _ in range(2):
            async with session.get(f"http://127.0.0.1:{port}/metrics") as response:
                text = await response.text()
            found = re.search(r"^sds_svid_remaining_ratio\{[^}]*\} (\S+)$", text, re.MULTILINE)
            assert found is not None
            seen.append((time.monotonic(), float(found[1])))
            await asyncio.sleep(3)
    (start, first), (later, second) = seen
    rate = (first - second) / (later - start)
    return [start + (first - ratio) / rate for ratio in ratios]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--interval", type=int, default=5, help="seconds between two scrapes")
    asyncio.run(run(parser.parse_args().interval))
