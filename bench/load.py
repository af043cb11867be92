"""One process of the load generator: many connections in one epoll, as cheap as Python can be.

First requests are encoded once, and of a response only version, nonce, names and a hash of each
secret are read; every response is acknowledged, as Envoy does. Its task is JSON in its arguments.
It says ``ready``, dials all connections at once at the first byte of stdin, says ``full`` when each
has every secret (or has failed), and at the next byte prints what it saw as JSON and ends.
:mod:`bench.crowd` starts such processes and adds up.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import select
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bench.http2_client import Connection

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SECRET = b"type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def delimited(number: int, payload: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The texts, bytes and messages in a message that holds nothing else."""
    at = 0
    while at < len(data):
        numbers: list[int] = []
        while len(numbers) < 2:  # key and length
            value = shift = 0
            while (byte := data[at]) > 127:
                value |= (byte & 127) << shift
                shift += 7
                at += 1
            numbers.append(value | byte << shift)
            at += 1
        yield numbers[0] >> 3, data[at : at + numbers[1]]
        at += numbers[1]


def first_request(names: Sequence[str], node_bytes: int) -> bytes:
    """As Envoy's: most of it is a node that lists its extensions."""
    node = bytearray(delimited(1, b"bench") + delimited(2, b"bench") + delimited(6, b"envoy"))
    number = 0
    while len(node) < node_bytes:
        extension = (
            delimited(1, b"envoy.filters.http.padding_%04d" % number)
            + delimited(2, b"envoy.filters.http")
            + delimited(6, b"envoy.extensions.filters.http.padding.v3.Padding%04d" % number)
        )
        node += delimited(9, extension)
        number += 1
    asked = b"".join(delimited(3, name.encode()) for name in names)
    return delimited(2, bytes(node)) + asked + delimited(4, SECRET)


@dataclass
class Record:
    """What one process saw; ``waves``: by name and content, when it replaced another one (ns)."""

    first_ms: list[float] = field(default_factory=list)
    last_ns: int = 0
    pushes: int = 0
    identical: int = 0
    unchanged: int = 0
    waves: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    failures: dict[str, int] = field(default_factory=lambda: defaultdict(int))


class Client:
    """One connection: knows what each of its streams has, and tells the record."""

    def __init__(
        self, path: str, groups: Sequence[Sequence[str]], requests: list[bytes], record: Record
    ) -> None:
        self.missing = {name.encode() for group in groups for name in group}
        self._record = record
        self._asked = [b"".join(delimited(3, name.encode()) for name in one) for one in groups]
        self._have: list[dict[bytes, bytes]] = [{} for _ in groups]
        self.connection = Connection(path, requests, self._received)

    def _received(self, index: int, response: bytes, now: int) -> None:
        version = nonce = b""
        have = self._have[index]
        first, same, changed = not have, 0, 0
        for number, value in fields(response):
            if number == 1:
                version = value
            elif number == 5:
                nonce = value
            elif number == 2:
                secret = dict(fields(value))[2]
                name = next(fields(secret))[1]
                content = hashlib.sha256(secret).digest()
                if have.get(name) == content:
                    same += 1
                else:
                    if name in have:
                        self._record.waves[f"{name.decode()} {content.hex()}"].append(now)
                    have[name] = content
                    changed += 1
                    self._has(name, now)
        ack = delimited(1, version) + self._asked[index] + delimited(4, SECRET)
        self.connection.streams[index].write(ack + delimited(5, nonce))
        if not first:
            self._record.pushes += 1
            self._record.identical += not changed
            self._record.unchanged += same if changed else 0

    def _has(self, name: bytes, now: int) -> None:
        if name in self.missing:
            self.missing.discard(name)
            if not self.missing:
                self._record.first_ms.append((now - self.connection.began) / 1e6)
                self._record.last_ns = now


def own_cpu() -> float:
    return sum(resource.getrusage(resource.RUSAGE_SELF)[:2])


def run(task: dict[str, Any]) -> dict[str, Any]:
    """Dial, wait, watch; what was seen."""
    record = Record()
    names = task["names"]
    groups = [[name] for name in names] if task["stream_per_name"] else [names]
    requests = [first_request(group, task["node_bytes"]) for group in groups]
    print("ready", flush=True)
    os.read(0, 1)
    began, used, busy = time.monotonic(), own_cpu(), 0.0
    clients: dict[int, Client] = {}
    for _ in range(task["connections"]):
        client = Client(task["socket"], groups, requests, record)
        clients[client.connection.socket.fileno()] = client
    poll = select.epoll()
    poll.register(0, select.EPOLLIN)
    for descriptor, client in clients.items():
        poll.register(descriptor, select.EPOLLIN | _also(client))
    open_ = set(clients)
    while True:
        for descriptor, happened in poll.poll():
            if descriptor == 0:
                refused = sum(one.connection.refused for one in clients.values())
                return vars(record) | {"busy": busy, "refused": refused}
            client = clients[descriptor]
            client.connection.read()
            also = _also(client)
            if client.connection.failure:
                record.failures[client.connection.failure] += 1
                poll.unregister(descriptor)
                open_.discard(descriptor)
            elif also or happened & select.EPOLLOUT:
                poll.modify(descriptor, select.EPOLLIN | also)
            if not busy and not client.missing:
                open_.discard(descriptor)
        if not busy and not open_:
            busy = (own_cpu() - used) / (time.monotonic() - began)
            print("full", flush=True)


def _also(client: Client) -> int:
    """Send what can be sent; what to wait for beside something to read."""
    return 0 if client.connection.pump() else select.EPOLLOUT


if __name__ == "__main__":
    print(json.dumps(run(json.loads(sys.argv[1]))), flush=True)
