"""Simulated machines for tests: one hierarchy a product and a run (RSA-4096 takes a second)."""

from __future__ import annotations

import functools
from datetime import UTC, datetime

from sds.attestation.snp.report import Product, SigningKey
from sds.attestation.snp.simulated import SimulatedRoot

NOW = datetime(2025, 6, 1, tzinfo=UTC)
"""A moment at which every certificate of these roots is valid."""


@functools.cache
def simulated(
    product: Product = Product.GENOA, kind: SigningKey = SigningKey.VCEK
) -> SimulatedRoot:
    """The root of this product and kind of key."""
    return SimulatedRoot.create(product, kind=kind, now=NOW)
