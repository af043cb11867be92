"""Keys of a cluster's tokens: one that is not known is looked for at once, and not for ever."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import weakref
from typing import TYPE_CHECKING, Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from sds.attestation.verifier import EvidenceVerifier
from sds.ca.config import AuthorityConfig
from sds.ca.kubernetes import KubernetesSection, kubernetes_tokens
from sds.ca.token_keys import TokenKeys
from sds.errors import ConfigurationError, EvidenceError, KubernetesError, RefusedError
from sds.identity import parse_trust_domain
from sds.workload.kubernetes.settings import ServerSettings
from tests.support.clock import FakeClock
from tests.support.refusals import refused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

PUBLIC = jwt.get_algorithm_by_name("ES256").to_jwk(
    ec.generate_private_key(ec.SECP256R1()).public_key(), as_dict=True
)


class Cluster:
    """Gives a key set, and counts how often it was asked."""

    def __init__(self, *ids: str) -> None:
        self.ids = list(ids)
        self.reads = 0
        self.down = False

    async def read(self) -> bytes:
        self.reads += 1
        if self.down:
            raise KubernetesError("down", reason="kubernetes_api")
        keys = [{**PUBLIC, "kid": name, "alg": "ES256"} for name in self.ids]
        return json.dumps({"keys": keys}).encode()


@contextlib.asynccontextmanager
async def following(cluster: Cluster, clock: FakeClock) -> AsyncIterator[TokenKeys]:
    keys = TokenKeys(cluster.read, clock=clock)
    task = asyncio.create_task(keys.run())
    await clock.advance(0)
    try:
        yield keys
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_a_new_key_is_known_a_moment_after_its_first_token() -> None:
    clock, cluster = FakeClock(), Cluster("old")
    async with following(cluster, clock) as keys:
        assert keys.key("old").key_id == "old"
        await clock.advance(10)
        cluster.ids.append("new")
        with refused("authority_not_ready") as caught:
            keys.key("new")
        assert caught.value.retriable
        await clock.advance(0)
        assert keys.key("new").key_id == "new"


async def test_a_key_that_is_not_the_clusters_is_looked_for_once() -> None:
    clock, cluster = FakeClock(), Cluster("old")
    async with following(cluster, clock) as keys:
        await clock.advance(10)
        with refused("authority_not_ready"):
            keys.key("foreign")
        await clock.advance(0)
        reads = cluster.reads
        for _ in range(20):
            with refused("signature_invalid"):
                keys.key("foreign")
            await clock.advance(1)
        assert cluster.reads == reads


async def test_strangers_cannot_make_it_ask_often() -> None:
    clock, cluster = FakeClock(), Cluster("old")
    async with following(cluster, clock) as keys:
        for number in range(600):
            with pytest.raises((EvidenceError, RefusedError)):
                keys.key(f"made up {number}")
            await clock.advance(0.1)
        assert cluster.reads <= 22
        assert keys.key("old").key_id == "old"


async def test_an_api_server_that_is_down_costs_no_key(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "sds.ca.token_keys")
    clock, cluster = FakeClock(), Cluster("old")
    async with following(cluster, clock) as keys:
        cluster.down = True
        await clock.advance(300)
        assert keys.key("old").key_id == "old"
        with refused("authority_not_ready"):
            keys.key("new")
        cluster.down = False
        cluster.ids = ["new"]
        await clock.advance(6)
        assert keys.key("new").key_id == "new"
    assert caplog.messages == [
        "the keys of service-account tokens cannot be read",
        "the keys of service-account tokens can be read again",
    ]


async def test_a_token_is_gone_before_the_next_attempt() -> None:
    sent: list[weakref.ref[Token]] = []

    class Token:
        """Something that must not outlive the attempt."""

    class Down(Cluster):
        async def read(self) -> bytes:
            token = Token()
            sent.append(weakref.ref(token))
            raise KubernetesError("down", reason="kubernetes_api")

    gc.disable()
    try:
        async with following(Down(), FakeClock()):
            assert [token() for token in sent] == [None]
    finally:
        gc.enable()


@pytest.mark.parametrize("content", [None, b"", b"{}", b"-----BEGIN PUBLIC KEY-----"])
async def test_a_key_file_that_cannot_be_used_ends_the_start(
    tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "jwks.json"
    if content is not None:
        file.write_bytes(content)
    section = KubernetesSection(
        service_accounts=["a/b"], api=ServerSettings(url="https://127.0.0.1:1"), jwks_file=file
    )
    rules = AuthorityConfig(trust_domain="example.org").issuance()
    with pytest.raises(ConfigurationError, match=r"jwks\.json"):
        async with kubernetes_tokens(
            section,
            trust_domain=parse_trust_domain("example.org"),
            policy=rules,
            verifier=EvidenceVerifier({}),
            clock=FakeClock(),
        ):
            pass


@pytest.mark.parametrize(
    "change", [{"spiffe_id": "{namespace}"}, {"dns_names": ["Web.{namespace}"]}]
)
def test_a_template_that_no_pod_can_fill_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no caller can get a name of"):
        KubernetesSection(service_accounts=["a/b"], **change)
