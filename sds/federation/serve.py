"""Our own bundle as a bundle endpoint's answer (SPIFFE Federation, section 5).

Owns the handler. Invariant: it serves public certificates only. TLS is not spoken here: an Envoy
that has its certificate from this agent stands in front
(``deploy/federation/bundle-endpoint.yaml``), so that no key ever needs a file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sds.federation import document

if TYPE_CHECKING:
    from datetime import timedelta

    from aiohttp import web
    from aiohttp.typedefs import Handler

    from sds.identity import TrustDomain
    from sds.secrets.store import SecretStore


def bundle_handler(
    store: SecretStore, trust_domain: TrustDomain, *, refresh_hint: timedelta
) -> Handler:
    """An aiohttp handler that answers with the trust domain's current bundle, 503 before it."""

    async def bundle(request: web.Request) -> web.Response:
        from aiohttp import web  # noqa: PLC0415  imported only where a listener runs

        del request
        stored = store.bundle(trust_domain)
        if stored is None:
            return web.Response(status=503, text="no bundle yet\n")
        return web.Response(
            body=document.render(stored.bundle.roots, refresh_hint=refresh_hint),
            content_type="application/json",
        )

    return bundle
