"""Every task and every callback of the event loop, and what an unexpected exception in it does.

The first test keeps the list complete: a new one is made by ``supervised`` or ``guarded``, or it is
named here with the boundary that it has. The others inject an exception where callers, or parts of
the program, meet. Boundaries of single connections are tested in
``tests/security/test_hostile_connections.py``, of calls and of the transport in
``tests/conformance/test_transport.py`` and ``test_transport_budgets.py``, of the HTTP listeners in
``test_small_http.py``, of the two helpers in ``test_supervision.py`` and
``test_faults.py``.
"""

from __future__ import annotations

import ast
import asyncio
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from sds import faults
from sds.identity import Identity, SpiffeId, TrustDomain
from sds.serving.policy_change_order import PolicyChangeOrder
from sds.serving.session import _deliver
from sds.workload.entitlement import Caller, Entitlement
from sds.workload.kubernetes.watch import ListWatch
from sds.workload.recognition import Recogniser, Timing
from tests.support.clock import FakeClock
from tests.support.front_door import Keeper, rules
from tests.support.source import modules

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator, Sequence

MAKERS = frozenset(
    {
        "add_done_callback",
        "add_reader",
        "add_signal_handler",
        "add_writer",
        "call_at",
        "call_later",
        "call_soon",
        "create_task",
        "create_server",
        "create_unix_server",
        "ensure_future",
        "run_in_executor",
        "server",  # of grpc.aio
        "start_server",
        "submit",
        "to_thread",
        "Thread",
        "Timer",
    }
)
INSIDE = "every task inside is supervised, and there is no other work"
ONE = "its own boundary ends the one thing that failed, and reports it"
AWAITED = "awaited at once by what made it, which answers for it"
LOOP = "the loop reports it (sds.faults.watch_loop), and nothing depends on its return"
RAISED = "what the thread raises is raised where its result is awaited"
STARTED = "its own boundary (Stream._write_in_background) ends the one stream, and reports it"
CALL = "gRPC ends the call, and logs it"
END = "the program is at its start or at its end: an error ends it, with its text"
BOUNDARIES = {
    "sds/agent/app.py:_close": END,
    "sds/agent/app.py:_follow_files": INSIDE,
    "sds/agent/app.py:running_agent": INSIDE,
    "sds/agent/csi_registration.py:registered": ONE,
    "sds/agent/grpc_fallback.py:make_grpc_server": CALL,
    "sds/agent/node_socket.py:NodeSocket.open": INSIDE,
    "sds/authority/channel.py:_dialled": AWAITED,
    "sds/authority/istio.py:IstioAuthority.issue": AWAITED,
    "sds/authority/istio_line.py:IstioLine._close_if_done": LOOP,
    "sds/backoff.py:sleep_unless": AWAITED,
    "sds/ca/unproven_streams.py:ReadingTurns._review": LOOP,
    "sds/ca/run.py:_serve": END,
    "sds/ca/run.py:_ended_by_signals": LOOP,
    "sds/commands/agent.py:_until_stopped": END,
    "sds/commands/demo.py:_ended_by_signals": LOOP,
    "sds/commands/demo.py:_bootstrap_is_imported": RAISED,
    "sds/demo/dev.py:Dev._run": END,
    "sds/demo/run.py:Demo._run": END,
    "sds/demo/supervisor.py:Supervisor.run": END,
    "sds/federation/endpoint.py:fetch": "a timer that only cuts a connection",
    "sds/federation/refresh.py:Federation._start": ONE,
    "sds/operations/hangup.py:_handled": LOOP,
    "sds/operations/http_listener.py:_bind": ONE,
    "sds/operations/log_sink.py:LogSink._keep": "what the system answers is suppressed",
    "sds/operations/notify.py:notify": ONE,
    "sds/secrets/rotation.py:Rotation.run": INSIDE,
    "sds/serving/crowd_trimmer.py:CrowdTrimmer._look": LOOP,
    "sds/serving/crowd_trimmer.py:CrowdTrimmer._wait": LOOP,
    "sds/serving/unsent_secrets.py:UnsentSecrets._after": LOOP,
    "sds/serving/call_output.py:GrpcCallOutput.soon": LOOP,
    "sds/serving/call_output.py:GrpcCallOutput.start": STARTED,
    "sds/serving/call_output.py:GrpcCallOutput.write": AWAITED,
    "sds/threads.py:Lone.run": AWAITED,
    "sds/threads.py:Threads._start_another": RAISED,
    "sds/threads.py:alone": RAISED,
    "sds/transport/accepting.py:Acceptor.__init__": ONE,
    "sds/transport/accepting.py:Acceptor._pause": LOOP,
    "sds/transport/accepting.py:Acceptor._resume": ONE,
    "sds/transport/call.py:Call.start": STARTED,
    "sds/transport/connection_calls.py:Calls._on_opened": LOOP,
    "sds/transport/connection_calls.py:Calls._start": ONE,
    "sds/transport/connected_socket.py:ConnectedSocket._send": LOOP,
    "sds/transport/connected_socket.py:ConnectedSocket.abort": LOOP,
    "sds/transport/input_readiness.py:InputReadiness.expect": ONE,
    "sds/settings/watching.py:follow_folders": "what follows the files is supervised",
    "sds/transport/served_connection.py:ServedConnection._close_soon": LOOP,
    "sds/transport/served_connection.py:ServedConnection._expect_stream": LOOP,
    "sds/transport/served_connection.py:ServedConnection.begin": LOOP,
    "sds/transport/server.py:Server.stop": END,
    "sds/transport/turns.py:Turns._expect_turn": ONE,
    "sds/transport/turns.py:Turns._turn": LOOP,
    "sds/workload/cri/runtime.py:Runtime._retire": LOOP,
    "sds/workload/executables.py:Executables._spawn": AWAITED,
    "sds/workload/executables.py:Executables.read": LOOP,
    "sds/workload/front_door.py:FrontDoor._accepted": ONE,
    "sds/workload/front_door.py:FrontDoor._watch": "the callback was guarded when it was made",
    "sds/workload/recognition.py:Recogniser.until_ready": AWAITED,
}


