"""The Workload API with the clients that people use: py-spiffe, and go-spiffe built here."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
from typing import TYPE_CHECKING

import pytest
from spiffe import X509Source

from sds.secrets.store import SecretStore
from sds.serving.unsent_secrets import UnsentSecrets
from sds.serving.workload_api import WorkloadApi
from sds.workload.connection_caller import entitlement_of
from sds.workload.recognition import Timing
from tests.support import need
from tests.support.front_door import TRUST_DOMAIN, Door, front_door, rules, unix, until
from tests.support.odd_roots import REFUSED_BY_GO, TAKEN_BY_ALL
from tests.support.process import PATIENCE_SECONDS, output, running
from tests.support.svids import mint, root

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from sds.secrets.store import Svid

pytestmark = pytest.mark.e2e

GO_PROGRAM = need.ROOT / "tests" / "support" / "gospiffe"
BUILD_SECONDS = 600.0


class Node:
    """A front door whose store this test rotates."""

    def __init__(self, door: Door, store: SecretStore) -> None:
        self.door = door
        self.store = store
        self._root = root(TRUST_DOMAIN)
        store.put_bundle(TRUST_DOMAIN, [self._root.der])

    @property
    def address(self) -> str:
        return f"unix://{self.door.path}"

    async def rotate(self) -> Svid:
        """A fresh certificate for the identity that the caller was given."""
        await until(lambda: self.door.keeper.kept, seconds=PATIENCE_SECONDS)
        svid = mint(self._root, self.door.keeper.kept[0])
        self.store.put_svid(svid)
        return svid


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    store = SecretStore()
    async with front_door(
        tmp_path,
        attestors=unix(),
        rules=rules({"unix:uid": str(os.geteuid())}),
        timing=Timing(),
        more=lambda _: (WorkloadApi(store, entitlement_of, unsent=UnsentSecrets(store)).handler(),),
    ) as door:
        yield Node(door, store)


async def test_py_spiffe_gets_an_svid_and_sees_a_rotation(node: Node) -> None:
    opening = asyncio.create_task(
        asyncio.to_thread(X509Source, socket_path=node.address, timeout_in_seconds=30)
    )
    first = await node.rotate()
    source = await opening
    with contextlib.closing(source):
        svid = source.get_x509_context().default_svid
        assert str(svid.spiffe_id) == "spiffe://example.org/r0"
        assert svid.leaf.serial_number == first.serial
        bundle = source.get_bundle_for_trust_domain(svid.spiffe_id.trust_domain)
        assert bundle is not None
        assert len(bundle.x509_authorities) == 1
        second = await node.rotate()
        await until(
            lambda: source.get_x509_context().default_svid.leaf.serial_number == second.serial
        )


@pytest.mark.timeout(BUILD_SECONDS + 120)
async def test_go_spiffe_gets_an_svid_and_sees_a_rotation(node: Node) -> None:
    program = await go_client()
    async with running([program, node.address]) as process:
        first = await node.rotate()
        await process.line(f"^spiffe://example.org/r0 {first.serial:x}$")
        second = await node.rotate()
        await process.line(f"^spiffe://example.org/r0 {second.serial:x}$")


@pytest.mark.timeout(BUILD_SECONDS + 120)
async def test_go_parses_the_roots_that_we_take_and_none_of_the_odd_ones(tmp_path: Path) -> None:
    program = await go_client()
    kinds = {**REFUSED_BY_GO, **TAKEN_BY_ALL}
    roots = tmp_path / "roots"
    roots.write_text("".join(f"{base64.b64encode(make()).decode()}\n" for make in kinds.values()))
    status, said, errors = await output([program, "--parse", roots], seconds=PATIENCE_SECONDS)
    assert status == 0, errors
    found = dict(zip(kinds, said.splitlines(), strict=True))
    assert [kind for kind, text in found.items() if text == "ok"] == list(TAKEN_BY_ALL)


async def go_client() -> Path:
    """The Go program, built into ``.tools/`` where it is not there yet."""
    go = need.tool("go")
    program = need.ROOT / ".tools" / "gospiffe"
    sources = [each.stat().st_mtime for each in GO_PROGRAM.iterdir()]
    if not program.exists() or program.stat().st_mtime < max(sources):
        status, _, errors = await output(
            [go, "build", "-o", program, "."], cwd=GO_PROGRAM, seconds=BUILD_SECONDS
        )
        if status != 0:
            need.missing(f"a Go build of {GO_PROGRAM} ({errors[-300:]})")
    return program
