"""A model of a client against the pure core, in state of the world and in delta."""

from __future__ import annotations

import copy
import itertools
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar
from unittest import mock

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sds.serving import slices
from sds.serving.subscription import (
    MAX_OUTSTANDING,
    DeltaRequest,
    DeltaSubscription,
    Receipt,
    SotwRequest,
    SotwSubscription,
)
from sds.serving.subscription.state import Watch
from tests.support.xds_model import ALIASES, NAMES, Client, Request, Response, World

if TYPE_CHECKING:
    from collections.abc import Collection

names = st.lists(st.sampled_from((*NAMES, "*", "no-such-name")), unique=True, max_size=4).map(tuple)


@dataclass(frozen=True)
class Thing:
    receipt: Receipt
    size: int = 1


class WorldView:
    """The world as the core looks at it."""

    def __init__(self, world: World) -> None:
        self.world = world

    def find(self, name: str) -> Thing | None:
        version = self.world.contents.get(name)
        return None if version is None else Thing(Receipt(name, version))

    def is_expected(self, name: str) -> bool:
        return name in ALIASES

    def everything(self) -> Collection[str]:
        return self.world.everything()


def state_of(core: Any) -> dict[str, Any]:
    """Return everything that a subscription knows."""
    found = {}
    for kind in type(core).__mro__:
        for name in getattr(kind, "__slots__", ()):
            found[name] = getattr(core, name, None)
    found["_watches"] = {
        name: [getattr(watch, field) for field in Watch.__slots__]
        for name, watch in core._watches.items()
    }
    return found


