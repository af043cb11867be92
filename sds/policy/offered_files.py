"""Reads what the file or the directory of a signed policy offers.

Owns which files are offered, and in which order. Invariants: nothing here is trusted yet; a file
that was cut short takes nothing from the others; what is read is bounded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sds.errors import ConfigurationError, PolicyError
from sds.files import is_folder
from sds.policy.envelope import parse_envelope
from sds.policy.succession import split
from sds.settings import yamlfile

if TYPE_CHECKING:
    from pathlib import Path

_SHOWN: Final = 256
"""How much of a file that is no policy is offered: enough to be refused."""


def read_signed(place: Path, *, max_bytes: int) -> bytes:
    """Read everything that a file or a directory offers, one after the other.

    A file of a directory that is no signed policy comes last, so that it takes nothing from others.

    Raises:
        ConfigurationError: it cannot be read, or is too large.
    """
    try:
        if not is_folder(place):
            return yamlfile.read(place, max_bytes=max_bytes)
        files = sorted(
            file
            for file in place.iterdir()
            if file.suffix.lower() == ".json" and not file.name.startswith(".")
        )
    except OSError as error:
        raise ConfigurationError(f"{place} cannot be read: {error.strerror}") from error
    if not files:
        raise ConfigurationError(f"the directory {place} has no *.json file")
    whole: list[bytes] = []
    broken: list[bytes] = []
    left = 2 * max_bytes
    for file in files:
        content = yamlfile.read(file, max_bytes=max_bytes)
        if content.strip() and _is_whole(content):
            whole.append(content)
        else:
            broken.append(
                content.strip()[:_SHOWN]
                or f"nothing is in {file.name!r}".encode("ascii", "replace")
            )
        left -= len(content)
        if left < 0:
            raise ConfigurationError(
                f"the *.json files of {place} have more than {2 * max_bytes} bytes",
                advice="keep only the policy in force, the newest one and changes of signers there",
            )
    return b"\n".join([*whole, *broken])


def _is_whole(content: bytes) -> bool:
    """Say whether a file has the form of signed policies, from its first byte to its last."""
    try:
        for part in split(content):
            parse_envelope(part)
    except PolicyError:
        return False
    return True
