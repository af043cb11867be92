"""``sds status`` in text and JSON, from messages that an agent could send."""

from __future__ import annotations

import datetime as dt
import json
import os
import signal
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from sds._proto.sds.agent.v1 import agent_pb2
from sds._proto.sds.workload.v1 import whoami_pb2
from sds.agent.admin import encode
from sds.commands import status as status_command
from sds.commands.json_output import plain
from sds.commands.status import lines, screen
from sds.operations.readiness import Readiness
from sds.operations.state import (
    AgentState,
    ClientState,
    IdentityState,
    PolicyState,
    SubscriptionState,
    WorkloadState,
)

if TYPE_CHECKING:
    from typing import Any

NOW = dt.datetime(2030, 1, 1, 12, tzinfo=dt.UTC)


def spiffe_id(number: int) -> str:
    return f"spiffe://a-rather-long-trust-domain.example/ns/production/sa/workload-{number}"


def state(**changes: Any) -> AgentState:
    given: dict[str, Any] = {
        "now": NOW,
        "started": NOW - dt.timedelta(hours=1),
        "version": "1",
        "pid": 7,
        "trust_domain": "example.org",
        "readiness": Readiness(),
        "draining": False,
        "authority": "ca:1",
    }
    return AgentState(**(given | changes))


def text(shown: AgentState) -> list[str]:
    return [line.plain for line in lines(encode(shown))]


def test_what_a_client_writes_neither_ends_a_line_nor_controls_the_terminal() -> None:
    words = "\x1b[2J\x1b]0;x\x07 no\nready  example.org"
    client = ClientState(
        node=f"n{words}",
        workload="w",
        method="stream",
        subscriptions=(
            SubscriptionState(
                name="authorization", version="1-epoch1-2", state="NACKed", error=words
            ),
        ),
    )
    seen = state(clients=(client,), warnings=(words,), identities=(waiting(1, words),))
    drawn = screen(encode(seen), width=200, height=50)
    for shown in (text(seen), [line.plain for line in drawn]):
        assert all(line.isprintable() for line in shown)
        assert sum("\\x1b[2J" in line for line in shown) == 3
        assert sum(line.startswith("ready") for line in shown) == 1


def waiting(number: int, message: str) -> IdentityState:
    return IdentityState(
        spiffe_id=spiffe_id(number), failed_attempts=number, reason="x", message=message
    )


def test_equal_errors_are_one_line_though_they_name_the_identity() -> None:
    many = tuple(waiting(n, f"no answer for {spiffe_id(n)}") for n in range(1, 251))
    shown = text(state(identities=many, readiness=Readiness(("no certificate yet: a",))))
    assert len(shown) < 260
    assert "250 identities: 250 attempts failed: no answer for SPIFFE ID [x]" in shown
    assert "not ready: no certificate yet: a" in shown


def test_a_failure_that_something_may_cure_is_shown_until_the_next_attempt() -> None:
    (shown,) = [line for line in text(state(identities=(waiting(0, "none"),))) if "[x]" in line]
    assert shown.endswith(": the last attempt failed: none [x]")


def test_kinds_of_errors_are_bounded() -> None:
    many = tuple(waiting(n, f"error {n}") for n in range(50))
    shown = text(state(identities=many))
    assert len([line for line in shown if "[x]" in line]) == 10
    assert "40 more kinds of errors: --output json shows all" in shown


def test_nothing_is_folded_and_the_spiffe_id_is_last() -> None:
    shown = text(state(identities=tuple(waiting(n, "") for n in range(3))))
    (title,) = [line for line in shown if line.startswith("STATE")]
    assert title.endswith("SPIFFE ID")
    for number in range(3):
        (line,) = [line for line in shown if line.endswith(spiffe_id(number))]
        assert line.index(spiffe_id(number)) == title.index("SPIFFE ID")


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (200, 50)])
def test_what_watch_draws_fits_and_keeps_what_is_wrong_in_view(width: int, height: int) -> None:
    good = tuple(
        IdentityState(spiffe_id=spiffe_id(n), condition="valid", not_after=NOW) for n in range(250)
    )
    refused = IdentityState(
        spiffe_id=spiffe_id(999), condition="refused", reason="x", message="a word " * 40 + "why"
    )
    asked = SubscriptionState(name="authorization", version="v-epoch1-a", state="ACKed")
    client = ClientState(workload="web", node="envoy", subscriptions=(asked,))
    shown = screen(
        encode(
            state(
                identities=(*good, refused),
                readiness=Readiness(("no certificate: a",)),
                clients=(client,),
            )
        ),
        width=width,
        height=height - 1,
    )
    plain_lines = [line.plain for line in shown]
    assert len(shown) <= height - 1
    assert all(line.cell_len <= width for line in shown)
    assert "not ready: no certificate: a" in plain_lines
    first = next(n for n, line in enumerate(plain_lines) if line.startswith("STATE")) + 1
    assert plain_lines[first].startswith("refused")
    assert plain_lines[first].endswith("workload-999")
    assert plain_lines[-1].endswith("why [x]")
    (more,) = [line for line in plain_lines if "more identities" in line]
    drawn = sum(line.startswith(("valid", "refused")) for line in plain_lines)
    assert int(more.split()[1]) + drawn == 251


