"""The fuzz target of every parser that faces the socket.

``one_input(data)`` is what a fuzzer calls; ``python -m tests.support.fuzz_target SECONDS`` mutates
valid requests until the time is over. Only our own errors may come out, and a request that is
taken must drive a subscription without any other.
"""

from __future__ import annotations

import random
import sys
import time
from typing import TYPE_CHECKING

from envoy.service.discovery.v3 import discovery_pb2
from google.rpc import status_pb2

from sds.errors import ProtocolError
from sds.serving.encode import SECRET_TYPE
from sds.serving.subscription import DeltaSubscription, Receipt, SotwSubscription
from sds.serving.wire import parse_delta_request, parse_discovery_request
from sds.transport.connection import Connection
from sds.transport.events import ConnectionLimits, Opened, Received
from sds.transport.frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PING,
    PREFACE,
    SETTINGS,
    frame,
)
from sds.transport.messages import MessageReader, prefix

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_NAMES = 50


class Thing:
    receipt = Receipt("default", "v1")
    size = 1


class View:
    """One secret."""

    def find(self, name: str) -> Thing | None:
        return Thing() if name == "default" else None

    def is_expected(self, name: str) -> bool:
        return name == "default"

    def everything(self) -> tuple[str, ...]:
        return ()


def one_input(data: bytes) -> None:
    """Feed the bytes to all parsers, and what comes out to the core, twice."""
    try:
        sotw = parse_discovery_request(data, max_names=MAX_NAMES)
    except ProtocolError:
        pass
    else:
        assert len(sotw.request.names) <= MAX_NAMES
        subscription: SotwSubscription[Thing] = SotwSubscription()
        for nonce in ("n1", "n2"):
            list(subscription.outcomes(sotw.request))
            subscription.respond(View(), nonce)
        assert len(subscription) <= MAX_NAMES
    try:
        delta = parse_delta_request(data, max_names=MAX_NAMES)
    except ProtocolError:
        pass
    else:
        assert len(delta.request.initial_versions) <= MAX_NAMES
        deltas: DeltaSubscription[Thing] = DeltaSubscription()
        for nonce in ("n1", "n2"):
            list(deltas.outcomes(delta.request))
            deltas.respond(View(), nonce)


def one_conversation(data: bytes) -> None:
    """Feed the bytes to a connection, as a client that has greeted; answer what it asks."""
    connection = Connection(ConnectionLimits(concurrent_streams=MAX_NAMES))
    readers: dict[int, MessageReader] = {}
    try:
        connection.receive(PREFACE + frame(SETTINGS, 0, 0), 0.0)
        for event in connection.receive(data, 0.0):
            if isinstance(event, Opened):
                readers[event.stream] = MessageReader(1024)
                connection.send_message(event.stream, b"answer")
            elif isinstance(event, Received):
                for message in messages(readers[event.stream], *event.payloads):
                    one_input(message)
                connection.finish(event.stream, status=0)
    except ProtocolError:
        pass
    assert connection.streams <= MAX_NAMES


def messages(reader: MessageReader, *pieces: memoryview) -> Iterator[bytes]:
    """The messages that these bytes complete."""
    reader.feed(pieces)
    while (message := reader.take()) is not None:
        yield message


def frames_of(messages: list[bytes]) -> list[bytes]:
    """Valid bytes of clients that ask with these messages."""
    block = bytes.fromhex("838684410130")  # POST, http, /, :authority 0
    found = [frame(SETTINGS, 0, 0, bytes.fromhex("000400000000")), frame(PING, 0, 0, bytes(8))]
    for number, message in enumerate(messages):
        opened = frame(HEADERS, END_HEADERS, 2 * number + 1, block)
        body = prefix(len(message)) + message
        found.append(opened + frame(DATA, END_STREAM, 2 * number + 1, body))
    return found


def seeds() -> list[bytes]:
    """Valid requests of both kinds."""
    sotw = discovery_pb2.DiscoveryRequest(
        version_info="v",
        resource_names=["default", "ROOTCA", "*"],
        type_url=SECRET_TYPE,
        response_nonce="n1",
        error_detail=status_pb2.Status(code=13, message="refused: ä"),
    )
    sotw.node.id = "node"
    sotw.node.metadata.update({"attested-sds.validator": "spiffe", "more": {"a": [1, 2.5, None]}})
    sotw.node.extensions.add(name="envoy.filters.http.router", category="envoy.filters.http")
    delta = discovery_pb2.DeltaDiscoveryRequest(
        type_url=SECRET_TYPE,
        resource_names_subscribe=["default", "*"],
        resource_names_unsubscribe=["ROOTCA"],
        initial_resource_versions={"default": "v1", "gone": "v0"},
        response_nonce="n1",
    )
    delta.node.CopyFrom(sotw.node)
    encoded: list[bytes] = [sotw.SerializeToString(), delta.SerializeToString(), b""]
    return encoded


def mutate(data: bytes, source: random.Random) -> bytes:
    """A few bytes changed, inserted, cut or repeated."""
    mutable = bytearray(data)
    for _ in range(source.randint(1, 6)):
        at = source.randint(0, len(mutable))
        choice = source.randrange(4)
        if choice == 0 and mutable:
            mutable[min(at, len(mutable) - 1)] = source.randrange(256)
        elif choice == 1:
            mutable[at:at] = source.randbytes(source.randint(1, 8))
        elif choice == 2:
            del mutable[at : at + source.randint(1, 16)]
        else:
            mutable[at:at] = mutable[at : at + source.randint(1, 64)]
    return bytes(mutable)


def main(seconds: float) -> int:
    """Mutate for so long; the number of inputs."""
    source = random.Random()
    corpus = seeds()
    conversations = frames_of(corpus)
    count = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(1000):
            one_input(mutate(source.choice(corpus), source))
            one_conversation(mutate(b"".join(source.choices(conversations, k=2)), source))
            count += 2
    return count


if __name__ == "__main__":
    print(main(float(sys.argv[1])), "inputs")
