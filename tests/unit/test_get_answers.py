"""What ``sds get`` says of answers that no agent gives."""

from __future__ import annotations

import pytest
from click.testing import CliRunner
from envoy.extensions.transport_sockets.tls.v3 import (
    secret_pb2,
    tls_spiffe_validator_config_pb2,
)

from sds.commands import get as module
from sds.errors import SocketError


def no_roots() -> bytes:
    secret = secret_pb2.Secret(name="a")
    validator = secret.validation_context.custom_validator_config
    validator.typed_config.Pack(tls_spiffe_validator_config_pb2.SPIFFECertValidatorConfig())
    return bytes(secret.SerializeToString())


def odd_key() -> bytes:
    secret = secret_pb2.Secret(name="a")
    secret.tls_certificate.private_key.inline_bytes = b"\xff"
    return bytes(secret.SerializeToString())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a", b"\xff\xff"),
        ("a", no_roots()),
        ("a", odd_key()),
        ("authorization", b"\xff\xff"),
    ],
    ids=["no secret", "no roots", "odd key", "no filter"],
)
def test_an_odd_answer_is_said(name: str, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fetched(_path: str, _names: object) -> list[tuple[str, str, bytes]]:
        return [(name, "1", content)]

    monkeypatch.setattr(module, "_fetch", fetched)
    arguments = ["--socket", "/run/x", "--show-private-key", name]
    found = CliRunner().invoke(module.get, arguments).exception
    assert isinstance(found, SocketError)
    assert "cannot be shown" in str(found)
