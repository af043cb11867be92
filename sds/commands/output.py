"""Writes the output of a command to the path that a person gives.

Invariants: an ordinary file is replaced as a whole, also behind a symbolic link, which stays,
unless its folder cannot be written; a link that the kernel does not follow
(``fs.protected_symlinks``: another user's, in a shared folder) is not followed.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final

from sds.errors import ConfigurationError
from sds.files import check_replaceable, replace_file

if TYPE_CHECKING:
    from pathlib import Path

_MODE: Final = 0o644
"""Of evidence, CSRs and policy, which are public."""


def write_output(path: Path, content: bytes) -> None:
    """Write the output of a command to a path of the user, which may be a pipe.

    An ordinary file is replaced as a whole, so a full disk leaves what was there before. In a
    folder that cannot be written, it is written in place.

    Raises:
        ConfigurationError: the file cannot be written.
    """
    try:
        if _is_replaced(path):
            if path.is_symlink():
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT, _MODE))  # may it be followed?
            replace_file(path.resolve(), content, mode=_MODE)
        else:
            path.write_bytes(content)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from error


def _is_replaced(path: Path) -> bool:
    """Say whether a new file may take this place: no pipe, device or open file has it."""
    try:
        check_replaceable(path)
        ordinary = stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        ordinary = True
    except OSError:
        ordinary = False
    return ordinary and os.access(path.resolve().parent, os.W_OK)
