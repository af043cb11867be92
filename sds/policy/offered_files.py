"""Reads what the file or the directory of a signed policy offers.

Owns which files are offered, and in which order. Invariants: nothing here is trusted yet; a file
that was cut short takes nothing from the others; what is read is bounded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sds.errors import ConfigurationError, PolicyError
from sds.files import is_folder
from sds.policy.envelope import UNUSABLE, parse_envelope
from sds.policy.succession import split
from sds.settings import yamlfile

if TYPE_CHECKING:
    from pathlib import Path


def read_signed(place: Path, *, max_bytes: int) -> bytes:
    """Read everything that a file or a directory offers, one after the other.

    A file of a directory that is no signed policy, or cannot be read, comes last as a few words
    that are refused, so that it takes nothing from others.

    Raises:
        ConfigurationError: the place cannot be read, or is too large.
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
    broken: list[str] = []
    left = 2 * max_bytes
    for file in files:
        try:
            content = yamlfile.read(file, max_bytes=max_bytes)
        except ConfigurationError as error:
            broken.append(error.message)
            continue
        if why := _fault_of(content):
            broken.append(f"{file}: {why}")
        else:
            whole.append(content)
        left -= len(content)
        if left < 0:
            raise ConfigurationError(
                f"the *.json files of {place} have more than {2 * max_bytes} bytes",
                advice="keep only the policy in force, the newest one and changes of signers there",
            )
    if broken:
        whole.append(UNUSABLE + "; ".join(broken).encode("ascii", "replace"))
    return b"\n".join(whole)


def _fault_of(content: bytes) -> str:
    """Say why a file is no signed policy from its first byte to its last; nothing if it is one."""
    if not content.strip():
        return "it is empty"
    try:
        for part in split(content):
            parse_envelope(part)
    except PolicyError as error:
        return error.message
    return ""
