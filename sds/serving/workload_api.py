"""The SPIFFE Workload API, for programs that speak mTLS without an Envoy.

Owns the streams FetchX509SVID and FetchX509Bundles. Invariants: the header
``workload.spiffe.io: true`` is required (a browser or a proxy that is tricked into a request cannot
send it); a caller gets its entitlement, and nothing in the request changes that; a stream waits
while there is nothing to send, and at most one answer waits for a slow reader (the latest wins).

Source: SPIFFE Workload API and Workload Endpoint specifications.
"""

from __future__ import annotations

import asyncio
import base64
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import grpc

from sds._proto.spiffe.workload import workload_pb2
from sds.errors import SdsError, WorkloadError, without_frames
from sds.identity import Identity
from sds.serving.slices import sliced
from sds.trickle import Trickle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from google.protobuf.message import Message

    from sds.identity import TrustDomain
    from sds.secrets.store import Change, ResourceKey, SecretStore, Version
    from sds.serving.calls import Entitlements
    from sds.serving.unsent_secrets import UnsentSecrets
    from sds.workload.entitlement import Caller, Entitlement

SERVICE: Final = "SpiffeWorkloadAPI"
_HEADER: Final = ("workload.spiffe.io", "true")
_Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """A response, and the versions in it."""

    message: Message
    delivered: tuple[tuple[ResourceKey, Version], ...]


