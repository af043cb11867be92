"""OpenTelemetry traces, where the extra ``otel`` is installed and the environment asks for them.

Owns the switch (the standard ``OTEL_EXPORTER_OTLP_ENDPOINT``) and the two spans: an exchange with
the authority, and the collection of evidence. Invariants: nothing is imported unless asked for;
no span carries a CSR, a token or a key; tracing that fails never disturbs what is traced, since
the library exports in the background.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

import sds
from sds.errors import ConfigurationError, SdsError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sds.attestation.evidence import Attester, Evidence, ReportData
    from sds.authority.port import Authority, Issuance
    from sds.exchange.item import CertificateItem

_SWITCHES: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def wanted(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the environment asks for traces (OpenTelemetry, SDK environment variables)."""
    return environment.get("OTEL_SDK_DISABLED", "").lower() != "true" and any(
        environment.get(name) for name in _SWITCHES
    )


def start(component: str) -> tuple[Any, Callable[[], None]]:
    """Begin to export; returns the tracer and what flushes and ends it.

    Raises:
        ConfigurationError: traces are asked for and the extra is not installed.
    """
    try:
        # OTLP in JSON over HTTP: opentelemetry-proto, which the protobuf exporters need, and
        # xds-protos install the same files, and the older one breaks them.
        from opentelemetry.exporter.otlp.json.http.trace_exporter import (  # noqa: PLC0415  extra
            OTLPSpanExporter,
        )
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415  extra
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415  extra
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415  extra
    except ImportError as error:
        raise ConfigurationError(
            "traces are asked for by the environment, and OpenTelemetry is not installed",
            advice="pip install 'attested-sds[otel]', or unset OTEL_EXPORTER_OTLP_ENDPOINT",
        ) from error
    resource = Resource.create(
        {"service.name": f"attested-sds-{component}", "service.version": sds.__version__}
    )
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider.get_tracer("sds", sds.__version__), provider.shutdown


class TracedAuthority:
    """An authority with a span for each exchange."""

    def __init__(self, inner: Authority, tracer: Any) -> None:
        """``tracer``: from :func:`start`."""
        self._inner = inner
        self._tracer = tracer

    async def issue(self, items: Sequence[CertificateItem]) -> Issuance:
        with self._tracer.start_as_current_span(
            "authority.issue", record_exception=False, set_status_on_exception=True
        ) as span:
            span.set_attribute("sds.items", len(items))
            span.set_attribute("sds.identities", [str(item.identity.spiffe_id) for item in items])
            try:
                issuance = await self._inner.issue(items)
            except SdsError as error:
                span.set_attribute("sds.reason", error.reason)
                raise
            refused = [o.reason for o in issuance.outcomes if isinstance(o, SdsError)]
            span.set_attribute("sds.refusals", refused)
            return issuance


class TracedRootsAuthority(TracedAuthority):
    """The same around an authority that can be asked for its roots alone."""

    async def roots(self) -> tuple[bytes, ...]:
        with self._tracer.start_as_current_span("authority.roots", record_exception=False):
            found: tuple[bytes, ...] = await self._inner.roots()  # type: ignore[attr-defined]  # chosen by whoever wraps
            return found


class TracedAttester:
    """An attester with a span for each piece of evidence."""

    def __init__(self, inner: Attester, tracer: Any) -> None:
        """``tracer``: from :func:`start`."""
        self._inner = inner
        self._tracer = tracer

    async def attest(self, data: ReportData) -> Evidence:
        with self._tracer.start_as_current_span("attester.attest", record_exception=False) as span:
            evidence = await self._inner.attest(data)
            span.set_attribute("sds.evidence.kind", evidence.kind.value)
            span.set_attribute("sds.evidence.digest", evidence.digest)
            return evidence
