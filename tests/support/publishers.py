"""A local imitation of Intel's PCS (or a PCCS) and AMD's KDS, byte for byte what it is given."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import quote

from aiohttp import web

from tests.support.web_site import site

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@dataclass
class Publishers:
    """What the server answers; tests change it while it runs.

    Attributes:
        tcb_infos: FMSPC in lower case -> signed body.
        qe_identity: signed body.
        chain: TCB signing chain, PEM.
        chains: FMSPC in lower case -> another chain that comes with its TCB info.
        lists: ``platform``, ``processor``, ``root`` or an AMD product's name -> DER.
        refusals: path -> answers that come first: status and Retry-After.
        hits: requests by path.
        vceks: chip in hexadecimal -> DER.
        numbers: signed body of the TCB evaluation data numbers, and its chain.
        recoveries: tcbEvaluationDataNumbers that were asked for.
    """

    tcb_infos: dict[str, bytes] = field(default_factory=dict)
    qe_identity: bytes = b""
    chain: bytes = b""
    chains: dict[str, bytes] = field(default_factory=dict)
    lists: dict[str, bytes] = field(default_factory=dict)
    refusals: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    hits: Counter[str] = field(default_factory=Counter)
    vceks: dict[str, bytes] = field(default_factory=dict)
    numbers: tuple[bytes, bytes] = (b"", b"")
    recoveries: set[str] = field(default_factory=set)
    url: str = ""

    @classmethod
    def of_folder(cls, folder: Path, fmspc: str) -> Publishers:
        """What a folder of collateral holds."""
        return cls(
            tcb_infos={fmspc: (folder / "tcb_info.json").read_bytes()},
            qe_identity=(folder / "qe_identity.json").read_bytes(),
            chain=(folder / "tcb_signing_chain.pem").read_bytes(),
            lists={
                "platform": (folder / "pck.crl").read_bytes(),
                "root": (folder / "root.crl").read_bytes(),
            },
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Publishers]:
        """The server while the block runs."""
        app = web.Application()
        app.router.add_get("/tdx/certification/v4/tcb", self._tcb)
        app.router.add_get("/tdx/certification/v4/qe/identity", self._identity)
        app.router.add_get("/tdx/certification/v4/tcbevaluationdatanumbers", self._numbers)
        app.router.add_get("/sgx/certification/v4/pckcrl", self._pck)
        app.router.add_get("/sgx/certification/v4/rootcacrl", self._root)
        app.router.add_get("/vcek/v1/{product}/crl", self._amd)
        app.router.add_get("/vcek/v1/{product}/{chip}", self._vcek)
        async with site(app) as port:
            self.url = f"http://127.0.0.1:{port}"
            yield self

    def _answer(
        self, request: web.Request, body: bytes | None, header: str = "", chain: bytes = b""
    ) -> web.StreamResponse:
        self.hits[request.path] += 1
        waiting = self.refusals.get(request.path)
        if waiting:
            status, later = waiting.pop(0)
            return web.Response(status=status, headers={"Retry-After": later} if later else {})
        if body is None:
            return web.Response(status=404)
        headers = {header: quote(chain or self.chain)} if header else {}
        return web.Response(body=body, headers=headers)

    async def _tcb(self, request: web.Request) -> web.StreamResponse:
        self.recoveries |= set(request.query.getall("tcbEvaluationDataNumber", []))
        fmspc = request.query["fmspc"].lower()
        body, chain = self.tcb_infos.get(fmspc), self.chains.get(fmspc, b"")
        return self._answer(request, body, "TCB-Info-Issuer-Chain", chain)

    async def _identity(self, request: web.Request) -> web.StreamResponse:
        return self._answer(request, self.qe_identity, "SGX-Enclave-Identity-Issuer-Chain")

    async def _numbers(self, request: web.Request) -> web.StreamResponse:
        body, chain = self.numbers
        header = {"TCB-Evaluation-Data-Numbers-Issuer-Chain": quote(chain)}
        return web.Response(body=body, headers=header)

    async def _pck(self, request: web.Request) -> web.StreamResponse:
        assert request.query["encoding"] == "der"
        return self._answer(request, self.lists.get(request.query["ca"]))

    async def _root(self, request: web.Request) -> web.StreamResponse:
        # A PCCS gives it in hexadecimal.
        found = self.lists.get("root")
        return self._answer(request, None if found is None else found.hex().encode())

    async def _amd(self, request: web.Request) -> web.StreamResponse:
        return self._answer(request, self.lists.get(request.match_info["product"].lower()))

    async def _vcek(self, request: web.Request) -> web.StreamResponse:
        return self._answer(request, self.vceks.get(request.match_info["chip"]))