class Machine(RuleBasedStateMachine):
    """One client, one stream at a time, responses delayed at will."""

    delta: ClassVar[bool]
    most: ClassVar[int] = sys.maxsize
    """Names that one answer looks at, and that one slice of a request has."""

    def __init__(self) -> None:
        super().__init__()
        self.slices = mock.patch.object(slices, "SLICE", self.most)
        self.slices.start()
        self.world = World()
        self.client = Client(delta=self.delta, world=self.world)
        self.versions = itertools.count(1)
        self.nonces = itertools.count(1)
        self.core: Any = None
        self.acked: dict[str, str] = {}

    # --- the server's side ----------------------------------------------------------------------

    def open(self) -> None:
        self.core = DeltaSubscription() if self.delta else SotwSubscription()

    def deliver(self, request: Request) -> None:
        asked = self.as_asked(request)
        before = copy.deepcopy(self.core)
        at_once = self.core.acknowledge(asked)
        if at_once is None:
            assert state_of(self.core) == state_of(before)
            outcomes = self.core.outcomes(asked)
        else:  # it did what the long way does
            outcomes = before.outcomes(asked)
        outcome, *rest = outcomes
        assert not any(one.acked or one.nacked for one in rest)  # answers come with the first
        assert bool(outcome.nacked) <= (request.error is not None)
        assert not (outcome.acked and outcome.nacked)
        for receipt in outcome.acked:
            self.acked[receipt.name] = receipt.version
        if at_once is not None:
            assert (at_once, []) == (outcome, rest)
            assert state_of(self.core) == state_of(before)
            assert not self.core.has_due()
        self.respond()

    def as_asked(self, request: Request) -> DeltaRequest | SotwRequest:
        if not self.delta:
            return SotwRequest(request.names, request.nonce, request.error)
        return DeltaRequest(
            request.subscribe,
            request.unsubscribe,
            request.initial,
            request.nonce,
            request.error,
        )

    def respond(self) -> None:
        while True:
            nonce = f"n{next(self.nonces)}"
            answer = self.core.respond(WorldView(self.world), nonce, self.most)
            if answer is not None and (answer.resources or answer.removed):
                resources = {one.receipt.name: one.receipt.version for one in answer.resources}
                assert len(resources) == len(answer.resources) <= self.most
                self.client.queue.append(Response(nonce, resources, tuple(answer.removed)))
            if not self.core.has_due():
                break
        assert self.core.respond(WorldView(self.world), "again") is None

    # --- what can happen ------------------------------------------------------------------------

    @initialize(first=names, there=st.sets(st.sampled_from(NAMES)))
    def begin(self, first: tuple[str, ...], there: set[str]) -> None:
        for name in sorted(there):
            self.world.contents[name] = f"v{next(self.versions)}"
        self.open()
        self.deliver(self.client.connect(first))

    @rule(changed=st.sets(st.sampled_from(NAMES), min_size=1, max_size=3))
    def put(self, changed: set[str]) -> None:
        for name in sorted(changed):
            self.world.contents[name] = f"v{next(self.versions)}"
        self.core.touch(changed)
        self.respond()

    @rule(gone=st.sets(st.sampled_from(NAMES), min_size=1, max_size=2))
    def withdraw(self, gone: set[str]) -> None:
        for name in gone:
            self.world.contents.pop(name, None)
        self.core.touch(gone)
        self.respond()

    @rule()
    def look_at_everything(self) -> None:
        self.core.touch_all()
        self.respond()

    @rule(changed=st.sets(st.sampled_from(NAMES), min_size=2))
    def change_under_a_slow_reader(self, changed: set[str]) -> None:
        for _ in range(3):
            for name in sorted(changed):
                self.world.contents[name] = f"v{next(self.versions)}"
            self.core.touch(changed)
        before = len(self.client.queue)
        self.respond()
        assert len(self.client.queue) <= before + -(-len(changed) // self.most)

    @precondition(lambda self: self.client.queue)
    @rule(accept=st.booleans())
    def take(self, *, accept: bool) -> None:
        self.deliver(self.client.take(accept=accept))

    @rule(wanted=names, unwanted=names)
    def change_names(self, wanted: tuple[str, ...], unwanted: tuple[str, ...]) -> None:
        if self.delta:
            self.deliver(self.client.resubscribe(wanted, unwanted))
        else:
            self.deliver(self.client.rename(wanted))

    @rule(error=st.none() | st.just("made up"))
    def use_a_made_up_nonce(self, error: str | None) -> None:
        before = len(self.client.queue)
        if self.client.queue or self.client.nonce:
            names_now = () if self.delta else self.client.current_names()
            self.deliver(Request(names=names_now, nonce="made-up", error=error))
            assert len(self.client.queue) == before

    @rule(wanted=names)
    def reconnect(self, wanted: tuple[str, ...]) -> None:
        self.open()
        self.deliver(self.client.connect(wanted))

    @rule()
    def come_to_rest(self) -> None:
        for _ in range(1000):
            if not self.client.queue:
                break
            self.deliver(self.client.take(accept=True))
        assert not self.client.queue, "ACKs are answered without end"
        assert self.client.has_converged(), (self.client, self.world)

    @invariant()
    def nothing_grows(self) -> None:
        if self.core is not None:
            assert len(self.core._outstanding) <= MAX_OUTSTANDING
            assert not self.core._due
            assert not self.core._halves

    def teardown(self) -> None:
        try:
            if self.core is not None:
                self.come_to_rest()
        finally:
            self.slices.stop()


class SotwMachine(Machine):
    delta = False


class DeltaMachine(Machine):
    delta = True


class SlicedSotwMachine(SotwMachine):
    most = 2


class SlicedDeltaMachine(DeltaMachine):
    most = 2


SETTINGS = settings(
    max_examples=80,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestSotw = SotwMachine.TestCase
TestSotw.settings = SETTINGS
TestDelta = DeltaMachine.TestCase
TestDelta.settings = SETTINGS
TestSlicedSotw = SlicedSotwMachine.TestCase
TestSlicedSotw.settings = SETTINGS
TestSlicedDelta = SlicedDeltaMachine.TestCase
TestSlicedDelta.settings = SETTINGS
