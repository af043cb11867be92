"""Checks configured URLs when they are read, not when they are first used.

Owns the check. Invariant: a valid URL has a host that can be looked up and a port that can be
connected to, so that a typo is refused with its field and never appears later; no message repeats a
password.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final
from urllib.parse import urlsplit

_ADVICE: Final = "write it as https://host[:port]/path"
_USER: Final = re.compile(r"//[^/?#\s]*@")
_VISIBLE: Final = re.compile(r"[!-~]{1,2048}", re.ASCII)
# RFC 1123, section 2.1: letters of either case; underscores occur in names of services.
_HOST: Final = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
    r"(?:\.[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*\.?",
    re.ASCII,
)


def check_https_url(text: str) -> str:
    """Return the URL itself if it can be fetched, as far as the text alone can show.

    Raises:
        ValueError: the URL has another scheme, no host, a host that is neither a DNS name nor an
            address, a port outside 1 to 65535, a user or password, a fragment, or characters that
            no URL has (RFC 3986).
    """
    try:
        return _check(text, ("https",))
    except ValueError as error:
        seen = without_password(text)[:300]
        raise ValueError(f"{seen!r} is not a usable URL: {error}; {_ADVICE}") from None


def check_http_url(text: str) -> str:
    """Do what :func:`check_https_url` does, for servers whose answers are signed: HTTP is enough.

    Raises:
        ValueError: as there, or the URL has a query. The caller says what was found.
    """
    try:
        _check(text, ("http", "https"))
        if "?" in text:
            raise ValueError("it has a query")  # noqa: TRY301  one text for both
    except ValueError as error:
        raise ValueError(f"expected a URL that can be fetched, but {error}; {_ADVICE}") from None
    return text


def without_password(text: str) -> str:
    """Return a text for a message, without what stands before the host of a URL in it."""
    return _USER.sub("//…@", text)


def _check(text: str, schemes: tuple[str, ...]) -> str:
    if not _VISIBLE.fullmatch(text):
        raise ValueError("it is empty, too long, or has characters outside of ASCII")
    parts = urlsplit(text)
    port = parts.port  # raises ValueError unless it is a number up to 65535
    if parts.scheme not in schemes:
        raise ValueError("it does not begin with " + " or ".join(f"{one}://" for one in schemes))
    if parts.username is not None or parts.password is not None:
        raise ValueError("it has a user name or password")
    if parts.fragment:
        raise ValueError("it has a fragment")
    if "[" in parts.netloc and not re.fullmatch(r"\[[^\]]*\](:[0-9]+)?", parts.netloc):
        raise ValueError("there is more than the address in brackets")
    if port == 0:
        raise ValueError("port 0 cannot be connected to")
    check_host(parts.hostname or "", bracketed="[" in parts.netloc)
    return text


def check_host(host: str, *, bracketed: bool) -> None:
    """Check that a host can be looked up: a DNS name, or an IP address.

    Args:
        host: the host without brackets.
        bracketed: whether it was in brackets, as IPv6 addresses are.

    Raises:
        ValueError: it is neither.
    """
    if bracketed or re.fullmatch(r"[0-9.]+", host):
        ipaddress.ip_address(host)
    elif not _HOST.fullmatch(host):
        raise ValueError(f"{host[:100]!r} is not the name of a host")
