"""Envoy takes the settings of its own that the page of policy tells people to write."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.support import need
from tests.support.envoy import VERSIONS, validate

if TYPE_CHECKING:
    from pathlib import Path

PAGE = (need.ROOT / "docs" / "policy.md").read_text()
SINCE = (1, 37)
"""The first version with these settings, as the page says."""
TAKING = [one for one in VERSIONS if tuple(map(int, one.split(".")[:2])) >= SINCE]


def tcp_proxy() -> dict[str, Any]:
    """The settings of the TCP proxy in the paragraph about applications that wait."""
    (said,) = re.findall(r"Envoy 1\.37 and later can wait too: (.+?)\n\n", PAGE, flags=re.DOTALL)
    found = re.findall(r"`(\w+: \w+)`", said)
    assert found
    settings: dict[str, Any] = yaml.safe_load("\n".join(found))
    return settings


@pytest.mark.e2e
@pytest.mark.parametrize("version", TAKING)
async def test_the_settings_of_a_tcp_proxy_that_waits(version: str, tmp_path: Path) -> None:
    kind = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
    proxy = {"@type": kind, "stat_prefix": "tcp", "cluster": "application", **tcp_proxy()}
    listener = {
        "name": "tcp",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}]}
        ],
    }
    resources = {"listeners": [listener], "clusters": [{"name": "application", "type": "STATIC"}]}
    await validate({"static_resources": resources}, folder=tmp_path, version=version)
