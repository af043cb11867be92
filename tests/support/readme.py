"""The commands of a Markdown page, as a reader would type them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, heading: str) -> list[str]:
    """The ``sh`` blocks under a heading (of any level), in order."""
    text = page.read_text()
    parts = re.split(r"^#+ (.+)$", text, flags=re.MULTILINE)
    for title, body in zip(parts[1::2], parts[2::2], strict=True):
        if title == heading:
            return _BLOCK.findall(body)
    message = f"{page} has no heading {heading!r}"
    raise AssertionError(message)