def made_by_hand() -> set[str]:
    """Where a task or a callback is made that is neither supervised nor guarded."""
    found: set[str] = set()
    for name, tree in modules().items():
        found |= set(_by_hand(tree, name, ()))
    return found


def _by_hand(node: ast.AST, path: str, names: tuple[str, ...]) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        inner = names
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            inner = (*names, child.name)
        if isinstance(child, ast.Call) and getattr(child.func, "attr", "") in MAKERS:
            text = ast.unparse(child)
            if "supervised(" not in text and "guarded(" not in text:
                yield f"{path}:{'.'.join(names)}"
        yield from _by_hand(child, path, inner)


@pytest.mark.no_cover
def test_every_task_and_callback_has_a_boundary() -> None:
    assert made_by_hand() == set(BOUNDARIES)


@pytest.mark.no_cover
def test_every_unexpected_error_is_counted() -> None:
    """What logs a traceback by itself is in no metric."""
    by_hand = {
        path
        for path, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and (
            any(keyword.arg == "exc_info" for keyword in node.keywords)
            or (getattr(node.func, "attr", "") == "exception" and node.args)
        )
    }
    assert by_hand == {"sds/faults.py", "sds/operations/logs.py", "sds/supervision.py"}


def broken(*_: object) -> None:
    raise ZeroDivisionError("on purpose")


def since(before: dict[str, int], where: str) -> int:
    return faults.counts().get(where, 0) - before.get(where, 0)


async def test_a_listener_of_an_entitlement_keeps_no_other_from_hearing() -> None:
    before = dict(faults.counts())
    entitlement = Entitlement(Caller(name="a", selectors=frozenset(), identities=()))
    heard: list[int] = []
    entitlement.listen(lambda: heard.append(1))
    entitlement.listen(broken)
    entitlement.listen(lambda: heard.append(2))
    entitlement.replace(Caller(name="b", selectors=frozenset(), identities=()))
    assert heard == [1, 2]
    assert since(before, "listener") == 1


async def test_a_listener_of_a_watch_ends_no_watch() -> None:
    class Silent:
        async def chunks(self, path: str, params: object = None) -> AsyncGenerator[bytes, None]:
            yield b'{"kind": "List", "items": [], "metadata": {"resourceVersion": "1"}}'

        def lines(self, path: str, params: object, *, idle_seconds: float) -> Any:
            raise AssertionError

    class Kept:
        kind = "List"

        def begin(self) -> None:
            pass

        def read(self, item: object) -> object:
            return item

        def replace(self, kept: Sequence[object]) -> bool:
            return True

        def apply(self, kind: str, item: object) -> bool:
            return True

    before = dict(faults.counts())
    watch = ListWatch(Silent(), FakeClock(), "/api/v1/services", Kept())
    heard: list[int] = []
    watch.listen(broken)
    watch.listen(lambda: heard.append(1))
    assert await watch._list() == "1"
    assert heard == [1]
    assert since(before, "listener") == 1


async def test_a_release_that_fails_ends_no_recognition() -> None:
    class Failing(Keeper):
        def release(self, identity: Identity, *, resting: bool = True) -> None:
            super().release(identity, resting=resting)
            broken()

    before = dict(faults.counts())
    keeper = Failing()
    timing = Timing(linger=0)
    recogniser = Recogniser(
        attestors=[], rules=rules({"unix:uid": "1"}), keeper=keeper, timing=timing
    )
    identity = Identity(spiffe_id=SpiffeId(TrustDomain("example.org"), "/a"))
    for _ in range(2):
        recogniser.wanted.want(identity)
        recogniser.wanted.unwant(identity)
        while keeper.kept:
            await asyncio.sleep(0)
    assert since(before, "release of an identity") == 2


@dataclass(eq=False)
class _Told:
    """Stands for a conversation."""

    stream: Any
    subscription: Any
    type_url: str


async def test_a_conversation_that_cannot_be_told_of_a_change_ends_and_holds_up_no_other() -> None:
    """Before, those behind it kept what the earlier policy allowed."""
    told: list[str] = []

    def conversation(name: str, kind: str, touch: Any) -> Any:
        stream = SimpleNamespace(
            peer="p", kick=lambda: told.append(name), end=lambda _: told.append(f"{name} ends")
        )
        subscription = SimpleNamespace(touch=touch)
        return _Told(stream=stream, subscription=subscription, type_url=kind)

    before = dict(faults.counts())
    order = PolicyChangeOrder(_deliver)
    order.begin("first")
    order.touch(conversation("a", "first", lambda _: None), ("n",))
    order.touch(conversation("b", "second", broken), ("n",))
    order.touch(conversation("c", "second", lambda _: None), ("n",))
    order.release_all()
    assert told == ["a", "b ends", "c"]
    assert since(before, "stream") == 1
