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


def is_panic(error: BaseException) -> bool:
    """Say whether a library in Rust panicked (PyO3's class is no Exception).

    It unwound, so nothing is half done. A group of errors is one where nothing else in it would end
    the process.
    """
    if isinstance(error, BaseExceptionGroup):
        return all(isinstance(one, Exception) or is_panic(one) for one in error.exceptions)
    return type(error).__name__ == "PanicException"


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
        said = found.strerror if isinstance(found, OSError) and found.strerror else str(found)
        text = said[:_TEXT_LENGTH] or type(found).__name__
        raise error(f"{what}: {text}", reason=reason, advice=advice) from found
    except BaseException as found:
        if not is_panic(found):
            raise
        raise error(f"{what}: the parser failed", reason=reason, advice=advice) from found
