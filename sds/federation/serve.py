"""Makes the answer of a bundle endpoint from our own bundle (SPIFFE Federation, section 5).

Invariant: the answer contains public certificates only. This module does not speak TLS: an Envoy in
front of it does, with a certificate from this agent (``deploy/federation/bundle-endpoint.yaml``),
so that no key is ever in a file.
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
    """Make a function that returns the document of the domain's bundle, or None before one exists.

    The function renders each bundle once: many agents ask for it, and each root must be parsed.
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
