"""The service behind all sockets of an agent: the sessions of callers, and changes for them.

Owns the sessions. Invariants: one session for each caller that has a stream; a change of the store,
of policy or of files reaches every session that it concerns, and no other.

One :class:`SecretService` serves all sockets of an agent. Each socket's server gets the handlers
of :meth:`SecretService.handlers`, made with a function that tells who its clients are.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sds.clock import Clock, SystemClock
from sds.errors import SdsError, without_frames
from sds.faults import guarded
from sds.identity import Identity
from sds.repeats import Repeats
from sds.serving.calls import METHODS, TYPES, Entitlements, SocketCalls, handlers
from sds.serving.crowd_trimmer import CrowdTrimmer
from sds.serving.extension_catalog import (
    DEFAULT_TTL,
    AuthorizationPolicy,
    ExtensionCatalog,
    Widening,
)
from sds.serving.limits import ServingLimits
from sds.serving.name_budget import NameBudget
from sds.serving.observer import Event, Method, NullObserver, ServingObserver
from sds.serving.rbac import EXTENSION_TYPE
from sds.serving.secret_catalog import Aliases, Catalog, GenericSecrets
from sds.serving.session import CallerSession
from sds.serving.sessions_by_identity import SessionsByIdentity
from sds.serving.slices import SLICE, sliced
from sds.serving.snapshot import Snapshot
from sds.serving.stale_names import NameLookUps
from sds.serving.stream import Stream
from sds.serving.subscription import Answer, SotwSubscription
from sds.serving.unsent_secrets import UnsentSecrets
from sds.trickle import Trickle

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import timedelta

    import grpc

    from sds.secrets.store import Change, SecretStore
    from sds.serving.answer_memory import AnswerMemory
    from sds.serving.call_output import CallOutput
    from sds.serving.conversation import Conversation
    from sds.serving.encode import Resource
    from sds.serving.peer_policy import PeerPolicy
    from sds.serving.session_ticket_keys import SessionTickets
    from sds.serving.slices import Slices
    from sds.serving.subscription import SotwRequest
    from sds.workload.entitlement import Caller, Entitlement

logger = logging.getLogger("sds.serving.service")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingOptions:
    """Which resources are served, and how.

    Attributes:
        aliases: the short names.
        spiffe_validator: whether to serve our own trust domain's bundle as the SPIFFE validator
            too.
        limits: what one client may do.
        peers: policy about peers.
        tickets: session ticket keys.
        generic: generic secrets.
        authorizations: policy about requests; None: every authorization denies everything.
        authorization_ttl: the longest time for which an Envoy enforces an authorization without
            hearing from the agent.
    """

    aliases: Aliases = field(default_factory=Aliases)
    spiffe_validator: bool = False
    limits: ServingLimits = field(default_factory=ServingLimits)
    peers: PeerPolicy | None = None
    tickets: SessionTickets | None = None
    generic: GenericSecrets | None = None
    authorizations: AuthorizationPolicy | None = None
    authorization_ttl: timedelta = DEFAULT_TTL


class SecretService:
    """Serves the store's secrets to all callers."""

    def __init__(
        self,
        store: SecretStore,
        *,
        options: ServingOptions | None = None,
        observer: ServingObserver | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.options = options if options is not None else ServingOptions()
        self.observer: ServingObserver = observer if observer is not None else NullObserver()
        self.clock: Clock = clock if clock is not None else SystemClock()
        self._catalog = Catalog(
            store,
            aliases=self.options.aliases,
            spiffe_validator=self.options.spiffe_validator,
            peers=self.options.peers,
            tickets=self.options.tickets,
            generic=self.options.generic,
        )
        self._extensions = ExtensionCatalog(
            store,
            policy=self.options.authorizations,
            clock=self.clock,
            ttl=self.options.authorization_ttl,
            on_short=self._beat_within,
        )
        self._heartbeat: asyncio.TimerHandle | None = None
        self._beats = Trickle("listener", 1)
        self._sessions: dict[Entitlement, CallerSession] = {}
        self._by_identity = SessionsByIdentity()
        self._names = NameBudget(self.options.limits.names)
        self._looks = NameLookUps()
        self._changes = 0
        """Counts the changes of what is served."""
        self._crowd: CrowdTrimmer | None = None
        self.unsent = UnsentSecrets(store)
        self._said = Repeats()
        self.draining: SdsError | None = None
        self.empty_version = store.draw_version()
        """The version of a response without resources."""
        self._stop_listening = store.listen(self._on_change)

    # --- for the agent --------------------------------------------------------------------------

    def handlers(self, entitlements: Entitlements) -> tuple[grpc.GenericRpcHandler, ...]:
        """Make the handlers for one server; ``entitlements`` tells who its clients are."""
        return handlers(SocketCalls(self, entitlements))

    def refresh(self, *, trust_changed: bool = True) -> None:
        """Push what differs, after something other than the store changed.

        Args:
            trust_changed: whether policy changed, so that older session tickets must no longer be
                accepted; False if only ticket keys or generic secrets are new.
        """
        self._changes += 1
        if trust_changed:
            self._catalog.forget_contexts()
        self.unsent.retired()  # ticket keys, or generic secrets
        widening = Widening()
        for session in list(self._sessions.values()):
            if trust_changed:
                session.refresh(widening)
            else:
                session.reloaded()

    def drain(self) -> None:
        """End all streams with UNAVAILABLE; new ones are refused the same way."""
        self.draining = SdsError(
            "this agent is stopping", reason="draining", advice="connect again"
        )
        for session in list(self._sessions.values()):
            session.end(self.draining)

    def close(self) -> None:
        """Drain, and stop listening to the store."""
        self.drain()
        self._stop_listening()
        self.unsent.close()
        self._looks.close()
        self._beats.close()
        if self._heartbeat is not None:
            self._heartbeat.cancel()
            self._heartbeat = None
        if self._crowd is not None:
            self._crowd.close()

    def sessions(self) -> tuple[CallerSession, ...]:
        """Return the sessions of the callers that have a stream now."""
        return tuple(self._sessions.values())

    def refused(self, path: str, error: SdsError) -> None:
        """Count a call that was refused before its handler, and log it once in an interval.

        Args:
            path: ``/service/Method``, as the caller wrote it.
            error: why it was refused.
        """
        method = METHODS.get(path)
        if method is not None:
            self.observer.count(Event.STREAM_REFUSED, method)
        label = method.value if method is not None else "other"
        times = self._said.due((label, error.reason), now=self.clock.now().monotonic)
        if times is not None:
            logger.warning(
                "call refused",
                extra={
                    "method": label,
                    "reason": error.reason,
                    "error": str(error),
                    "times": times,
                },
            )

    def open_stream(
        self, entitlement: Entitlement, method: Method, output: CallOutput, *, peer: str, owner: str
    ) -> Stream:
        """Open a stream of this caller, in the task that reads it; :meth:`close_stream` ends it."""
        session = self._enter(entitlement)
        stream = Stream(
            output,
            session=session,
            method=method,
            types=TYPES[method],
            limits=self.options.limits,
            observer=self.observer,
            peer=peer,
            owner=owner,
        )
        session.streams[stream] = None
        if self._crowd is None:
            self._crowd = CrowdTrimmer(asyncio.get_running_loop())
        self._crowd.opened()
        self._expect_heartbeat()
        self.observer.count(Event.STREAM_OPENED, method)
        return stream

    def close_stream(self, stream: Stream) -> None:
        """Forget a stream that is over."""
        stream.session.leave(stream)
        self._leave(stream.session)
        self.observer.count(Event.STREAM_CLOSED, stream.method)

    def answer(
        self,
        entitlement: Entitlement,
        type_url: str,
        request: SotwRequest,
        *,
        strong: bool,
        held: AnswerMemory,
    ) -> Slices[Answer[Resource]]:
        """Answer a single request: what the caller may have of a type at one moment.

        Raises:
            LimitError: ``held``, which counts the memory, raised it.
            WorkloadError: the entitlement ended before the answer was whole.
        """
        catalog = self._extensions if type_url == EXTENSION_TYPE else self._catalog
        while True:
            held.begin()
            changes, caller = self._changes, entitlement.current
            snapshot = Snapshot(catalog, caller, strong=strong)
            whole: Answer[Resource] = Answer()
            subscription: SotwSubscription[Resource] = SotwSubscription()
            for outcome in subscription.outcomes(request):
                yield len(outcome.added)
            # At a change, what was found must not wait for the rest: a key may have retired.
            while subscription.has_due() and self._is_now(changes, caller, entitlement):
                answer = subscription.respond(snapshot, "", SLICE)
                if answer is not None:
                    size = sum(resource.size for resource in answer.resources)
                    held.work(size)  # the resources themselves,
                    held.answer(size)  # and what is made of them
                    whole.resources.extend(answer.resources)
                    whole.absent.extend(answer.absent)
                    answer = None
                yield SLICE
            if entitlement.ended is not None:
                raise without_frames(entitlement.ended)
            if self._is_now(changes, caller, entitlement):
                return whole  # else the answer mixes two states

    # --- inside ---------------------------------------------------------------------------------

    def _is_now(self, changes: int, caller: Caller, entitlement: Entitlement) -> bool:
        """Say whether nothing has changed since, neither what is served nor for this caller."""
        return (
            changes == self._changes and caller is entitlement.current and entitlement.ended is None
        )

    def _on_change(self, change: Change) -> None:
        self._changes += 1
        identities = {key for key in change.keys if isinstance(key, Identity)}
        bundles = len(identities) < len(change.keys)
        for identity in identities:
            self._catalog.forget_svid(identity)
        if bundles:
            self._catalog.forget_contexts()
            if self.options.tickets is not None:
                self.unsent.retired()  # ticket keys were replaced with the contexts
        concerned = list(self._sessions.values()) if bundles else self._by_identity.find(identities)
        for session in concerned:
            session.changed(change.keys)

    def _expect_heartbeat(self) -> None:
        """Start the timer that extends the lives of authorizations while there are streams."""
        if self._heartbeat is None:
            seconds = self._extensions.heartbeat_seconds
            loop = asyncio.get_running_loop()
            self._heartbeat = loop.call_later(seconds, guarded("listener", self._beat))

    def _beat_within(self, seconds: float) -> None:
        """Let the next heartbeat, if one is expected, come no later than in so many seconds."""
        loop = asyncio.get_running_loop()
        if self._heartbeat is not None and self._heartbeat.when() > loop.time() + seconds:
            self._heartbeat.cancel()
            self._heartbeat = loop.call_later(seconds, guarded("listener", self._beat))

    def _beat(self) -> None:
        self._heartbeat = None
        if self._sessions:
            self._expect_heartbeat()
        for session in list(self._sessions.values()):
            for some in sliced(tuple(session.conversations(EXTENSION_TYPE))):
                self._beats.add(functools.partial(_extend_lives, some))

    def _enter(self, entitlement: Entitlement) -> CallerSession:
        session = self._sessions.get(entitlement)
        if session is None:
            session = self._sessions[entitlement] = CallerSession(
                entitlement, self._catalog, self._extensions, self._names, self._looks
            )
            self._by_identity.add(session)
        return session

    def _leave(self, session: CallerSession) -> None:
        if not session.streams and self._sessions.get(session.entitlement) is session:
            del self._sessions[session.entitlement]
            self._by_identity.remove(session)
            session.close()


def _extend_lives(conversations: Iterable[Conversation]) -> None:
    """Tell these clients that their resources with a time to live are still in force."""
    for one in conversations:
        one.extend_lives()
