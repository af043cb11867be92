"""The connection to an authority, with TLS in one of two ways.

``attested``: the authority's certificate is self-signed. A bare handshake fetches it, and it
becomes the only root of the connection, so the server that answers has that certificate's key. That
proves nothing yet: the caller checks that the authority's evidence covers the key. ``verified``: an
operator chose a root and a server name, and the certificate must be valid under them.

A ``verified`` connection spans all replicas: gRPC's own ``round_robin`` chooses, and only among
those whose ``grpc.health.v1`` says SERVING (gRPC's client-side health checking). An ``attested``
connection leads to one replica, because its single root is how we know which key answers; there the
answer to Hello says whether the replica can issue (``docs/adr/0405-which-replica.md``).

Invariant: a connection never trusts the system's roots, a proxy from the environment, or a name
that was not configured.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import math
import socket
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import grpc.aio

from sds import threads
from sds.errors import AuthorityUnavailableError, CertificateError, ConfigurationError
from sds.exchange.wire import SERVICE
from sds.faults import guarded
from sds.pki import certificate_pem, load_certificate, spki_sha256, supported_key
from sds.reasons.authority import NO_ANSWER
from sds.settings.https_url import check_host
from sds.settings.listen import host_and_port
from sds.untrusted_input import words_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sds.authority.root_file import RootFile

TLS_SERVER_NAME: Final = "authority.attested-sds.invalid"
"""The name in an attested authority's TLS certificate: RFC 2606 reserves the domain, so nobody can
hold a certificate of a public authority for it."""
_EVERYWHERE: Final = frozenset({"0.0.0.0", "::"})
_NEXT_SECONDS: Final = 0.25
"""How long an attempt at one address may take before the next one is tried too (RFC 8305, 8)."""
_MAX_ANSWER: Final = 32 * 1024 * 1024
_MOST_MS: Final = 2**31 - 1
"""gRPC's options are 32 bits long; this is 24 days."""
_BALANCED: Final = json.dumps(
    {
        "loadBalancingConfig": [{"round_robin": {}}],
        # A replica that lacks this service, or has no room for another watcher, counts as healthy.
        "healthCheckConfig": {"serviceName": SERVICE},
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestedTls:
    """TLS whose key the authority's evidence vouches for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedTls:
    """TLS whose key a configured root vouches for.

    Attributes:
        roots: the roots in PEM, or the file that has them, which is read again for each connection.
        server_name: the DNS name that the certificate must have.
    """

    roots: bytes | RootFile = field(repr=False)
    server_name: str

    async def root_pem(self) -> bytes:
        """Return the roots as they are now, in PEM."""
        return self.roots if isinstance(self.roots, bytes) else await self.roots.current()


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorityConnection:
    """A channel, and the key that answers on it.

    Attributes:
        channel: leads to one replica (attested TLS) or to all of them (verified).
        tls_key: SHA-256 of the SubjectPublicKeyInfo that answers; None if a configured root
            vouches for it.
        root_pem: the configured roots, PEM; nothing for attested TLS.
    """

    channel: grpc.aio.Channel
    tls_key: bytes | None
    root_pem: bytes = field(default=b"", repr=False)

    async def is_outdated(self, tls: AttestedTls | VerifiedTls) -> bool:
        """Say whether the configured roots differ from those with which it was made."""
        return isinstance(tls, VerifiedTls) and await tls.root_pem() != self.root_pem


def split_address(address: str) -> tuple[str, int]:
    """Split ``host:port``; an IPv6 address has brackets.

    Raises:
        ConfigurationError: the address does not have this form.
    """
    found = host_and_port(address)
    if found is None or found[1] == 0:
        raise ConfigurationError(
            f"the authority's address {address!r} is not host:port",
            advice="write it as ca.example.org:8443 or [2001:db8::1]:8443",
        )
    if found[0] in _EVERYWHERE:
        raise ConfigurationError(
            f"nobody can be called at the authority's address {address!r}",
            advice="an authority listens there on all of its addresses: write one of them, or its "
            "name",
        )
    try:
        check_host(found[0], bracketed="[" in address)
    except ValueError as error:
        raise ConfigurationError(
            f"the authority's address {address[:300]!r} cannot be looked up: {error}",
            advice="write it as ca.example.org:8443 or [2001:db8::1]:8443",
        ) from error
    return found


async def connect(
    addresses: Sequence[str], tls: AttestedTls | VerifiedTls, *, seconds: float
) -> AuthorityConnection:
    """Prepare a connection; for attested TLS one bare handshake is made.

    Args:
        addresses: the replicas' addresses; for attested TLS exactly one.
        tls: what the certificate that answers must satisfy.
        seconds: the time to resolve names, or for the bare handshake.

    Raises:
        AuthorityUnavailableError: nothing answers there in that time, or no name resolves.
    """
    if isinstance(tls, VerifiedTls):
        target = await _target(addresses, seconds)
        root_pem = await tls.root_pem()
        balanced = ("grpc.service_config", _BALANCED)
        channel = _channel(target, root_pem, tls.server_name, seconds, balanced)
        return AuthorityConnection(channel=channel, tls_key=None, root_pem=root_pem)
    (address,) = addresses
    der = await _served_certificate(address, seconds)
    try:
        key = supported_key(load_certificate(der, "authority's TLS certificate"))
    except CertificateError as error:
        raise AuthorityUnavailableError(f"{address}: {error}") from error
    return AuthorityConnection(
        channel=_channel(address, certificate_pem([der]), TLS_SERVER_NAME, seconds),
        tls_key=spki_sha256(key),
    )


async def _target(addresses: Sequence[str], seconds: float) -> str:
    """Return all addresses of the names as one target: gRPC takes a list of IP addresses only."""
    found: dict[tuple[str, int], None] = {}
    failures: list[str] = []
    for address in addresses:
        host, port = split_address(address)
        try:
            async with asyncio.timeout(seconds):
                hosts = await _resolved(host, port)
        except (OSError, TimeoutError) as error:
            failures.append(f"{host}: {words_of(error)}")
            continue
        found |= {(one, port): None for one in hosts}
    if not found:
        raise AuthorityUnavailableError(
            f"no address of the authority resolves: {'; '.join(failures)}",
            advice="check authority.addresses, and that DNS answers",
        )
    return balanced_target(found)


async def _resolved(host: str, port: int) -> list[str]:
    """Resolve a host to IP addresses, outside the event loop's own threads.

    Raises:
        OSError: it has none, or no server can say.
    """
    answers = await threads.NAMES.run(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(answer[4][0]) for answer in answers))


def balanced_target(endpoints: Iterable[tuple[str, int]]) -> str:
    """Return gRPC's target for these addresses; IPv4 beside IPv6 is written as mapped IPv6.

    Raises:
        ValueError: one of them is not an IP address.
    """
    listed = [(ipaddress.ip_address(host), port) for host, port in endpoints]
    if all(isinstance(host, ipaddress.IPv4Address) for host, _ in listed):
        return "ipv4:" + ",".join(f"{host}:{port}" for host, port in listed)
    return "ipv6:" + ",".join(
        f"[::ffff:{host}]:{port}" if isinstance(host, ipaddress.IPv4Address) else f"[{host}]:{port}"
        for host, port in listed
    )


async def _served_certificate(address: str, seconds: float) -> bytes:
    host, port = split_address(address)
    # The default context would read every root of the system, which takes a tenth of a second.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Nothing is trusted here: the certificate is only fetched, to be pinned and then attested.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        async with asyncio.timeout(seconds):
            writer = await _dialled(await _resolved(host, port), port, context)
    except ssl.SSLError as error:
        raise AuthorityUnavailableError(
            f"what answers at {address} does not speak TLS as an authority does: {words_of(error)}",
            advice="check that authority.addresses names the authority's own port",
        ) from error
    except (OSError, TimeoutError) as error:
        raise AuthorityUnavailableError(
            f"the authority at {address} does not answer: {words_of(error)}",
            advice="check that it is running and that this is its address",
            reason=NO_ANSWER if isinstance(error, TimeoutError) else None,
        ) from error
    try:
        tls: ssl.SSLObject = writer.get_extra_info("ssl_object")
        der = tls.getpeercert(binary_form=True)
    finally:
        writer.transport.abort()
    if der is None:
        raise AuthorityUnavailableError(f"the authority at {address} shows no certificate")
    return der


async def _dialled(
    hosts: Sequence[str], port: int, context: ssl.SSLContext
) -> asyncio.StreamWriter:
    """Connect to the first of these IP addresses that answers.

    One that swallows packets, such as a broken route to an IPv6 address, must not take the time of
    the others, so the next one is tried as soon as an attempt has failed or is late (RFC 8305,
    section 5).

    Raises:
        OSError: none answers; the error is that of the last one to fail.
    """
    waiting = list(hosts)
    attempts: list[asyncio.Task[asyncio.StreamWriter]] = []
    running: set[asyncio.Task[asyncio.StreamWriter]] = set()
    answered: asyncio.Task[asyncio.StreamWriter] | None = None
    failure: BaseException = OSError("the name has no address")
    try:
        while waiting or running:
            if waiting:
                attempts.append(asyncio.create_task(_dial(waiting.pop(0), port, context)))
                running.add(attempts[-1])
            seconds = _NEXT_SECONDS if waiting else None
            done, running = await asyncio.wait(
                running, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
            )
            for one in done:
                if (error := one.exception()) is None:
                    answered = one
                    return one.result()
                failure = error
        raise failure
    finally:
        for one in attempts:
            if one is not answered:
                one.cancel()
                one.add_done_callback(guarded("connection", _hang_up))


async def _dial(host: str, port: int, context: ssl.SSLContext) -> asyncio.StreamWriter:
    _, writer = await asyncio.open_connection(
        host, port, ssl=context, server_hostname=TLS_SERVER_NAME
    )
    return writer


def _hang_up(attempt: asyncio.Task[asyncio.StreamWriter]) -> None:
    """Close a connection that came too late."""
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().transport.abort()


def _channel(
    target: str, root_pem: bytes, server_name: str, seconds: float, *more: tuple[str, object]
) -> grpc.aio.Channel:
    return verified_channel(
        target,
        root_pem,
        server_name,
        ("grpc.service_config_disable_resolution", 1),
        ("grpc.max_receive_message_length", _MAX_ANSWER),
        ("grpc.max_send_message_length", _MAX_ANSWER),
        # A dead authority must be noticed between two renewals, not at the next one.
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 0),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        *more,
        seconds=seconds,
    )


def verified_channel(
    target: str,
    root_pem: bytes,
    server_name: str,
    *more: tuple[str, object],
    seconds: float,
) -> grpc.aio.Channel:
    """Make a channel with verified TLS, the only kind that this program makes.

    The channel shares no connections: gRPC would otherwise share them between channels, and keep
    those of a closed channel, which reconnect with its old roots forever.

    Args:
        target: the other end, as gRPC names it.
        root_pem: the roots under which its certificate must be valid; never empty, because gRPC
            would then take its own.
        server_name: the DNS name that the certificate must have.
        more: further options of the channel.
        seconds: how long one connection may take. gRPC's 20 s are too long if nothing answers at an
            address: the replica there was replaced, and the next attempt would find another one.
            It must not be less than the caller waits, or an authority that has too much to do gets
            the next connection while it is busy with this one.

    Raises:
        ConfigurationError: there is no root.
    """
    if b"-----BEGIN CERTIFICATE-----" not in root_pem:
        raise ConfigurationError("there is no root for the authority's TLS")
    options: Sequence[tuple[str, object]] = (
        ("grpc.ssl_target_name_override", server_name),
        ("grpc.default_authority", server_name),
        ("grpc.enable_http_proxy", 0),
        ("grpc.enable_retries", 0),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.min_reconnect_backoff_ms", min(math.ceil(seconds * 1000), _MOST_MS)),
        *more,
    )
    return grpc.aio.secure_channel(
        target, grpc.ssl_channel_credentials(root_certificates=root_pem), options=options
    )
