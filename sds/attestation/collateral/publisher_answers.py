"""Answers of publishers: how one is read, and when a publisher that gave none is asked again.

Invariants: a publisher that cannot be asked causes :class:`EndorsementUnavailableError` and no
error of a library; at most one byte more of a body is kept than its caller accepts.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from sds.backoff import Backoff
from sds.errors import EndorsementUnavailableError
from sds.http_client import NO_ANSWER
from sds.untrusted_input import words_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    import aiohttp

AFTER_FAILURE: Final = Backoff(first=10.0, longest=3600.0)
"""How long a source of VCEKs is left alone after failures."""


@contextlib.contextmanager
def asking(what: str) -> Iterator[None]:
    """Ask a publisher inside this block; ``what`` is its URL, for the message.

    Raises:
        EndorsementUnavailableError: it does not answer.
    """
    try:
        yield
    except NO_ANSWER as error:
        raise EndorsementUnavailableError(f"{what} does not answer: {words_of(error)}") from error


async def read_body(answer: aiohttp.ClientResponse, most: int) -> bytes:
    """Read the body; if it is longer than ``most`` bytes, read only a little more than that."""
    body = await answer.content.read(most + 1)
    while len(body) <= most and not answer.content.at_eof():
        body += await answer.content.read(most + 1)
    return body
