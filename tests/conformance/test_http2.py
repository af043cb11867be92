"""HTTP/2 as others understand it: h2spec, an independent conformance tester, on a connection."""

from __future__ import annotations

import asyncio
import re
import socket
from typing import TYPE_CHECKING, Any

from sds.errors import Http2Error
from sds.transport.connection import Connection
from sds.transport.events import ConnectionLimits, Opened, Received
from tests.support.go_program import GoProgram
from tests.support.process import output

if TYPE_CHECKING:
    from pathlib import Path

H2SPEC = GoProgram(
    name="h2spec",
    package="github.com/summerwind/h2spec/cmd/h2spec",
    modules=(
        ("github.com/summerwind/h2spec", "v2.2.1+incompatible"),
        ("github.com/fatih/color", "v1.13.0"),
        ("github.com/spf13/cobra", "v1.7.0"),
        ("golang.org/x/net", "v0.10.0"),
    ),
)
_SUMMARY = re.compile(r"(\d+) tests, (\d+) passed, (\d+) skipped, (\d+) failed")


class Answering(asyncio.Protocol):
    """Answers each whole request with one message: h2spec asks by GET, which is not gRPC."""

    def __init__(self) -> None:
        self._connection = Connection(ConnectionLimits(concurrent_streams=100))
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.writelines(self._connection.take_output())

    def data_received(self, data: bytes) -> None:
        try:
            events = self._connection.receive(data, asyncio.get_running_loop().time())
        except Http2Error:
            self._transport.writelines(self._connection.take_output())
            self._transport.close()
            return
        for event in events:
            if isinstance(event, Opened | Received) and event.ended:
                self._connection.send_message(event.stream, b"x" * 64)
                self._connection.finish(event.stream, status=0)
        self._transport.writelines(self._connection.take_output())


async def test_h2spec_finds_nothing(tmp_path: Path) -> None:
    program = H2SPEC.binary()
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = await asyncio.get_running_loop().create_server(Answering, sock=listener)
    port = str(listener.getsockname()[1])
    report = tmp_path / "report.xml"
    command: list[str | Path] = [
        program,
        "-h",
        "127.0.0.1",
        "-p",
        port,
        "-o",
        "3",
        "--junit-report",
        report,
    ]
    try:
        _, text, errors = await output(command)
    finally:
        server.close()
    summary = _SUMMARY.search(text)
    assert summary is not None, errors
    tests, passed, skipped, failed = map(int, summary.groups())
    assert failed == 0, text[text.index("Failures:") :]
    assert passed == tests >= 145, (tests, passed, skipped)
