"""A real secret service on a real Unix socket, in this process, with secrets by choice."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from sds.agent.grpc_fallback import CalledBy, listen_by_grpc, make_grpc_server
from sds.clock import SystemClock
from sds.identity import Identity, SpiffeId, TrustDomain
from sds.pki import spki_sha256
from sds.secrets.key_memory import SecretBytes
from sds.secrets.store import SecretStore, Svid
from sds.serving.calls import ADS_SERVICE, SDS_SERVICE
from sds.serving.client_status import CSDS_SERVICE, ClientStatus
from sds.serving.health import HEALTH_SERVICE, SocketHealth
from sds.serving.limits import ServingLimits
from sds.serving.server import AnyServer, add_health, add_reflection, make_server
from sds.serving.service import SecretService, ServingOptions
from sds.serving.session_ticket_keys import SessionTickets
from sds.transport.server import Server
from sds.unix_sockets import listening
from sds.workload.entitlement import Caller, Entitlement
from tests.support.certificates import Signer, Wish, ca_wish, self_signed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from sds.serving.observer import Event, Method

TD = TrustDomain("example.org")
OTHER = TrustDomain("other.example")
WEB = Identity(spiffe_id=SpiffeId(TD, "/web"))
API = Identity(spiffe_id=SpiffeId(TD, "/api"))


@cache
def root(name: str) -> Signer:
    """A CA of this name, made once."""
    now = datetime.now(UTC)
    return self_signed(
        Wish(
            subject=ca_wish(name).subject,
            constraints=ca_wish(name).constraints,
            usage=ca_wish(name).usage,
            extended=(),
            not_before=now - timedelta(hours=1),
            not_after=now + timedelta(hours=12),
        )
    )


def ticket_keys(store: SecretStore) -> SessionTickets:
    """Session ticket keys of ``WEB`` that no test outlives."""
    return SessionTickets(
        store, identities=[WEB], longest_life=timedelta(hours=1), clock=SystemClock()
    )


def svid(identity: Identity = WEB, *, signer: Signer | None = None, mark: str = "") -> Svid:
    """A real SVID with a key of its own; ``mark`` only tells key ids apart."""
    now = datetime.now(UTC)
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(str(identity.spiffe_id))]
    names += [x509.DNSName(name) for name in identity.dns_names]
    leaf = (signer or root("one")).issue(
        Wish(
            not_before=now - timedelta(minutes=1),
            not_after=now + identity.lifetime,
            names=tuple(names),
        )
    )
    key = leaf.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Svid(
        identity=identity,
        chain=(leaf.der,),
        private_key=SecretBytes(key),
        key_id=mark or spki_sha256(leaf.key.public_key()).hex(),
        serial=leaf.certificate.serial_number,
        not_before=leaf.certificate.not_valid_before_utc,
        not_after=leaf.certificate.not_valid_after_utc,
        received_at=now,
        root="",
    )


class Tally:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.events: Counter[Event] = Counter()

    def nacked(self, words: str) -> None:
        """The events tell enough here."""

    def count(self, event: Event, method: Method, amount: int = 1) -> None:
        self.events[event] += amount


TRANSPORT = "own"
"""What serves: ``own`` or ``grpc``; see the fixture ``transport``."""


@dataclass
class Serving:
    """A running service; ``entitlement`` is who every client of its socket is."""

    store: SecretStore
    service: SecretService
    entitlement: Entitlement
    tally: Tally
    socket: Path
    health: SocketHealth
    target: str = field(init=False)

    def __post_init__(self) -> None:
        self.target = f"unix:{self.socket}"


@contextlib.asynccontextmanager
async def admin_socket(at: Serving, path: Path) -> AsyncIterator[Path]:
    """A socket for people beside it, with what the agent's has: CSDS of all, health."""
    server = make_server(at.service.options.limits, ClientStatus(at.service).handlers())
    add_health(server).tell(serving=True)
    add_reflection(server, (CSDS_SERVICE, HEALTH_SERVICE))
    await server.listen(listening(path, 0o600))
    try:
        yield path
    finally:
        await server.stop(0)


@contextlib.asynccontextmanager
async def serving(
    folder: Path,
    *,
    identities: tuple[Identity, ...] = (WEB,),
    options: ServingOptions | None = None,
    store: SecretStore | None = None,
    empty: bool = False,
    name: str = "sds.sock",
) -> AsyncIterator[Serving]:
    """Serve ``identities`` (with real SVIDs and the bundle, unless ``empty``)."""
    options = options or ServingOptions(limits=ServingLimits())
    store = store or SecretStore()
    tally = Tally()
    service = SecretService(store, options=options, observer=tally)
    entitlement = Entitlement(Caller(name="web", selectors=frozenset(), identities=identities))

    async def entitle(_context: object) -> Entitlement:
        return entitlement

    if not empty:
        store.put_bundle(TD, [root("one").der])
        for identity in identities:
            store.put_svid(svid(identity))
    if TRANSPORT == "grpc":
        server: AnyServer = make_grpc_server(options.limits)
        server.add_generic_rpc_handlers(
            (CalledBy(service.handlers(entitle), None), *ClientStatus(service, entitle).handlers())
        )
    else:
        server = make_server(options.limits, service.handlers(entitle))
        server.add_generic_rpc_handlers(ClientStatus(service, entitle).handlers())
    health = add_health(server)
    health.tell(serving=True)
    add_reflection(server, (SDS_SERVICE, ADS_SERVICE, CSDS_SERVICE, HEALTH_SERVICE))
    path = folder / name
    if isinstance(server, Server):
        await server.listen(listening(path, 0o600))
    else:
        await listen_by_grpc(server, path, 0o600)
    try:
        yield Serving(store, service, entitlement, tally, path, health)
    finally:
        service.close()
        await server.stop(1)
