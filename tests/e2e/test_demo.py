"""``sds demo`` as its users run it: separate processes, real Envoys, real traffic."""

import asyncio
import contextlib
import json
import os
import re
import signal
import termios
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc.aio
import pytest
from click.testing import CliRunner

from sds.cli import main
from tests.support import need
from tests.support.envoy import NEWEST, VERSIONS
from tests.support.keys import files_with_keys
from tests.support.node import short_folder
from tests.support.process import PATIENCE_SECONDS, Process, running, sds
from tests.support.xds_client import channel, fetch, secrets

pytestmark = pytest.mark.e2e

WORKLOADS = {"client", "server"}


class Demo:
    """A running demo and its events."""

    def __init__(self, process: Process, ready: dict[str, Any]) -> None:
        self.process = process
        self.ready = ready
        self.pids: dict[str, int] = ready["pids"]
        self.keys: set[bytes] = set()

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.process.stdout]

    async def event(self, kind: str, *, seconds: float = PATIENCE_SECONDS, **fields: Any) -> Any:
        """Wait for an event of this kind with these fields."""
        try:
            async with asyncio.timeout(seconds):
                while True:
                    for event in self.events:
                        if event["event"] == kind and event.items() >= fields.items():
                            return event
                    assert self.process.returncode is None, self.process.text
                    await asyncio.sleep(0.05)
        except TimeoutError:
            pytest.fail(f"no event {kind} {fields} in:\n{self.process.text}")

    async def rotations(self, count: int) -> None:
        """Wait until each workload was seen to rotate so often, from now on."""
        at = len(self.events)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                later = [e["workload"] for e in self.events[at:] if e["event"] == "rotated"]
                if all(later.count(name) >= count for name in WORKLOADS):
                    return
                assert self.process.returncode is None, self.process.text
                await asyncio.sleep(0.05)

    async def collect_keys(self) -> None:
        """Learn every key that is served, until cancelled."""
        while True:
            for path in self.ready["sockets"].values():
                with contextlib.suppress(grpc.aio.AioRpcError):
                    async with channel(f"unix:{path}") as connection:
                        found = secrets(await fetch(connection, "default"))
                    self.keys.add(found["default"].tls_certificate.private_key.inline_bytes)
            await asyncio.sleep(0.2)


@contextlib.asynccontextmanager
async def demo(*arguments: str, version: str = NEWEST) -> AsyncIterator[Demo]:
    """Run ``sds demo --output json`` while the block runs."""
    envoy = need.envoy(version)
    command = sds("demo", "--output", "json", "--envoy", envoy, *arguments)
    async with running(command, name="sds demo") as process:
        await process.line(r'^\{"event": "ready"')
        yield Demo(process, json.loads(process.stdout[0]))


def summary_of(process: Process) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads(process.stdout[-1])
    assert summary["event"] == "summary"
    return summary


@pytest.fixture
def run_dir() -> Iterator[Path]:
    with short_folder() as folder:
        yield folder


async def test_rotations_are_seen_by_peers_and_no_key_is_on_any_disk(run_dir: Path) -> None:
    began = time.time()
    arguments = ["--rotations", "3", "--lifetime", "6", "--run-dir", str(run_dir)]
    async with demo(*arguments) as running_demo:
        ready = running_demo.ready
        assert set(ready) == {"event", "pids", "sockets", "admin", "entry"}
        assert set(ready["pids"]) == {"agent", "ca", "envoy_client", "envoy_server"}
        collector = asyncio.create_task(running_demo.collect_keys())
        async with aiohttp.ClientSession() as http:
            async with http.get(ready["entry"]) as response:
                answer = await response.json()
            assert answer["peer"].endswith("/client")
            await running_demo.rotations(2)
            reused = await stat(http, ready["admin"]["server"], "inbound.ssl.session_reused")
            refused = await stat(http, ready["admin"]["server"], "update_rejected")
            refused += await stat(http, ready["admin"]["client"], "update_rejected")
        collector.cancel()
        assert (reused, refused) == (0, 0)
        assert await running_demo.process.wait(seconds=PATIENCE_SECONDS) == 0
    summary = summary_of(running_demo.process)
    assert summary["failed"] == 0
    assert all(summary["rotations"][name] >= 3 for name in WORKLOADS)
    assert summary["handshakes"] >= summary["requests"] > 0
    rotated = [event for event in running_demo.events if event["event"] == "rotated"]
    assert len({event["serial"] for event in rotated}) == len(rotated)
    assert all(isinstance(event["seen_after_ms"], float) for event in rotated)
    assert len(running_demo.keys) >= 4
    for folder in (run_dir, Path("/tmp")):
        assert files_with_keys(folder, running_demo.keys, since=began) == []
    assert not list(run_dir.rglob("*.sock"))


