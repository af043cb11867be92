"""Our own bundle as a bundle endpoint's answer (SPIFFE Federation, section 5).

Invariant: it is public certificates only. TLS is not spoken here: an Envoy that has its certificate
from this agent is in front of it (``deploy/federation/bundle-endpoint.yaml``), so that no key ever
needs a file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sds.federation import document

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta

    from sds.identity import TrustDomain
    from sds.secrets.store import SecretStore, StoredBundle


def bundle_documents(
    store: SecretStore, trust_domain: TrustDomain, *, refresh_hint: timedelta
) -> Callable[[], bytes | None]:
    """Make a function that gives the document of the domain's bundle; None before it exists.

    It is made once for each bundle: a fleet of other domains asks for it, and each root is parsed.
    """
    made: tuple[StoredBundle, bytes] | None = None

    def document_now() -> bytes | None:
        nonlocal made
        stored = store.bundle(trust_domain)
        if stored is None:
            return None
        if made is None or made[0] is not stored:
            made = (stored, document.render(stored.bundle.roots, refresh_hint=refresh_hint))
        return made[1]

    return document_now
