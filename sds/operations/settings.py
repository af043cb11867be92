"""Sections of the configuration that are about operating: ``metrics:``, ``status_page:``.

Invariant: an address that passed can be listened on; the status page is never on another address
than loopback.
"""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from sds.errors import ConfigurationError
from sds.fields import Settings
from sds.http import ListenAddress


class MetricsSection(Settings):
    """Prometheus metrics over HTTP."""

    listen: str = Field(
        description="`127.0.0.1:9464` or `unix:/path`; serves `/metrics`.",
        examples=["127.0.0.1:9464"],
    )
    remote: bool = Field(
        default=False,
        description="Allow an address that is not loopback: whoever reaches it sees every "
        "identity's name.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        self.address()
        return self

    def address(self) -> ListenAddress:
        """Where to listen."""
        return _parse(self.listen, field="listen", remote=self.remote)


class StatusPageSection(Settings):
    """The status page for people."""

    listen: str = Field(
        description="`127.0.0.1:9465` or `unix:/path`; nothing else is possible.",
        examples=["127.0.0.1:9465"],
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        self.address()
        return self

    def address(self) -> ListenAddress:
        """Where to listen."""
        return _parse(self.listen, field="listen", remote=False)


def _parse(text: str, *, field: str, remote: bool) -> ListenAddress:
    try:
        return ListenAddress.parse(text, field=field, remote=remote)
    except ConfigurationError as error:
        raise ValueError(str(error)) from error
