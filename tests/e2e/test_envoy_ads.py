"""What an Envoy does with its secrets on one aggregated stream, and no other client does."""

from __future__ import annotations

import contextlib
import copy
import json
from typing import TYPE_CHECKING, Any

import pytest
from envoy.extensions.transport_sockets.tls.v3 import secret_pb2

from sds.bootstrap.build import make_bootstrap
from sds.bootstrap.commented_yaml import to_dict
from sds.bootstrap.plan import Endpoint, Inbound, Protocol, SecretSource
from sds.demo.envoys import LOOPBACK
from sds.serving import encode
from sds.serving.observer import Event
from tests.support.bootstrap_rules import nodes
from tests.support.envoy import Envoy, running_envoy
from tests.support.front_door import until
from tests.support.serving import OTHER, TD, WEB, root, serving, svid

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

pytestmark = pytest.mark.e2e

FOREIGN = f"spiffe://{OTHER}"
QUICK_DRAIN = ("--drain-time-s", "1")
"""A listener that is removed gives back its secrets after so long."""


def bootstrap(socket: Path, *, protocol: Protocol = Protocol.ADS, **more: str) -> dict[str, Any]:
    """One mTLS listener for each name of a validation context, and one with our own."""
    validations: list[str | None] = [*more.values(), None]
    listen = Endpoint(host=LOOPBACK, port=0)
    return to_dict(
        make_bootstrap(
            node="ads",
            secrets=SecretSource(socket=socket, protocol=protocol),
            admin=listen,
            inbound=[Inbound(listen=listen, validation=one) for one in validations],
        )
    )


class Listeners:
    """The listeners of an Envoy, which take them from a file."""

    def __init__(self, made: dict[str, Any], folder: Path) -> None:
        folder.mkdir()
        self.all = made["static_resources"].pop("listeners")
        self._file = folder / "listeners.json"
        made["dynamic_resources"]["lds_config"] = {
            "path_config_source": {
                "path": str(self._file),
                "watched_directory": {"path": str(folder)},
            },
            "resource_api_version": "V3",
        }
        self.put(*self.all)

    def put(self, *listeners: Mapping[str, Any]) -> None:
        kind = "type.googleapis.com/envoy.config.listener.v3.Listener"
        fresh = self._file.with_suffix(".new")
        fresh.write_text(json.dumps({"resources": [{"@type": kind, **one} for one in listeners]}))
        fresh.rename(self._file)


async def waiting(envoy: Envoy) -> list[str]:
    """Names of secrets that a listener waits for."""
    return [
        entry["name"]
        for config in await envoy.config_dump()
        if config["@type"].endswith(".SecretsConfigDump")
        for entry in config.get("dynamic_warming_secrets", [])
    ]


async def test_a_second_user_of_a_name_gets_its_secret_at_once(tmp_path: Path) -> None:
    """Another config source is another subscription: https://github.com/envoyproxy/envoy/issues/47309"""
    async with serving(tmp_path) as at:
        made = bootstrap(at.socket)
        listeners = Listeners(made, tmp_path / "lds")
        (first,) = listeners.all
        second = copy.deepcopy(first) | {"name": "second"}
        for node in nodes(second):
            if "ads" in node:
                node["initial_fetch_timeout"] = "0s"  # it waits for as long as it takes
        async with running_envoy(made, folder=tmp_path) as envoy:
            await envoy.until_live()
            listeners.put(first, second)
            await envoy.address("second")
            assert not await waiting(envoy)
            assert set(await envoy.secrets()) == {"default", "ROOTCA"}
        assert at.tally.events[Event.NACK] == 0


async def test_an_envoy_without_secrets_gets_none_when_it_connects_again(tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as before:
        at = await before.enter_async_context(serving(tmp_path))
        made = bootstrap(at.socket)
        listeners = Listeners(made, tmp_path / "lds")
        async with running_envoy(made, folder=tmp_path, arguments=QUICK_DRAIN) as envoy:
            await envoy.until_live()
            listeners.put()
            (session,) = at.service.sessions()
            await until(lambda: session.watched() == 0)
            await before.aclose()
            async with serving(tmp_path) as again:
                await until(lambda: again.tally.events[Event.REQUEST] == 1)
                assert again.tally.events[Event.SENT] == 0
                listeners.put(*listeners.all)
                await until(lambda: again.tally.events[Event.ACK] > 0)
                await envoy.address("inbound")
                assert not await waiting(envoy)
                assert again.tally.events[Event.SENT] == 2
                assert again.tally.events[Event.NACK] == 0


@pytest.mark.parametrize("protocol", Protocol)
async def test_an_envoy_waits_for_its_first_certificate(tmp_path: Path, protocol: Protocol) -> None:
    async with serving(tmp_path, empty=True) as at:
        made = bootstrap(at.socket, protocol=protocol)
        async with running_envoy(made, folder=tmp_path) as envoy:
            await until(lambda: at.tally.events[Event.ABSENT] == 2)
            at.store.put_bundle(TD, [root("one").der])
            await until(lambda: at.tally.events[Event.ACK] > 0)
            assert (await envoy.get("/ready")).strip() == "INITIALIZING"
            at.store.put_svid(svid())
            await envoy.until_live()
            assert at.tally.events[Event.REMOVED] == 0


@pytest.mark.parametrize("protocol", [Protocol.ADS, Protocol.DELTA_ADS])
async def test_a_secret_that_envoy_refuses_keeps_no_other_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: Protocol
) -> None:
    """When it connects again, all come in one response; it stops at the one that it refuses."""
    async with contextlib.AsyncExitStack() as before:
        at = await before.enter_async_context(serving(tmp_path))
        at.store.put_bundle(OTHER, [root("other").der])
        made = bootstrap(at.socket, protocol=protocol, foreign=FOREIGN)
        for node in nodes(made["static_resources"]["listeners"][0]):
            if node.get("name") == "default":  # that listener has nothing in common with the other
                node["name"] = str(WEB.spiffe_id)
        async with running_envoy(made, folder=tmp_path) as envoy:
            await envoy.until_live()
            await before.aclose()

            def broken(name: str, *_: object) -> bytes:
                secret = secret_pb2.Secret(name=name)
                secret.validation_context.trusted_ca.inline_bytes = b"no certificate"
                encoded: bytes = secret.SerializeToString()
                return encoded

            monkeypatch.setattr(encode, "spiffe_validator", broken)
            async with serving(tmp_path) as again:
                again.store.put_bundle(OTHER, [root("other").der])
                await until(lambda: again.tally.events[Event.NACK] > 0)
                stored = again.store.svid(WEB)
                assert stored is not None
                await until_secret(envoy, "default", stored.version.partition("-")[0])


async def until_secret(envoy: Envoy, name: str, run: str) -> None:
    """Wait until the Envoy has a secret of this run of an agent."""
    for _ in range(1000):
        found = await envoy.secrets()
        if found[name].startswith(run):
            return
    pytest.fail(f"{name} is not of {run} in {found}\n{envoy.process.text}")
