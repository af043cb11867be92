"""Reads DER from PEM text (RFC 7468); no other module parses PEM.

Owns the armour: what a block is, and how text around it is treated. Invariants: the cost is
proportional to the length of the text, whatever it contains; the number of blocks is bounded; a
block that is not closed, or whose inside is not base64, is an error and never skipped; this module
does not interpret the DER. The library reads private keys (``sds.pki.keys``), so that no copy of
one is made here.
"""

from __future__ import annotations

import base64
import binascii
import codecs
from typing import TYPE_CHECKING, Final

from sds.errors import CertificateError

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_BLOCKS: Final = 64
CERTIFICATE: Final = "CERTIFICATE"
REVOCATION_LIST: Final = "X509 CRL"
_BEGIN: Final = b"-----BEGIN "
_END: Final = b"-----END "
_DASHES: Final = b"-----"
_AROUND_LINES: Final = b" \t\v\f\0"
"""White space, and the NUL with which programs in C end a text."""


def pem_blocks(
    text: bytes, *, label: str, what: str = "the PEM text", most: int = MAX_BLOCKS
) -> tuple[bytes, ...]:
    """Return the DER inside every block with this label, in order.

    Skips text between blocks, and blocks with another label (RFC 7468, section 2).

    Args:
        text: PEM, with line ends of any kind; UTF-8's mark may begin it, and a NUL may end it.
        label: the label of the wanted blocks, such as ``CERTIFICATE``.
        what: names the text in errors.
        most: the highest number of blocks that is accepted.

    Raises:
        CertificateError: ``certificate_malformed``: 1. a block is not closed, or closed by another
            label, or has no beginning; 2. its inside is not base64; 3. there is no block with this
            label, or more than ``most``.
    """
    found = [_decoded(lines, what) for name, lines in _blocks(text, what) if name == label]
    if not found or len(found) > most:
        raise CertificateError(
            f"{what} has {len(found) or 'no'} blocks of BEGIN {label}",
            reason="certificate_malformed",
            advice=f"give 1 to {most} blocks of BEGIN {label}",
        )
    return tuple(found)


def _blocks(text: bytes, what: str) -> Iterator[tuple[str, list[bytes]]]:
    """Return label and inner lines of each block; look once at each line, so the cost is linear."""
    opened: bytes | None = None
    lines: list[bytes] = []
    text = text.removeprefix(codecs.BOM_UTF8)
    for line in (line.strip(_AROUND_LINES) for line in text.splitlines()):
        begins = line.startswith(_BEGIN) and line.endswith(_DASHES)
        ends = line.startswith(_END) and line.endswith(_DASHES)
        if opened is None:
            if begins:
                opened, lines = line[len(_BEGIN) : -len(_DASHES)], []
            elif ends:
                raise CertificateError(
                    f"{what} has an END "
                    f"{line[len(_END) : -len(_DASHES)][:32].decode('ascii', 'replace')} without "
                    "its BEGIN",
                    reason="certificate_malformed",
                    advice="begin it with its BEGIN line: five dashes on both sides, no more",
                )
        elif begins or (ends and line[len(_END) : -len(_DASHES)] != opened):
            break
        elif ends:
            yield opened.decode("ascii", "replace"), lines
            opened = None
        else:
            lines.append(line)
    if opened is not None:
        raise CertificateError(
            f"{what} has a block of BEGIN {opened[:32].decode('ascii', 'replace')} that is not "
            "closed by its END",
            reason="certificate_malformed",
            advice="give the whole text",
        )


def der_blocks(content: bytes, *, label: str, what: str) -> tuple[bytes, ...]:
    """Return the DER inside PEM, or the content itself if it is DER (begins with a SEQUENCE).

    Raises:
        CertificateError: ``certificate_malformed``: as for :func:`pem_blocks`.
    """
    if content.startswith(b"\x30"):
        return (content,)
    return pem_blocks(content, label=label, what=what)


def _decoded(lines: list[bytes], what: str) -> bytes:
    try:
        return base64.b64decode(b"".join(lines), validate=True)
    except (binascii.Error, ValueError) as error:
        raise CertificateError(
            f"{what} has a PEM block whose inside is not base64: {error}",
            reason="certificate_malformed",
        ) from error
