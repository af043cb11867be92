"""An Azure paravisor, played by a TPM in software and a simulated processor, and its host."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import struct
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import rsa

from sds.attestation.azure.attester import KEY
from sds.attestation.azure.blob import NV_INDEX
from sds.attestation.tpm import commands
from sds.attestation.tpm.device import open_tpm
from sds.attestation.tpm.keys import Attribute, parse_public
from sds.attestation.tpm.wire import Algorithm, sized
from sds.pki import certificate_pem
from tests.support import software_tpm
from tests.support.web_site import site

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

SIGNING_KEY = (
    struct.pack(">HHI", Algorithm.RSA, Algorithm.SHA256, commands.AK_ATTRIBUTES | Attribute.NO_DA)
    + sized(b"")
    + struct.pack(">HHH", Algorithm.NULL, Algorithm.RSASSA, Algorithm.SHA256)
    + struct.pack(">HI", 2048, 0)
    + sized(bytes(256))
)

CONFIGURATION = {
    "console-enabled": True,
    "secure-boot": True,
    "tpm-enabled": True,
    "vmUniqueId": "911B0EF8-9DBA-48B0-B275-4E4DF2D39252",
}


def encoded(number: int) -> str:
    """A Base64urlUInt."""
    raw = number.to_bytes((number.bit_length() + 7) // 8, "big")
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def runtime_data(key: rsa.RSAPublicKey, **configuration: object) -> bytes:
    """The JSON in which the paravisor names the vTPM's key."""
    numbers = key.public_numbers()
    named = {"kid": "HCLAkPub", "key_ops": ["sign"], "kty": "RSA"}
    document = {
        "keys": [{**named, "e": encoded(numbers.e), "n": encoded(numbers.n)}],
        "vm-configuration": {**CONFIGURATION, **configuration},
    }
    return json.dumps(document, separators=(",", ":")).encode()


def blob(report: bytes, runtime: bytes, *, kind: int = 2, version: int = 1) -> bytes:
    """The paravisor's blob: kind 2 is SEV-SNP, 4 is TDX; ``version`` is that of the request."""
    header = b"HCLA" + struct.pack("<III16x", 2, 0x585, 2)
    more = struct.pack("<I", 7) if version > 1 else b""  # IgvmAttestRequestDataExt
    whole = 20 + len(more) + len(runtime)
    sizes = struct.pack("<IIIII", whole, version, kind, 1, len(runtime))
    return header + report.ljust(1184, b"\0") + sizes + more + runtime


def reported(runtime: bytes) -> bytes:
    """The report data that vouches for runtime data."""
    return hashlib.sha256(runtime).digest() + bytes(32)


@contextlib.contextmanager
def paravisor(report: Callable[[bytes], bytes], *, kind: int = 2) -> Iterator[Path]:
    """The socket of a vTPM whose paravisor has a hardware report over its key.

    Args:
        report: makes the hardware report over 64 bytes.
        kind: 2 is SEV-SNP, 4 is TDX.
    """
    with software_tpm.software_tpm() as path:
        with open_tpm(path) as tpm:
            made = commands.create_primary(tpm, commands.OWNER, SIGNING_KEY)
            software_tpm.persist(tpm, made.handle, KEY)
            key = parse_public(made.public).key
            assert isinstance(key, rsa.RSAPublicKey)
            runtime = runtime_data(key)
            contents = blob(report(reported(runtime)), runtime, kind=kind)
            software_tpm.define(tpm, NV_INDEX, contents)
            software_tpm.extend(tpm, 4, hashlib.sha256(b"boot loader").digest())
        yield path


@dataclass
class Host:
    """The instance metadata service, byte for byte as Azure's answers.

    Attributes:
        chain: DER of VCEK, ASK and ARK.
        quote: makes the quote of a TDREPORT.
        later: how many answers say 429 first.
        wait: the Retry-After of those.
        certification: what is answered in place of the certificates.
        hits: requests by path.
    """

    chain: tuple[bytes, ...] = ()
    quote: Callable[[bytes], bytes] = lambda _: b""
    later: int = 0
    wait: str = ""
    certification: str = ""
    hits: Counter[str] = field(default_factory=Counter)
    url: str = ""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Host]:
        """The service while the block runs."""
        app = web.Application()
        app.router.add_get("/metadata/THIM/amd/certification", self._certification)
        app.router.add_post("/acc/tdquote", self._td_quote)
        async with site(app) as port:
            self.url = f"http://127.0.0.1:{port}"
            yield self

    def _refused(self, request: web.Request) -> web.Response | None:
        self.hits[request.path] += 1
        if request.headers.get("Metadata") != "true":
            return web.Response(status=400)
        if self.later:
            self.later -= 1
            return web.Response(status=429, headers={"Retry-After": self.wait} if self.wait else {})
        return None

    async def _certification(self, request: web.Request) -> web.Response:
        if self.certification:
            return web.Response(text=self.certification)
        leaf, *issuers = self.chain
        return self._refused(request) or web.json_response(
            {
                "vcekCert": certificate_pem([leaf]).decode(),
                "tcbm": "DB18000000000004",
                "certificateChain": certificate_pem(issuers).decode(),
                "cacheControl": "86400",
            }
        )

    async def _td_quote(self, request: web.Request) -> web.Response:
        if (refused := self._refused(request)) is not None:
            return refused
        text = (await request.json())["report"]
        quote = self.quote(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        return web.json_response({"quote": base64.urlsafe_b64encode(quote).rstrip(b"=").decode()})
