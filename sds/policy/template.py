"""The document that ``sds policy new`` begins with.

Owns that text only. Invariant: it is a valid policy that allows only what its author writes into
it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from sds.settings import yamlfile

if TYPE_CHECKING:
    from datetime import datetime

    from sds.identity import TrustDomain

_TEMPLATE: Final = """\
# Policy of the trust domain {trust_domain}. docs/policy.md explains every field.
# yaml-language-server: $schema=policy.schema.json
version: 1
trust_domain: {scalar}
# Raise it with every change: an epoch that was in force never comes back.
epoch: {epoch}
not_before: {not_before:%Y-%m-%dT%H:%M:%SZ}
# From this moment on nothing is allowed, unless a later epoch came first.
not_after: {not_after:%Y-%m-%dT%H:%M:%SZ}
description: ""

# Who must sign the epochs after this one. Leave it out to keep the signers as they are.
# signers:
#   threshold: 2
#   keys:
#     - name: alice
#       public_key: |
#         -----BEGIN PUBLIC KEY-----
#         …

# Which evidence is acceptable at all (docs/attestation.md). Left out, each side's own
# configuration says.
reference_values: {{}}
#  agents:
#    measurements: ["<96 hexadecimal digits>"]
#    snp:
#      products: [genoa]
#      minimum_tcb:
#        genoa: {{bootloader: 10, tee: 0, snp: 23, microcode: 84}}
#  authorities:
#    measurements: ["<96 hexadecimal digits>"]

limits:
  max_lifetime: 24h
  key_types: [ec-p256, ec-p384]

# Which nodes may ask the authority for which identities.
# In patterns * stands for (the rest of) one segment, ** at the end for one or more.
nodes: []
#  - name: workers
#    measurements: ["<96 hexadecimal digits>"]
#    grants:
#      - spiffe_ids: ["spiffe://{trust_domain}/ns/*/sa/*"]
#        dns_names: ["**.svc.cluster.local"]
#        max_lifetime: 1h

# Which callers on a node's socket have which identity. The first rule that matches decides.
workloads: []
#  - name: pods
#    match: {{"k8s:ns": "*", "k8s:sa": "*"}}
#    spiffe_id: "spiffe://{{trust_domain}}/ns/{{namespace}}/sa/{{service_account}}"

# Names for sets of identities, asked for as outbound:<name>.
services: {{}}
#  db: spiffe://{trust_domain}/ns/shop/sa/db

# Who may open connections to whom. Nobody else may.
allow: []
#  - from: spiffe://{trust_domain}/ns/shop/sa/web
#    to: spiffe://{trust_domain}/ns/shop/sa/db
"""


def template(
    trust_domain: TrustDomain, *, epoch: int, not_before: datetime, not_after: datetime
) -> str:
    """Make a commented document for this trust domain, epoch and validity period (aware, UTC)."""
    plain = yamlfile.parse(str(trust_domain).encode(), what="trust_domain") == trust_domain
    return _TEMPLATE.format(
        trust_domain=trust_domain,
        scalar=trust_domain if plain else json.dumps(trust_domain),  # such as the name 2026
        epoch=epoch,
        not_before=not_before,
        not_after=not_after,
    )
