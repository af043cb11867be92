"""Defines the ``federation:`` section of the agent's configuration.

Invariant: :mod:`sds.federation.refresh` can use the sources of a valid section as they are; fields
that contradict each other are refused here by name.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Literal, Self

from pydantic import Field, model_validator

from sds.errors import ConfigurationError
from sds.federation.endpoint import BundleServer
from sds.federation.refresh import BundleSource
from sds.settings.field_types import Duration, PathField, Settings, SpiffeIdField, TrustDomainField
from sds.settings.listen import ListenAddress


class BundleSettings(Settings):
    """Another trust domain, and the source of its bundle."""

    trust_domain: TrustDomainField = Field(description="The trust domain whose bundle it is.")
    file: PathField | None = Field(
        default=None,
        description="A bundle document (JWK Set) or PEM roots. The agent notices when it "
        "changes. With `profile: https_spiffe` it is the first bundle, which "
        "verifies the endpoint.",
    )
    endpoint: str | None = Field(
        default=None, description="`https://` URL of a SPIFFE bundle endpoint."
    )
    profile: Literal["https_web", "https_spiffe"] = Field(
        default="https_web",
        description="How the endpoint proves itself. `https_web`: by a certificate of the "
        "public web. `https_spiffe`: by an X.509-SVID.",
    )
    endpoint_spiffe_id: SpiffeIdField | None = Field(
        default=None, description="The endpoint's SPIFFE ID (`https_spiffe` only)."
    )
    root: PathField | None = Field(
        default=None,
        description="PEM roots for `https_web`, in place of the system's.",
    )
    refresh: Duration | None = Field(
        default=None,
        description="How often to fetch it. If unset: as the document says, but at least every "
        "day and at most every minute; otherwise every five minutes.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.endpoint is None and self.file is None:
            raise ValueError("give endpoint, file or both")
        spiffe = self.profile == "https_spiffe"
        if spiffe and (self.endpoint is None or self.endpoint_spiffe_id is None):
            raise ValueError("https_spiffe needs endpoint and endpoint_spiffe_id")
        if self.root is not None and (spiffe or self.endpoint is None):
            raise ValueError("root belongs to https_web, and verifies an endpoint")
        if not spiffe and self.endpoint_spiffe_id is not None:
            raise ValueError("endpoint_spiffe_id belongs to https_spiffe")
        if not spiffe and self.endpoint is not None and self.file is not None:
            raise ValueError("https_web takes the bundle from endpoint alone; leave file out")
        try:
            self.source()
        except ConfigurationError as error:
            raise ValueError(str(error)) from error
        return self

    def source(self) -> BundleSource:
        """Return what this entry means."""
        endpoint = None
        if self.endpoint is not None:
            endpoint = BundleServer(
                url=self.endpoint, spiffe_id=self.endpoint_spiffe_id, root=self.root
            )
        return BundleSource(
            trust_domain=self.trust_domain, endpoint=endpoint, file=self.file, refresh=self.refresh
        )


class ServeSettings(Settings):
    """Serves our own bundle to other trust domains."""

    listen: str = Field(
        description="`127.0.0.1:PORT` or `unix:/path`. Put an Envoy with TLS in front of it.",
        examples=["unix:/run/sds/bundle.sock"],
    )
    refresh_hint: Duration = Field(
        default=timedelta(minutes=5), description="How often others should fetch it."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.refresh_hint % timedelta(seconds=1):
            raise ValueError("refresh_hint: a bundle's document says it in whole seconds: use 1s")
        try:
            self.address()
        except ConfigurationError as error:
            raise ValueError(str(error)) from error
        return self

    def address(self) -> ListenAddress:
        """Return where to listen."""
        why = "it speaks plain HTTP: put an Envoy with TLS in front of it (docs/federation.md)"
        return ListenAddress.parse(self.listen, field="listen", why=why)


class FederationSettings(Settings):
    """Other trust domains whose bundles are served, and our own bundle for others."""

    bundles: tuple[BundleSettings, ...] = Field(
        default=(), description="The trust domains that our workloads accept."
    )
    serve: ServeSettings | None = Field(
        default=None,
        description="Serve our own bundle document at `/bundle`. Without this block it is not "
        "served.",
    )

    def sources(self) -> tuple[BundleSource, ...]:
        """Return what the entries mean."""
        return tuple(entry.source() for entry in self.bundles)
