"""Guards the parsing of data from outside: only our own errors come out, in words for people.

Owns :func:`reading`, :func:`words_of` and :data:`EXHAUSTED`. Libraries that parse foreign data
raise their own classes, and more than they document: ``cryptography`` raises ``DuplicateExtension``
and ``InvalidVersion``, which are not ``ValueError``; ``json`` raises ``RecursionError``;
conversions raise ``OverflowError``. Invariant: any exception inside the block becomes the error
that the caller names, with the place in its text; our own errors, and exceptions that end the
process, pass unchanged.
"""

from __future__ import annotations

import contextlib
import errno
import re
from typing import TYPE_CHECKING, Final

from sds.errors import SdsError

if TYPE_CHECKING:
    from collections.abc import Iterator

_TEXT_LENGTH = 300
EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""Errors of the system that say nothing about a file or device: too much is open now."""
_FOR_PROGRAMMERS: Final = re.compile(r"\[Errno -?\d+\] | \(_ssl\.c:\d+\)")


def words_of(error: BaseException) -> str:
    """Return what an error of the system or of a library says, for a message or the log.

    The system's numbers and OpenSSL's places in its source say nothing to a person. An error
    without a text is named by its class, and one for lack of time by what that means.
    """
    said = _FOR_PROGRAMMERS.sub("", str(error)).strip()
    if said:
        return f"{said} is missing" if isinstance(error, KeyError) else said
    return "no answer in time" if isinstance(error, TimeoutError) else type(error).__name__


def is_panic(error: BaseException) -> bool:
    """Return whether a library in Rust panicked (PyO3's class does not derive from Exception).

    The panic unwound, so nothing is half done. A group of errors counts as a panic if nothing else
    in it would end the process.
    """
    if isinstance(error, BaseExceptionGroup):
        return all(map(ends_one_thing, error.exceptions))
    return type(error).__name__ == "PanicException"


def ends_one_thing(error: BaseException) -> bool:
    """Say whether an error ends one request, source or peer, and not the process or the task."""
    return isinstance(error, Exception) or is_panic(error)


@contextlib.contextmanager
def reading(
    what: str, error: type[SdsError], *, reason: str | None = None, advice: str = ""
) -> Iterator[None]:
    """Read foreign data inside the block.

    Args:
        what: names the data and its source; begins the message.
        error: the class to raise instead of what the block raises.
        reason: the reason of that error; its class's own by default.
        advice: what a person can do.

    Raises:
        SdsError: an error of the class ``error``, or one of ours that the block raised.
    """
    try:
        yield
    except SdsError:
        raise
    except Exception as found:  # the boundary: see the module
        said = found.strerror if isinstance(found, OSError) and found.strerror else words_of(found)
        raise error(f"{what}: {said[:_TEXT_LENGTH]}", reason=reason, advice=advice) from found
    except BaseException as found:
        if not is_panic(found):
            raise
        raise error(f"{what}: the parser failed", reason=reason, advice=advice) from found
