"""Reads which groups for the key exchange a TLS client offers, and chooses one.

``ssl`` of Python lets a server accept all groups of OpenSSL or one. Among all are some that cost a
hundred times as much, such as ffdhe8192, and a stranger could choose them; one alone would cost
another round trip with clients that begin with a different one. So the server has settings for each
cheap group, and this decides which of them serve a client. Owns that decision. Invariants: any
bytes give a group; where the bytes are not a ClientHello, OpenSSL refuses them under any group.

Sources: RFC 8446, sections 4.1.2, 4.2.7 and 4.2.8; RFC 8422, section 5.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

GROUPS: Final = {0x001D: "X25519", 0x0017: "prime256v1", 0x0018: "secp384r1"}
"""The groups that a client may have, as OpenSSL names them, the cheapest first. gRPC's servers
accept the same."""
DEFAULT: Final = "prime256v1"
"""For a client of which nothing else is known; every OpenSSL has it."""
_MESSAGE_HEAD: Final = 4
_VERSION_AND_RANDOM: Final = 34
_SUPPORTED_GROUPS: Final = 10
_KEY_SHARE: Final = 51


def group_for(hello: bytes | bytearray, groups: Collection[str] = tuple(GROUPS.values())) -> str:
    """Return the group for a client: one with which it began, or else one that it supports.

    Args:
        hello: its ClientHello, with the head of the message.
        groups: those to choose from; :data:`DEFAULT` is always one of them.
    """
    try:
        found = dict(_extensions(memoryview(hello)))
        shared = set(_shares(found.get(_KEY_SHARE, memoryview(b""))))
        supported = set(_numbers(found.get(_SUPPORTED_GROUPS, memoryview(b""))))
    except IndexError:
        return DEFAULT
    for offered in (shared, supported):
        for group, name in GROUPS.items():
            if group in offered and name in groups:
                return name
    return DEFAULT


def _extensions(hello: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield the extensions.

    Raises:
        IndexError: the message is cut off.
    """
    at = _MESSAGE_HEAD + _VERSION_AND_RANDOM
    at += 1 + hello[at]  # the session
    at += 2 + (hello[at] << 8 | hello[at + 1])  # cipher suites
    at += 1 + hello[at]  # compression
    at += 2  # the length of all extensions
    while at < len(hello):
        kind, size = _number(hello, at), _number(hello, at + 2)
        yield kind, hello[at + 4 : at + 4 + size]
        at += 4 + size


def _shares(data: memoryview) -> Iterator[int]:
    """Yield the groups of ``key_share``.

    Raises:
        IndexError: it is cut off.
    """
    at = 2
    while at < len(data):
        yield _number(data, at)
        at += 4 + _number(data, at + 2)


def _numbers(data: memoryview) -> Iterator[int]:
    """Yield the groups of ``supported_groups``.

    Raises:
        IndexError: it is cut off.
    """
    for at in range(2, len(data), 2):
        yield _number(data, at)


def _number(data: memoryview, at: int) -> int:
    return data[at] << 8 | data[at + 1]
