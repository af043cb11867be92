"""Our own bundle as a bundle endpoint's answer (SPIFFE Federation, section 5).

Invariant: it is public certificates only. TLS is not spoken here: an Envoy that has its certificate
from this agent is in front of it (``deploy/federation/bundle-endpoint.yaml``), so that no key ever
needs a file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sds.federation import document

if TYPE_CHECKING:
    from datetime import timedelta

    from sds.identity import TrustDomain
    from sds.secrets.store import SecretStore


def bundle_document(
    store: SecretStore, trust_domain: TrustDomain, *, refresh_hint: timedelta
) -> bytes | None:
    """The document of the trust domain's current bundle (JSON); None before there is one."""
    stored = store.bundle(trust_domain)
    if stored is None:
        return None
    return document.render(stored.bundle.roots, refresh_hint=refresh_hint)
