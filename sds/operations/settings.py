"""Defines the sections of a configuration that name small HTTP listeners.

Invariant: a valid section has an address that can be parsed; an address other than loopback is
accepted only if the section says ``remote``, or if the listener tells nothing but "ready".
"""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from sds.errors import ConfigurationError
from sds.settings.fields import Settings
from sds.settings.listen import SHOWS_IDENTITIES, ListenAddress


class MetricsSection(Settings):
    """Serves Prometheus metrics over HTTP."""

    listen: str = Field(
        description="`127.0.0.1:9464` or `unix:/path`. Serves `/metrics`.",
        examples=["127.0.0.1:9464"],
    )
    remote: bool = Field(
        default=False,
        description="Allow an address other than loopback. Anyone who can reach it sees the "
        "name of every identity.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        self.address()
        return self

    def address(self) -> ListenAddress:
        """Return where to listen."""
        return _parse(
            self.listen, remote=self.remote, why=f"{SHOWS_IDENTITIES}; `remote: true` permits it"
        )


class StatusPageSection(Settings):
    """Serves the status page for people."""

    listen: str = Field(
        description="`127.0.0.1:9465` or `unix:/path`. Only loopback and Unix sockets are allowed.",
        examples=["127.0.0.1:9465"],
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        self.address()
        return self

    def address(self) -> ListenAddress:
        """Return where to listen."""
        return _parse(self.listen, remote=False)


def _parse(text: str, *, remote: bool, why: str = SHOWS_IDENTITIES) -> ListenAddress:
    try:
        return ListenAddress.parse(text, field="listen", remote=remote, why=why)
    except ConfigurationError as error:
        raise ValueError(str(error)) from error


class HealthSection(Settings):
    """Answers the probes of a kubelet or a load balancer."""

    listen: str = Field(
        description="`0.0.0.0:8081`, `127.0.0.1:8081` or `unix:/path`. Serves `/livez` and "
        "`/readyz`."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        self.address()
        return self

    def address(self) -> ListenAddress:
        """Return where to listen: anywhere, because the answers say nothing but "ready"."""
        return _parse(self.listen, remote=True)
