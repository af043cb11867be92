"""What an agent makes of a change of policy: its end gives nothing back, and no part keeps others
from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from sds.agent import build
from sds.agent.app import running_agent
from sds.agent.config import AgentConfig
from sds.agent.policy import AgentPolicy
from sds.settings.yamlfile import validate
from sds.workload.entitlement import Caller, Entitlement
from tests.support.clock import FakeClock
from tests.support.policies import Signatory, document, sign

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sds.agent.workload_settings import WorkloadSection

ALICE = Signatory("alice")
WEB = "spiffe://example.org/web"
GIVES_ANOTHER: dict[str, Any] = {
    "workloads": [{"name": "other", "match": {"socket:name": "other"}, "spiffe_id": WEB}]
}
GIVES_WEB: dict[str, Any] = {
    "workloads": [{"name": "web", "match": {"socket:name": "web"}, "spiffe_id": WEB}]
}
HOUR = 3600


def configured(
    folder: Path, clock: FakeClock, authority: dict[str, Any] | None = None, **fields: Any
) -> AgentConfig:
    """An agent whose authority follows no policy."""
    (folder / "alice.pub").write_text(ALICE.public.pem)
    (folder / "policy.json").write_bytes(epoch(1, clock, **fields))
    written = {
        "trust_domain": "example.org",
        "run_dir": str(folder / "run"),
        "authority": authority
        or {
            "kind": "istio",
            "addresses": ["ca.test:1"],
            "root": str(folder / "root.pem"),
            "token": str(folder / "token"),
        },
        "workloads": [{"name": "web", "spiffe_id": WEB}],
        "policy": {
            "file": str(folder / "policy.json"),
            "keys": [str(folder / "alice.pub")],
        },
    }
    return validate(written, AgentConfig, what="the configuration")


def agent(folder: Path, clock: FakeClock, **fields: Any) -> tuple[AgentPolicy, WorkloadSection]:
    """The policy of such an agent, and its only workload."""
    config = configured(folder, clock, **fields)
    assert config.policy is not None
    return AgentPolicy(config.policy, config=config, clock=clock), config.sockets_of_their_own[0]


def epoch(number: int, clock: FakeClock, **fields: Any) -> bytes:
    begins = clock.wall.isoformat()
    ends = clock.wall.replace(hour=clock.wall.hour + 1).isoformat()
    return sign(document(number, not_before=begins, not_after=ends, **fields), ALICE)


def test_the_end_of_a_policy_gives_no_socket_back_what_it_took(tmp_path: Path) -> None:
    """Istio's authority, for example, follows no policy, and would issue it."""
    clock = FakeClock()
    policy, web = agent(tmp_path, clock, **GIVES_ANOTHER)
    assert policy.identities(web) == ()
    clock.step(2 * HOUR)
    assert policy.holder.current is None
    assert policy.identities(web) == ()


def test_the_end_of_a_policy_takes_no_socket_what_it_gave(tmp_path: Path) -> None:
    """Certificates end by themselves."""
    clock = FakeClock()
    policy, web = agent(tmp_path, clock, **GIVES_WEB)
    clock.step(2 * HOUR)
    assert policy.identities(web) == (web.identity(),)


@dataclass
class Socket:
    workload: WorkloadSection
    entitlement: Entitlement


@dataclass
class Parts:
    """Everything that follows the policy; one part may fail."""

    fails: str = ""
    told: list[str] = field(default_factory=list)

    def __getattr__(self, name: str) -> Callable[..., None]:
        def tell(*_: object) -> None:
            if name == self.fails:
                raise ZeroDivisionError("on purpose")
            self.told.append(name)

        return tell


@pytest.mark.parametrize("fails", ["ensure", "changed", "replace_rules", "replace", "refresh"])
def test_a_part_that_fails_keeps_no_other_from_a_change(tmp_path: Path, fails: str) -> None:
    clock = FakeClock()
    policy, web = agent(tmp_path, clock, **GIVES_ANOTHER)
    parts: Any = Parts()
    nobody = Entitlement(Caller(name="web", selectors=frozenset(), identities=()))
    socket: Any = Socket(web, nobody)
    policy.follow(service=parts, rotation=parts, federation=parts, sockets=[socket], node=parts)
    parts.told.clear()
    parts.fails = fails
    policy.holder.take(epoch(2, clock, **GIVES_WEB), origin="test")
    expected = {"ensure", "changed", "replace_rules", "replace", "refresh"}
    also = {"changed"} if fails == "ensure" else set()
    assert set(parts.told) == expected - {fails} - also


async def test_what_the_policy_took_is_not_served_at_the_start_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, the agent asked for it, and served it until all its sockets were open."""
    clock = FakeClock()
    config = configured(tmp_path, clock, **GIVES_ANOTHER)
    found: list[object] = []

    def follow(_: AgentPolicy, **parts: Any) -> None:
        found.extend(parts["rotation"].status())
        found.extend(one.entitlement.current.identities for one in parts["sockets"])

    monkeypatch.setattr(AgentPolicy, "follow", follow)
    async with running_agent(config, clock=clock):
        assert found == [()]


@pytest.mark.parametrize(
    ("demanded", "warned"),
    [
        ({}, True),
        ({"authorities": {}}, True),
        ({"authorities": {"measurements": [48 * "ab"]}}, False),
    ],
)
def test_a_policy_that_lets_any_machine_be_the_authority_is_noticed(
    tmp_path: Path, demanded: dict[str, Any], *, warned: bool
) -> None:
    """Before, any policy silenced this."""
    clock = FakeClock()
    config = configured(tmp_path, clock, {"addresses": ["ca.test:1"]}, reference_values=demanded)
    assert config.policy is not None
    policy = AgentPolicy(config.policy, config=config, clock=clock)
    said = build.warnings(config, policy)
    assert any("can pose as the authority" in line for line in said) is warned
