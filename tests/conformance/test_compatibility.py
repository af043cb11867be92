"""Versions n and n-1 (and n+1) of agent and authority, in both directions.

The frozen protocol of an earlier release stands for an older peer: everything that it does not
know is dropped on the way. A protocol with one more field in every message stands for a newer one.
"""

from __future__ import annotations

import functools
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import FieldDescriptor

from sds._proto.sds.ca.v1 import ca_pb2
from sds.ca.tls import self_signed_tls
from sds.exchange.item import IssuedChain
from tests.support.authority import World, identity, items, wish
from tests.support.raw_exchange import Middle, Request, Response

if TYPE_CHECKING:
    from google.protobuf.message import Message

FROZEN = sorted((Path(__file__).parent / "protocol").glob("ca-*.proto"))
FUTURE_FIELD = 900


@functools.cache
def frozen(path: Path, folder: Path) -> descriptor_pb2.FileDescriptorProto:
    target = folder / "descriptors"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"-I{path.parent}",
            f"--descriptor_set_out={target}",
            path.name,
        ],
        check=True,
    )
    (file,) = descriptor_pb2.FileDescriptorSet.FromString(target.read_bytes()).file
    return file


def of_the_future() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto()
    ca_pb2.DESCRIPTOR.CopyToProto(file)
    for message in file.message_type:
        message.field.add(
            name="from_the_future",
            number=FUTURE_FIELD,
            type=FieldDescriptor.TYPE_STRING,
            label=FieldDescriptor.LABEL_OPTIONAL,
        )
    return file


@dataclass
class Peer:
    """Messages as a peer of another version reads and writes them."""

    file: descriptor_pb2.FileDescriptorProto

    def __post_init__(self) -> None:
        pool = descriptor_pool.DescriptorPool()
        pool.Add(self.file)
        self.request, self.response = (
            message_factory.GetMessageClass(pool.FindMessageTypeByName(f"sds.ca.v1.{name}"))
            for name in ("ExchangeRequest", "ExchangeResponse")
        )

    def through(self, kind: type[Message], data: bytes) -> bytes:
        message = kind.FromString(data)
        message.DiscardUnknownFields()
        _mark(message)
        return message.SerializeToString()


def _mark(message: Message) -> None:
    """Set the field of the future wherever this version has it."""
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in value if isinstance(value, list) or hasattr(value, "add") else [value]:
                _mark(inner)
    if "from_the_future" in message.DESCRIPTOR.fields_by_name:
        message.from_the_future = "unknown to you"  # type: ignore[attr-defined]  # just checked


def fields(file: descriptor_pb2.FileDescriptorProto) -> set[tuple[Any, ...]]:
    return {
        (message.name, field.name, field.number, field.type, field.label, field.type_name)
        for message in file.message_type
        for field in message.field
    }


@pytest.mark.parametrize("path", FROZEN, ids=lambda path: path.stem)
def test_fields_are_only_added(path: Path, tmp_path: Path) -> None:
    now = descriptor_pb2.FileDescriptorProto()
    ca_pb2.DESCRIPTOR.CopyToProto(now)
    then = fields(frozen(path, tmp_path))
    assert len(then) > 40
    assert then <= fields(now)


async def exchange_through(peer: Peer) -> None:
    """A batch and a renewal, every message passing the other version in both directions."""
    world = World()
    tls = self_signed_tls()

    class Version(Middle):
        async def handle(self, method: Any, context: Any) -> None:
            read, write = context.read, context.write

            class Both:
                peer = context.peer
                abort = context.abort

                async def read(self) -> Any:
                    data = await read()
                    return peer.through(peer.request, data) if isinstance(data, bytes) else data

                async def write(self, data: bytes) -> None:
                    await write(peer.through(peer.response, data))

            await super().handle(method, Both())

    passed: list[str | None] = []

    def tap(response: Response) -> Response:
        passed.append(response.WhichOneof("response"))
        return response

    async with (
        world.running(tls=tls) as authority,
        Version(authority.port, tls, down=tap).listening() as port,
        world.client(port) as client,
    ):
        wishes = [wish(identity(f"/ns/a/sa/w{i}")) for i in range(3)]
        for _ in range(2):
            issuance = await client.issue(items(wishes))
            assert all(isinstance(one, IssuedChain) for one in issuance.outcomes)
    assert passed == ["challenge", "certificates", "certificates"]


@pytest.mark.parametrize("path", FROZEN, ids=lambda path: path.stem)
async def test_an_older_peer(path: Path, tmp_path: Path) -> None:
    await exchange_through(Peer(frozen(path, tmp_path)))


async def test_a_newer_peer() -> None:
    peer = Peer(of_the_future())
    hello = Request(hello=ca_pb2.Hello(nonce=b"n" * 32)).SerializeToString()
    assert b"unknown to you" in peer.through(peer.request, hello)
    await exchange_through(peer)
