"""The systemd units allow what the programs do."""

from __future__ import annotations

import re

import pytest

from tests.support import need

UNITS = need.ROOT / "deploy" / "systemd"
PRIVILEGED = {"@chown"}
"""Sets within @privileged, which the units take away (systemd.exec(5))."""


def allowed(unit: str) -> set[str]:
    """Calls and sets that the lines allow, from the first to the last."""
    found: set[str] = set()
    for listed in re.findall(r"^SystemCallFilter=(.*)$", (UNITS / unit).read_text(), re.MULTILINE):
        words = set(listed.removeprefix("~").split())
        if listed.startswith("~"):
            found -= words | (PRIVILEGED if "@privileged" in words else set())
        else:
            found |= words | (PRIVILEGED if "@system-service" in words else set())
    return found


@pytest.mark.parametrize(
    ("unit", "needed"),
    [
        # The sockets' group; keys that are never swapped out.
        ("attested-sds-agent.service", {"@system-service", "@chown", "mlock", "mlockall"}),
        ("attested-sds-ca.service", {"@system-service", "mlock", "mlockall"}),
        ("attested-sds-admission.service", {"@system-service"}),
    ],
)
def test_a_unit_allows_the_calls_of_its_program(unit: str, needed: set[str]) -> None:
    assert needed <= allowed(unit)


def test_the_guide_installs_and_removes_every_unit_of_a_host() -> None:
    guide = (need.ROOT / "docs/how-to/install-on-a-host.md").read_text()
    for unit in ("attested-sds-ca.service", "attested-sds-agent.service"):
        assert f"install -m 0644 systemd/{unit} /etc/systemd/system/" in guide
        assert re.search(
            r"^# rm -r .*/etc/systemd/system/attested-sds-\*.service\*$", guide, re.MULTILINE
        )