async def stat(http: aiohttp.ClientSession, admin: str, ending: str) -> int:
    async with http.get(f"http://{admin}/stats?format=json") as response:
        stats = json.loads(await response.text())["stats"]
    return sum(
        entry["value"] for entry in stats if "value" in entry and entry["name"].endswith(ending)
    )


async def test_killing_authority_and_agent_fails_no_request() -> None:
    # The rest of a certificate's life, 15 s at least, is longer than any part takes to come back.
    async with demo("--rotations", "100", "--lifetime", "30") as running_demo:
        for part in ("ca", "agent"):
            pid = running_demo.pids[part]
            os.kill(pid, signal.SIGKILL)
            await running_demo.event("exited", process=part, pid=pid)
            started = await running_demo.event("started", process=part)
            assert started["pid"] != pid
            await running_demo.rotations(1)
        running_demo.process.signal(signal.SIGINT)
        # 100 rotations were asked for: ending earlier is not a success, but nothing failed.
        assert await running_demo.process.wait() == 1
    summary = summary_of(running_demo.process)
    assert summary["failed"] == 0, running_demo.process.text


async def test_a_new_epoch_takes_the_clients_right_away() -> None:
    arguments = ["--withdraw", "--rotations", "1", "--lifetime", "6", "--protocol", "ads"]
    async with demo(*arguments, version=VERSIONS[-1]) as running_demo:
        assert await running_demo.process.wait() == 0, running_demo.process.text
        changes = [event for event in running_demo.events if event["event"] == "right"]
        assert [(one["allowed"], one["epoch"]) for one in changes] == [(False, 2), (True, 3)]
        assert all(0 < one["seen_after_ms"] < 10_000 for one in changes)
    assert summary_of(running_demo.process)["failed"] == 0


async def test_on_a_terminal_it_shows_a_table_and_a_key_takes_the_clients_right_away() -> None:
    master, slave = os.openpty()
    termios.tcsetwinsize(slave, (40, 100))
    command = sds("demo", "--withdraw", "--lifetime", "30", "--envoy", *envoy())
    seen = bytearray()

    async def until(words: bytes) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while words not in seen:
                seen.extend(await asyncio.to_thread(os.read, master, 65536))

    process = await asyncio.create_subprocess_exec(
        *command, stdin=slave, stdout=slave, stderr=slave
    )
    os.close(slave)
    try:
        await until(b"w: the client")
        for words in (b"spiffe://demo.test/client", b"rotations", b"Ctrl-C ends the demo"):
            await until(words)
        for words in (b"answers 403", b"answers 200"):
            os.write(master, b"w")
            await until(words)
        process.send_signal(signal.SIGINT)
        await until(b"0 failed; rotations")
        assert await process.wait() == 0
        grpcurl = re.search(rb"grpcurl -plaintext[^\r\n]*", seen)
        assert grpcurl is not None
        assert grpcurl[0].rstrip().endswith(b"ClientStatusDiscoveryService/FetchClientStatus")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(master)


def envoy() -> list[str]:
    return [str(need.envoy(NEWEST))]


async def test_what_keeps_it_from_starting_is_said(tmp_path: Path) -> None:
    for arguments, said in (
        (["--envoy", str(tmp_path / "none")], "is not a program"),
        (["--lifetime", "1"], "is not in the range x>=4"),
        (["--output", "live"], "needs a terminal"),
    ):
        result = CliRunner().invoke(main, ["demo", "--rotations", "1", *arguments])
        assert result.exit_code == 2
        assert said in result.stderr
    async with running(sds("demo", "--rotations", "1", "--envoy", "/bin/false")) as process:
        assert await process.wait() == 1, process.text
    assert "envoy_" in process.text
    assert "Traceback" not in process.text
