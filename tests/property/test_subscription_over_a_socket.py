"""The same model of a client, through a real gRPC socket and the real catalog; fewer examples."""

from __future__ import annotations

import asyncio
import dataclasses
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from sds.identity import Identity, SpiffeId
from sds.serving.encode import pem
from sds.serving.observer import Event
from tests.support.serving import TD, Serving, serving, svid
from tests.support.xds_client import Delta, Sotw, channel, secrets
from tests.support.xds_model import Client, Request, Response, World

if TYPE_CHECKING:
    from collections.abc import Coroutine

A = Identity(spiffe_id=SpiffeId(TD, "/a"))
B = Identity(spiffe_id=SpiffeId(TD, "/b"))
BUNDLE = f"spiffe://{TD}"
NAMES = (str(A.spiffe_id), str(B.spiffe_id), BUNDLE, "default", "ROOTCA")
PATIENCE = 20.0
PATTERN = svid(A)
names = st.lists(st.sampled_from((*NAMES, "*", "no-such-name")), unique=True, max_size=4).map(tuple)


class StoreWorld(World):
    """What the store has, under the names that a client may use."""

    def follow(self, at: Serving) -> None:
        self.contents.clear()
        for identity in (A, B):
            if (stored := at.store.svid(identity)) is not None:
                self.contents[str(identity.spiffe_id)] = stored.version
                if identity == A:
                    self.contents["default"] = stored.version
        if (bundle := at.store.bundle(TD)) is not None:
            self.contents[BUNDLE] = self.contents["ROOTCA"] = bundle.version


class Machine(RuleBasedStateMachine):
    """The client takes every response before the next step, ACKing or NACKing it."""

    delta: ClassVar[bool]

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.world = StoreWorld(long_names=NAMES[:3])
        self.client = Client(delta=self.delta, world=self.world)
        self.count = self.sent = self.read = 0
        self.versions: dict[bytes, str] = {}
        self.at: Serving
        self.stream: Any = None

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        self.runner.run(work)

    # --- the wire -------------------------------------------------------------------------------

    async def send(self, request: Request) -> None:
        self.sent += 1
        if self.delta:
            await self.stream.ask(
                *request.subscribe,
                unsubscribe=request.unsubscribe,
                initial=request.initial,
                nonce=request.nonce,
                error=request.error,
            )
        else:
            await self.stream.ask(*request.names, nonce=request.nonce, error=request.error)

    async def settle(self, *, accept: bool = True) -> None:
        """Take all responses, the first one as ``accept`` says, until the server has no more."""
        self.world.follow(self.at)
        counted = self.at.tally.events
        async with asyncio.timeout(PATIENCE):
            while counted[Event.RESPONSE] > self.read or self.server_is_busy():
                if counted[Event.RESPONSE] == self.read:
                    await asyncio.sleep(0.001)
                    continue
                self.client.queue.append(self.understood(await self.stream.next()))
                self.read += 1
                await self.send(self.client.take(accept=accept))
                accept = True
        assert self.client.has_converged(), (self.client, self.world)

    def server_is_busy(self) -> bool:
        """Whether a request is on its way to it, a name to look at, or a response to write."""
        return self.at.tally.events[Event.REQUEST] < self.sent or any(
            session.has_stale or any(one._writing or one._taking for one in session.streams)
            for session in self.at.service.sessions()
        )

    def understood(self, message: Any) -> Response:
        if self.delta:
            resources = {one.name: one.version for one in message.resources}
            return Response(message.nonce, resources, tuple(message.removed_resources))
        found = {}
        for name, secret in secrets(message).items():
            # Each content was stored once, so it tells its version.
            content = secret.tls_certificate.certificate_chain.inline_bytes
            content = content or secret.validation_context.trusted_ca.inline_bytes
            found[name] = self.versions[content]
        if len(found) == 1:
            assert set(found.values()) == {message.version_info}
        return Response(message.nonce, found)

    def put(self, identity: Identity) -> None:
        """A new SVID: its content need not be a certificate, but is unlike any other."""
        self.count += 1
        chain = (b"chain %d" % self.count,)
        new = dataclasses.replace(PATTERN, identity=identity, chain=chain)
        self.versions[pem(chain)] = self.at.store.put_svid(new)

    def put_root(self) -> None:
        self.count += 1
        roots = (b"root %d" % self.count,)
        self.versions[pem(roots)] = self.at.store.put_bundle(TD, roots)

    async def reopen(self) -> None:
        if self.stream is not None:
            self.stream.cancel()
            async with asyncio.timeout(PATIENCE):
                while self.at.service.sessions():
                    await asyncio.sleep(0.001)
        self.stream = Delta(self.connection) if self.delta else Sotw(self.connection)

    # --- what can happen ------------------------------------------------------------------------

    @initialize(first=names, there=st.sets(st.sampled_from((A, B))), bundle=st.booleans())
    def begin(self, first: tuple[str, ...], there: set[Identity], bundle: bool) -> None:  # noqa: FBT001  # drawn
        async def work() -> None:
            folder = self.stack.enter_context(tempfile.TemporaryDirectory())
            self.at = await self.stack.enter_async_context(
                serving(Path(folder), identities=(A, B), empty=True)
            )
            self.connection = await self.stack.enter_async_context(channel(self.at.target))
            for identity in sorted(there, key=str):
                self.put(identity)
            if bundle:
                self.put_root()
            self.world.follow(self.at)
            await self.reopen()
            await self.send(self.client.connect(first))
            await self.settle()

        self.run(work())

    @rule(identity=st.sampled_from((A, B)), accept=st.booleans())
    def rotate(self, identity: Identity, *, accept: bool) -> None:
        async def work() -> None:
            self.put(identity)
            await self.settle(accept=accept)

        self.run(work())

    @rule(identity=st.sampled_from((A, B)))
    def withdraw(self, identity: Identity) -> None:
        async def work() -> None:
            self.at.store.withdraw_svid(identity)
            await self.settle()

        self.run(work())

    @rule(accept=st.booleans())
    def new_root(self, *, accept: bool) -> None:
        async def work() -> None:
            self.put_root()
            await self.settle(accept=accept)

        self.run(work())

    @rule(wanted=names, unwanted=names)
    def change_names(self, wanted: tuple[str, ...], unwanted: tuple[str, ...]) -> None:
        async def work() -> None:
            if self.delta:
                await self.send(self.client.resubscribe(wanted, unwanted))
            else:
                await self.send(self.client.rename(wanted))
            await self.settle()

        self.run(work())

    @rule(wanted=names)
    def reconnect(self, wanted: tuple[str, ...]) -> None:
        async def work() -> None:
            await self.reopen()
            await self.send(self.client.connect(wanted))
            await self.settle()

        self.run(work())

    def teardown(self) -> None:
        async def work() -> None:
            if self.stream is not None:
                self.stream.cancel()
            await self.stack.aclose()

        self.run(work())
        self.runner.close()


class SotwMachine(Machine):
    delta = False


class DeltaMachine(Machine):
    delta = True


SETTINGS = settings(
    max_examples=15,
    stateful_step_count=12,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestSotw = SotwMachine.TestCase
TestSotw.settings = SETTINGS
TestDelta = DeltaMachine.TestCase
TestDelta.settings = SETTINGS
