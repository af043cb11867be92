"""The systemd units allow what the programs do."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.support import need

if TYPE_CHECKING:
    from pathlib import Path

UNITS = need.ROOT / "deploy" / "systemd"
GUEST = need.ROOT / "deploy" / "guest" / "mkosi.extra" / "etc" / "systemd" / "system"
WITHIN = {"@privileged": {"@chown"}, "@resources": {"setpriority"}}
"""What the programs need of the sets in @system-service that units take away (systemd.exec(5))."""
AGENTS = (UNITS / "attested-sds-agent.service", GUEST / "attested-sds-agent.service")


def allowed(unit: Path) -> set[str]:
    """Calls and sets that the lines allow, from the first to the last."""
    found: set[str] = set()
    for listed in re.findall(r"^SystemCallFilter=(.*)$", unit.read_text(), re.MULTILINE):
        words = set(listed.removeprefix("~").split())
        if listed.startswith("~"):
            found -= words.union(*(WITHIN.get(word, set()) for word in words))
        else:
            found |= words.union(*(WITHIN.values() if "@system-service" in words else ()))
    return found


@pytest.mark.parametrize(
    ("unit", "needed"),
    [
        # The sockets' group; keys that are never swapped out; the niceness of the looker.
        *(
            (unit, {"@system-service", "@chown", "mlock", "mlockall", "setpriority"})
            for unit in AGENTS
        ),
        (UNITS / "attested-sds-ca.service", {"@system-service", "mlock", "mlockall"}),
        (GUEST / "attested-sds-ca.service", {"@system-service", "mlock", "mlockall"}),
        (UNITS / "attested-sds-admission.service", {"@system-service"}),
    ],
)
def test_a_unit_allows_the_calls_of_its_program(unit: Path, needed: set[str]) -> None:
    assert needed <= allowed(unit)


@pytest.mark.parametrize(
    "unit", sorted([*UNITS.glob("*.service"), *GUEST.glob("attested-sds-*.service")])
)
def test_a_unit_that_is_started_again_is_never_given_up(unit: Path) -> None:
    """By default, systemd gives up after five starts in ten seconds: a device may be that late."""
    text = unit.read_text()
    if "\nRestart=" in text:
        section, _, _ = text.partition("[Service]")
        assert "\nStartLimitIntervalSec=0\n" in section


def test_a_line_that_is_to_be_uncommented_counts_then() -> None:
    """An empty line after it would take everything away that was written before."""
    text = (UNITS / "attested-sds-agent.service").read_text()
    chosen = re.sub(
        r"^#(CapabilityBoundingSet|AmbientCapabilities)=", r"\1=", text, flags=re.MULTILINE
    )
    assert chosen != text
    for name in ("CapabilityBoundingSet", "AmbientCapabilities"):
        *_, last = re.findall(rf"^{name}=(.*)$", chosen, re.MULTILINE)
        assert last == "CAP_SYS_PTRACE"
        assert set(re.findall(rf"^{name}=(.*)$", text, re.MULTILINE)) == {""}


def test_the_guide_installs_and_removes_every_unit_of_a_host() -> None:
    guide = (need.ROOT / "docs/how-to/install-on-a-host.md").read_text()
    for unit in ("attested-sds-ca.service", "attested-sds-agent.service"):
        assert f"install -m 0644 systemd/{unit} /etc/systemd/system/" in guide
        assert re.search(
            r"^# rm -r .*/etc/systemd/system/attested-sds-\*.service\*$", guide, re.MULTILINE
        )
