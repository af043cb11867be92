"""A secret discovery server to measure, in a process of its own.

``python bench/sds_server.py ours SOCKET`` serves through the same modules as the agent (service,
limits, observer, store), from a store that this script fills; ``prototype`` is the floor: a bare
grpc.aio server on uvloop that sends the same cached bytes to every stream, with no protocol, no
limits and no books. Both print a line ``ready …`` when they serve, and make one rotation for each
SIGUSR1:
its time (``time.time_ns``) is printed on a line of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import secrets
import signal
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from sds.identity import Identity, SpiffeId, TrustDomain
from sds.pki import spki_sha256
from sds.secrets.key_memory import SecretBytes
from sds.secrets.store import SecretStore, Svid, TrustBundle
from sds.serving import encode
from sds.serving.calls import SDS_SERVICE
from sds.serving.server import make_server
from sds.serving.service import SecretService
from sds.serving.wire import length_delimited, parse_discovery_request
from sds.transport.server import Server
from sds.unix_sockets import listening
from sds.workload.entitlement import Caller, Entitlement

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

DOMAIN = TrustDomain("bench.example")
IDENTITY = Identity(spiffe_id=SpiffeId(DOMAIN, "/web"))
_NAME = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "bench")])
_ROOT_KEY = ec.generate_private_key(ec.SECP256R1())


def _certificate(key: ec.EllipticCurvePrivateKey, subject: x509.Name) -> x509.Certificate:
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(_NAME)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(hours=1))
    )
    if subject == _NAME:
        builder = builder.add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
    else:
        names = x509.SubjectAlternativeName(
            [x509.UniformResourceIdentifier(str(IDENTITY.spiffe_id))]
        )
        builder = builder.add_extension(names, critical=True)
    return builder.sign(_ROOT_KEY, hashes.SHA256())


def root() -> bytes:
    return _certificate(_ROOT_KEY, _NAME).public_bytes(Encoding.DER)


def svid() -> Svid:
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = _certificate(key, x509.Name([]))
    return Svid(
        identity=IDENTITY,
        chain=(leaf.public_bytes(Encoding.DER),),
        private_key=SecretBytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        ),
        key_id=spki_sha256(key.public_key()).hex(),
        serial=leaf.serial_number,
        not_before=leaf.not_valid_before_utc,
        not_after=leaf.not_valid_after_utc,
        received_at=datetime.now(UTC),
        root="",
    )


def ours() -> tuple[Server | grpc.aio.Server, Callable[[Svid], None]]:
    """The service as the agent composes it."""
    store = SecretStore()
    store.put_bundle(DOMAIN, [root()])
    service = SecretService(store)
    entitlement = Entitlement(Caller(name="web", selectors=frozenset(), identities=(IDENTITY,)))

    async def entitle(_context: object) -> Entitlement:
        return entitlement

    def rotate(new: Svid) -> None:
        store.put_svid(new)

    return make_server(service.options.limits, service.handlers(entitle)), rotate


def prototype() -> tuple[Server | grpc.aio.Server, Callable[[Svid], None]]:
    """The floor."""
    bundle = encode.trusted_ca("ROOTCA", TrustBundle(trust_domain=DOMAIN, roots=(root(),)))
    content: dict[str, bytes] = {}
    streams: dict[object, tuple[str, ...]] = {}
    writing: set[asyncio.Task[None]] = set()

    def response(names: tuple[str, ...]) -> bytes:
        parts = [
            length_delimited(
                2,
                length_delimited(1, encode.SECRET_TYPE.encode())
                + length_delimited(2, content[name]),
            )
            for name in names
        ]
        return (
            b"".join(parts)
            + length_delimited(1, b"1")
            + length_delimited(4, encode.SECRET_TYPE.encode())
            + length_delimited(5, secrets.token_bytes(8).hex().encode())
        )

    async def stream(
        requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> None:
        try:
            async for data in requests:
                if context not in streams:
                    names = parse_discovery_request(data, max_names=100).request.names
                    streams[context] = names
                    await context.write(response(names))
        finally:
            streams.pop(context, None)

    def rotate(new: Svid) -> None:
        content["default"] = encode.tls_certificate("default", new.chain, new.private_key.reveal())
        content["ROOTCA"] = bundle
        for context, names in streams.items():
            if "default" in names:
                task = asyncio.ensure_future(context.write(response(("default",))))  # type: ignore[attr-defined]
                writing.add(task)
                task.add_done_callback(writing.discard)

    # Beyond 1,000 waiting calls a grpc server cancels some at random, unless it is told not to.
    unlimited = [
        ("grpc.server.max_pending_requests", 1 << 20),
        ("grpc.server.max_pending_requests_hard_limit", 1 << 20),
    ]
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0), *unlimited])
    handler: Any = grpc.stream_stream_rpc_method_handler(stream)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SDS_SERVICE, {"StreamSecrets": handler}),)
    )
    return server, rotate


async def serve(kind: str, socket: str) -> None:
    server, rotate = {"ours": ours, "prototype": prototype}[kind]()
    rotate(svid())
    if isinstance(server, Server):
        await server.listen(listening(Path(socket), 0o600))
    else:
        server.add_insecure_port(f"unix:{socket}")
        await server.start()
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def on_rotation() -> None:
        new = svid()
        at = time.time_ns()
        rotate(new)
        sys.stdout.write(f"{at}\n")
        sys.stdout.flush()

    loop.add_signal_handler(signal.SIGUSR1, on_rotation)
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    gc.collect()
    gc.freeze()
    print(f"ready socket={socket} pid={os.getpid()} rotation=SIGUSR1", flush=True)
    await stop.wait()
    await server.stop(0.1)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("kind", choices=("ours", "prototype"))
    arguments.add_argument("socket")
    given = arguments.parse_args()
    uvloop.run(serve(given.kind, given.socket))
