from __future__ import annotations

import asyncio
import builtins
import gzip
import json
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from sds.attestation.evidence import Evidence, EvidenceKind, ReportData
from sds.authority.port import Issuance
from sds.errors import AuthorityRefusedError, AuthorityUnavailableError, ConfigurationError
from sds.exchange.item import CertificateItem
from sds.identity import Identity, SpiffeId
from sds.operations import traces

if TYPE_CHECKING:
    from collections.abc import Sequence

ITEM = CertificateItem(
    identity=Identity(spiffe_id=SpiffeId.parse("spiffe://a.test/b")), csr=b"a secret request"
)


class Inner:
    def __init__(self, attester: traces.TracedAttester) -> None:
        self.attester = attester
        self.down = False

    async def issue(self, items: Sequence[CertificateItem]) -> Issuance:
        if self.down:
            raise AuthorityUnavailableError("down")
        await self.attester.attest(ReportData(bytes(64)))
        return Issuance(outcomes=(AuthorityRefusedError("no", wire_reason="x"),), roots=())


class Machine:
    async def attest(self, data: ReportData) -> Evidence:
        return Evidence(kind=EvidenceKind.SEV_SNP, report=b"report")


async def test_an_exchange_is_a_span_with_the_evidence_inside_it() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    inner = Inner(traces.TracedAttester(Machine(), tracer))
    authority = traces.TracedAuthority(inner, tracer)
    await authority.issue([ITEM])
    inner.down = True
    with pytest.raises(AuthorityUnavailableError):
        await authority.issue([ITEM])
    evidence, exchange, failed = exporter.get_finished_spans()
    assert evidence.parent is not None
    assert exchange.context is not None
    assert evidence.parent.span_id == exchange.context.span_id
    assert exchange.attributes is not None
    assert exchange.attributes["sds.identities"] == ("spiffe://a.test/b",)
    assert exchange.attributes["sds.refusals"] == ("authority_refused",)
    assert failed.attributes is not None
    assert failed.attributes["sds.reason"] == "authority_unavailable"
    assert not failed.status.is_ok
    assert "secret" not in "".join(span.to_json() for span in (evidence, exchange, failed))


@pytest.mark.parametrize(
    ("environment", "on"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4317"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4317"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "x", "OTEL_SDK_DISABLED": "TRUE"}, False),
    ],
)
def test_the_environment_is_the_switch(environment: dict[str, str], *, on: bool) -> None:
    assert traces.wanted(environment) is on


def test_a_missing_extra_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name.startswith("opentelemetry"):
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigurationError, match=r"attested-sds\[otel\]"):
        traces.start("agent")


async def test_spans_reach_a_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in for the collector only keeps what it is sent (OTLP, JSON over HTTP)."""
    received: list[Any] = []

    async def collect(request: web.Request) -> web.Response:
        received.append(json.loads(zipped(await request.read())))
        return web.json_response({})

    application = web.Application()
    application.router.add_post("/v1/traces", collect)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
        tracer, stop = traces.start("agent")
        await traces.TracedAttester(Machine(), tracer).attest(ReportData(bytes(64)))
        await asyncio.to_thread(stop)
    finally:
        await runner.cleanup()
    (resource,) = received[0]["resourceSpans"]
    names = {a["key"]: a["value"].get("stringValue") for a in resource["resource"]["attributes"]}
    assert names["service.name"] == "attested-sds-agent"
    assert resource["scopeSpans"][0]["spans"][0]["name"] == "attester.attest"


def zipped(body: bytes) -> bytes:
    """The body, unpacked where it was packed."""
    return gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body
