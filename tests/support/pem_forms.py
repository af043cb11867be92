"""A PEM text as people and their editors leave it: each form has the same certificates."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

FORMS: Final[Mapping[str, Callable[[bytes], bytes]]] = {
    "a byte order mark": lambda pem: codecs.BOM_UTF8 + pem,
    "indented, as in YAML": lambda pem: b"".join(
        b"  " + line for line in pem.splitlines(keepends=True)
    ),
    "line ends of CR alone": lambda pem: pem.replace(b"\n", b"\r"),
    "empty lines in between": lambda pem: pem.replace(b"\n", b"\n\n"),
    "a comment beyond ASCII": lambda pem: "# Főtanúsítvány\n".encode() + pem,
}
