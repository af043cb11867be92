"""Other trust domains that a policy names: their roots, or where their bundles are served.

Owns that part of the document. Invariant: a valid entry can be used: its roots parse, and its
endpoint is an address to which one can connect.
"""

# ruff: noqa: RUF012  pydantic copies the defaults of fields

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from sds.errors import CertificateError
from sds.pki import certificates_from_pem
from sds.policy.rule_fields import PolicyModel
from sds.settings.field_types import SpiffeIdField, TrustDomainField  # noqa: TC001  pydantic reads them
from sds.settings.https_url import check_https_url


class BundleEndpoint(PolicyModel):
    """Where another trust domain serves its bundle (SPIFFE Federation, section 5)."""

    url: Annotated[str, Field(pattern=r"^https://[^\s]+$"), AfterValidator(check_https_url)]
    profile: Literal["https_web", "https_spiffe"] = "https_web"
    endpoint_spiffe_id: SpiffeIdField | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.profile == "https_spiffe") != (self.endpoint_spiffe_id is not None):
            raise ValueError("endpoint_spiffe_id is needed with https_spiffe, and only there")
        return self


def _roots(pem: str) -> str:
    try:
        certificates_from_pem(pem.encode())
    except CertificateError as error:
        raise ValueError(str(error)) from error
    return pem


class FederatedDomain(PolicyModel):
    """Another trust domain whose identities are known here.

    Attributes:
        trust_domain: its name.
        roots: its root certificates in PEM. Without an endpoint they are its bundle; an
            https_spiffe endpoint is verified with them the first time.
        endpoint: where to fetch newer bundles.
    """

    trust_domain: TrustDomainField
    roots: list[Annotated[str, AfterValidator(_roots)]] = []
    endpoint: BundleEndpoint | None = None

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.roots and self.endpoint is None:
            raise ValueError("roots or an endpoint are needed")
        if self.roots and self.endpoint is not None and self.endpoint.profile == "https_web":
            raise ValueError("https_web takes the bundle from the endpoint alone; leave roots out")
        if self.endpoint is not None and self.endpoint.profile == "https_spiffe" and not self.roots:
            raise ValueError("an https_spiffe endpoint needs roots to begin with")
        return self
