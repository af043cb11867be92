"""Defines the sections of a configuration that name small HTTP listeners.

Invariant: a valid section has an address that can be parsed; an address other than loopback is
accepted only if the section says ``remote``, or if the listener tells nothing but "ready".
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Self

from pydantic import Field, model_validator

from sds.errors import ConfigurationError
from sds.settings.field_types import Settings
from sds.settings.listen import SHOWS_IDENTITIES, ListenAddress


class ListenSection(Settings):
    """The base of sections that name a listener: its address is checked when it is read."""

    @abstractmethod
    def address(self) -> ListenAddress:
        """Return where to listen.

        Raises:
            ConfigurationError: the address has a wrong form or is not allowed.
        """

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        try:
            self.address()
        except ConfigurationError as error:
            raise ValueError(str(error)) from error
        return self


class MetricsSection(ListenSection):
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

    def address(self) -> ListenAddress:
        why = f"{SHOWS_IDENTITIES}; `remote: true` permits it"
        return ListenAddress.parse(self.listen, field="listen", remote=self.remote, why=why)


class StatusPageSection(ListenSection):
    """Serves the status page for people."""

    listen: str = Field(
        description="`127.0.0.1:9465` or `unix:/path`. Only loopback and Unix sockets are allowed.",
        examples=["127.0.0.1:9465"],
    )

    def address(self) -> ListenAddress:
        return ListenAddress.parse(self.listen, field="listen")


class HealthSection(ListenSection):
    """Answers the probes of a kubelet or a load balancer."""

    listen: str = Field(
        description="`0.0.0.0:8081`, `127.0.0.1:8081` or `unix:/path`. Serves `/livez` and "
        "`/readyz`."
    )

    def address(self) -> ListenAddress:
        """Return where to listen: anywhere, because the answers say nothing but "ready"."""
        return ListenAddress.parse(self.listen, field="listen", remote=True)
