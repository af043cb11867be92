"""Data from outside: one boundary that lets only our own errors out.

Owns :func:`reading`. Libraries that parse foreign data raise classes of their own, and more than
they document: ``cryptography`` raises ``DuplicateExtension`` and ``InvalidVersion``, which are no
``ValueError``; ``json`` raises ``RecursionError``; conversions raise ``OverflowError``. Invariant:
inside the block, whatever goes wrong becomes the error that the caller names, with the place in its
text; our own errors pass as they are, and nothing that ends the process is held back.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from sds.errors import SdsError

if TYPE_CHECKING:
    from collections.abc import Iterator

_TEXT_LENGTH = 300


@contextlib.contextmanager
def reading(
    what: str, error: type[SdsError], *, reason: str | None = None, advice: str = ""
) -> Iterator[None]:
    """Read foreign data inside the block.

    Args:
        what: names the data and where it came from; begins the message.
        error: raised instead of what the block raises.
        reason: of that error; its class's own where it is left out.
        advice: what a person can do.

    Raises:
        SdsError: of the class ``error``, or one that the block raised itself.
    """
    try:
        yield
    except SdsError:
        raise
    except Exception as found:  # the boundary: see the module
        text = str(found)[:_TEXT_LENGTH] or type(found).__name__
        raise error(f"{what}: {text}", reason=reason, advice=advice) from found
    except BaseException as found:
        # A panic of a library in Rust: it unwound, so nothing is half done.
        if type(found).__name__ != "PanicException":
            raise
        raise error(f"{what}: the parser failed", reason=reason, advice=advice) from found
