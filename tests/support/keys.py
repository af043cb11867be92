"""Looking for private keys where none may be."""

from __future__ import annotations

import base64
import os
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_MAX_FILE_BYTES = 64 * 2**20


def needles(pem: bytes) -> frozenset[bytes]:
    """Byte strings of which at least one stands wherever the key does, in any usual encoding.

    The secret number itself (raw, as it is inside DER, and in hex), and the base64 of DER at each
    of its three alignments (as it is inside PEM, whatever the line breaks cut off at the ends).
    """
    key = load_pem_private_key(pem, None)
    if isinstance(key, ec.EllipticCurvePrivateKey):
        size = (key.key_size + 7) // 8
        secret = key.private_numbers().private_value.to_bytes(size, "big")
    elif isinstance(key, rsa.RSAPrivateKey):
        prime = key.private_numbers().p
        secret = prime.to_bytes((prime.bit_length() + 7) // 8, "big")
    else:
        secret = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())[-32:]
    part = secret[:30]
    encoded = {
        base64.b64encode(b"\0" * shift + part)[4 if shift else 0 : -4].strip(b"=")
        for shift in range(3)
    }
    lines = {line for line in pem.splitlines() if len(line) >= 24 and b"-----" not in line}
    return frozenset({secret, secret.hex().encode(), *encoded, *lines})


def found_in(content: bytes, keys: Iterable[bytes]) -> bool:
    """Whether any of these keys (PEM) stands in ``content``."""
    return any(needle in content for pem in keys for needle in needles(pem))


def files_changed_since(folder: Path, moment: float) -> Iterator[Path]:
    """Regular files under ``folder``, written since (seconds since the epoch)."""
    pending = [folder]
    while pending:
        try:
            entries = list(os.scandir(pending.pop()))
        except OSError:
            continue
        for entry in entries:
            try:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(folder.__class__(entry.path))
                elif entry.is_file(follow_symlinks=False):
                    found = entry.stat(follow_symlinks=False)
                    if found.st_mtime >= moment and found.st_size <= _MAX_FILE_BYTES:
                        yield folder.__class__(entry.path)
            except OSError:
                continue


def files_with_keys(folder: Path, keys: Iterable[bytes], *, since: float) -> list[Path]:
    """Files under ``folder`` written since, that hold one of these keys (PEM) in any encoding."""
    wanted = frozenset(needle for pem in keys for needle in needles(pem))
    found = []
    for path in files_changed_since(folder, since):
        try:
            content = path.read_bytes()
        except OSError:
            continue
        if any(needle in content for needle in wanted):
            found.append(path)
    return found
