"""The aggregated stream and FetchSecrets, against a running server over a Unix socket."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
import pytest

from sds.serving.observer import Event
from tests.support.serving import TD, WEB, serving, svid
from tests.support.xds_client import SECRET, Delta, Sotw, channel, fetch, secrets

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("transport")

ID = str(WEB.spiffe_id)
CLUSTER = "type.googleapis.com/envoy.config.cluster.v3.Cluster"


@pytest.mark.parametrize("kind", [Sotw, Delta])
async def test_ads_serves_secrets_and_leaves_other_types_unanswered(
    tmp_path: Path, kind: type[Sotw | Delta], caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        stream = kind(connection, ads=True)
        await stream.ask(type_url=CLUSTER)
        await stream.ask(type_url=CLUSTER)
        await stream.silent()
        assert at.tally.events[Event.OTHER_TYPE] == 2
        assert sum("another type" in record.message for record in caplog.records) == 1
        await stream.ask("default", "ROOTCA")
        assert set(secrets(await stream.next())) == {"default", "ROOTCA"}
        at.store.put_svid(svid())
        assert set(secrets(await stream.next())) == {"default"}
        (session,) = at.service.sessions()
        assert [stream.node.id for stream in session.streams] == ["test-node"]


@pytest.mark.parametrize("kind", [Sotw, Delta])
async def test_on_ads_only_the_star_asks_for_everything(
    tmp_path: Path, kind: type[Sotw | Delta]
) -> None:
    """An Envoy that has removed its last secret sends an empty list when it connects again."""
    async with serving(tmp_path) as at, channel(at.target) as connection:
        stream = kind(connection, ads=True)
        await stream.ask()
        await stream.silent()
        at.store.put_svid(svid())
        await stream.silent()
        await stream.ask("default")
        assert set(secrets(await stream.next())) == {"default"}
        everything = kind(connection, ads=True)
        await everything.ask("*")
        assert set(secrets(await everything.next())) == {str(WEB.spiffe_id), f"spiffe://{TD}"}


@pytest.mark.parametrize("kind", [Sotw, Delta])
async def test_ads_needs_a_type_url(tmp_path: Path, kind: type[Sotw | Delta]) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        stream = kind(connection, ads=True)
        await stream.ask("default", type_url="")
        code, text = await stream.status()
        assert code == grpc.StatusCode.INVALID_ARGUMENT
        assert SECRET in text


@pytest.mark.parametrize(
    ("asked", "got"),
    [
        (("default",), {"default"}),
        (("ROOTCA",), {"ROOTCA"}),
        (("ALL",), {"ALL"}),
        (("default", "ROOTCA", ID), {"default", "ROOTCA", ID}),
        ((), {ID, f"spiffe://{TD}"}),
        (("no-such-name",), set()),
        (("default", "no-such-name"), {"default"}),
    ],
)
async def test_fetch(tmp_path: Path, asked: tuple[str, ...], got: set[str]) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        response = await fetch(connection, *asked)
        assert set(secrets(response)) == got
        assert response.version_info
        assert response.type_url == SECRET


async def test_fetch_answers_at_once_where_nothing_exists(tmp_path: Path) -> None:
    async with serving(tmp_path, empty=True) as at, channel(at.target) as connection:
        response = await fetch(connection, "default")
        assert not response.resources
        assert response.version_info
        assert response.type_url == SECRET


async def test_fetch_of_another_type_is_refused(tmp_path: Path) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await fetch(connection, "default", type_url=CLUSTER)
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert SECRET in (refused.value.details() or "")
