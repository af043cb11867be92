"""Answers of publishers: how much is read, and how long a publisher without one is left alone.

Invariant: at most one byte more of a body is kept than its caller accepts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sds.backoff import Backoff

if TYPE_CHECKING:
    import aiohttp

AFTER_FAILURE: Final = Backoff(first=10.0, longest=3600.0)
"""How long a source of VCEKs is left alone after failures."""


async def read_body(answer: aiohttp.ClientResponse, most: int) -> bytes:
    """Read the body; if it is longer than ``most`` bytes, read only a little more than that."""
    body = await answer.content.read(most + 1)
    while len(body) <= most and not answer.content.at_eof():
        body += await answer.content.read(most + 1)
    return body