class WorkloadApi:
    """Serves the two streams on all sockets of an agent."""

    def __init__(
        self, store: SecretStore, entitlements: Entitlements, *, unsent: UnsentSecrets
    ) -> None:
        self._store = store
        self._entitlements = entitlements
        self._unsent = unsent
        self._following: dict[asyncio.Event, Entitlement] = {}
        """Maps the event that wakes each stream to the entitlement of its caller."""
        self._wakes = Trickle("store listener", 1)
        self._changed: set[ResourceKey] = set()
        """What changed since the last round through the streams began."""
        self._in_round = False
        self._draining: SdsError | None = None
        store.listen(self._on_change)

    def drain(self) -> None:
        """End all streams with UNAVAILABLE; new ones are refused the same way."""
        self._draining = SdsError(
            "this agent is stopping", reason="draining", advice="connect again"
        )
        for changed in self._following:
            changed.set()

    def _on_change(self, change: Change) -> None:
        """Wake the streams of a change, a few in each turn: a client may have thousands."""
        self._changed |= change.keys
        if not self._in_round:
            self._begin_round()

    def _begin_round(self) -> None:
        """Go through all streams once; what changes meanwhile waits for the next round.

        So as many changes as come, when every identity is renewed, cost no more than one round.
        """
        keys, self._changed = frozenset(self._changed), set()
        self._in_round = bool(keys and self._following)
        if self._in_round:
            for some in sliced(tuple(self._following.items())):
                self._wakes.add(functools.partial(_wake_some, some, keys))
            self._wakes.add(self._begin_round)

    def handler(self) -> grpc.GenericRpcHandler:
        """Make the handler for a ``grpc.aio`` server."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "FetchX509SVID": grpc.unary_stream_rpc_method_handler(
                    self.fetch_x509_svid,
                    request_deserializer=workload_pb2.X509SVIDRequest.FromString,
                    response_serializer=workload_pb2.X509SVIDResponse.SerializeToString,
                ),
                "FetchX509Bundles": grpc.unary_stream_rpc_method_handler(
                    self.fetch_x509_bundles,
                    request_deserializer=workload_pb2.X509BundlesRequest.FromString,
                    response_serializer=workload_pb2.X509BundlesResponse.SerializeToString,
                ),
            },
        )

    async def fetch_x509_svid(self, request: Message, context: _Context) -> None:
        """Send all SVIDs of the caller with keys and bundles, now and after each change."""
        del request
        await self._serve(context, self._svids)

    async def fetch_x509_bundles(self, request: Message, context: _Context) -> None:
        """Send all bundles that the caller needs to verify others, now and after each change."""
        del request
        await self._serve(context, self._bundles)

    async def _serve(self, context: _Context, build: Callable[[Caller], _Answer | None]) -> None:
        if _HEADER not in (context.invocation_metadata() or ()):
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                "the header 'workload.spiffe.io: true' is missing",
            )
        try:
            entitlement = await self._entitlements(context)
            self._unsent.follow(context)
            await self._follow(entitlement, build, context)
        except WorkloadError as error:
            without_frames(error)  # the error may outlive the call
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        if self._draining is not None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(self._draining))

    async def _follow(
        self,
        entitlement: Entitlement,
        build: Callable[[Caller], _Answer | None],
        context: _Context,
    ) -> None:
        """Send each answer that differs from the one before, until the agent drains.

        Raises:
            WorkloadError: the entitlement ended, or the caller has no identity now.
        """
        changed = asyncio.Event()
        self._following[changed] = entitlement
        sent: tuple[tuple[ResourceKey, Version], ...] | None = None
        subscription = self._store.open_subscription()
        stop_listening = entitlement.listen(changed.set)
        try:
            while self._draining is None:
                changed.clear()
                if entitlement.ended is not None:
                    raise entitlement.ended
                caller = entitlement.current
                if not caller.identities:  # SPIFFE Workload Endpoint, Appendix A
                    raise WorkloadError(
                        f"the policy in force gives {caller.name} no identity", reason="no_match"
                    )
                answer = build(caller)
                if answer is None:
                    # A caller cannot take a new root before it has an SVID, so nobody must wait for
                    # it.
                    sent = None
                    self._store.close_subscription(subscription)
                    subscription = self._store.open_subscription()
                elif answer.delivered != sent:
                    sent, written = answer.delivered, [answer.message]
                    answer = None  # while it waits for a slow reader, only its bytes are counted
                    await context.write(written.pop())
                    for key, version in sent:
                        # This API has no ACK: that the answer was written is the most that can be
                        # known.
                        self._store.sent(subscription, key, version)
                        self._store.acked(subscription, key, version)
                    self._store.keep_only(subscription, sent)
                    continue  # something may have changed meanwhile
                answer = None  # it has private keys, so nothing may keep it while this waits
                await changed.wait()
        finally:
            stop_listening()
            del self._following[changed]
            self._store.close_subscription(subscription)

    def _svids(self, caller: Caller) -> _Answer | None:
        """Make the answer; None while the default identity has no certificate or no bundle."""
        message = workload_pb2.X509SVIDResponse()
        delivered: list[tuple[ResourceKey, Version]] = []
        own: dict[TrustDomain, None] = {}
        for position, identity in enumerate(caller.identities):
            stored = self._store.svid(identity)
            bundle = self._store.bundle(identity.spiffe_id.trust_domain)
            if stored is None or bundle is None:
                if position == 0:
                    return None
                continue
            message.svids.add(
                spiffe_id=str(identity.spiffe_id),
                x509_svid=b"".join(stored.svid.chain),
                x509_svid_key=_der(stored.svid.private_key.reveal()),
                bundle=b"".join(bundle.bundle.roots),
            )
            delivered.append((identity, stored.version))
            own[identity.spiffe_id.trust_domain] = None
        for trust_domain, version in self._fill(message.federated_bundles, skip=own):
            delivered.append((trust_domain, version))
        delivered += [
            (domain, stored_bundle.version)
            for domain in own
            if (stored_bundle := self._store.bundle(domain)) is not None
        ]
        return _Answer(message=message, delivered=tuple(delivered))

    def _bundles(self, caller: Caller) -> _Answer | None:
        """Make the answer; None while our own trust domain has no bundle."""
        if self._store.bundle(caller.identities[0].spiffe_id.trust_domain) is None:
            return None
        message = workload_pb2.X509BundlesResponse()
        delivered = tuple(self._fill(message.bundles, skip={}))
        return _Answer(message=message, delivered=delivered)

    def _fill(
        self, bundles: Any, *, skip: dict[TrustDomain, None]
    ) -> Iterator[tuple[TrustDomain, Version]]:
        """Put every trust domain's bundle into the map, and yield what was put."""
        for trust_domain, stored in sorted(self._store.bundles().items()):
            if trust_domain not in skip:
                bundles[f"spiffe://{trust_domain}"] = b"".join(stored.bundle.roots)
                yield trust_domain, stored.version


def _wake_some(
    streams: Sequence[tuple[asyncio.Event, Entitlement]], keys: frozenset[ResourceKey]
) -> None:
    """Wake streams for changed bundles, which concern everybody, and for their own SVIDs."""
    for changed, entitlement in streams:
        own = entitlement.current.identities
        if any(not isinstance(key, Identity) or key in own for key in keys):
            changed.set()


def _der(pem: bytes) -> bytes:
    """Return the DER of one PEM block (RFC 7468)."""
    return base64.b64decode(b"".join(pem.split(b"-----")[2].split()))
