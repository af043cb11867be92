"""Checks paths that a person writes in a configuration or on a command line.

Owns the rules for paths and for the file of a private key. Invariant: a path is used exactly as it
is written: text that only a shell or a template replaces (``~``, ``$HOME``, ``${NAME}``) is
refused, and never becomes the name of a file.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Final

from sds.errors import ConfigurationError

# Elsewhere, as in "Outer$Inner.class", both characters are ordinary.
_FOR_SHELLS: Final = re.compile(r"\A~[^/]*(?:/|\Z)|(?<![A-Za-z0-9])\$[A-Za-z_]|\$[{(]")
_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/", re.ASCII)


def parse_path(text: str) -> Path:
    """Parse the path that a configuration names.

    Raises:
        ValueError: the text is empty or a URL, needs a shell, begins or ends with a space, or has a
            character that is not printable.
    """
    if not text:
        raise ValueError("expected a path")
    if not text.isprintable():
        raise ValueError("expected a path of printable characters in one line")
    if text != text.strip():
        raise ValueError("expected a path without a space at its beginning or end")
    if waits_for_a_shell(text):
        raise ValueError("expected the whole path, because nothing here replaces ~ or $NAME")
    if _URL.match(text):
        raise ValueError("expected a path, not a URL")
    return Path(text)


def parse_absolute(text: str) -> str:
    """Parse a path that other programs write too, and that is compared as text.

    Raises:
        ValueError: as for :func:`parse_path`; or the path is not absolute, is ``/``, or has a part
            by which it is another text of the same place.
    """
    parse_path(text)
    if not text.startswith("/"):
        raise ValueError("expected an absolute path")
    if text == "/" or text.startswith("//") or os.path.normpath(text) != text:
        raise ValueError(
            "expected an absolute path below /, without '//', '.', '..' or a slash at its end"
        )
    return text


def waits_for_a_shell(text: str) -> bool:
    """Return whether the path has a part that a shell would replace."""
    return _FOR_SHELLS.search(text) is not None


def is_url(text: str) -> bool:
    """Return whether the text begins with a scheme, as ``unix:/run/x`` does."""
    return _URL.match(text) is not None


def expect_private(path: Path) -> None:
    """Refuse this user's private key file if others may read it; a pipe is always accepted.

    Raises:
        ConfigurationError: others may read it.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
        return
    if found.st_mode & (stat.S_IRGRP | stat.S_IROTH):
        raise ConfigurationError(
            f"others may read the private key {path} (mode {stat.S_IMODE(found.st_mode):04o})",
            advice=f"run `chmod 600 {path}`; if somebody may have read it, make a new key",
        )