def test_the_time_of_a_renewal_is_said_where_there_is_one() -> None:
    kept = IdentityState(spiffe_id="spiffe://example.org/kept", condition="valid", wanted=False)
    late = IdentityState(spiffe_id="spiffe://example.org/late", condition="valid", renew_at=NOW)
    shown = {line.rpartition("/")[2]: line for line in text(state(identities=(kept, late)))}
    assert " at rest " in shown["kept"]
    assert " due " in shown["late"]


def test_streams_of_the_node_wide_socket_count() -> None:
    one = IdentityState(spiffe_id="spiffe://example.org/pod", condition="valid")
    pods = tuple(
        WorkloadState(
            name=f"shop/pod-{n}", socket="/n", spiffe_ids=("spiffe://example.org/pod",), streams=2
        )
        for n in range(3)
    )
    (line,) = [
        line for line in text(state(identities=(one,), workloads=pods)) if line.endswith("/pod")
    ]
    assert line.split()[4:] == ["6", "-", "shop/pod-0", "+2", "spiffe://example.org/pod"]


def test_a_policy_in_force_is_a_fact_and_no_warning() -> None:
    policy = PolicyState(epoch=2, digest="ab" * 32, not_after=NOW + dt.timedelta(days=1))
    message = encode(state(policy=policy))
    (line,) = [line for line in lines(message) if "epoch 2" in line.plain]
    assert str(line.style) == ""
    assert not message.notices
    none = text(state(policy=PolicyState(problem="the epoch is 1")))
    assert "policy: none in force" in none
    assert "policy refused: the epoch is 1" in none


def test_json_has_numbers_as_numbers_at_every_depth() -> None:
    found = plain(encode(state(identities=(waiting(3, "m"),), policy=PolicyState(epoch=2**40))))
    assert found["identities"][0]["failed_attempts"] == 3
    assert found["policy"]["epoch"] == 2**40
    answer = whoami_pb2.DescribeResponse(
        pid=5, identities=[whoami_pb2.GrantedIdentity(spiffe_id="a", lifetime_seconds=60)]
    )
    assert '"5"' not in json.dumps(plain(answer))
    assert plain(answer)["identities"][0]["lifetime_seconds"] == 60


def asking(node: str, version: str, **changes: Any) -> ClientState:
    given = {"name": "authorization", "version": version, "state": "ACKed"} | changes
    return ClientState(node=node, workload="web", subscriptions=(SubscriptionState(**given),))


def test_which_envoy_enforces_which_epoch() -> None:
    many = [asking(f"envoy-{n}", "a1-epoch7-3") for n in range(1, 6)]
    late = asking("late", "a1-epoch6-1", state="sent", name="authorization-tcp:spiffe://a/b")
    against = asking("old", "a1-epoch7-2", state="NACKed", error="no such field")
    secret = asking("other", "a1-2", name="default")
    shown = text(state(clients=(*many, late, against, secret), policy=PolicyState(epoch=7)))
    assert [line for line in shown if line.startswith("authorization:")] == [
        "authorization: web: epoch 6, sent by late",
        "authorization: web: epoch 7, ACKed by envoy-1, envoy-2, envoy-3 and 2 more",
        "authorization: web: epoch 7, NACKed by old: no such field",
    ]


def test_an_envoy_that_asks_an_agent_without_policy_is_told_what_to_do() -> None:
    shown = text(state(clients=(asking("a", "a1-epoch0-1"),)))
    assert "authorization: web: no policy in force, denies everything, ACKed by a" in shown
    assert any("--no-authorization" in line for line in shown)
    with_policy = text(state(clients=(asking("a", "a1-epoch0-1"),), policy=PolicyState()))
    assert not any("--no-authorization" in line for line in with_policy)


class _Cleanup:
    """Ctrl-C comes while an object is destroyed, where Python drops exceptions, as in gRPC."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1_000):
            pass  # the handler runs between two instructions


def test_watching_ends_also_if_ctrl_c_comes_where_exceptions_are_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []

    def ask(_channel: object, _socket: object) -> agent_pb2.Status:
        asked.append(1)
        if len(asked) == 2:
            _Cleanup()
        assert len(asked) < 4, "nobody listened to Ctrl-C"
        return agent_pb2.Status()

    monkeypatch.setattr(status_command, "_ask", ask)
    monkeypatch.setattr(status_command, "dialled", str)
    monkeypatch.setattr(status_command, "_WATCH_SECONDS", 0.001)
    before = signal.getsignal(signal.SIGINT)
    arguments = ["--socket", "/none.sock", "--watch", "--output", "json"]
    result = CliRunner().invoke(status_command.status, arguments)
    assert (result.exit_code, len(asked)) == (0, 2), result.output
    assert signal.getsignal(signal.SIGINT) is before
