"""What keys leave behind: nothing in memory once they retire, nothing on disk, nothing to read."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import need
from tests.support.door_client import RST, frame
from tests.support.envoy import running_envoy
from tests.support.keys import needles
from tests.support.memory_scan import count, forms, holds_any
from tests.support.node import Node, lasting_authority, short_folder
from tests.support.process import PATIENCE_SECONDS, output, sds
from tests.support.raw_client import FETCH, STREAM, RawClient, connected, discovery, message
from tests.support.xds_client import Sotw, channel, secrets

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from tests.support.process import Process

pytestmark = pytest.mark.e2e

_RETIRED_SECONDS = 15.0
"""A key that nobody holds is wiped within a second or two; a loaded machine is given more."""


@pytest.fixture(scope="module")
def authority() -> Iterator[int]:
    with lasting_authority() as port:
        yield port


@pytest.fixture
def node(authority: int) -> Iterator[Node]:
    with short_folder() as folder:
        yield Node(folder, lifetime="6s", port=authority)


@pytest.fixture
def whole_node() -> Iterator[Node]:
    """A node with an authority of its own."""
    with short_folder() as folder:
        yield Node(folder, lifetime="6s")


class Subscriber:
    """ACKs everything on one stream and remembers every key."""

    def __init__(self, stream: Sotw) -> None:
        self.stream = stream
        self.keys: list[bytes] = []

    async def next_key(self) -> bytes:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                response = await self.stream.next()
                await self.stream.ack(response, "default")
                key: bytes = secrets(response)["default"].tls_certificate.private_key.inline_bytes
                if key not in self.keys:
                    self.keys.append(key)
                    return key


@contextlib.asynccontextmanager
async def subscribed(node: Node) -> AsyncIterator[Subscriber]:
    async with channel(f"unix:{node.socket('web')}") as connection:
        stream = Sotw(connection)
        await stream.ask("default")
        try:
            yield Subscriber(stream)
        finally:
            stream.cancel()


async def until_gone(agent: Process, pem: bytes) -> None:
    wanted = forms(pem)
    try:
        async with asyncio.timeout(_RETIRED_SECONDS):
            while holds_any(agent.pid, wanted):
                await asyncio.sleep(0.3)
    except TimeoutError:
        pytest.fail(f"the retired key is still in memory: {count(agent.pid, wanted)}")


async def test_a_retired_key_is_nowhere_in_memory_and_the_live_one_is_found(node: Node) -> None:
    need.root()
    async with node.agent() as agent, subscribed(node) as subscriber:
        for _ in range(3):
            retired = await subscriber.next_key()
            # Looked for while it is in use: the scan is known to work.
            live = count(agent.pid, forms(retired))
            assert {"PEM line 0", "PEM line 1"} <= live.keys()
            await subscriber.next_key()
            await until_gone(agent, retired)


def _reads_nothing(client: RawClient) -> None:
    for _ in range(600):  # more than the kernel's buffer takes
        client.call(STREAM, discovery("default"))


def _asks_and_ends_every_stream_unread(client: RawClient) -> None:
    for _ in range(300):
        number = client.call(STREAM, discovery("default"))
        client.connection.sendall(frame(RST, 0, number, bytes(4)))


def _fetches_once(client: RawClient) -> None:
    client.call(FETCH, discovery("default"), ends=True)
    client.read_until(b"grpc-status")


def _opens_no_window(client: RawClient) -> None:
    client.call(STREAM, discovery("default"))


def _opens_no_window_and_runs_out_of_time(client: RawClient) -> None:
    client.call(FETCH, discovery("default"), ends=True, timeout="100m")


def _is_refused(client: RawClient) -> None:
    number = client.call(STREAM, discovery("default"))
    client.read_until(b"PRIVATE KEY")
    client.send(number, message(b"\xff\xff"))
    client.read_until(b"grpc-status")


@pytest.mark.parametrize(
    ("misbehave", "window"),
    [
        pytest.param(_reads_nothing, 2**20, id="reads nothing"),
        pytest.param(_asks_and_ends_every_stream_unread, 2**20, id="unread streams that ended"),
        pytest.param(_fetches_once, 2**20, id="one fetch"),
        pytest.param(_opens_no_window, 0, id="a shut window"),
        pytest.param(_opens_no_window, 700, id="a window for half of it"),
        pytest.param(_opens_no_window_and_runs_out_of_time, 0, id="a shut window and a deadline"),
        pytest.param(_is_refused, 2**20, id="a refused stream"),
    ],
)
async def test_a_client_that_does_not_take_its_key_does_not_keep_it(
    node: Node, misbehave: Callable[[RawClient], None], window: int
) -> None:
    need.root()
    async with node.agent() as agent, subscribed(node) as subscriber:
        retired = await subscriber.next_key()
        with connected(node.socket("web"), window=window) as client:
            await asyncio.to_thread(misbehave, client)
            await subscriber.next_key()
            await until_gone(agent, retired)


def _asks_once(client: RawClient) -> bytes:
    client.call(FETCH, discovery("default"), ends=True)
    return _key(client.read_until(b"grpc-status"))


def _subscribes_and_ends(client: RawClient) -> bytes:
    number = client.call(STREAM, discovery("default"))
    key = _key(client.read_until(b"END PRIVATE KEY-----\n"))
    client.connection.sendall(frame(RST, 0, number, bytes(4)))
    return key


def _subscribes_and_is_refused(client: RawClient) -> bytes:
    number = client.call(STREAM, discovery("default"))
    key = _key(client.read_until(b"END PRIVATE KEY-----\n"))
    client.send(number, message(b"\xff\xff"))
    client.read_until(b"grpc-status")
    return key


def _key(seen: bytes) -> bytes:
    found = re.search(
        rb"-----BEGIN PRIVATE KEY-----.*?-----END PRIVATE KEY-----\n", seen, re.DOTALL
    )
    assert found is not None
    return found[0]


@pytest.mark.parametrize("ask", [_asks_once, _subscribes_and_ends, _subscribes_and_is_refused])
async def test_the_last_client_of_a_workload_leaves_no_key_behind(
    node: Node, ask: Callable[[RawClient], bytes]
) -> None:
    need.root()
    async with node.agent() as agent:
        with connected(node.socket("web")) as client:
            retired = await asyncio.to_thread(ask, client)
        await asyncio.sleep(4)  # longer than a certificate of 6 s is served
        await until_gone(agent, retired)


async def test_a_retired_key_is_gone_with_real_envoys_too(node: Node, tmp_path: Path) -> None:
    need.root()
    async with node.agent() as agent:
        code, bootstrap, _ = await output(
            [
                *sds("bootstrap"),
                "--socket",
                node.socket("web"),
                "--role",
                "server",
                "--inbound",
                "127.0.0.1:0",
                "--admin",
                "none",
                "--no-authorization",
            ]
        )
        assert code == 0
        async with (
            running_envoy(bootstrap, folder=tmp_path) as envoy,
            subscribed(node) as subscriber,
        ):
            await envoy.until_live()
            retired = await subscriber.next_key()
            await subscriber.next_key()
            await until_gone(agent, retired)


async def test_nobody_of_the_same_user_reads_the_memory_and_a_crash_leaves_no_core(
    whole_node: Node, tmp_path: Path
) -> None:
    need.root()
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    async with whole_node.authority() as authority, whole_node.agent() as agent:
        for process in (agent, authority):
            dumpable = Path(f"/proc/{process.pid}/mem").stat()
            assert (dumpable.st_uid, dumpable.st_gid) == (0, 0)
            limits = Path(f"/proc/{process.pid}/limits").read_text()
            assert re.search(r"Max core file size\s+0\s+0\s", limits)
            # The same user without privilege: ptrace's rules ask for a dumpable process.
            reader = "import sys; open(f'/proc/{sys.argv[1]}/mem', 'rb').read(1)"
            stripped = [need.tool("setpriv"), "--bounding-set=-all", "--inh-caps=-all"]
            _, _, errors = await output([*stripped, sys.executable, "-c", reader, str(process.pid)])
            assert "PermissionError" in errors
        agent.signal(signal.SIGSEGV)
        assert await agent.wait() == -signal.SIGSEGV
    if not pattern.startswith("|"):
        folders = {need.ROOT, whole_node.folder, Path(pattern).parent}
        cores = [path for folder in folders for path in folder.glob(f"core*{agent.pid}*")]
        assert not cores
        assert not (need.ROOT / "core").exists()


async def test_a_run_under_strace_writes_keys_to_sockets_only(node: Node, tmp_path: Path) -> None:
    need.root()
    strace = need.tool("strace")
    log = tmp_path / "trace"
    calls = "trace=write,writev,pwrite64,pwritev,sendto,sendmsg,sendfile,openat,open,creat"
    prefix: list[str | Path] = [
        strace,
        "-f",
        "--seccomp-bpf",
        "-yy",
        "-xx",
        "-s",
        "200000",
        "-e",
        calls,
        "-o",
        log,
    ]
    async with node.agent(prefix=prefix), subscribed(node) as subscriber:
        keys = [await subscriber.next_key() for _ in range(3)]
    wanted = {
        "".join(f"\\x{byte:02x}" for byte in needle): needle
        for pem in keys
        for needle in needles(pem)
    }
    sent = 0
    written: dict[str, Any] = {}
    opened = set()
    for line in log.read_text().splitlines():
        call = line.split(maxsplit=1)[1]
        if any(needle in call for needle in wanted):
            if re.match(r"(sendmsg|sendto|write|writev)\(\d+<(UNIX|socket)", call):
                sent += 1
            else:
                written[call[:120]] = call
        writes = re.match(r"open(at)?\(|creat\(", call) and re.search(
            r"O_(WRONLY|RDWR|CREAT)", call
        )
        if writes and (path := re.search(r" = \d+<(.*)>$", call)):
            shown = path[1].partition("<")[0]  # a device has its numbers behind it
            opened.add(bytes.fromhex(shown.replace("\\x", "")).decode())
    assert sent >= len(keys)  # the trace sees what goes to the SDS socket
    assert not written
    outside = {
        path
        for path in opened
        if not path.startswith((str(node.run_dir), "/dev/null", "/dev/shm", "/proc/self"))
    }
    assert not {path for path in outside if "__pycache__" not in path and ".coverage" not in path}
