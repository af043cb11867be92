"""The Envoy in front of our bundle endpoint is accepted by a real Envoy."""

from __future__ import annotations

import subprocess

import pytest

from tests.support import need


@pytest.mark.e2e
def test_envoy_accepts_the_bundle_endpoint() -> None:
    config = need.ROOT / "deploy" / "federation" / "bundle-endpoint.yaml"
    ran = subprocess.run(
        [need.envoy("1.40.0"), "--mode", "validate", "-c", config],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr
