"""Looking for secrets in the memory of another process (needs privilege)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

_LINE_BYTES = 48
"""Bytes in one line of PEM (RFC 7468: 64 characters)."""


def forms(pem: bytes) -> dict[str, bytes]:
    """Every form of an elliptic key that memory could hold, by a name for failures.

    The raw scalar stands inside DER too. Every line of PEM that holds part of it is looked for by
    itself, so that a form cut in two is found.
    """
    key = load_pem_private_key(pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    scalar = key.private_numbers().private_value.to_bytes((key.key_size + 7) // 8, "big")
    der = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    start = der.index(scalar)
    lines = [line for line in pem.splitlines() if b"-----" not in line]
    secret_lines = {
        f"PEM line {number}": line
        for number, line in enumerate(lines)
        if number * _LINE_BYTES < start + len(scalar) and (number + 1) * _LINE_BYTES > start
    }
    assert len(secret_lines) > 1
    return {
        "scalar, big-endian": scalar,
        "scalar, little-endian": scalar[::-1],
        "scalar, hex": scalar.hex().encode(),
        **secret_lines,
    }


def count(pid: int, needles: dict[str, bytes]) -> dict[str, int]:
    """How often each needle stands in the readable memory of a process; only those found."""
    found: dict[str, int] = {}
    for name, number in _found(pid, needles):
        found[name] = found.get(name, 0) + number
    return found


def holds_any(pid: int, needles: dict[str, bytes]) -> bool:
    """Whether any needle stands in the readable memory of a process; looks no further then."""
    return any(_found(pid, needles))


def _found(pid: int, needles: dict[str, bytes]) -> Iterator[tuple[str, int]]:
    """Names of needles, and how often each stands in one span of the readable memory."""
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, permissions, *_ = line.split(maxsplit=5)
            if not permissions.startswith("r"):
                continue
            start, end = (int(part, 16) for part in span.split("-"))
            try:
                memory.seek(start)
                content = memory.read(end - start)
            except (OSError, ValueError, OverflowError):
                continue  # vvar, vsyscall
            for name, needle in needles.items():
                if number := content.count(needle):
                    yield name, number


def writable_files(pid: int) -> set[str]:
    """Paths of regular files that a process has open for writing."""
    found = set()
    for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
        flags = int(
            next(
                line.split()[1]
                for line in entry.read_text().splitlines()
                if line.startswith("flags:")
            ),
            8,
        )
        target = str(Path(f"/proc/{pid}/fd/{entry.name}").readlink())
        if flags & 3 and target.startswith("/"):
            found.add(target)
    return found
